"""Attention over heads, in the implementations that a model may name. Not here: projections and positions.

Shapes: B batch, L query positions, T key positions, H heads, G key/value heads, R = H/G queries a head, K head dim.
"""

import re
from typing import Literal

import jax
import jax.numpy as jnp

from jaxtrain.layout import platform

Attention = Literal["auto", "dense", "blocks", "cudnn"]
"""`dense` scores every pair at once; `blocks` skips the pairs that a causal mask forbids, a block of queries at a time;
`cudnn` is NVIDIA's fused kernel (bf16 only). `auto` picks by platform and says which in the run's log.
"""

BLOCK = 64
"""Queries a block: measured best among 32, 64 and 128 at 256 positions on CPU cores."""


def choose(implementation: Attention, causal: bool, dtype: jnp.dtype) -> Attention:
    """The implementation that `auto` stands for on the platform of the program being traced."""
    if implementation != "auto":
        return implementation
    if platform() == "gpu" and dtype == jnp.bfloat16:
        return "cudnn"
    return "blocks" if platform() == "cpu" and causal else "dense"


def implementations(lowered: jax.stages.Lowered) -> list[str]:
    """The implementations that a program really holds, read off what it was lowered to."""
    return sorted(set(re.findall(r"attention_(\w+?)[/\"]", lowered.as_text(debug_info=True))))


def attention(
    q_BLHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    causal: bool,
    valid_BT: jax.Array | None = None,
    implementation: Attention = "auto",
) -> jax.Array:
    """f[B, L, H, K]: softmax(q·k / √K)·v, softmax in f32 (Vaswani et al. 2017, arXiv:1706.03762).

    With G < H key/value heads, each serves H/G query heads (Ainslie et al. 2023, arXiv:2305.13245). `valid_BT` is
    False at keys that are padding.
    """
    chosen = choose(implementation, causal, q_BLHK.dtype)
    with jax.named_scope(f"attention_{chosen}"):
        return _attend(chosen, q_BLHK, k_BTGK, v_BTGK, causal, valid_BT)


def _attend(
    chosen: Attention,
    q_BLHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    causal: bool,
    valid_BT: jax.Array | None,
) -> jax.Array:
    if chosen == "cudnn":
        mask = None if valid_BT is None else valid_BT[:, None, None, :]
        return jax.nn.dot_product_attention(q_BLHK, k_BTGK, v_BTGK, mask=mask, is_causal=causal, implementation="cudnn")
    length = q_BLHK.shape[1]
    if chosen == "dense" or not causal or length <= BLOCK:
        return _scored(q_BLHK, k_BTGK, v_BTGK, 0 if causal else None, valid_BT)
    starts = range(0, length, BLOCK)
    ends = [min(start + BLOCK, length) for start in starts]
    parts = [
        _scored(
            q_BLHK[:, start:end],
            k_BTGK[:, :end],
            v_BTGK[:, :end],
            start,
            None if valid_BT is None else valid_BT[:, :end],
        )
        for start, end in zip(starts, ends, strict=True)
    ]
    return jnp.concatenate(parts, axis=1)


def _scored(
    q_BLHK: jax.Array, k_BTGK: jax.Array, v_BTGK: jax.Array, start: int | None, valid_BT: jax.Array | None
) -> jax.Array:
    """Attention of queries at positions `start`, `start + 1`, …; None masks nothing by position."""
    B, L, H, K = q_BLHK.shape
    T, G = k_BTGK.shape[1:3]
    q_BLGRK = q_BLHK.reshape(B, L, G, H // G, K)
    scores = jnp.einsum("BLGRK,BTGK->BGRLT", q_BLGRK, k_BTGK).astype(jnp.float32) * K**-0.5
    if start is not None:
        scores = jnp.where(start + jnp.arange(L)[:, None] >= jnp.arange(T), scores, -jnp.inf)
    if valid_BT is not None:
        # A finite number: a row of nothing but padding must not become 0/0.
        scores = jnp.where(valid_BT[:, None, None, None, :], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BTGK.dtype)
    return jnp.einsum("BGRLT,BTGK->BLGRK", weights, v_BTGK).reshape(B, L, H, K)
