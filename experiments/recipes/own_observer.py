"""An observer of one's own, beside early stopping: a table of training for a spreadsheet, and a note when the gradient
explodes.

    uv run jaxtrain train experiments/recipes/own_observer.py
"""

import csv
from dataclasses import dataclass
from statistics import median

from jaxtrain import EarlyStopping, Experiment, Observer, Runtime
from jaxtrain.base.ranges import Positive
from jaxtrain.data import Pipeline
from jaxtrain.datasets import Digits
from jaxtrain.models import Blocks, ViT
from jaxtrain.optimizers import AdamW, CosineDecay
from jaxtrain.tasks import Classification


@dataclass(frozen=True)
class Table(Observer):
    """Writes the means of every period to `training.csv`, and an event where the norm of the gradient is `factor` times
    the median of all periods before.
    """

    factor: Positive = 10.0

    def trained(self, run, step, metrics, rates):
        # What the run has written, not what this process saw: a resumed run has the lines of the one before too.
        lines = [line for line in run.metrics() if line["split"] == "train" and line["step"] <= step]
        with open(run.folder / "training.csv", "w", newline="") as file:
            table = csv.DictWriter(file, ["step", "loss", "accuracy", "gradient_norm"], extrasaction="ignore")
            table.writeheader()
            table.writerows(lines)
        norm, before = metrics["gradient_norm"], [line["gradient_norm"] for line in lines[:-1]]
        if before and not norm <= self.factor * median(before):  # NaN is an explosion too
            run.log_event("gradient_exploded", step=step, norm=norm, median_before=median(before))


def main() -> Experiment:
    """A small vision transformer; the run ends when four evaluations in a row are no better."""
    return Experiment(
        task=Classification(
            model=ViT(outputs=10, patch=2, blocks=Blocks(width=64, layers=2, heads=4)),
            inputs="image",
            classes=tuple("0123456789"),
        ),
        data=Pipeline(Digits("train"), batch_size=64),
        optimizer=AdamW(schedule=CosineDecay(peak=2e-3, warmup=20)),
        steps=300,
        evals={"test": Pipeline(Digits("test"), batch_size=64, shuffle=False)},
        observers=(Table(), EarlyStopping(metric="test/loss", patience=4)),
        runtime=Runtime(log_every=10, eval_every=20),
    )
