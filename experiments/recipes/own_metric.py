"""Two metrics of one's own: one is made of sums over rows, so that it is exact on any mesh; the other needs all rows of
a split together, so the host computes it.

    uv run jaxtrain train experiments/recipes/own_metric.py

Shapes: B batch, C classes, N rows of a split.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxtrain import Experiment, Metric
from jaxtrain.base.ranges import Fraction
from jaxtrain.data import Pipeline
from jaxtrain.datasets import Digits
from jaxtrain.models import Blocks, ViT
from jaxtrain.optimizers import AdamW, CosineDecay
from jaxtrain.tasks import Classification, HostMetric


@dataclass(frozen=True)
class Recall(Metric):
    """The share of each class that is found: `mean`, and `least`, of the worst class. Counts are what is merged."""

    found_C: Any
    rows_C: Any

    @classmethod
    def of(cls, scores_BC, label_B, weight_B):
        is_of_BC = jax.nn.one_hot(label_B, scores_BC.shape[-1]) * weight_B[:, None]
        return cls(((scores_BC.argmax(-1) == label_B)[:, None] * is_of_BC).sum(0), is_of_BC.sum(0))

    def value(self):
        recall_C = self.found_C / self.rows_C  # NaN where a class has no rows
        return {"mean": float(np.nanmean(recall_C)), "least": float(np.nanmin(recall_C))}


@dataclass(frozen=True)
class SelectiveAccuracy(HostMetric):
    """The accuracy on the share of rows whose likeliest class is the most probable (El-Yaniv & Wiener 2010)."""

    share: Fraction = 0.5

    @property
    def fields(self):
        return ("label",)

    def value(self, predictions, labels):
        probabilities_NC, label_N = predictions["probabilities"], labels["label"]
        surest_first = np.argsort(-probabilities_NC.max(-1), kind="stable")
        kept = surest_first[: max(1, round(self.share * len(label_N)))]
        return float((probabilities_NC[kept].argmax(-1) == label_N[kept]).mean())


@dataclass(frozen=True, kw_only=True)
class Reported(Classification):
    """Classification that reports the recall of the classes."""

    def rows(self, outputs, batch):
        losses_B, metrics = super().rows(outputs, batch)
        return losses_B, {**metrics, "recall": Recall.of(outputs, batch["label"], self.weigh(batch))}


def main() -> Experiment:
    """A small vision transformer."""
    return Experiment(
        task=Reported(
            model=ViT(outputs=10, patch=2, blocks=Blocks(width=64, layers=2, heads=4)),
            inputs="image",
            classes=tuple("0123456789"),
        ),
        data=Pipeline(Digits("train"), batch_size=64),
        optimizer=AdamW(schedule=CosineDecay(peak=2e-3, warmup=20)),
        steps=300,
        evals={"test": Pipeline(Digits("test"), batch_size=64, shuffle=False)},
        host_metrics={"surest_half": SelectiveAccuracy()},
    )
