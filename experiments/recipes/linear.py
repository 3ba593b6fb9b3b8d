"""Logistic regression, the model to begin with: one layer of Flax's, 200 steps, 4 seconds on 2 cores.

uv run jaxtrain train experiments/recipes/linear.py
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from flax import nnx

from jaxtrain import Experiment
from jaxtrain.data import Pipeline
from jaxtrain.datasets import Digits
from jaxtrain.models import Model
from jaxtrain.optimizers import SGD, ConstantRate
from jaxtrain.tasks import Classification


@dataclass(frozen=True)
class Linear(Model):
    """Images f32[B, Y, X, C] to logits f32[B, 10]. The dims of Flax's layers get their names by path."""

    param_axes: ClassVar[Mapping[str, tuple[str | None, ...]]] = {"layers/1/kernel": ("embed", "mlp")}

    def build(self, rngs, inputs):
        _, Y, X, C = inputs.shape
        return nnx.Sequential(
            lambda image_BYXC: image_BYXC.reshape(-1, Y * X * C), nnx.Linear(Y * X * C, 10, rngs=rngs)
        )


def main() -> Experiment:
    """Plain gradient descent."""
    return Experiment(
        task=Classification(model=Linear(), inputs="image", classes=tuple("0123456789")),
        data=Pipeline(Digits("train"), batch_size=64),
        optimizer=SGD(schedule=ConstantRate(peak=0.1)),
        steps=200,
        evals={"test": Pipeline(Digits("test"), batch_size=64, shuffle=False)},
    )
