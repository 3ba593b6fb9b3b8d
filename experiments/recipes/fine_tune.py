"""Fine-tuning of a new head on the frozen trunk of another run: other classes, the same images.

uv run jaxtrain train experiments/digits.py:transformer --run runs/teacher
uv run jaxtrain train experiments/recipes/fine_tune.py
"""

from dataclasses import dataclass, replace

import numpy as np

from jaxtrain import Experiment, Start
from jaxtrain.data import Mapped, Pipeline, Transform
from jaxtrain.datasets import Digits
from jaxtrain.models import Blocks, ViT
from jaxtrain.optimizers import AdamW, ConstantRate, Frozen, Groups
from jaxtrain.tasks import Classification

TRUNK = ViT(outputs=10, patch=2, blocks=Blocks(width=64, layers=4, heads=4))
"""That of experiments/digits.py:transformer."""


@dataclass(frozen=True)
class Parity(Transform):
    """The label is whether the digit is odd."""

    def __call__(self, example, rng):
        return {**example, "label": np.int32(example["label"] % 2)}


def main() -> Experiment:
    """The head alone is trained."""
    return Experiment(
        task=Classification(model=replace(TRUNK, outputs=2), inputs="image", classes=("even", "odd")),
        data=Pipeline(Mapped(Digits("train"), (Parity(),)), batch_size=64),
        optimizer=Groups(groups={"head/*": AdamW(schedule=ConstantRate(peak=1e-2)), "*": Frozen()}),
        steps=200,
        start=Start("runs/teacher", only=("patches/*", "positions", "blocks/*", "norm/*")),
        evals={"test": Pipeline(Mapped(Digits("test"), (Parity(),)), batch_size=64, shuffle=False)},
    )


def low_rank() -> Experiment:
    """LoRA: also low-rank changes of the trunk's queries and values."""
    from jaxtrain.models import LoRA

    whole = main()
    model = LoRA(model=replace(TRUNK, outputs=2), layers=("blocks/block/query", "blocks/block/value"), rank=8)
    groups = {"head/*": AdamW(), "*/lora_*": AdamW(), "*": Frozen()}
    trunk = ("patches/*", "positions", "blocks/block/*/kernel", "blocks/block/*/scale", "norm/*")
    start = Start("runs/teacher", only=trunk)
    return replace(whole, task=replace(whole.task, model=model), optimizer=Groups(groups=groups), start=start)
