"""Transformer: pre-norm, RMSNorm, rotary position embedding, grouped-query attention, SwiGLU; optionally
mixture-of-experts layers in place of the feed-forward layers, and what decoders such as Llama 3 and Qwen add.

A causal, unpooled transformer is the decoder of a language model; a pooled one without causal mask is an encoder for
text classification. Not here: the loss.

Shapes: B batch, L length, D width, H heads, G key/value heads, K head dim, M inner width of the feed-forward layer, O
outputs.
"""

import functools
from dataclasses import dataclass, replace
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.base.allowed import Allowed
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import Checked, FractionBelow1, Positive, PositiveInt
from jaxtrain.models.attention import Attention, attention, choose
from jaxtrain.models.base import Model, Shaped
from jaxtrain.models.experts import Experts, ExpertsModule
from jaxtrain.models.kv_cache import BlockPast, KeyValueDecoder
from jaxtrain.models.layers import Embedding, Linear, Precision, Remat, RMSNorm, Stack, dropout, fold, residual
from jaxtrain.models.ngrams import suffix_rows
from jaxtrain.models.ring import unzigzag, zigzag
from jaxtrain.models.rope import Rope, rotate
from jaxtrain.models.sizes import Activations, divide_alike, smaller
from jaxtrain.models.variables import Context
from jaxtrain.sharding.constraints import shard


