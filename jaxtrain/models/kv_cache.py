"""What a decoder keeps of the tokens of a row so far, so that each further token is computed alone.

A `Cache` is a flat dict of arrays with the rows of the batch on their first dim. Its keys and values are named
`key_0`, `value_0`, … by block, one array a block: a decode step writes one position of each in place, where an array
stacked over blocks would be copied. Rows may have prompts of different lengths: they are padded at the end, which under
a causal mask no earlier position sees, and the padding is overwritten by the tokens that follow.

Not here: which token comes next, and the loop over tokens.

Shapes: B batch, L tokens a row of this call, T tokens a row that the cache has room for, D width, H heads, G key/value
heads, K head dim, M entries of a recurrent state, W recent tokens.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.base.errors import ConfigError
from jaxtrain.models.attention import Attention, attend_to_cache, attention
from jaxtrain.models.ngrams import suffix_rows
from jaxtrain.sharding.constraints import shard

Cache = dict[str, jax.Array]
"""Arrays by name, rows on dim 0."""

ABSENT = -1
"""In `recent`: before the first token of a row."""


class Past:
    """A cache while a model is traced: its blocks read and replace arrays of it.

    lengths_B: the tokens of each row, i32[B], of the first call; None for one further token a row.
    """

    def __init__(self, cache: Cache, lengths_B: jax.Array | None) -> None:
        self.cache, self.first = dict(cache), lengths_B is not None
        self.added_B = jnp.ones_like(cache["length"]) if lengths_B is None else lengths_B.astype(jnp.int32)
        self.position_B = cache["length"]
        """The position of the first token of this call."""

    def of_block(self, number: int) -> "BlockPast":
        """The part of a block."""
        return BlockPast(self, number)

    def with_recent(self, ids_BL: jax.Array) -> jax.Array:
        """The tokens of this call after the recent ones of earlier calls, i32[B, W + L]; keeps the last W of each row.

        The same tokens where the cache has no `recent`.
        """
        if "recent" not in self.cache:
            return ids_BL
        ids_BL = jnp.concatenate([self.cache["recent"], ids_BL.astype(jnp.int32)], axis=1)
        W = self.cache["recent"].shape[1]
        last_BW = jax.vmap(lambda ids, start: jax.lax.dynamic_slice(ids, (start,), (W,)))(ids_BL, self.added_B)
        self.cache["recent"] = shard(last_BW, "batch", None)
        return ids_BL

    def last(self, x_BLD: jax.Array) -> jax.Array:
        """The activations at the last token of each row, f[B, D]."""
        return jnp.take_along_axis(x_BLD, (self.added_B - 1)[:, None, None], axis=1)[:, 0]

    def ended(self) -> Cache:
        """The cache after this call."""
        return {**self.cache, "length": shard(self.position_B + self.added_B, "batch")}


class BlockPast:
    """The arrays of one block of a `Past`."""

    def __init__(self, past: Past, number: int) -> None:
        self._past, self._number = past, number

    @property
    def order_BL(self) -> jax.Array | None:
        """The position of each token; None is 0, 1, …."""
        return None if self._past.first else self._past.position_B[:, None]

    @property
    def length(self) -> int | None:
        """Positions there are, for `order_BL`."""
        return None if self._past.first else self._past.cache[f"key_{self._number}"].shape[2]

    def attend(self, q_BLHK: jax.Array, k_BLGK: jax.Array, v_BLGK: jax.Array, implementation: Attention) -> jax.Array:
        """Causal attention f[B, L, H, K] to the keys and values so far, after adding those of this call."""
        past = self._past
        key, value = f"key_{self._number}", f"value_{self._number}"
        write = _write_first if past.first else _write_at(past.position_B)
        for name, new_BLGK in ((key, k_BLGK), (value, v_BLGK)):
            old_BGTK = past.cache[name]
            new_BGTK = write(old_BGTK, new_BLGK.swapaxes(1, 2).astype(old_BGTK.dtype))
            past.cache[name] = shard(new_BGTK, "batch", "kv_heads", "cache", None)
        if past.first:  # a whole row is on each device here: there is nothing to pass around a ring
            return attention(q_BLHK, k_BLGK, v_BLGK, True, None, "auto" if implementation == "ring" else implementation)
        return attend_to_cache(q_BLHK, past.cache[key], past.cache[value], past.position_B)

    def advance(self, kept_BLM: jax.Array, added_BLM: jax.Array, states: Callable[..., jax.Array]) -> jax.Array:
        """The states f32[B, L, M] of `states(kept, added)`, a linear recurrence, from the state so far, whose last one
        is kept.
        """
        name = f"state_{self._number}"
        added_BLM = added_BLM.at[:, 0].add(kept_BLM[:, 0] * self._past.cache[name])
        state_BLM = states(kept_BLM, added_BLM)
        self._past.cache[name] = shard(state_BLM[:, -1], "batch", "mlp")
        return state_BLM

    def used_BL(self, length: int) -> jax.Array:
        """bool[B, L], False at padding."""
        return jnp.arange(length) < self._past.added_B[:, None]


def _write_first(old_BGTK: jax.Array, new_BGLK: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice(old_BGTK, new_BGLK, (0, 0, 0, 0))


def _write_at(position_B: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    def write(old_BGTK: jax.Array, new_BG1K: jax.Array) -> jax.Array:
        at = jax.vmap(lambda old, new, position: jax.lax.dynamic_update_slice(old, new, (0, position, 0)))
        return at(old_BGTK, new_BG1K, position_B)

    return write


class _CachingDecoder(nnx.Module):
    """A module of embedding, blocks, norm and logits that extends a cache by tokens."""

    config: Any
    embedding: Any
    ngrams: Any
    blocks: Any
    norm: Any
    head: Any

    def extend(self, ids_BL: jax.Array, lengths_B: jax.Array | None, cache: Cache) -> tuple[jax.Array, Cache]:
        """The logits f32[B, V] after the last token of each row, and the cache with its tokens: see `Model.prefill`."""
        config, past = self.config, Past(cache, lengths_B)
        x_BLD = self.embedding(ids_BL)
        if getattr(config, "ngrams", ()):
            rows_NBW = suffix_rows(past.with_recent(ids_BL), config.ngrams, config.buckets, None)
            x_BLD = sum((self.ngrams(rows_BW[:, -ids_BL.shape[1] :]) for rows_BW in rows_NBW), start=x_BLD)
        x_BLD = self.blocks.extend(x_BLD, [past.of_block(number) for number in range(self.blocks.layers)])
        logits_BV = (self.embedding.logits if config.tied else self.head)(self.norm(past.last(x_BLD)))
        return shard(logits_BV, "batch", "vocab").astype(jnp.float32), past.ended()

    def _check(self) -> None:
        config = self.config
        if getattr(config, "causal", True) is False or config.pooled or config.outputs not in (None, config.vocab):
            raise ConfigError(
                f"{type(config).__name__} cannot generate, since it predicts no next token: that takes pooled=False, "
                "an output for each token of vocab and, where it has attention, causal=True"
            )


class KeyValueDecoder(_CachingDecoder):
    """The base of modules whose blocks are of attention."""

    def empty_cache(self, rows: int, length: int) -> Cache:
        """A cache of up to `length` tokens a row. Raises ConfigError for a model that predicts no next token, and for a
        capacity of experts.
        """
        self._check()
        config, experts = self.config, self.config.blocks.experts
        if experts.count and experts.capacity is not None:
            raise ConfigError(
                f"experts.capacity: {experts.capacity} drops tokens by where all others of a row are routed, which is "
                "not known while it is generated: set it to None"
            )
        shape = (rows, config.blocks.groups, length, self.blocks.block.head_dim)
        dtype, recent = config.blocks.precision.activations, max(config.ngrams, default=1) - 1
        names = [f"{kind}_{number}" for number in range(self.blocks.layers) for kind in ("key", "value")]
        cache = {"length": jnp.zeros(rows, jnp.int32), **{name: jnp.zeros(shape, dtype) for name in names}}
        return cache | ({"recent": jnp.full((rows, recent), ABSENT, jnp.int32)} if recent else {})


class StateDecoder(_CachingDecoder):
    """The base of modules whose blocks are recurrent: their states are the cache."""

    def empty_cache(self, rows: int, length: int) -> Cache:
        """The states before the first token, whatever the length. Raises ConfigError for a model that predicts no next
        token.
        """
        self._check()
        shape = (rows, self.config.state or self.config.width)
        states = {f"state_{number}": jnp.zeros(shape, jnp.float32) for number in range(self.blocks.layers)}
        return {"length": jnp.zeros(rows, jnp.int32), **states}
