"""Metrics as pairs of sums, which merge exactly over microbatches, batches, devices and hosts.

Not here: which metrics a task reports, and where they are written.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mean:
    """A weighted mean, kept as the weighted sum and the sum of weights, f32[] each. `+` merges two of them."""

    total: jax.Array
    weight: jax.Array

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array | None = None) -> "Mean":
        """The mean of `values` (any shape), weighted by `weights` of the same shape or all equally."""
        weights = jnp.ones_like(values, jnp.float32) if weights is None else weights.astype(jnp.float32)
        return cls((values * weights).sum(), weights.sum())

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.weight + other.weight)

    def __float__(self) -> float:
        """The mean; NaN where the weights sum to 0."""
        weight = float(self.weight)
        return float(self.total) / weight if weight else float("nan")


def merge(parts: Iterable[Mapping[str, Mean]]) -> dict[str, Mean]:
    """The means of several dicts with the same names, merged by name."""
    merged: dict[str, Mean] = {}
    for part in parts:
        merged = {name: merged[name] + mean if name in merged else mean for name, mean in part.items()}
    return merged
