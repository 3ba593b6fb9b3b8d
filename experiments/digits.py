"""Handwritten digits: 1,797 images of 8×8 pixels (scikit-learn's copy of the UCI set), by a small residual network.

    uv run jaxtrain train experiments/digits.py

Measured on 2 CPU cores, three seeds: test accuracy 0.999 (1.000, 1.000 and 0.997) in 25 s. The model was
chosen by three-fold cross-validation on the training split, where it has 0.994; the test split was read once, at the
end. Baselines on the same split: logistic regression 0.964, a support vector machine 0.995 (scripts/baselines.py).
"""

from dataclasses import replace

from jaxtrain.data import Pipeline, RandomAffine
from jaxtrain.datasets import Digits
from jaxtrain.experiment import Experiment, Runtime
from jaxtrain.models import Blocks, ResNet, ViT
from jaxtrain.optimizers import AdamW, CosineDecay
from jaxtrain.tasks import Classification


def main() -> Experiment:
    """A residual network; while training, the digits are turned, scaled and shifted a little."""
    moved = RandomAffine(degrees=10.0, scale=0.1, pixels=1.0)
    data = Pipeline(Digits("train"), (moved,), batch_size=64)
    return Experiment(
        task=Classification(
            model=ResNet(outputs=10, widths=(32, 64), blocks=1), inputs="image", classes=tuple("0123456789")
        ),
        data=data,
        optimizer=AdamW(schedule=CosineDecay(peak=3e-3, warmup=50, floor=0.01), weight_decay=0.05, ema=0.99),
        steps=1000,
        evals={"test": replace(data, source=Digits("test"), shuffle=False)},
        runtime=Runtime(log_every=100, eval_every=500, save_every=500),
    )


def transformer() -> Experiment:
    """A vision transformer: without the locality of convolutions it needs more steps, and is less accurate."""
    one = main()
    model = ViT(outputs=10, patch=2, blocks=Blocks(width=64, layers=4, heads=4, unroll=4))
    runtime = replace(one.runtime, eval_every=800, save_every=800)
    return replace(one, task=replace(one.task, model=model), steps=1600, runtime=runtime)
