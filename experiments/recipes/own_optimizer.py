"""An optax transformation and a metric of one's own, in one file.

uv run jaxtrain train experiments/recipes/own_optimizer.py
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from jaxtrain import Experiment, Metric
from jaxtrain.base.ranges import FractionBelow1
from jaxtrain.data import Pipeline
from jaxtrain.datasets import Digits
from jaxtrain.models import Blocks, ViT
from jaxtrain.optimizers import CosineDecay, Standard
from jaxtrain.tasks import Classification


@dataclass(frozen=True, kw_only=True)
class SignMomentum(Standard):
    """The sign of a running mean of gradients; schedule, clipping and decay are those of `Standard`."""

    decay: FractionBelow1 = 0.9

    def scale(self):
        return optax.chain(optax.ema(self.decay), optax.stateless_with_tree_map(lambda grad, _: jnp.sign(grad)))


@dataclass(frozen=True)
class GeometricMean(Metric):
    """The geometric mean of probabilities, from the sum of their logarithms."""

    logs: Any
    weight: Any

    @classmethod
    def of(cls, probabilities_B, weight_B):
        logs_B = jnp.log(jnp.where(weight_B, probabilities_B, 1))
        return cls(logs_B.sum(), weight_B.sum())

    def value(self):
        return float(np.exp(self.logs / self.weight))


@dataclass(frozen=True, kw_only=True)
class Reported(Classification):
    """Classification that reports the geometric mean of the probability of the right class."""

    def rows(self, outputs, batch):
        losses_B, metrics = super().rows(outputs, batch)
        return losses_B, {**metrics, "probability": GeometricMean.of(jnp.exp(-losses_B), batch["mask"])}


def main() -> Experiment:
    """A small vision transformer."""
    return Experiment(
        task=Reported(
            model=ViT(outputs=10, patch=2, blocks=Blocks(width=64, layers=2, heads=4)),
            inputs="image",
            classes=tuple("0123456789"),
        ),
        data=Pipeline(Digits("train"), batch_size=64),
        optimizer=SignMomentum(schedule=CosineDecay(peak=3e-4, warmup=20), weight_decay=0.1),
        steps=300,
        evals={"test": Pipeline(Digits("test"), batch_size=64, shuffle=False)},
    )
