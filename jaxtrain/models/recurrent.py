"""Recurrent model: blocks of a gated linear recurrence and a gated feed-forward layer, pre-norm, in place of attention.

The recurrence is minGRU (Feng et al. 2024, arXiv:2410.01201, section 3.1): a GRU whose gate and candidate depend on the
input alone, so that all positions are computed at once by an associative scan, with no parameter inside of a loop. Its
output is gated as in Griffin (De et al. 2024, arXiv:2402.19427, section 2.3).

Shapes: B batch, L length, D width, M entries of the state (and inner width of the feed-forward layer), S devices that
split the length, O outputs.
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
from jaxtrain.base.ranges import FractionBelow1, PositiveInt
from jaxtrain.models.base import Model, Shaped
from jaxtrain.models.kv_cache import BlockPast, StateDecoder
from jaxtrain.models.layers import Embedding, Linear, Precision, Remat, RMSNorm, Stack, dropout, fold, residual
from jaxtrain.models.sizes import Activations, smaller
from jaxtrain.models.variables import Context
from jaxtrain.sharding.constraints import shard, shard_map_by_name, split

Pair = tuple[jax.Array, jax.Array]
"""The map h ↦ kept · h + added of a state, as `(kept, added)`."""


@dataclass(frozen=True, kw_only=True)
class Recurrent(Model):
    """A recurrent model from token ids i[B, L] to logits f32[B, L, O] that depend on no later position, or f32[B, O] if
    pooled, where id 0 is padding.
    """

    vocab: PositiveInt = 256
    outputs: PositiveInt | None = None
    """The number of logits; None is `vocab`."""
    width: PositiveInt = 256
    layers: PositiveInt = 4
    state: PositiveInt | None = None
    """Entries of the recurrent state of a block; None is `width`."""
    mlp: PositiveInt | None = None
    """Inner width of the feed-forward layer; None is twice `width`."""
    memory: PositiveInt = 256
    """Positions over which the slowest entry of a state forgets at first; the fastest needs 2."""
    pooled: bool = False
    tied: bool = True
    """Compute the logits with the embedding table, which needs `outputs` to be the vocabulary."""
    dropout: FractionBelow1 = 0.0
    remat: Remat = "none"
    unroll: PositiveInt = 1
    """Blocks an iteration of the scan over blocks."""
    rounds: PositiveInt = 1
    """How often a batch passes through the pipeline stages."""
    precision: Precision = Precision()

    def __post_init__(self) -> None:
        """Raises ConfigError for outputs that tied embeddings do not give, and for `layers` and `memory` that cannot
        be.
        """
        if self.tied and self.outputs not in (None, self.vocab):
            raise ConfigError(
                f"tied embeddings give logits of the {self.vocab} entries of vocab, not of {self.outputs} outputs: set "
                "tied=False"
            )
        if self.rounds < 1 or self.layers % self.rounds:
            raise ConfigError(f"layers {self.layers} must be a multiple of rounds {self.rounds}")
        if self.memory < 2:
            raise ConfigError(f"memory {self.memory} must be at least 2 positions")

    def build(self, rngs: nnx.Rngs, inputs: Shaped) -> nnx.Module:
        """The module."""
        return RecurrentModule(self, rngs)

    def allowed(self) -> Allowed:
        """Token ids: others would read another row of the table."""
        return Allowed(0, self.vocab - 1, why=f"the model has a vocabulary of {self.vocab}")

    def shrunk(self, devices: int) -> Self:
        """Fewer, narrower blocks and a vocabulary of about 256."""
        vocab = smaller(self.vocab, 256, devices)
        return replace(
            self,
            vocab=vocab,
            outputs=vocab if self.outputs == self.vocab else self.outputs,
            width=smaller(self.width, 64, devices),
            layers=smaller(self.layers, 2 * self.rounds, devices * self.rounds),
            state=smaller(self.state or self.width, 64, devices),
            mlp=smaller(self.mlp or 2 * self.width, 128, devices),
            precision=Precision(),
        )

    def describe(self, inputs: Shaped) -> Activations:
        """The activations of the blocks, embedding and logits."""
        return Activations(
            length=inputs.shape[1],
            width=self.width,
            layers=self.layers,
            rounds=self.rounds,
            state=self.state or self.width,
            compute=self.precision.compute,
            vocab=self.vocab,
            scores=0 if self.pooled else 1,
            tied=self.tied,
        )


class RecurrentModule(StateDecoder):
    """Embedding, blocks, norm, logits."""

    def __init__(self, config: Recurrent, rngs: nnx.Rngs):
        self.embedding = Embedding(rngs, config.vocab, config.width, config.precision)
        make = functools.partial(RecurrentBlock, config)
        self.blocks = Stack(make, config.layers, rngs, config.remat, config.unroll, config.rounds)
        self.norm = RMSNorm(config.width, config.precision)
        if not config.tied:
            axes = ("embed", "outputs" if config.pooled else "vocab")
            self.head = Linear(rngs, (config.width, config.outputs or config.vocab), axes, config.precision)
        self.config = config

    def __call__(
        self, ids_BL: jax.Array, context: Context, segments_BL: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The logits f32, and no auxiliary losses.

        The state is empty at the first position of every segment. Of a pooled model it passes padding unchanged, and
        the logits are those of the mean over all other positions.
        """
        config, keys_B, valid_BL = self.config, context.keys_B, ids_BL != 0
        first_BL = jnp.zeros(ids_BL.shape, bool)
        if segments_BL is not None:
            first_BL = first_BL.at[:, 1:].set(segments_BL[:, 1:] != segments_BL[:, :-1])
        used_BL = valid_BL if config.pooled else jnp.ones(ids_BL.shape, bool)
        x_BLD = dropout(self.embedding(ids_BL), config.dropout, fold(keys_B, config.layers))
        x_BLD, aux_losses = self.blocks(x_BLD, keys_B, jnp.stack([first_BL, used_BL], axis=-1))
        x_BLD = self.norm(x_BLD)
        logits = self.embedding.logits if config.tied else self.head
        if config.pooled:
            weight_BL1 = valid_BL[..., None].astype(jnp.float32)
            pooled_BD = (x_BLD * weight_BL1).sum(1) / jnp.maximum(weight_BL1.sum(1), 1)
            return logits(pooled_BD).astype(jnp.float32), aux_losses
        logits_BLO = logits(shard(x_BLD, "batch", "length", None))
        return shard(logits_BLO, "batch", "length", "vocab").astype(jnp.float32), aux_losses


