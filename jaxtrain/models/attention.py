"""Multi-head attention in several implementations. Not here: projections and position embeddings.

Shapes: B batch, L query length, T key length, H query heads, G key/value heads, R = H / G query heads for each
key/value head, K head dim.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxtrain.base.errors import ConfigError
from jaxtrain.models.notes import note
from jaxtrain.models.ring import ring_attention
from jaxtrain.sharding.constraints import shard, split, target_platform

Attention = Literal["auto", "dense", "blocks", "cudnn", "ring"]
"""`dense` computes all L × T scores. `blocks` loops over blocks of queries and skips the keys after them, which a
causal mask hides. `cudnn` is NVIDIA's fused kernel (bf16 only). `ring` is for sequences split over devices: keys and
values are passed around, where the others gather them. `auto` picks one by mesh and platform; the run's log names it.
"""

BLOCK = 128
"""Queries in a block: the fastest of 64, 128 and 256 at length 256 on CPU cores."""


def choose(implementation: Attention, causal: bool, dtype: jnp.dtype) -> Attention:
    """The implementation to use on the mesh and the platform of the program being traced; resolves `auto`.

    Raises ConfigError for an implementation that does not work there.
    """
    if implementation == "blocks" and not causal:
        raise ConfigError("attention 'blocks' skips keys that a causal mask hides, but the model has none: use 'dense'")
    if implementation == "cudnn" and (target_platform() != "gpu" or dtype != jnp.bfloat16):
        raise ConfigError(
            f"attention 'cudnn' needs a GPU and bfloat16, not {dtype} on a {target_platform()}: use 'auto'"
        )
    if implementation == "ring" and not (causal and split("length")):
        raise ConfigError("attention 'ring' needs a causal mask and a mesh axis that splits `length`: use 'auto'")
    if implementation != "auto":
        return implementation
    if causal and split("length"):
        return "ring"
    if target_platform() == "gpu" and dtype == jnp.bfloat16:
        return "cudnn"
    return "blocks" if target_platform() == "cpu" and causal else "dense"


def attention(
    q_BLHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    causal: bool,
    segments_BL: jax.Array | None = None,
    implementation: Attention = "auto",
) -> jax.Array:
    """Scaled dot-product attention f[B, L, H, K], softmax in f32 (Vaswani et al. 2017, arXiv:1706.03762).

    With G < H it is grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245).

    segments_BL: i[B, L]; positions attend only to positions with the same number, such as those of one document.
        None is one segment.

    With `ring` all positions are in the order of `zigzag`.
    """
    implementation = choose(implementation, causal, q_BLHK.dtype)
    with note("attention", implementation):
        return _dispatch(implementation, q_BLHK, k_BTGK, v_BTGK, causal, segments_BL)


def attend_to_cache(q_B1HK: jax.Array, k_BGTK: jax.Array, v_BGTK: jax.Array, position_B: jax.Array) -> jax.Array:
    """Attention f[B, 1, H, K] of one query a row, at the position i[B], to the keys up to that position."""
    B, _, H, K = q_B1HK.shape
    q_BGRK = q_B1HK.reshape(B, k_BGTK.shape[1], -1, K)
    with note("attention", "cache"):
        # Keys are the left operand: as the right one, XLA transposes all of them in every step on a CPU.
        scores = jnp.einsum("BGTK,BGRK->BGRT", k_BGTK, q_BGRK).astype(jnp.float32) * K**-0.5
        seen_BT = jnp.arange(k_BGTK.shape[2]) <= position_B[:, None]
        scores = jnp.where(seen_BT[:, None, None], scores, -jnp.inf)
        weights = jnp.exp(scores - scores.max(-1, keepdims=True))
        mixed_BGRK = jnp.einsum("BGRT,BGTK->BGRK", weights.astype(v_BGTK.dtype), v_BGTK)
        mixed_BGRK = (mixed_BGRK / weights.sum(-1, keepdims=True)).astype(v_BGTK.dtype)
    return mixed_BGRK.reshape(B, 1, H, K)


def _dispatch(
    implementation: Attention,
    q_BLHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    causal: bool,
    segments_BL: jax.Array | None,
) -> jax.Array:
    if implementation == "ring":
        return ring_attention(q_BLHK, k_BTGK, v_BTGK, segments_BL)
    if split("length"):
        k_BTGK, v_BTGK = (shard(x_BTGK, "batch", None, "kv_heads", None) for x_BTGK in (k_BTGK, v_BTGK))
    same_BLT = None if segments_BL is None else segments_BL[:, :, None] == segments_BL[:, None, :]
    if implementation == "cudnn":
        mask = None if same_BLT is None else same_BLT[:, None]
        return jax.nn.dot_product_attention(q_BLHK, k_BTGK, v_BTGK, mask=mask, is_causal=causal, implementation="cudnn")
    B, L, H, K = q_BLHK.shape
    # Heads before length, transposed once: they are batch dims of every product below.
    k_BGTK, v_BGTK = k_BTGK.swapaxes(1, 2), v_BTGK.swapaxes(1, 2)
    q_BGRLK = q_BLHK.swapaxes(1, 2).reshape(B, k_BGTK.shape[1], -1, L, K)
    if implementation == "dense":
        mixed_BGRLK = _scored(q_BGRLK, k_BGTK, v_BGTK, 0 if causal else None, same_BLT)
    else:
        blocks = []
        for start in range(0, L, BLOCK):
            end = min(start + BLOCK, L)
            same = None if same_BLT is None else same_BLT[:, start:end, :end]
            queries = q_BGRLK[..., start:end, :]
            blocks.append(_scored(queries, k_BGTK[:, :, :end], v_BGTK[:, :, :end], start, same))
        mixed_BGRLK = jnp.concatenate(blocks, axis=3)
    return mixed_BGRLK.reshape(B, H, L, K).swapaxes(1, 2)


def _scored(
    q_BGRLK: jax.Array, k_BGTK: jax.Array, v_BGTK: jax.Array, start: int | None, same_BLT: jax.Array | None
) -> jax.Array:
    """Attention of queries at the positions `start`, `start + 1`, … under a causal mask; None is no causal mask."""
    L, K, T = *q_BGRLK.shape[3:], k_BGTK.shape[2]
    scores = jnp.einsum("BGRLK,BGTK->BGRLT", q_BGRLK, k_BGTK).astype(jnp.float32) * K**-0.5
    if start is not None:
        scores = jnp.where(start + jnp.arange(L)[:, None] >= jnp.arange(T), scores, -jnp.inf)
    if same_BLT is not None:
        scores = jnp.where(same_BLT[:, None, None], scores, -jnp.inf)  # never a whole row: a position attends to itself
    if target_platform() == "cpu":
        # Dividing after the product saves 3 % of a step on a CPU; elsewhere XLA fuses the whole softmax.
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        mixed = jnp.einsum("BGRLT,BGTK->BGRLK", weights.astype(v_BGTK.dtype), v_BGTK)
        return (mixed / weights.sum(-1, keepdims=True)).astype(v_BGTK.dtype)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BGTK.dtype)
    return jnp.einsum("BGRLT,BGTK->BGRLK", weights, v_BGTK)
