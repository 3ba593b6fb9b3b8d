"""Rotary position embedding: the frequencies by which positions turn. Not here: the rotation itself."""

import math
from dataclasses import dataclass
from typing import Annotated

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
