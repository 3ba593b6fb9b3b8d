"""BERT, an encoder for text (Devlin et al. 2018, arXiv:1810.04805): post-norm blocks, learned positions, token types.

Not here: its pre-training, and the loss.

Shapes: B batch, L length, D width, H heads, K head dim, M inner width of the feed-forward layer, O outputs.
"""

import functools
from dataclasses import dataclass, replace
from typing import Literal, Self

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.base.allowed import Allowed
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import NonNegativeInt, PositiveInt
from jaxtrain.models.attention import attention
from jaxtrain.models.base import Model, Shaped
from jaxtrain.models.layers import Embedding, Linear, Precision, Stack, dropout, fold, residual
from jaxtrain.models.sizes import Activations, smaller
from jaxtrain.models.transformer import Blocks
from jaxtrain.models.variables import Context
from jaxtrain.sharding.constraints import shard

Pooling = Literal["mean", "first", "dense"]
"""What stands for a row: the mean over its tokens, the first token, or tanh of a linear layer of the first token."""

INITIAL = 0.02
"""Standard deviation of the first embeddings; the paper's."""


@dataclass(frozen=True, kw_only=True)
class Bert(Model):
    """An encoder from token ids i[B, L] to embeddings f32[B, D], or to logits f32[B, O] where `outputs` are given."""

    vocab: PositiveInt = 30522
    outputs: PositiveInt | None = None
    """The number of logits; None is the embedding itself."""
    positions: PositiveInt = 512
    """The most tokens of a row."""
    types: PositiveInt = 2
    """Token types, of which the module takes those of each position as `types_BL`; without it they are 0."""
    pooling: Pooling = "mean"
    padding: NonNegativeInt = 0
    """The token that fills rows up; nothing attends to it and no mean counts it."""
    blocks: Blocks = Blocks(width=384, layers=6, heads=12, mlp=1536, norm_epsilon=1e-12)

    def __post_init__(self) -> None:
        """Raises ConfigError for options of the blocks that BERT's do not have."""
        for name in ("kv_heads", "head_dim", "rope", "qkv_bias", "qk_norm", "experts"):
            if (value := getattr(self.blocks, name)) != getattr(Blocks(), name):
                raise ConfigError(f"Bert.blocks.{name}: BERT's blocks are without, so it cannot be {value}")

    def build(self, rngs: nnx.Rngs, inputs: Shaped) -> nnx.Module:
        """The module. Raises ConfigError for rows that are longer than its positions."""
        if inputs.shape[1] > self.positions:
            raise ConfigError(f"Bert.positions: rows of {inputs.shape[1]} tokens are longer than {self.positions}")
        return BertModule(self, rngs)

    def allowed(self) -> Allowed:
        """Token ids: others would read or write another row of the table."""
        return Allowed(0, self.vocab - 1, why=f"the model has a vocabulary of {self.vocab}")

    def shrunk(self, devices: int) -> Self:
        """Fewer, narrower blocks, and a vocabulary of about 256."""
        return replace(self, blocks=self.blocks.shrunk(devices), vocab=smaller(self.vocab, 256, devices))

    def describe(self, inputs: Shaped) -> Activations:
        """The activations of the blocks and the embedding."""
        return replace(self.blocks.describe(inputs.shape[1], causal=False), vocab=self.vocab)


class LayerNorm(nnx.Module):
    """Layer norm over the last dim, computed in f32 (Ba et al. 2016, arXiv:1607.06450)."""

    def __init__(self, width: int, precision: Precision, epsilon: float):
        self.scale = nnx.Param(jnp.ones(width, precision.params), axes=("norm",))
        self.bias = nnx.Param(jnp.zeros(width, precision.params), axes=("norm",))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """The normed array, of the same shape and dtype."""
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon)
        return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)


