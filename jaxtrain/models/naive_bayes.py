"""Naive-Bayes log-count ratios of hashed n-grams, weighted by a linear layer (Wang & Manning 2012, "Baselines and
Bigrams").

The ratios are fitted on the training split: they are arrays in the state, by bucket, and there is no vocabulary.

Shapes: B batch, L length in bytes, G n-grams of a text, V buckets, T tags, O outputs.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.base.allowed import Allowed
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import NonNegative, Positive, PositiveInt, Range
from jaxtrain.models.base import Model, Shaped
from jaxtrain.models.ngrams import BYTES, ngram_hashes
from jaxtrain.models.sizes import smaller
from jaxtrain.models.variables import Context
from jaxtrain.sharding.constraints import shard

_NONE = np.uint32(0xFFFFFFFF)
"""The key of a place in a text where there is no n-gram."""


@dataclass(frozen=True, kw_only=True)
class NaiveBayes(Model):
    """Logits f32[B, O] from bytes u8[B, L] (0 is padding): for each output the sum, over the n-grams that are present,
    of a trained weight times the fitted log-count ratio of its bucket.

    How often an n-gram is in a text does not count. Of the n-grams that fall into a bucket, the one that most texts of
    the training split hold is used and the others are left out: a tag in the bucket tells them apart.
    """

    outputs: PositiveInt = 2
    order: PositiveInt = 3
    """The longest n-gram, in words."""
    buckets: Annotated[int, Range(at_least=1, at_most=2**30, hint="hashes are u32")] = 2**20
    """Entries of the table that n-grams are hashed into."""
    tags: Annotated[int, Range(at_least=1, at_most=256, hint="buckets · tags numbers are counted")] = 16
    """How many n-grams of a bucket are told apart, by a second hash."""
    words: PositiveInt = 384
    """Words of a text that are used; later ones are ignored."""
    least: NonNegative = 2.0
    """Texts that must hold an n-gram; rarer ones are left out."""
    smoothing: Positive = 1.0
    """What is added to each count."""
    initial: NonNegative = 0.0
    """The weights at first; any but 0 begin as naive Bayes, whose classes they do not change."""

    def __post_init__(self) -> None:
        """Raises ConfigError where the keys of n-grams need more than 31 bits."""
        if self.buckets * self.tags > 2**31:
            raise ConfigError(f"NaiveBayes: {self.buckets} buckets with {self.tags} tags are more than 2**31")

    def build(self, rngs: nnx.Rngs, inputs: Shaped) -> nnx.Module:
        """The module."""
        return NaiveBayesModule(self, rngs)

    def allowed(self) -> Allowed:
        """Bytes."""
        return BYTES

    def shrunk(self, devices: int) -> Self:
        """About 4,096 buckets."""
        return replace(self, buckets=smaller(self.buckets, 4096, devices))


class NaiveBayesModule(nnx.Module):
    """Hashing, ratios by bucket, weighted sum. Until they are fitted the ratios are NaN, and so are the logits."""

    def __init__(self, config: NaiveBayes, rngs: nnx.Rngs):
        self.weights = nnx.Param(jnp.full(config.buckets, config.initial), axes=("vocab",))
        self.bias = nnx.Param(jnp.zeros(config.outputs), axes=("outputs",))
        self.ratios = nnx.BatchStat(jnp.full((config.buckets, config.outputs), jnp.nan), axes=("vocab", None))
        self.tags = nnx.BatchStat(jnp.zeros(config.buckets, jnp.int32), axes=("vocab",))
        self.config = config

    def __call__(self, bytes_BL: jax.Array, context: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The logits f32[B, O], and no auxiliary losses."""
        keys_BG, first_BG = self._keys(bytes_BL)
        places_BG, tags_BG = self._split(keys_BG)
        used_BG = first_BG & (shard(self.tags[...], "vocab")[places_BG] == tags_BG)
        weights_BG = jnp.where(used_BG, shard(self.weights[...], "vocab")[places_BG], 0)
        ratios_BGO = shard(self.ratios[...], "vocab", None)[places_BG]
        return (weights_BG[..., None] * ratios_BGO).sum(1) + self.bias[...], {}

    def count(self, bytes_BL: jax.Array, labels_BO: jax.Array, counts: jax.Array | None) -> jax.Array:
        """How many texts of each label hold each key, f32[V · T, O]: those of a batch added to `counts`."""
        keys_BG, first_BG = self._keys(bytes_BL)
        size = self.config.buckets * self.config.tags
        counts = jnp.zeros((size, self.config.outputs)) if counts is None else counts
        keys_BG = jnp.where(first_BG, keys_BG, size).astype(jnp.int32)  # out of range: dropped
        # Keys are gathered, since to sum the counts over devices would send the whole table for every batch.
        keys_BG, labels_BO = shard(keys_BG, None, None), shard(labels_BO, None, None)
        labels_BGO = jnp.broadcast_to(labels_BO[:, None], (*keys_BG.shape, labels_BO.shape[1]))
        return counts.at[keys_BG].add(labels_BGO, mode="drop")

    def fit(self, counts: jax.Array) -> None:
        """Sets tags and ratios: the log of a bucket's share of the counts of a label, less that of the other labels."""
        counts_VTO = counts.reshape(self.config.buckets, self.config.tags, -1)
        tags_V = counts_VTO.sum(2).argmax(1)
        counts_VO = jnp.take_along_axis(counts_VTO, tags_V[:, None, None], 1)[:, 0]
        known_V1 = (counts_VO.sum(1) >= self.config.least)[:, None]
        others_VO = counts_VO.sum(1, keepdims=True) - counts_VO
        shares = (jnp.where(known_V1, each + self.config.smoothing, 0) for each in (counts_VO, others_VO))
        own_VO, other_VO = (jnp.log(jnp.where(known_V1, each, 1) / each.sum(0)) for each in shares)
        self.ratios[...] = jnp.where(known_V1, own_VO - other_VO, 0)
        self.tags[...] = tags_V.astype(jnp.int32)

    def _keys(self, bytes_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The keys u32[B, G] of the n-grams of each text, each once, and the places where there is one."""
        hashes_BG, present_BG = ngram_hashes(bytes_BL, self.config.words, self.config.order)
        keys_BG = hashes_BG % jnp.uint32(self.config.buckets * self.config.tags)
        keys_BG = jnp.sort(jnp.where(present_BG, keys_BG, _NONE), axis=1)
        repeated_BG = jnp.pad(keys_BG[:, 1:] == keys_BG[:, :-1], ((0, 0), (1, 0)))
        first_BG = ~repeated_BG & (keys_BG != _NONE)
        return jnp.where(first_BG, keys_BG, 0), first_BG

    def _split(self, keys_BG: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The bucket and the tag of each key."""
        tags = jnp.uint32(self.config.tags)
        return (keys_BG // tags).astype(jnp.int32), (keys_BG % tags).astype(jnp.int32)
