"""Causal attention over sequences that are split over devices: keys and values go round, queries stay.

After Liu et al. 2023 (arXiv:2310.01889), with the derivative of Dao 2023 (arXiv:2307.08691), which keeps only outputs
and normalisers. Of 2n equal chunks of a sequence device i of n has the chunks i and 2n - 1 - i, so that a causal mask
leaves all devices the same work in each step ("zigzag", Zhu 2024, github.com/zhuzilin/ring-flash-attention). Not here:
anything that does not look along the sequence.

Shapes: B batch, L length, H heads, G key/value heads, R = H/G queries a head, K head dim, C positions of a chunk.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.sharding.constraints import shard_map_by_name, split

_NOTHING = -1e30
"""The score of a pair that may not see each other: finite, so that a chunk without any pair has no NaNs."""


def zigzag(length: int) -> np.ndarray:
    """Which position of a sequence stands where, i[L]: the order that `ring_attention` wants.

    Raises ConfigError for a length that cannot be cut so.
    """
    axes = split("length")
    n = math.prod(axes.values())
    if length % (2 * n):
        raise ConfigError(
            f"a sequence of {length} on {' × '.join(f'{axis}={size}' for axis, size in axes.items())} is cut into "
            f"{2 * n} equal chunks, for equal work under a causal mask: change its length or the mesh"
        )
    chunks = np.arange(length).reshape(2 * n, -1)
    return np.concatenate([np.concatenate([chunks[i], chunks[2 * n - 1 - i]]) for i in range(n)])


def unzigzag(x_BLD: jax.Array) -> jax.Array:
    """Activations with their positions in their own order again; each device sends its two chunks where they belong."""
    axes, n = _ring()

    def local(x_BLD: jax.Array) -> tuple[jax.Array]:
        first_BCD, second_BCD = jnp.split(x_BLD, 2, axis=1)
        sent = []
        for odd in (0, 1):  # of its two chunks each device has one with an even number and one with an odd one
            numbers = [i if i % 2 == odd else 2 * n - 1 - i for i in range(n)]
            chunk_BCD = jnp.where(jax.lax.axis_index(axes) % 2 == odd, first_BCD, second_BCD)
            sent.append(jax.lax.ppermute(chunk_BCD, axes, [(i, number // 2) for i, number in enumerate(numbers)]))
        return (jnp.concatenate(sent, axis=1),)

    names = ("batch", "length", None)
    return shard_map_by_name(local, [names], [names], x_BLD)[0]


def ring_attention(q_BLHK: jax.Array, k_BLGK: jax.Array, v_BLGK: jax.Array, segments_BL: jax.Array | None) -> jax.Array:
    """f[B, L, H, K], as `attention`, for positions in the order of `zigzag`."""
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
"""Pairs of chunks: the queries' number (0 or 1 of those here), the keys', and bool[tiles, C, C] of what is seen."""


def _own(C: int) -> Tiles:
    below = np.tril(np.ones((C, C), bool))
    return np.array([0, 1, 1]), np.array([0, 0, 1]), np.stack([below, np.ones_like(below), below])


def _came(step: Any, axes: tuple[str, ...], C: int) -> Tiles:
    """What came from the device `step` before: of the chunks here the second comes after the first of any other device;
    of the other pairs just one is seen in whole, whichever way round the devices are.
    """
    other = jnp.where(jax.lax.axis_index(axes) >= step, 0, 1)
    return jnp.stack([1, other]), jnp.stack([0, other]), np.ones((2, C, C), bool)


def _scores(tiles: Tiles, q: jax.Array, k: jax.Array, here: jax.Array, there: jax.Array) -> jax.Array:
    """f32[tiles, B, G, R, C, C]."""
    of_q, of_k, seen = tiles
    scores = jnp.einsum("nbgrck,nbgtk->nbgrct", q[of_q], k[of_k], preferred_element_type=jnp.float32)
    together = here[of_q][..., :, None] == there[of_k][..., None, :]
    mask = (seen[:, None] & together)[:, :, None, None]
    return jnp.where(mask, scores * q.shape[-1] ** -0.5, _NOTHING)


def _go_round(tree: Any, axes: tuple[str, ...], n: int) -> Any:
    return jax.lax.ppermute(tree, axes, [(i, (i + 1) % n) for i in range(n)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(axes: tuple[str, ...], n: int, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
    """f[2, B, G, R, C, K] of q f[2, B, G, R, C, K], k and v f[2, B, G, C, K], segments i[2, B, C]: two chunks each."""
    return _forward(axes, n, q, k, v, segments)[0]


def _forward(axes: tuple[str, ...], n: int, q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> Any:
    C = q.shape[-2]
    shape = (*q.shape[:-1], 1)
    state = jnp.full(shape, _NOTHING), jnp.zeros(shape), jnp.zeros(q.shape, jnp.float32)

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
        state, came = carry
        following = _go_round(came, axes, n)  # while what came is worked on
        return (attend(state, _came(step, axes, C), *came), following), None

    came = _go_round((k, v, segments), axes, n)
    state = attend(state, _own(C), k, v, segments)
    (state, came), _ = jax.lax.scan(turn, (state, came), jnp.arange(1, n - 1))
    top, total, mixed = attend(state, _came(n - 1, axes, C), *came)
    out = (mixed / total).astype(v.dtype)
    return out, (q, k, v, segments, out, top + jnp.log(total))


def _merged(one: Any, other: Any) -> Any:
    """Softmax sums over two sets of keys: largest score, sum of weights, weighted values."""
    top = jnp.maximum(one[0], other[0])
    mine, theirs = jnp.exp(one[0] - top), jnp.exp(other[0] - top)
    return top, one[1] * mine + other[1] * theirs, one[2] * mine + other[2] * theirs


def _backward(axes: tuple[str, ...], n: int, saved: Any, g: jax.Array) -> Any:
    q, k, v, segments, out, normaliser = saved
    C, dtype = q.shape[-2], q.dtype
    along = (g.astype(jnp.float32) * out).sum(-1, keepdims=True)

    def attend(tiles: Tiles, dq: jax.Array, dkv: Any, k: jax.Array, v: jax.Array, there: jax.Array) -> Any:
        of_q, of_k, _ = tiles
        weights = jnp.exp(_scores(tiles, q, k, segments, there) - normaliser[of_q])
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
        dq, dkv, came = carry
        following, dkv = _go_round(came, axes, n), _go_round(dkv, axes, n)
        return (*attend(_came(step, axes, C), dq, dkv, *came), following), None

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (q, k, v)]
    came = _go_round((k, v, segments), axes, n)
    dq, dkv = attend(_own(C), zeros[0], tuple(zeros[1:]), k, v, segments)
    (dq, dkv, came), _ = jax.lax.scan(turn, (dq, dkv, came), jnp.arange(1, n - 1))
    dq, dkv = attend(_came(n - 1, axes, C), dq, _go_round(dkv, axes, n), *came)
    return *(x.astype(dtype) for x in (dq, *_go_round(dkv, axes, n))), None


_attend.defvjp(_forward, _backward)