class BertBlock(nnx.Module):
    """Attention and a feed-forward layer with GELU, each added to the residual stream, which is normed after it."""

    def __init__(self, config: Blocks, rngs: nnx.Rngs):
        D, M, precision = config.width, config.hidden, config.precision
        linear = functools.partial(Linear, rngs, precision=precision, bias=True)
        self.query = linear((D, D), ("embed", "heads"))
        self.key = linear((D, D), ("embed", "kv_heads"))
        self.value = linear((D, D), ("embed", "kv_heads"))
        self.attention_out = linear((D, D), ("heads", "embed"))
        self.norm_attention = LayerNorm(D, precision, config.norm_epsilon)
        self.up = linear((D, M), ("embed", "mlp"))
        self.down = linear((M, D), ("mlp", "embed"))
        self.norm_mlp = LayerNorm(D, precision, config.norm_epsilon)
        self.config = config

    def __call__(
        self, x_BLD: jax.Array, keys_B: jax.Array | None, segments_BL: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The residual stream f[B, L, D] after this block, and no auxiliary losses."""
        (B, L, _), config = x_BLD.shape, self.config
        h_BLD = shard(x_BLD, "batch", "length", None)

        def heads(layer: Linear, name: str) -> jax.Array:
            return shard(layer(h_BLD).reshape(B, L, -1, config.head_width), "batch", "length", name, None)

        q_BLHK, k_BLHK = heads(self.query, "heads"), heads(self.key, "kv_heads")
        mixed = attention(q_BLHK, k_BLHK, heads(self.value, "kv_heads"), False, segments_BL, config.attention)
        mixed_BLHK = shard(mixed, "batch", "length", "heads", None)
        added_BLD = residual(self.attention_out(mixed_BLHK.reshape(B, L, -1)))
        x_BLD = self.norm_attention(x_BLD + dropout(added_BLD, config.dropout, fold(keys_B, 0)))

        up_BLM = self.up(shard(x_BLD, "batch", "length", None))
        h_BLM = shard(jax.nn.gelu(up_BLM, approximate=False), "batch", "length", "mlp")
        added_BLD = residual(self.down(h_BLM))
        return self.norm_mlp(x_BLD + dropout(added_BLD, config.dropout, fold(keys_B, 1))), {}


class BertModule(nnx.Module):
    """Embeddings of tokens, positions and token types, norm, blocks, pooling, logits."""

    def __init__(self, config: Bert, rngs: nnx.Rngs):
        blocks, D, precision = config.blocks, config.blocks.width, config.blocks.precision
        scale = INITIAL * D**0.5
        self.embedding = Embedding(rngs, config.vocab, D, precision, scale, scaled=False)

        def table(rows: int) -> nnx.Param:
            drawn = INITIAL * jax.random.normal(rngs.params(), (rows, D))
            return nnx.Param(drawn.astype(precision.params), axes=(None, "embed"))

        self.positions, self.types = table(config.positions), table(config.types)
        self.norm = LayerNorm(D, precision, blocks.norm_epsilon)
        make = functools.partial(BertBlock, blocks)
        self.blocks = Stack(make, blocks.layers, rngs, blocks.remat, blocks.unroll, blocks.rounds)
        if config.pooling == "dense":
            self.pooler = Linear(rngs, (D, D), ("embed", None), precision, bias=True)
        if config.outputs:
            self.head = Linear(rngs, (D, config.outputs), ("embed", "outputs"), precision, bias=True)
        self.config = config

    def __call__(
        self, ids_BL: jax.Array, context: Context, types_BL: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The embeddings or logits, f32, and no auxiliary losses."""
        config, blocks, L = self.config, self.config.blocks, ids_BL.shape[1]
        positions_LD, types_TD = (shard(table[...], None, None) for table in (self.positions, self.types))
        x_BLD = self.embedding(ids_BL) + positions_LD[:L] + types_TD[0 if types_BL is None else types_BL]
        x_BLD = shard(x_BLD.astype(blocks.precision.activations), "batch", "residual_length", None)
        x_BLD = dropout(self.norm(x_BLD), blocks.dropout, fold(context.keys_B, blocks.layers))
        valid_BL = ids_BL != config.padding
        x_BLD, aux_losses = self.blocks(x_BLD, context.keys_B, valid_BL.astype(jnp.int32))
        if config.pooling == "mean":
            weight_BL1 = valid_BL[..., None].astype(jnp.float32)
            pooled_BD = (x_BLD * weight_BL1).sum(1) / jnp.maximum(weight_BL1.sum(1), 1)
        else:
            pooled_BD = x_BLD[:, 0]
        if config.pooling == "dense":
            pooled_BD = jnp.tanh(self.pooler(pooled_BD))
        return (self.head(pooled_BD) if config.outputs else pooled_BD).astype(jnp.float32), aux_losses
