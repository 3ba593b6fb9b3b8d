"""Ring attention: causal attention over sequences that are split over devices.

Each device keeps its queries, while keys and values are passed around the ring (Liu et al. 2023, arXiv:2310.01889). The
backward pass recomputes the weights from the saved outputs and log-sum-exps (Dao 2023, arXiv:2307.08691). A sequence is
cut into 2n equal chunks, of which device i of n holds chunks i and 2n - 1 - i: then a causal mask leaves every device
the same work in every step ("zigzag", Zhu 2024, github.com/zhuzilin/ring-flash-attention).

Shapes: B batch, L length, D width, H heads, G key/value heads, R = H / G query heads for each key/value head, K head
dim, C chunk length; 2 is the two chunks of a device.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.sharding.constraints import shard_map_by_name, split

_MASKED = -1e30
"""The score of a masked pair: finite, so that a chunk with every pair masked gives no NaN."""


def zigzag(length: int) -> np.ndarray:
    """The position of each entry of a sequence in the order that `ring_attention` needs, i[L].

    Raises ConfigError for a length that cannot be cut into 2n equal chunks.
    """
    axes = split("length")
    n = math.prod(axes.values())
    if length % (2 * n):
        raise ConfigError(
            f"ring attention on {' × '.join(f'{axis}={size}' for axis, size in axes.items())} cuts a sequence into "
            f"{2 * n} equal chunks, which a length of {length} does not allow: change the length or the mesh"
        )
    chunks = np.arange(length).reshape(2 * n, -1)
    return np.concatenate([np.concatenate([chunks[i], chunks[2 * n - 1 - i]]) for i in range(n)])


def unzigzag(x_BLD: jax.Array) -> jax.Array:
    """Activations f[B, L, D] from the order of `zigzag` back to 0, 1, …: each device sends its two chunks."""
    axes, n = _ring()

    def local(x_BLD: jax.Array) -> tuple[jax.Array]:
        first_BCD, second_BCD = jnp.split(x_BLD, 2, axis=1)
        sent = []
        for odd in (0, 1):  # each device has one chunk with an even number and one with an odd number
            numbers = [i if i % 2 == odd else 2 * n - 1 - i for i in range(n)]
            chunk_BCD = jnp.where(jax.lax.axis_index(axes) % 2 == odd, first_BCD, second_BCD)
            sent.append(jax.lax.ppermute(chunk_BCD, axes, [(i, number // 2) for i, number in enumerate(numbers)]))
        return (jnp.concatenate(sent, axis=1),)

    names = ("batch", "length", None)
    return shard_map_by_name(local, [names], [names], x_BLD)[0]


def ring_attention(q_BLHK: jax.Array, k_BLGK: jax.Array, v_BLGK: jax.Array, segments_BL: jax.Array | None) -> jax.Array:
    """Causal attention f[B, L, H, K] for positions in the order of `zigzag`; arguments as of `attention`."""
    axes, n = _ring()
    queries, keys = ("batch", "length", "heads", None), ("batch", "length", "kv_heads", None)
    segments_BL = jnp.zeros(q_BLHK.shape[:2], jnp.int32) if segments_BL is None else segments_BL
    given = [queries, keys, keys, ("batch", "length")]

    def local(q_BLHK: jax.Array, k_BLGK: jax.Array, v_BLGK: jax.Array, segments_BL: jax.Array) -> tuple[jax.Array]:
        B, L, H, K = q_BLHK.shape
        q = q_BLHK.reshape(B, 2, L // 2, k_BLGK.shape[2], -1, K).transpose(1, 0, 3, 4, 2, 5)
        k, v = (x.reshape(B, 2, L // 2, -1, K).transpose(1, 0, 3, 2, 4) for x in (k_BLGK, v_BLGK))
        mixed_2BGRCK = _attend(axes, n, q, k, v, segments_BL.reshape(B, 2, -1).swapaxes(0, 1))
        return (mixed_2BGRCK.transpose(1, 0, 4, 2, 3, 5).reshape(B, L, H, K),)

    return shard_map_by_name(local, given, [queries], q_BLHK, k_BLGK, v_BLGK, segments_BL)[0]


def _ring() -> tuple[tuple[str, ...], int]:
    axes = split("length")
    return tuple(axes), math.prod(axes.values())


Tiles = tuple[Any, Any, np.ndarray]
"""Pairs of a query chunk and a key chunk: their numbers (0 or 1) i[tiles] each, and the mask bool[tiles, C, C]."""


def _own_tiles(C: int) -> Tiles:
    below = np.tril(np.ones((C, C), bool))
    return np.array([0, 1, 1]), np.array([0, 0, 1]), np.stack([below, np.ones_like(below), below])


def _received_tiles(step: Any, axes: tuple[str, ...], C: int) -> Tiles:
    """The unmasked pairs with the keys of the device `step` places back in the ring. The second chunk here comes after
    the first chunk of every other device. Of the other pairs exactly one is unmasked: that of the first chunks if that
    device comes earlier, else that of the second chunks.
    """
    other = jnp.where(jax.lax.axis_index(axes) >= step, 0, 1)
    return jnp.stack([1, other]), jnp.stack([0, other]), np.ones((2, C, C), bool)


def _scores(tiles: Tiles, q: jax.Array, k: jax.Array, here: jax.Array, there: jax.Array) -> jax.Array:
    """Masked scores f32[tiles, B, G, R, C, C]; `here` and `there` are the segments of queries and keys."""
    of_q, of_k, seen = tiles
    scores = jnp.einsum("nbgrck,nbgtk->nbgrct", q[of_q], k[of_k], preferred_element_type=jnp.float32)
    together = here[of_q][..., :, None] == there[of_k][..., None, :]
    mask = (seen[:, None] & together)[:, :, None, None]
    return jnp.where(mask, scores * q.shape[-1] ** -0.5, _MASKED)


def _pass_on(tree: Any, axes: tuple[str, ...], n: int) -> Any:
    return jax.lax.ppermute(tree, axes, [(i, (i + 1) % n) for i in range(n)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(axes: tuple[str, ...], n: int, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
    """The output f[2, B, G, R, C, K] for q f[2, B, G, R, C, K], k and v f[2, B, G, C, K] and segments i[2, B, C]."""
    return _forward(axes, n, q, k, v, segments)[0]


def _forward(axes: tuple[str, ...], n: int, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> Any:
    C = q.shape[-2]
    shape = (*q.shape[:-1], 1)
    state = jnp.full(shape, _MASKED), jnp.zeros(shape), jnp.zeros(q.shape, jnp.float32)

    def attend(state: Any, tiles: Tiles, k: jax.Array, v: jax.Array, there: jax.Array) -> Any:
        scores = _scores(tiles, q, k, segments, there)
        top = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - top)
        mixed = jnp.einsum("nbgrct,nbgtk->nbgrck", weights.astype(v.dtype), v[tiles[1]]).astype(jnp.float32)
        for tile in range(len(scores)):
            at = tiles[0][tile]
            before = jax.tree.map(lambda x, at=at: x[at], state)
            after = _merged(before, (top[tile], weights[tile].sum(-1, keepdims=True), mixed[tile]))
            state = jax.tree.map(lambda x, new, at=at: x.at[at].set(new), state, after)
        return state

    def turn(carry: Any, step: jax.Array) -> tuple[Any, None]:
        state, received = carry
        following = _pass_on(received, axes, n)  # overlaps with the attention below
        return (attend(state, _received_tiles(step, axes, C), *received), following), None

    received = _pass_on((k, v, segments), axes, n)
    state = attend(state, _own_tiles(C), k, v, segments)
    (state, received), _ = jax.lax.scan(turn, (state, received), jnp.arange(1, n - 1))
    top, total, mixed = attend(state, _received_tiles(n - 1, axes, C), *received)
    out = (mixed / total).astype(v.dtype)
    return out, (q, k, v, segments, out, top + jnp.log(total))


def _merged(one: Any, other: Any) -> Any:
    """The softmax over two sets of keys, from (largest score, sum of weights, weighted sum of values) of each."""
    top = jnp.maximum(one[0], other[0])
    mine, theirs = jnp.exp(one[0] - top), jnp.exp(other[0] - top)
    return top, one[1] * mine + other[1] * theirs, one[2] * mine + other[2] * theirs


def _backward(axes: tuple[str, ...], n: int, saved: Any, g: jax.Array) -> Any:
    q, k, v, segments, out, logsumexp = saved
    C, dtype = q.shape[-2], q.dtype
    along = (g.astype(jnp.float32) * out).sum(-1, keepdims=True)

    def attend(tiles: Tiles, dq: jax.Array, dkv: Any, k: jax.Array, v: jax.Array, there: jax.Array) -> Any:
        of_q, of_k, _ = tiles
        weights = jnp.exp(_scores(tiles, q, k, segments, there) - logsumexp[of_q])
        product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        dweights = product("nbgrck,nbgtk->nbgrct", g[of_q], v[of_k])
        dscores = (weights * (dweights - along[of_q]) * q.shape[-1] ** -0.5).astype(dtype)
        of_tiles = (
            product("nbgrct,nbgtk->nbgrck", dscores, k[of_k]),
            product("nbgrct,nbgrck->nbgtk", dscores, q[of_q]),
            product("nbgrct,nbgrck->nbgtk", weights.astype(dtype), g[of_q]),
        )
        for tile in range(len(weights)):
            dq = dq.at[of_q[tile]].add(of_tiles[0][tile])
            dkv = tuple(x.at[of_k[tile]].add(new[tile]) for x, new in zip(dkv, of_tiles[1:], strict=True))
        return dq, dkv

    def turn(carry: Any, step: jax.Array) -> tuple[Any, None]:
        dq, dkv, received = carry
        following, dkv = _pass_on(received, axes, n), _pass_on(dkv, axes, n)
        return (*attend(_received_tiles(step, axes, C), dq, dkv, *received), following), None

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (q, k, v)]
    received = _pass_on((k, v, segments), axes, n)
    dq, dkv = attend(_own_tiles(C), zeros[0], tuple(zeros[1:]), k, v, segments)
    (dq, dkv, received), _ = jax.lax.scan(turn, (dq, dkv, received), jnp.arange(1, n - 1))
    dq, dkv = attend(_received_tiles(n - 1, axes, C), dq, _pass_on(dkv, axes, n), *received)
    return *(x.astype(dtype) for x in (dq, *_pass_on(dkv, axes, n))), None


_attend.defvjp(_forward, _backward)
