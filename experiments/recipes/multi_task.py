"""Several targets, of which a row may lack some: each loss counts the rows that have its target.

uv run jaxtrain train experiments/recipes/multi_task.py
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain import Experiment, Mean
from jaxtrain.base.allowed import Allowed
from jaxtrain.data import Pipeline, Transform
from jaxtrain.datasets import Digits
from jaxtrain.models import Blocks, ViT
from jaxtrain.optimizers import AdamW, CosineDecay
from jaxtrain.tasks import Loss, Task
from jaxtrain.tasks.base import cross_entropy


@dataclass(frozen=True)
class Targets(Transform):
    """The digit, which every third image lacks, and how much ink there is, which every second one lacks."""

    def __call__(self, example, rng):
        image = np.asarray(example["image"], np.float32)
        ink = np.float32(image.mean())
        number = int(ink * 1e6)
        label = np.int32(-1 if number % 3 == 0 else example["label"])
        return {"image": image, "label": label, "ink": ink, "has_ink": np.bool_(number % 2)}


@dataclass(frozen=True, kw_only=True)
class DigitAndInk(Task):
    """Ten logits and one number from one model. Targets that are missing hold a number that counts for nothing."""

    inputs: str = "image"

    def loss(self, variables, batch, context):
        out_BO, extras = self.model.apply(variables, self.read(batch), context)
        has_label_B, has_ink_B = batch["mask"] & (batch["label"] >= 0), batch["mask"] & batch["has_ink"]
        entropy_B = jnp.where(has_label_B, cross_entropy(out_BO[:, :10], batch["label"]), 0)
        error_B = jnp.where(has_ink_B, jnp.square(out_BO[:, 10] - batch["ink"]), 0)
        metrics = {
            "accuracy": Mean.of(out_BO[:, :10].argmax(-1) == batch["label"], has_label_B),
            "cross_entropy": Mean.of(entropy_B, has_label_B),
            "squared_error": Mean.of(error_B, has_ink_B),
        }
        return Loss.of(Mean.of(entropy_B + 10 * error_B, batch["mask"]), metrics, extras, batch["mask"])

    def predict(self, variables, batch):
        out_BO, _ = self.model.apply(variables, self.read(batch))
        return {"probabilities": jax.nn.softmax(out_BO[:, :10]), "ink": out_BO[:, 10]}

    def allowed(self):
        return {"label": Allowed(0, 9, -1, "there are ten digits, and -1 is no label"), "ink": Allowed()}


def main() -> Experiment:
    """A vision transformer with eleven outputs."""
    return Experiment(
        task=DigitAndInk(model=ViT(outputs=11, patch=2, blocks=Blocks(width=64, layers=2, heads=4))),
        data=Pipeline(Digits("train"), (Targets(),), batch_size=64),
        optimizer=AdamW(schedule=CosineDecay(peak=2e-3, warmup=20)),
        steps=300,
        evals={"test": Pipeline(Digits("test"), (Targets(),), batch_size=64, shuffle=False)},
    )