class RecurrentBlock(nnx.Module):
    """A gated linear recurrence and a gated feed-forward layer, each added to the residual stream."""

    def __init__(self, config: Recurrent, rngs: nnx.Rngs):
        D, M, precision = config.width, config.state or config.width, config.precision
        small = (2 * config.layers) ** -0.5  # each block adds to the residual stream twice
        self.norm_recurrence = RMSNorm(D, precision)
        self.update = Linear(rngs, (D, M), ("embed", "mlp"), precision)
        self.candidate = Linear(rngs, (D, M), ("embed", "mlp"), precision)
        self.output_gate = Linear(rngs, (D, M), ("embed", "mlp"), precision)
        # sigmoid(bias) = 1 / positions: entries of the state forget at rates of their own (Tallec & Ollivier 2018,
        # arXiv:1804.11188).
        bias_M = -np.log(np.geomspace(2, config.memory, M) - 1)
        self.bias = nnx.Param(jnp.asarray(bias_M, precision.params), axes=("mlp",))
        self.recurrence_out = Linear(rngs, (M, D), ("mlp", "embed"), precision, small)
        M = config.mlp or 2 * D
        self.norm_mlp = RMSNorm(D, precision)
        self.gate = Linear(rngs, (D, M), ("embed", "mlp"), precision)
        self.up = Linear(rngs, (D, M), ("embed", "mlp"), precision)
        self.down = Linear(rngs, (M, D), ("mlp", "embed"), precision, small)
        self.config = config

    def __call__(
        self, x_BLD: jax.Array, keys_B: jax.Array | None, marks_BL2: jax.Array | None, past: BlockPast | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The residual stream f[B, L, D] after this block, and no auxiliary losses.

        marks_BL2: bool, whether a position starts from an empty state, and whether it changes the state.
        past: the state of earlier calls, which goes on.
        """
        if past is not None:
            used_BL = past.used_BL(x_BLD.shape[1])
            marks_BL2 = jnp.stack([jnp.zeros_like(used_BL), used_BL], axis=-1)
        assert marks_BL2 is not None
        rate, first_BL1, used_BL1 = self.config.dropout, marks_BL2[..., :1], marks_BL2[..., 1:]

        h_BLD = shard(self.norm_recurrence(x_BLD), "batch", "length", None)
        update_BLM = used_BL1 * jax.nn.sigmoid(self.update(h_BLD).astype(jnp.float32) + self.bias[...])
        added_BLM = update_BLM * self.candidate(h_BLD)
        states = functools.partial(past.advance, states=linear_recurrence) if past else linear_recurrence
        state_BLM = states(jnp.where(first_BL1, 0, 1 - update_BLM), added_BLM).astype(x_BLD.dtype)
        gated_BLM = shard(state_BLM * jax.nn.silu(self.output_gate(h_BLD)), "batch", "length", "mlp")
        x_BLD = x_BLD + dropout(residual(self.recurrence_out(gated_BLM)), rate, fold(keys_B, 0))

        h_BLD = shard(self.norm_mlp(x_BLD), "batch", "length", None)
        h_BLM = shard(jax.nn.silu(self.gate(h_BLD)) * self.up(h_BLD), "batch", "length", "mlp")
        return x_BLD + dropout(residual(self.down(h_BLM)), rate, fold(keys_B, 1)), {}


def linear_recurrence(kept_BLM: jax.Array, added_BLM: jax.Array) -> jax.Array:
    """The states f32[B, L, M] of h ← kept · h + added from h = 0, entry by entry (an associative scan: Blelloch 1990).

    Where devices split the length, each scans its own positions; then they exchange one pair f32[B, M] each.
    """
    axes, names = tuple(split("length")), ("batch", "length", "mlp")

    def local(kept_BLM: jax.Array, added_BLM: jax.Array) -> tuple[jax.Array]:
        kept_BLM, state_BLM = jax.lax.associative_scan(_then, (kept_BLM, added_BLM), axis=1)
        if axes:
            ends_2BM = jnp.stack([kept_BLM[:, -1], state_BLM[:, -1]])
            ends_S2BM = jax.lax.all_gather(ends_2BM, axes)
            _, after_SBM = jax.lax.associative_scan(_then, (ends_S2BM[:, 0], ends_S2BM[:, 1]), axis=0)
            device = jax.lax.axis_index(axes)
            before_BM = jnp.where(device > 0, after_SBM[device - 1], 0)
            state_BLM += kept_BLM * before_BM[:, None]
        return (state_BLM,)

    return shard_map_by_name(local, [names, names], [names], kept_BLM, added_BLM)[0]


def _then(first: Pair, second: Pair) -> Pair:
    """The first map followed by the second."""
    return first[0] * second[0], second[0] * first[1] + second[1]
