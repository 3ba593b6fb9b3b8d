"""Metrics of classifiers as sums: confusion matrix, area under the ROC curve, calibration.

Shapes: C classes, N bins.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from jaxtrain.tasks.metrics import AnyArray, Metric, as_weights, weighted

ROUNDING = 1e-6
"""A probability may be this far outside 0…1."""


@dataclass(frozen=True)
class Confusion(Metric):
    """How often each class was predicted as each. Accuracy, precision, recall and F1: of each class, micro and macro.

    As in scikit-learn, a class that neither was predicted nor occurred has NaN and is left out of macro averages. One
    that occurred but was never predicted has precision 0, one that was predicted but never occurred recall 0. Micro
    averages equal the accuracy, since every row has one class.
    """

    counts: AnyArray
    """f32[C, C]: the weight of the rows of each class (dim 0) by the class predicted (dim 1)."""

    @classmethod
    def of(cls, labels: AnyArray, predictions: AnyArray, classes: int, weights: AnyArray | None = None) -> Self:
        """Counts labels and predictions, class numbers of one shape i[...] from 0 to classes - 1, weighted by `weights`
        of that shape. A row with a number outside of these, such as -100, counts for nothing.
        """
        import jax.numpy as jnp

        numbers, weights = jnp.arange(classes), as_weights(labels, weights)
        right = (labels.reshape(-1, 1) == numbers) * weights.reshape(-1, 1)
        chosen = (predictions.reshape(-1, 1) == numbers).astype(jnp.float32)
        return cls(jnp.matmul(right.T, chosen, precision="highest"))

    def value(self) -> Mapping[str, float]:
        """`accuracy`; `precision_macro` and `precision_micro` and so on; `precision/class_0` and so on."""
        counts = np.asarray(self.counts, np.float64)
        hits, occurred, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
        seen = occurred + predicted > 0
        accuracy = float(hits.sum() / counts.sum()) if seen.any() else float("nan")
        averages, classes = {"accuracy": accuracy}, {}
        for name, part, whole in (
            ("precision", hits, predicted),
            ("recall", hits, occurred),
            ("f1", 2 * hits, occurred + predicted),
        ):
            shares = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
            averages[f"{name}_macro"] = float(shares[seen].mean()) if seen.any() else float("nan")
            averages[f"{name}_micro"] = accuracy
            for number, share in enumerate(np.where(seen, shares, np.nan)):
                classes[f"{name}/class_{number}"] = float(share)
        return {**averages, **classes}


@dataclass(frozen=True)
class AUC(Metric):
    """The area under the ROC curve: the probability that a positive row has a higher score than a negative one.

    Scores are counted in bins of equal width. Pairs in different bins are ordered exactly, and a pair within one bin
    counts one half, so the value is within `error_bound` of the exact one. NaN where one of the labels is missing.
    """

    negatives: AnyArray
    """f32[N]: the weight of the negative rows in each bin of scores."""
    positives: AnyArray
    """f32[N]: of the positive ones."""

    @classmethod
    def of(cls, scores: AnyArray, labels: AnyArray, weights: AnyArray | None = None, bins: int = 512) -> Self:
        """Counts scores f[...] from 0 to 1 by their labels bool[...], weighted by `weights` of that shape.

        A score that is NaN or outside of 0…1, such as a logit, makes the value NaN, unless its weight is 0.
        """
        import jax.numpy as jnp

        weights, positive = as_weights(scores, weights), labels != 0
        rows = jnp.stack([jnp.where(positive, 0, weights), jnp.where(positive, weights, 0)])
        return cls(*_sums_by_bin(scores, weights, rows, bins))

    def value(self) -> float:
        negatives, positives = (np.asarray(x, np.float64) for x in (self.negatives, self.positives))
        lower = negatives.cumsum() - negatives
        pairs = negatives.sum() * positives.sum()
        return float((positives * (lower + negatives / 2)).sum() / pairs) if pairs else float("nan")

    def error_bound(self) -> float:
        """How far `value` can be from the area without bins: half the share of pairs that are within one bin."""
        negatives, positives = (np.asarray(x, np.float64) for x in (self.negatives, self.positives))
        pairs = negatives.sum() * positives.sum()
        return float((positives * negatives).sum() / pairs / 2) if pairs else float("nan")


@dataclass(frozen=True)
class Calibration(Metric):
    """Whether a classifier is right as often as it claims: the expected calibration error and the reliability table.

    Confidences are put into bins of equal width, (lower, upper]. The error is the mean over rows of the distance
    between mean confidence and accuracy of their bin (Guo et al. 2017, arXiv:1706.04599). Sums by bin, f32[N] each.
    """

    weight: AnyArray
    confidence: AnyArray
    """The weighted sum of confidences."""
    right: AnyArray
    """The weight of the rows that were predicted right."""

    @classmethod
    def of(cls, confidences: AnyArray, right: AnyArray, weights: AnyArray | None = None, bins: int = 15) -> Self:
        """From the probability of the predicted class f[...] and whether it was right bool[...], weighted by `weights`
        of that shape. A confidence that is NaN or outside of 0…1 makes the value NaN, unless its weight is 0.
        """
        import jax.numpy as jnp

        weights = as_weights(confidences, weights)
        rows = jnp.stack([weights, weighted(confidences, weights), weighted(right, weights)])
        return cls(*_sums_by_bin(confidences, weights, rows, bins))

    def value(self) -> Mapping[str, float]:
        """`ece`; for each bin from the lowest, `share/bin_0` of the rows, `confidence/bin_0` and `accuracy/bin_0`."""
        weight, confidence, right = (np.asarray(x, np.float64) for x in (self.weight, self.confidence, self.right))
        total = weight.sum()
        found = {"ece": float(np.abs(confidence - right).sum() / total) if total else float("nan")}
        whole = {"share": np.full_like(weight, total), "confidence": weight, "accuracy": weight}
        for name, part in (("share", weight), ("confidence", confidence), ("accuracy", right)):
            means = np.divide(part, whole[name], out=np.full_like(part, np.nan), where=whole[name] > 0)
            found |= {f"{name}/bin_{number}": float(mean) for number, mean in enumerate(means)}
        return found


def _sums_by_bin(scores: AnyArray, weights: AnyArray, rows: AnyArray, bins: int) -> AnyArray:
    """The sums of several values a score, rows[n, ...], over the scores in each of `bins` bins of 0…1: f32[n, bins].

    All are NaN where a score of any weight is NaN or outside of 0…1.
    """
    import jax.numpy as jnp

    scores = jnp.where(weights != 0, scores, jnp.zeros_like(scores)).astype(jnp.float32).reshape(-1)
    inside = (scores >= -ROUNDING) & (scores <= 1 + ROUNDING)
    number = jnp.clip(jnp.ceil(jnp.where(inside, scores, 0) * bins) - 1, 0, bins - 1)
    chosen = (number[:, None] == jnp.arange(bins)).astype(jnp.float32)
    rows = jnp.where(inside, rows.reshape(len(rows), -1), jnp.nan)  # NaN × 0 is NaN: in every bin
    return jnp.matmul(rows, chosen, precision="highest")
