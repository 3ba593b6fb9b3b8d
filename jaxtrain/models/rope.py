"""Rotary position embedding.

Shapes: B batch, L length, H heads, K head dim.
"""

import functools
import math
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import Checked, Positive, PositiveInt, Range


@dataclass(frozen=True, kw_only=True)
class Rope(Checked):
    """The hyperparameters of a rotary position embedding (Su et al. 2021, arXiv:2104.09864).

    With a `factor` above 1 low frequencies are divided by it, so that a model trained on rows of `trained_length` reads
    longer ones, as Llama 3.1 does (Grattafiori et al. 2024, arXiv:2407.21783): those that turn less than `low` times
    within `trained_length` are divided, those that turn more than `high` times stay, and between the two the frequency
    is interpolated linearly.
    """

    base: Positive = 10_000.0
    factor: Annotated[float, Range(at_least=1)] = 1.0
    low: Positive = 1.0
    high: Positive = 4.0
    trained_length: PositiveInt = 8192

    def __post_init__(self) -> None:
        """Raises ConfigError where `high` is not above `low`."""
        if self.high <= self.low:
            raise ConfigError(f"Rope.high: {self.high} must be above low, {self.low}")

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Radians a position, f64[K / 2], one a pair of the dims of a head."""
        plain_K = self.base ** (-np.arange(0, head_dim, 2) / head_dim)
        if self.factor == 1:
            return plain_K
        turns_K = self.trained_length * plain_K / (2 * math.pi)
        kept_K = np.clip((turns_K - self.low) / (self.high - self.low), 0, 1)
        return plain_K * (kept_K + (1 - kept_K) / self.factor)


@functools.cache
def _rotation(length: int, head_dim: int, rope: Rope) -> tuple[np.ndarray, np.ndarray]:
    angles = np.arange(length)[:, None] * rope.frequencies(head_dim)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(
    x_BLHK: jax.Array, order_L: np.ndarray | jax.Array | None, rope: Rope = Rope(), length: int | None = None
) -> jax.Array:
    """Rotary position embedding, in f32: pairs of dims (k, k + K/2) are rotated by an angle that grows with position
    (Su et al. 2021, arXiv:2104.09864).

    order_L: the position of each entry, also i[B, L]; None is 0, 1, ….
    length: how many positions there are; None is L.
    """
    order = slice(None) if order_L is None else order_L
    tables = _rotation(length or x_BLHK.shape[1], x_BLHK.shape[3], rope)
    if isinstance(order, jax.Array):
        tables = jax.tree.map(jnp.asarray, tables)
    cos_LK, sin_LK = (table[order, None] for table in tables)
    left, right = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos_LK - right * sin_LK, right * cos_LK + left * sin_LK], axis=-1)
    return turned.astype(x_BLHK.dtype)
