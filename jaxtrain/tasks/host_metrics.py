"""Metrics that are no sums over rows: computed on the host from all predictions and labels of a split together."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jaxtrain.base.errors import ConfigError, nearest

Rows = Mapping[str, np.ndarray]
"""Arrays by name, with all rows of a split on dim 0, in the order of its source."""


@dataclass(frozen=True)
class HostMetric(ABC):
    """A function of all rows of a split, such as a rank correlation, BLEU or mean average precision.

    All that it reads is kept on every host during the evaluation.
    """

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a batch that it reads beside the predictions; none by default."""
        return ()

    @abstractmethod
    def value(self, predictions: Rows, labels: Rows) -> float | Mapping[str, float]:
        """The value, or several by name, of what `Task.predict` returned and of the batch's `fields`.

        Rows that only fill up a batch are in neither.
        """


@dataclass(frozen=True)
class Spearman(HostMetric):
    """Spearman's rank correlation of one prediction and one label a row; ties have the mean of their ranks.

    NaN where either is constant or has a NaN.
    """

    prediction: str = "values"
    """The name of the prediction, f[B] or f[B, 1]."""
    label: str = "target"
    """The field of a batch to compare it with, [B] or [B, 1]."""

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.label,)

    def value(self, predictions: Rows, labels: Rows) -> float:
        if self.prediction not in predictions:
            raise ConfigError(
                f"Spearman.prediction: no prediction {self.prediction!r}{nearest(self.prediction, predictions)}"
            )
        one, two = (_ranks(each) for each in (predictions[self.prediction], labels[self.label]))
        one, two = one - one.mean(), two - two.mean()
        scale = float(np.sqrt((one**2).sum() * (two**2).sum()))
        return float((one * two).sum()) / scale if scale else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value from 1 on, f64[rows]; NaN for all where one value is NaN."""
    if values.size != len(values):
        raise ConfigError(f"Spearman compares one number a row, not arrays of shape {list(values.shape)}")
    column = values.reshape(-1).astype(np.float64)
    _, number, counts = np.unique(column, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[number]
    return np.full_like(ranks, np.nan) if np.isnan(column).any() else ranks
