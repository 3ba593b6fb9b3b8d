"""Bag of hashed word n-grams (fastText: Joulin et al. 2016, arXiv:1607.01759) of raw UTF-8 bytes.

Also the hashes of token n-grams, for `Transformer.ngrams`.

The words are hashed on the device as part of the model, so that there is neither tokenizer nor vocabulary to ship.

Shapes: B batch, L length in bytes, W words, D width, O outputs.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Self

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.base.allowed import Allowed
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import FractionBelow1, PositiveInt, Range
from jaxtrain.models.base import Model, Shaped
from jaxtrain.models.checks import kind_of
from jaxtrain.models.layers import Embedding, Linear, Precision, dropout
from jaxtrain.models.sizes import smaller
from jaxtrain.models.variables import Context

BYTES = Allowed(0, 255, why="the model reads the bytes of a text, 0 for padding")


@dataclass(frozen=True, kw_only=True)
class NGrams(Model):
    """A linear classifier of n-gram embeddings, from bytes u8[B, L] (0 is padding) to logits f32[B, O]."""

    outputs: PositiveInt = 2
    order: PositiveInt = 2
    """The longest n-gram, in words."""
    buckets: Annotated[int, Range(at_least=1, at_most=2**32 - 1, hint="hashes are u32")] = 2**18
    """Rows of the embedding table that n-grams are hashed into."""
    words: PositiveInt = 384
    """Words of a text that are used; later ones are ignored."""
    width: PositiveInt = 16
    """Entries of an embedding."""
    dropout: FractionBelow1 = 0.0
    precision: Precision = Precision()

    def build(self, rngs: nnx.Rngs, inputs: Shaped) -> nnx.Module:
        """The module."""
        return NGramsModule(self, rngs)

    def allowed(self) -> Allowed:
        """Bytes."""
        return BYTES

    def shrunk(self, devices: int) -> Self:
        """About 4,096 rows in the table."""
        return replace(self, buckets=smaller(self.buckets, 4096, devices), precision=Precision())


class NGramsModule(nnx.Module):
    """Hashing, embedding, mean, logits."""

    def __init__(self, config: NGrams, rngs: nnx.Rngs):
        self.table = Embedding(rngs, config.buckets, config.width, config.precision)
        self.head = Linear(rngs, (config.width, config.outputs), ("embed", "outputs"), config.precision)
        self.config = config

    def __call__(self, bytes_BL: jax.Array, context: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The logits f32[B, O], and no auxiliary losses."""
        hashes_BG, present_BG = ngram_hashes(bytes_BL, self.config.words, self.config.order)
        ids = hashes_BG % jnp.uint32(self.config.buckets)
        weight = present_BG[..., None].astype(jnp.float32)
        rows = self.table(ids.astype(jnp.int32)) * weight
        mean_BD = rows.sum(1) / jnp.maximum(weight.sum(1), 1) ** 0.5
        return self.head(dropout(mean_BD, self.config.dropout, context.keys_B)).astype(jnp.float32), {}


def ngram_hashes(bytes_BL: jax.Array, words: int, order: int) -> tuple[jax.Array, jax.Array]:
    """The hashes u32[B, W · order] of the n-grams of up to `order` words, of the first W words, and which exist."""
    words_BW, valid_BW = word_hashes(bytes_BL, words)
    grams, present = [words_BW], [valid_BW]
    for distance in range(1, order):
        grams.append(grams[-1] * jnp.uint32(0x01000193) + jnp.roll(words_BW, -distance, axis=1))
        present.append(valid_BW & (jnp.roll(valid_BW, -distance, axis=1)).at[:, -distance:].set(False))
    return _mix(jnp.concatenate(grams, 1)), jnp.concatenate(present, 1)


def word_hashes(bytes_BL: jax.Array, words: int) -> tuple[jax.Array, jax.Array]:
    """The hashes of the first W words of each text u32[B, W], and which of them exist bool[B, W].

    A word is a run of letters, digits, apostrophes and non-ASCII bytes; ASCII letters are hashed in lower case.
    """
    if not jnp.issubdtype(bytes_BL.dtype, jnp.integer) or bytes_BL.ndim != 2:
        raise ConfigError(f"n-grams are those of bytes u8[B, L], not of {kind_of(bytes_BL)}: use Utf8(length)")
    byte = bytes_BL.astype(jnp.uint32)
    capital = (byte >= ord("A")) & (byte <= ord("Z"))
    byte = jnp.where(capital, byte + 32, byte)
    inside = ((byte >= ord("a")) & (byte <= ord("z"))) | ((byte >= ord("0")) & (byte <= ord("9")))
    inside |= (byte >= 128) | (byte == ord("'"))
    # h ← h·p + byte inside a word and h ← 0 outside is a chain of affine maps, which compose associatively.
    factor, term = jnp.where(inside, jnp.uint32(0x01000193), 0), jnp.where(inside, byte + 1, 0)
    _, hashes = jax.lax.associative_scan(lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1]), (factor, term), axis=1)
    last = inside & ~jnp.pad(inside[:, 1:], ((0, 0), (0, 1)))
    position = jnp.where(last, jnp.cumsum(last, axis=1) - 1, words)  # `words` is out of range: dropped
    place = jax.vmap(lambda at, value: jnp.zeros(words, jnp.uint32).at[at].set(value, mode="drop"))
    return place(position, hashes), jnp.arange(words) < last.sum(1, keepdims=True)


def suffix_rows(ids_BL: jax.Array, lengths: tuple[int, ...], buckets: int, segments_BL: jax.Array | None) -> list:
    """For each n of `lengths` the row i32[B, L], from 0 to `buckets` - 1, of the last n tokens at each position, for
    embeddings of n-grams beside those of tokens (Pagnoni et al. 2024, arXiv:2412.09871, section 3.2.1).

    Tokens before the row and tokens of another segment count as absent.
    """
    token_BL = ids_BL.astype(jnp.uint32) + 1  # 0 is an absent token
    hash_BL, rows = jnp.zeros_like(token_BL), {}
    for distance in range(max(lengths, default=0)):
        earlier_BL = _earlier(token_BL, distance)
        if segments_BL is not None:
            earlier_BL = jnp.where(_earlier(segments_BL, distance) == segments_BL, earlier_BL, 0)
        hash_BL = _mix(hash_BL * jnp.uint32(0x01000193) + earlier_BL + 1)
        rows[distance + 1] = (hash_BL % jnp.uint32(buckets)).astype(jnp.int32)
    return [rows[n] for n in lengths]


def _earlier(x_BL: jax.Array, distance: int) -> jax.Array:
    """What was `distance` positions before each one; 0 before the row."""
    return jnp.pad(x_BL, ((0, 0), (distance, 0)))[:, : x_BL.shape[1]]


def _mix(x: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3 (Appleby, public domain), by which every bit of a hash depends on all others."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
