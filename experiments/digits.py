"""Handwritten digits: 1,797 images of 8×8 pixels (scikit-learn's copy of the UCI set), by a small vision transformer.

    uv run jaxtrain train experiments/digits.py

Measured on 2 CPU cores: test accuracy 0.988, the mean of three seeds (0.986 to 0.992), in 80 s of CPU time. Shifts by
whole pixels and 1,000 steps gave 0.980 (0.970 to 0.989). Baselines on the same split: logistic regression 0.964, a
support vector machine 0.995 (scripts/baselines.py).
"""

from dataclasses import replace

from jaxtrain.data import Pipeline, RandomAffine
from jaxtrain.datasets import Digits
from jaxtrain.experiment import Experiment, Runtime
from jaxtrain.models import Blocks, ViT
from jaxtrain.optimizers import AdamW, CosineDecay
from jaxtrain.tasks import Classification


def main() -> Experiment:
    """A small vision transformer; while training, the digits are turned, scaled and shifted a little."""
    moved = RandomAffine(degrees=10.0, scale=0.1, pixels=1.0)
    data = Pipeline(Digits("train"), (moved,), batch_size=64)
    return Experiment(
        task=Classification(
            model=ViT(outputs=10, patch=2, blocks=Blocks(width=64, layers=4, heads=4, unroll=4)),
            inputs="image",
            classes=tuple("0123456789"),
        ),
        data=data,
        optimizer=AdamW(schedule=CosineDecay(peak=3e-3, warmup=50, floor=0.01), weight_decay=0.05, ema=0.99),
        steps=1600,
        evals={"test": replace(data, source=Digits("test"), shuffle=False)},
        runtime=Runtime(log_every=100, eval_every=800, save_every=800),
    )
