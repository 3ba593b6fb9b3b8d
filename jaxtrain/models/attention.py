"""Attention over heads, in the implementations that a model may name. Not here: projections and positions.

Shapes: B batch, L query positions, T key positions, H heads, G key/value heads, R = H/G queries a head, K head dim.
"""

import re
from typing import Literal

import jax
import jax.numpy as jnp

from jaxtrain.base.errors import ConfigError
from jaxtrain.models.ring import ring_attention
from jaxtrain.sharding.constraints import shard, split, target_platform

Attention = Literal["auto", "dense", "blocks", "cudnn", "ring"]
"""`dense` scores every pair at once; `blocks` skips the pairs that a causal mask forbids, a block of queries at a time;
`cudnn` is NVIDIA's fused kernel (bf16 only); `ring` passes keys and values on between devices that split a sequence
(where all others gather them). `auto` picks by mesh and platform and says which in the run's log.
"""

BLOCK = 128
"""Queries a block: measured best among 64, 128 and 256 at 256 positions on CPU cores."""


def choose(implementation: Attention, causal: bool, dtype: jnp.dtype) -> Attention:
    """The implementation that `auto` stands for on the platform of the program being traced.

    Raises ConfigError for one that was asked for and cannot be had there.
    """
    if implementation == "blocks" and not causal:
        raise ConfigError("attention 'blocks' leaves out what a causal mask forbids, but there is none: use 'dense'")
    if implementation == "cudnn" and (target_platform() != "gpu" or dtype != jnp.bfloat16):
        raise ConfigError(
            f"attention 'cudnn' needs a GPU and bfloat16, not {dtype} on a {target_platform()}: use 'auto'"
        )
    if implementation == "ring" and not (causal and split("length")):
        raise ConfigError(
            "attention 'ring' needs a causal mask and a `context` axis of the mesh, to go round: use 'auto'"
        )
    if implementation != "auto":
        return implementation
    if causal and split("length"):
        return "ring"
    if target_platform() == "gpu" and dtype == jnp.bfloat16:
        return "cudnn"
    return "blocks" if target_platform() == "cpu" and causal else "dense"


def implementations(lowered: jax.stages.Lowered) -> list[str]:
    """The implementations that a program really holds, read off the scopes in what it was lowered to."""
    return sorted(set(re.findall(r"attention_(\w+?)[/\"]", lowered.as_text(debug_info=True))))


def attention(
    q_BLHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    causal: bool,
    segments_BL: jax.Array | None = None,
    implementation: Attention = "auto",
) -> jax.Array:
    """f[B, L, H, K]: softmax(q·k / √K)·v, softmax in f32 (Vaswani et al. 2017, arXiv:1706.03762).

    With G < H key/value heads, each serves H/G query heads (Ainslie et al. 2023, arXiv:2305.13245). Positions
    see only those with the same number in `segments_BL` i[B, L]: documents in one row, or padding apart from the rest.
    With `ring` all positions are in the order of `zigzag`.
    """
    chosen = choose(implementation, causal, q_BLHK.dtype)
    with jax.named_scope(f"attention_{chosen}"):
        return _attend(chosen, q_BLHK, k_BTGK, v_BTGK, causal, segments_BL)


def _attend(
    chosen: Attention,
    q_BLHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    causal: bool,
    segments_BL: jax.Array | None,
) -> jax.Array:
    if chosen == "ring":
        return ring_attention(q_BLHK, k_BTGK, v_BTGK, segments_BL)
    if split("length"):
        k_BTGK, v_BTGK = (shard(x_BTGK, "batch", None, "kv_heads", None) for x_BTGK in (k_BTGK, v_BTGK))
    together_BLT = None if segments_BL is None else segments_BL[:, :, None] == segments_BL[:, None, :]
    if chosen == "cudnn":
        mask = None if together_BLT is None else together_BLT[:, None]
        return jax.nn.dot_product_attention(q_BLHK, k_BTGK, v_BTGK, mask=mask, is_causal=causal, implementation="cudnn")
    B, L, H, K = q_BLHK.shape
    # Heads before positions, once: as batch dims of every product that follows.
    k_BGTK, v_BGTK = k_BTGK.swapaxes(1, 2), v_BTGK.swapaxes(1, 2)
    q_BGRLK = q_BLHK.swapaxes(1, 2).reshape(B, k_BGTK.shape[1], -1, L, K)
    if chosen == "dense":
        mixed_BGRLK = _scored(q_BGRLK, k_BGTK, v_BGTK, 0 if causal else None, together_BLT)
    else:
        parts = []
        for start in range(0, L, BLOCK):
            end = min(start + BLOCK, L)
            together = None if together_BLT is None else together_BLT[:, start:end, :end]
            queries = q_BGRLK[..., start:end, :]
            parts.append(_scored(queries, k_BGTK[:, :, :end], v_BGTK[:, :, :end], start, together))
        mixed_BGRLK = jnp.concatenate(parts, axis=3)
    return mixed_BGRLK.reshape(B, H, L, K).swapaxes(1, 2)


def _scored(
    q_BGRLK: jax.Array, k_BGTK: jax.Array, v_BGTK: jax.Array, start: int | None, together_BLT: jax.Array | None
) -> jax.Array:
    """Attention of queries at positions `start`, `start + 1`, …; None masks nothing by position."""
    L, K, T = *q_BGRLK.shape[3:], k_BGTK.shape[2]
    scores = jnp.einsum("BGRLK,BGTK->BGRLT", q_BGRLK, k_BGTK).astype(jnp.float32) * K**-0.5
    if start is not None:
        scores = jnp.where(start + jnp.arange(L)[:, None] >= jnp.arange(T), scores, -jnp.inf)
    if together_BLT is not None:
        scores = jnp.where(together_BLT[:, None, None], scores, -jnp.inf)  # never all: a position is with itself
    if target_platform() == "cpu":
        # Dividing the product, not its factor, is 3 % of a step there; elsewhere XLA fuses all of softmax.
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        mixed = jnp.einsum("BGRLT,BGTK->BGRLK", weights.astype(v_BGTK.dtype), v_BGTK)
        return (mixed / weights.sum(-1, keepdims=True)).astype(v_BGTK.dtype)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BGTK.dtype)
    return jnp.einsum("BGRLT,BGTK->BGRLK", weights, v_BGTK)
