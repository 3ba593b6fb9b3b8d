"""The next token from logits: temperature, top-k, top-p, min-p.

Shapes: B batch, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import Checked, NonNegative, PositiveInt, Range

NOT_FINITE = -2
"""In place of a token: the row's logits hold NaN or +inf, or nothing but -inf."""

Limits = Mapping[str, Any]
"""Numbers by the name of the field of `Sampling`; those that limit nothing are left out. Their values may be traced, so
that another temperature needs no other program.
"""


@dataclass(frozen=True, kw_only=True)
class Sampling(Checked):
    """How the next token is drawn. The limits apply one after another, each to the renormalised probabilities of the
    tokens that the one before kept: `top_k`, `top_p`, `min_p`. Tokens as likely as the last that is kept are kept too.
    """

    temperature: NonNegative = 1.0
    """Logits are divided by it first. 0 is greedy: the likeliest token, of several the one with the lowest id."""
    top_k: PositiveInt | None = None
    """Keep the k likeliest tokens (Fan et al. 2018, arXiv:1805.04833); None keeps all."""
    top_p: Annotated[float, Range(above=0, at_most=1)] = 1.0
    """Keep the fewest likeliest tokens whose probabilities reach p (Holtzman et al. 2020, arXiv:1904.09751)."""
    min_p: Annotated[float, Range(at_least=0, at_most=1)] = 0.0
    """Keep tokens at least p times as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082)."""
    stop: tuple[int, ...] = ()
    """Tokens that end a row; they are not part of what is generated."""

    def limits(self) -> dict[str, Any]:
        """What `sample` takes."""
        if self.temperature == 0:
            return {}
        used = {
            "temperature": np.float32(self.temperature),
            "top_k": None if self.top_k is None else np.int32(self.top_k),
            "top_p": np.float32(self.top_p) if self.top_p < 1 else None,
            "min_p": np.float32(self.min_p) if self.min_p > 0 else None,
        }
        return {name: value for name, value in used.items() if value is not None}


AS_IT_IS = Sampling()
"""Draws from the model's own distribution."""


def check_tokens(tokens: Any, vocab: float, what: str) -> None:
    """Raises ConfigError for token ids that are no whole numbers from 0 to `vocab` - 1."""
    found = np.asarray(tokens)
    if found.size and not (found.dtype.kind in "iu" and found.min() >= 0 and found.max() < vocab):
        raise ConfigError(f"{what}: tokens are whole numbers from 0 to {vocab - 1:g}, got {found.tolist()[:10]}")


def limited(logits_BV: jax.Array, limits: Limits) -> jax.Array:
    """The logits f32[B, V] after the temperature, less the largest of each row; -inf for tokens that are not kept."""
    logits_BV = logits_BV.astype(jnp.float32)
    # The difference first: a tiny temperature would make infinities of which a difference is NaN.
    logits_BV -= logits_BV.max(-1, keepdims=True)
    logits_BV /= jnp.maximum(limits["temperature"], jnp.finfo(jnp.float32).tiny)
    if "top_k" in limits or "top_p" in limits:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        if "top_k" in limits:
            last = jnp.minimum(limits["top_k"], logits_BV.shape[-1]) - 1
            least_B1 = jax.lax.dynamic_slice_in_dim(sorted_BV, last, 1, axis=-1)
            logits_BV, sorted_BV = (jnp.where(x_BV >= least_B1, x_BV, -jnp.inf) for x_BV in (logits_BV, sorted_BV))
        if "top_p" in limits:
            chance_BV = jax.nn.softmax(sorted_BV, axis=-1)
            before_BV = jnp.pad(jnp.cumsum(chance_BV, axis=-1), ((0, 0), (1, 0)))[:, :-1]
            kept_BV = before_BV < limits["top_p"]
            least_B1 = jnp.where(kept_BV, sorted_BV, jnp.inf).min(-1, keepdims=True)
            logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    if "min_p" in limits:
        logits_BV = jnp.where(logits_BV >= jnp.log(limits["min_p"]), logits_BV, -jnp.inf)
    return logits_BV


def sample(logits_BV: jax.Array, keys_B: jax.Array, limits: Limits) -> jax.Array:
    """A token a row, i32[B], drawn with a PRNG key a row; the likeliest where `limits` is empty; else `NOT_FINITE`."""
    top_B = logits_BV.max(-1)
    token_B = logits_BV.argmax(-1)
    if limits:
        token_B = jax.vmap(jax.random.categorical)(keys_B, limited(logits_BV, limits))
    return jnp.where(jnp.isfinite(top_B), token_B, NOT_FINITE).astype(jnp.int32)


def next_tokens(
    logits_BV: jax.Array, seeds_B: jax.Array, count: jax.Array, limits: Limits, vocab: int | None = None
) -> jax.Array:
    """A token a row, i32[B], drawn with the key number `count` of the row's seed u32; `NOT_FINITE` as by `sample`.

    vocab: tokens from this one on are never drawn; None is any.
    """
    if vocab is not None:
        logits_BV = jnp.where(jnp.arange(logits_BV.shape[1]) < vocab, logits_BV, -jnp.inf)
    keys_B = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), count))(seeds_B)
    return sample(logits_BV, keys_B, limits)
