"""Handwritten digits: 1,797 images of 8×8 pixels (scikit-learn's copy of the UCI set), by a small vision transformer.

    uv run jaxtrain train experiments/digits.py

Measured on 2 CPU cores: test accuracy 0.989 in 67 s. Baselines on the same split: logistic regression 0.964, a support
vector machine 0.995 (scripts/baselines.py).
"""

from dataclasses import replace

from jaxtrain.data import Pipeline, Shift
from jaxtrain.datasets import Digits
from jaxtrain.experiment import Experiment, Runtime
from jaxtrain.models import Blocks, ViT
from jaxtrain.optimizers import AdamW, CosineDecay
from jaxtrain.tasks import Classification


def main() -> Experiment:
    """A small vision transformer; the digits are shifted by up to a pixel while training."""
    data = Pipeline(Digits("train"), (Shift(1),), batch_size=64)
    return Experiment(
        task=Classification(
            model=ViT(outputs=10, patch=2, blocks=Blocks(width=64, layers=4, heads=4)),
            inputs="image",
            classes=tuple("0123456789"),
        ),
        data=data,
        optimizer=AdamW(schedule=CosineDecay(peak=3e-3, warmup=50, floor=0.01), weight_decay=0.05, ema=0.99),
        steps=1000,
        evals={"test": replace(data, source=Digits("test"), shuffle=False)},
        runtime=Runtime(log_every=100, eval_every=500, save_every=500),
    )