@dataclass(frozen=True, kw_only=True)
class Blocks(Checked):
    """The hyperparameters of a stack of transformer blocks."""

    width: PositiveInt = 256
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    kv_heads: PositiveInt | None = None
    """Key/value heads; None is `heads`."""
    head_dim: PositiveInt | None = None
    """None is `width` / `heads`."""
    rope: Rope = Rope()
    qkv_bias: bool = False
    """Whether queries, keys and values have biases, as in Qwen2."""
    qk_norm: bool = False
    """RMSNorm of each head's queries and keys, as in Qwen3 (Henry et al. 2020, arXiv:2010.04245)."""
    norm_epsilon: Positive = 1e-6
    mlp: PositiveInt | None = None
    """Inner width of the feed-forward layer; None is 8/3 of `width`, rounded up to a multiple of 64."""
    experts: Experts = Experts()
    dropout: FractionBelow1 = 0.0
    attention: Attention = "auto"
    remat: Remat = "none"
    unroll: PositiveInt = 1
    """Blocks an iteration of the scan: more take longer to compile and may run faster (on a CPU by up to a quarter)."""
    rounds: PositiveInt = 1
    """How often a batch passes through the pipeline stages: more rounds mean a smaller bubble and more bytes sent."""
    precision: Precision = Precision()

    def __post_init__(self) -> None:
        """Raises ConfigError for heads that do not divide `width`, and rounds that do not divide `layers`."""
        if (self.head_dim is None and self.width % self.heads) or self.head_width % 2:
            over = f"width {self.width} over {self.heads} heads" if self.head_dim is None else "head_dim"
            raise ConfigError(f"{over} must give an even whole number for each head")
        if self.heads % self.groups:
            raise ConfigError(f"heads {self.heads} must be a multiple of kv_heads {self.groups}")
        if self.layers % self.rounds:
            raise ConfigError(f"layers {self.layers} must be a multiple of rounds {self.rounds}")

    @property
    def groups(self) -> int:
        """The number of key/value heads."""
        return self.kv_heads or self.heads

    @property
    def head_width(self) -> int:
        """The number of dims of a head."""
        return self.head_dim or self.width // self.heads

    @property
    def hidden(self) -> int:
        """The inner width of the feed-forward layer."""
        return self.mlp or -(-8 * self.width // (3 * 64)) * 64

    def stack(self, rngs: nnx.Rngs, causal: bool) -> Stack:
        """The blocks, stacked on a `layers` dim."""
        make = functools.partial(Block, self, causal=causal)
        return Stack(make, self.layers, rngs, self.remat, self.unroll, self.rounds)

    def order(self, causal: bool, length: int) -> np.ndarray | None:
        """The position of each entry of a sequence, i[L], for the attention that is lowered here; None is 0, 1, …."""
        ring = choose(self.attention, causal, self.precision.activations) == "ring"
        return zigzag(length) if ring else None

    def shrunk(self, devices: int) -> "Blocks":
        """Fewer and narrower blocks in f32, for `Model.shrunk`; attention that only some meshes or devices support
        becomes `auto`.
        """
        step = 2 * self.heads
        widths = (width for width in range(step, self.width, step) if width >= 64)
        width = next((width for width in widths if divide_alike(width, self.width, devices)), self.width)
        inner = self.experts.width and smaller(self.experts.width, width, devices)
        return replace(
            self,
            width=width,
            head_dim=self.head_dim and smaller(self.head_dim, 8, 2 * devices),  # even, as before
            layers=smaller(self.layers, 2 * self.rounds, devices * self.rounds),
            mlp=smaller(self.hidden, 2 * width, devices),
            experts=replace(self.experts, width=inner),
            attention="auto" if self.attention in ("cudnn", "ring") else self.attention,
            precision=Precision(),
        )

    def describe(self, length: int, causal: bool) -> Activations:
        """The sizes of their activations, for `Model.describe`."""
        experts = self.experts
        return Activations(
            length=length,
            width=self.width,
            layers=self.layers,
            rounds=self.rounds,
            heads=self.heads,
            kv_heads=self.groups,
            ring=causal and self.attention in ("auto", "ring"),
            compute=self.precision.compute,
            experts=experts.count,
            top_k=experts.top_k,
            expert_slots=experts.slots(length) if experts.count else 0,
        )


class Block(nnx.Module):
    """Attention and a gated feed-forward layer (Shazeer 2020, arXiv:2002.05202), each added to the residual stream."""

    def __init__(self, config: Blocks, rngs: nnx.Rngs, causal: bool):
        D, M, precision = config.width, config.hidden, config.precision
        K, norm, bias = config.head_width, functools.partial(RMSNorm, epsilon=config.norm_epsilon), config.qkv_bias
        # Each block adds to the residual stream twice. These outputs start small, so that its variance does not grow
        # with depth (Radford et al. 2019, "Language models are unsupervised multitask learners", section 2.3).
        small = (2 * config.layers) ** -0.5
        self.norm_attention = norm(D, precision)
        self.query = Linear(rngs, (D, config.heads * K), ("embed", "heads"), precision, bias=bias)
        self.key = Linear(rngs, (D, config.groups * K), ("embed", "kv_heads"), precision, bias=bias)
        self.value = Linear(rngs, (D, config.groups * K), ("embed", "kv_heads"), precision, bias=bias)
        if config.qk_norm:
            self.norm_query, self.norm_key = norm(K, precision), norm(K, precision)
        self.attention_out = Linear(rngs, (config.heads * K, D), ("heads", "embed"), precision, small)
        self.norm_mlp = norm(D, precision)
        if config.experts.count:
            self.experts = ExpertsModule(config.experts, rngs, D, M, precision, small)
        else:
            self.gate = Linear(rngs, (D, M), ("embed", "mlp"), precision)
            self.up = Linear(rngs, (D, M), ("embed", "mlp"), precision)
            self.down = Linear(rngs, (M, D), ("mlp", "embed"), precision, small)
        self.config, self.causal, self.head_dim = config, causal, K

    def __call__(
        self, x_BLD: jax.Array, keys_B: jax.Array | None, segments_BL: jax.Array | None, past: BlockPast | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The residual stream f[B, L, D] after this block, and the auxiliary losses of its experts.

        Positions attend only to positions of the same segment; with a `past` also to those of earlier calls.
        """
        B, L, _ = x_BLD.shape
        rate, order_L = self.config.dropout, None if past else self.config.order(self.causal, L)
        positions, length = (past.order_BL, past.length) if past else (order_L, None)

        h_BLD = shard(self.norm_attention(x_BLD), "batch", "length", None)
        q_BLHK = shard(self.query(h_BLD).reshape(B, L, -1, self.head_dim), "batch", "length", "heads", None)
        k_BLGK = shard(self.key(h_BLD).reshape(B, L, -1, self.head_dim), "batch", "length", "kv_heads", None)
        v_BLGK = shard(self.value(h_BLD).reshape(B, L, -1, self.head_dim), "batch", "length", "kv_heads", None)
        if self.config.qk_norm:
            q_BLHK, k_BLGK = self.norm_query(q_BLHK), self.norm_key(k_BLGK)
        q_BLHK, k_BLGK = (rotate(x, positions, self.config.rope, length) for x in (q_BLHK, k_BLGK))
        attend = past.attend if past else functools.partial(attention, causal=self.causal, segments_BL=segments_BL)
        mixed = attend(q_BLHK, k_BLGK, v_BLGK, implementation=self.config.attention)
        # This constrains the gradient too: else XLA splits the backward pass of attention by position.
        mixed_BLHK = shard(mixed, "batch", "length", "heads", None)
        added = residual(self.attention_out(mixed_BLHK.reshape(B, L, -1)))
        x_BLD = x_BLD + dropout(added, rate, fold(keys_B, 0), order_L)

        h_BLD = shard(self.norm_mlp(x_BLD), "batch", "length", None)
        added_BLD, aux_losses = self.experts(h_BLD) if self.config.experts.count else (self._feed_forward(h_BLD), {})
        added = residual(added_BLD)
        return x_BLD + dropout(added, rate, fold(keys_B, 1), order_L), aux_losses

    def _feed_forward(self, h_BLD: jax.Array) -> jax.Array:
        h_BLM = shard(jax.nn.silu(self.gate(h_BLD)) * self.up(h_BLD), "batch", "length", "mlp")
        return self.down(h_BLM)


@dataclass(frozen=True, kw_only=True)
class Transformer(Model):
    """A transformer from token ids i[B, L] to logits f32[B, L, O], or f32[B, O] if pooled, where id 0 is padding."""

    vocab: PositiveInt = 256
    outputs: PositiveInt | None = None
    """The number of logits; None is `vocab`."""
    blocks: Blocks = Blocks()
    causal: bool = True
    pooled: bool = False
    tied: bool = True
    """Compute the logits with the embedding table, which needs `outputs` to be the vocabulary."""
    scaled_embedding: bool = True
    """Multiply embeddings by √width when they are looked up."""
    ngrams: tuple[PositiveInt, ...] = ()
    """Lengths n: the last n tokens at a position are hashed to a row of a table, which is added to the embedding of the
    last. A small model need not spend layers on what an n-gram model looks up.
    """
    buckets: PositiveInt = 2**15
    """Rows of the table that n-grams of all lengths are hashed into."""

    def __post_init__(self) -> None:
        """Raises ConfigError for tied embeddings where the outputs are not the vocabulary."""
        if self.tied and self.outputs not in (None, self.vocab):
            raise ConfigError(
                f"tied embeddings give logits of the {self.vocab} entries of vocab, not of {self.outputs} outputs: set "
                "tied=False"
            )

    def build(self, rngs: nnx.Rngs, inputs: Shaped) -> nnx.Module:
        """The module."""
        return TransformerModule(self, rngs)

    def allowed(self) -> Allowed:
        """Token ids: others would read or write another row of the table."""
        return Allowed(0, self.vocab - 1, why=f"the model has a vocabulary of {self.vocab}")

    def shrunk(self, devices: int) -> Self:
        """Fewer, narrower blocks, and tables of about 256 rows."""
        vocab, buckets = smaller(self.vocab, 256, devices), smaller(self.buckets, 256, devices)
        outputs = vocab if self.outputs == self.vocab else self.outputs
        return replace(self, blocks=self.blocks.shrunk(devices), vocab=vocab, outputs=outputs, buckets=buckets)

    def describe(self, inputs: Shaped) -> Activations:
        """The activations of the blocks, embedding and logits."""
        known = self.blocks.describe(inputs.shape[1], self.causal)
        return replace(known, vocab=self.vocab, tied=self.tied, scores=0 if self.pooled else 1)


class TransformerModule(KeyValueDecoder):
    """Embedding, blocks, norm, logits."""

    def __init__(self, config: Transformer, rngs: nnx.Rngs):
        blocks = config.blocks
        scaled = config.scaled_embedding
        self.embedding = Embedding(rngs, config.vocab, blocks.width, blocks.precision, scaled=scaled)
        if config.ngrams:  # zeros: an n-gram that was never seen adds nothing
            self.ngrams = Embedding(rngs, config.buckets, blocks.width, blocks.precision, scale=0.0)
        self.blocks = blocks.stack(rngs, config.causal)
        self.norm = RMSNorm(blocks.width, blocks.precision, blocks.norm_epsilon)
        if not config.tied:
            axes = ("embed", "outputs" if config.pooled else "vocab")
            self.head = Linear(rngs, (blocks.width, config.outputs or config.vocab), axes, blocks.precision)
        self.config = config

    def __call__(
        self, ids_BL: jax.Array, context: Context, segments_BL: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The logits f32, and the auxiliary losses.

        Positions attend only to their own segment. Of a pooled model, padding is one segment and all else another.
        """
        blocks, valid_BL, keys_B = self.config.blocks, ids_BL != 0, context.keys_B
        if self.config.pooled:
            segments_BL = valid_BL.astype(jnp.int32)
        rows_NBL = suffix_rows(ids_BL, self.config.ngrams, self.config.buckets, segments_BL)
        order_L = blocks.order(self.config.causal, ids_BL.shape[1])
        if order_L is not None:
            rows_NBL = [rows_BL[:, order_L] for rows_BL in rows_NBL]
            ids_BL, valid_BL = ids_BL[:, order_L], valid_BL[:, order_L]
            segments_BL = None if segments_BL is None else segments_BL[:, order_L]
        x_BLD = sum((self.ngrams(rows_BL) for rows_BL in rows_NBL), start=self.embedding(ids_BL))
        x_BLD = dropout(x_BLD, blocks.dropout, fold(keys_B, blocks.layers), order_L)
        x_BLD, aux_losses = self.blocks(x_BLD, keys_B, segments_BL)
        x_BLD = self.norm(x_BLD)
        logits = self.embedding.logits if self.config.tied else self.head
        if self.config.pooled:
            weight_BL1 = valid_BL[..., None].astype(jnp.float32)
            pooled_BD = (x_BLD * weight_BL1).sum(1) / jnp.maximum(weight_BL1.sum(1), 1)
            return logits(pooled_BD).astype(jnp.float32), aux_losses
        x_BLD = shard(x_BLD, "batch", "length", None)
        logits_BLO = logits(x_BLD if order_L is None else unzigzag(x_BLD))
        return shard(logits_BLO, "batch", "length", "vocab").astype(jnp.float32), aux_losses
