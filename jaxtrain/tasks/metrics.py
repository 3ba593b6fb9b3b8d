"""Metrics as sums with weights, so that microbatches, batches, devices and hosts merge exactly.

Not here: which metrics a task reports, and where they are written.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mean:
    """A weighted mean kept as its two sums, f32[] each; `+` merges two of them."""

    total: jax.Array
    weight: jax.Array

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array | None = None) -> "Mean":
        """The mean of `values` (any shape) under `weights` of the same shape, or of equal ones."""
        weights = jnp.ones_like(values, jnp.float32) if weights is None else weights.astype(jnp.float32)
        return cls((values * weights).sum(), weights.sum())

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.weight + other.weight)

    def __float__(self) -> float:
        """The mean; nan where nothing was weighed."""
        weight = float(self.weight)
        return float(self.total) / weight if weight else float("nan")


def merge(parts: Iterable[Mapping[str, Mean]]) -> dict[str, Mean]:
    """One dict of means from many with the same names."""
    merged: dict[str, Mean] = {}
    for part in parts:
        merged = {name: merged[name] + mean if name in merged else mean for name, mean in part.items()}
    return merged
