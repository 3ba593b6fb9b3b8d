"""A transformer of the standard kind: pre-norm, RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases;
with experts in place of the feed-forward layers where it is told so.

Not here: what it is trained for. With `causal` and `pooled=False` it is a language model's decoder, with neither causal
mask nor per-position output an encoder for classifying texts.

Shapes: B batch, L length, D width, H heads, G key/value heads, K head dim, M mlp width, O outputs.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.base.errors import ConfigError
from jaxtrain.models.attention import Attention, attention, choose
from jaxtrain.models.base import Model, Shaped
from jaxtrain.models.experts import Experts, ExpertsModule
from jaxtrain.models.layers import Embedding, Linear, Precision, Remat, RMSNorm, Stack, dropout, fold, rotate
from jaxtrain.models.ring import unzigzag, zigzag
from jaxtrain.sharding.constraints import shard, split


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The hyperparameters of a stack of transformer blocks, whatever goes in and comes out."""

    width: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int | None = None
    """Key/value heads; None is as many as `heads`."""
    mlp: int | None = None
    """The width inside the gated feed-forward layer; None is 8/3 of `width`, rounded up to a multiple of 64."""
    experts: Experts = Experts()
    dropout: float = 0.0
    attention: Attention = "auto"
    remat: Remat = "none"
    unroll: int = 1
    """Blocks a turn of the scan: more compile slower and may run faster (on a CPU up to a quarter)."""
    rounds: int = 1
    """How often a batch goes round the stages of a pipeline: more rounds of fewer blocks, less waiting, more sent."""
    precision: Precision = Precision()

    def __post_init__(self) -> None:
        """Raises ConfigError where the numbers do not fit each other."""
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ConfigError(f"width {self.width} over {self.heads} heads must be a whole even number a head")
        if self.heads % self.groups:
            raise ConfigError(f"heads {self.heads} must be a multiple of kv_heads {self.groups}")
        if self.rounds < 1 or self.layers % self.rounds:
            raise ConfigError(f"layers {self.layers} must be a multiple of rounds {self.rounds}")

    @property
    def groups(self) -> int:
        """Key/value heads."""
        return self.kv_heads or self.heads

    @property
    def hidden(self) -> int:
        """The width inside the feed-forward layer."""
        return self.mlp or -(-8 * self.width // (3 * 64)) * 64

    def stack(self, rngs: nnx.Rngs, causal: bool) -> Stack:
        """The blocks, stacked on `layers`."""
        make = functools.partial(Block, self, causal=causal)
        return Stack(make, self.layers, rngs, self.remat, self.unroll, self.rounds)

    def order(self, causal: bool, length: int) -> np.ndarray | None:
        """Which position of a sequence stands where, i[L], for the attention that is lowered here; None: 0, 1, …."""
        ring = choose(self.attention, causal, self.precision.activations) == "ring"
        return zigzag(length) if ring else None


class Block(nnx.Module):
    """Attention and a gated feed-forward layer (Shazeer 2020, arXiv:2002.05202), each added to the residual stream."""

    def __init__(self, config: Blocks, rngs: nnx.Rngs, causal: bool):
        D, M, precision = config.width, config.hidden, config.precision
        K = D // config.heads
        # Each block adds twice to the residual stream: outputs start small, so that depth adds no variance
        # (Radford et al. 2019, "Language models are unsupervised multitask learners", section 2.3).
        small = (2 * config.layers) ** -0.5
        self.norm_attention = RMSNorm(D, precision)
        self.query = Linear(rngs, (D, config.heads * K), ("embed", "heads"), precision)
        self.key = Linear(rngs, (D, config.groups * K), ("embed", "kv_heads"), precision)
        self.value = Linear(rngs, (D, config.groups * K), ("embed", "kv_heads"), precision)
        self.attended = Linear(rngs, (config.heads * K, D), ("heads", "embed"), precision, small)
        self.norm_mlp = RMSNorm(D, precision)
        if config.experts.count:
            self.experts = ExpertsModule(config.experts, rngs, D, M, precision, small)
        else:
            self.gate = Linear(rngs, (D, M), ("embed", "mlp"), precision)
            self.up = Linear(rngs, (D, M), ("embed", "mlp"), precision)
            self.down = Linear(rngs, (M, D), ("mlp", "embed"), precision, small)
        self.config, self.causal, self.head_dim = config, causal, K

    def __call__(
        self, x_BLD: jax.Array, keys_B: jax.Array | None, segments_BL: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """f[B, L, D], and penalties of experts; positions of different segments do not see each other."""
        B, L, _ = x_BLD.shape
        rate, order_L = self.config.dropout, self.config.order(self.causal, L)

        h_BLD = shard(self.norm_attention(x_BLD), "batch", "length", None)
        q_BLHK = shard(self.query(h_BLD).reshape(B, L, -1, self.head_dim), "batch", "length", "heads", None)
        k_BLGK = shard(self.key(h_BLD).reshape(B, L, -1, self.head_dim), "batch", "length", "kv_heads", None)
        v_BLGK = shard(self.value(h_BLD).reshape(B, L, -1, self.head_dim), "batch", "length", "kv_heads", None)
        q_BLHK, k_BLGK = rotate(q_BLHK, order_L), rotate(k_BLGK, order_L)
        mixed = attention(q_BLHK, k_BLGK, v_BLGK, self.causal, segments_BL, self.config.attention)
        # Constrains the gradient too: else XLA runs the backward pass of attention split over positions.
        mixed_BLHK = shard(mixed, "batch", "length", "heads", None)
        added = _residual(self.attended(mixed_BLHK.reshape(B, L, -1)))
        x_BLD = x_BLD + dropout(added, rate, fold(keys_B, 0), order_L)

        h_BLD = shard(self.norm_mlp(x_BLD), "batch", "length", None)
        added_BLD, penalties = self.experts(h_BLD) if self.config.experts.count else (self._feed_forward(h_BLD), {})
        added = _residual(added_BLD)
        return x_BLD + dropout(added, rate, fold(keys_B, 1), order_L), penalties

    def _feed_forward(self, h_BLD: jax.Array) -> jax.Array:
        h_BLM = shard(jax.nn.silu(self.gate(h_BLD)) * self.up(h_BLD), "batch", "length", "mlp")
        return self.down(h_BLM)


def _residual(x_BLD: jax.Array) -> jax.Array:
    # Sums over `mlp` and `heads` come before the split by position where another axis has split positions already:
    # asked for both at once, XLA gathers them.
    return shard(shard(x_BLD, "batch", "length", None) if split("length") else x_BLD, "batch", "residual_length", None)


@dataclass(frozen=True, kw_only=True)
class Transformer(Model):
    """Integers i[B, L] below `vocab` to logits f32[B, L, outputs], or f32[B, outputs] if pooled (then 0 is padding)."""

    vocab: int = 256
    outputs: int | None = None
    """None is `vocab`."""
    blocks: Blocks = Blocks()
    causal: bool = True
    pooled: bool = False
    tied: bool = True
    """Score with the embedding table itself (only where outputs are the vocabulary)."""

    def __post_init__(self) -> None:
        """Raises ConfigError where the fields contradict each other."""
        if self.tied and self.outputs not in (None, self.vocab):
            raise ConfigError(
                f"tied embeddings score the {self.vocab} entries of vocab, not {self.outputs} outputs: tied=False"
            )

    def build(self, rngs: nnx.Rngs, inputs: Shaped) -> nnx.Module:
        """The module."""
        return TransformerModule(self, rngs)


class TransformerModule(nnx.Module):
    """Embedding, blocks, norm, scores."""

    def __init__(self, config: Transformer, rngs: nnx.Rngs):
        blocks = config.blocks
        self.embedding = Embedding(rngs, config.vocab, blocks.width, blocks.precision)
        self.blocks = blocks.stack(rngs, config.causal)
        self.norm = RMSNorm(blocks.width, blocks.precision)
        if not config.tied:
            axes = ("embed", "outputs" if config.pooled else "vocab")
            self.head = Linear(rngs, (blocks.width, config.outputs or config.vocab), axes, blocks.precision)
        self.config = config

    def __call__(
        self, ids_BL: jax.Array, keys_B: jax.Array | None, segments_BL: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits, f32, and penalties. Positions see only their own segment; where outputs are pooled, padding is one of
        its own.
        """
        blocks, valid_BL = self.config.blocks, ids_BL != 0
        if self.config.pooled:
            segments_BL = valid_BL.astype(jnp.int32)
        order_L = blocks.order(self.config.causal, ids_BL.shape[1])
        if order_L is not None:
            ids_BL, valid_BL = ids_BL[:, order_L], valid_BL[:, order_L]
            segments_BL = None if segments_BL is None else segments_BL[:, order_L]
        x_BLD = dropout(self.embedding(ids_BL), blocks.dropout, fold(keys_B, blocks.layers), order_L)
        x_BLD, penalties = self.blocks(x_BLD, keys_B, segments_BL)
        x_BLD = self.norm(x_BLD)
        score = self.embedding.scores if self.config.tied else self.head
        if self.config.pooled:
            weight_BL1 = valid_BL[..., None].astype(jnp.float32)
            pooled_BD = (x_BLD * weight_BL1).sum(1) / jnp.maximum(weight_BL1.sum(1), 1)
            return score(pooled_BD).astype(jnp.float32), penalties
        x_BLD = shard(x_BLD, "batch", "length", None)
        logits_BLO = score(x_BLD if order_L is None else unzigzag(x_BLD))
        return shard(logits_BLO, "batch", "length", "vocab").astype(jnp.float32), penalties
