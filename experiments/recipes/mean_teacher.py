"""A mean teacher (Tarvainen & Valpola 2017, arXiv:1703.01780): the student learns labels, and to agree with a moving
average of itself, also on rows without a label.

    uv run jaxtrain train experiments/recipes/mean_teacher.py
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain import Experiment, Mean
from jaxtrain.base.allowed import Allowed
from jaxtrain.base.ranges import Fraction, InnerFraction, NonNegative
from jaxtrain.data import Pipeline, Transform
from jaxtrain.datasets import Digits
from jaxtrain.models import Blocks, ViT
from jaxtrain.optimizers import AdamW, CosineDecay
from jaxtrain.tasks import Loss, Task, Variables
from jaxtrain.tasks.base import cross_entropy


@dataclass(frozen=True)
class HideLabels(Transform):
    """The label is -1 in a share of the examples."""

    share: Fraction = 0.5

    def __call__(self, example, rng):
        hidden = int(float(np.sum(example["image"])) * 1e4) % 1000 < 1000 * self.share
        return {**example, "label": np.int32(-1 if hidden else example["label"])}


@dataclass(frozen=True, kw_only=True)
class MeanTeacher(Task):
    """Cross-entropy of rows with a label, and the squared distance of all rows from the teacher's probabilities."""

    inputs: str = "image"
    decay: InnerFraction = 0.95
    agreement: NonNegative = 0.3

    def init(self, key, batch):
        params = self.model.init(key, self.read(batch)).params
        return Variables(params, {"teacher": params})

    def loss(self, variables, batch, context):
        image, known_B = self.read(batch), batch["mask"] & (batch["label"] >= 0)
        student_BC, extras = self.model.apply(Variables(variables.params), image, context)
        teacher_BC, _ = self.model.apply(Variables(variables.state["teacher"]), image)
        distance_B = jnp.square(jax.nn.softmax(student_BC) - jax.nn.softmax(teacher_BC)).sum(-1)
        entropy_B = jnp.where(known_B, cross_entropy(student_BC, batch["label"]), 0)
        metrics = {
            "cross_entropy": Mean.of(entropy_B, known_B),
            "accuracy": Mean.of(teacher_BC.argmax(-1) == batch["label"], known_B),
        }
        return Loss.of(Mean.of(entropy_B + self.agreement * distance_B, batch["mask"]), metrics, extras, batch["mask"])

    def advance(self, variables, statistics):
        def follow(old, new):
            return self.decay * old + (1 - self.decay) * new

        return {"teacher": jax.tree.map(follow, variables.state["teacher"], variables.params)}

    def predict(self, variables, batch):
        logits_BC, _ = self.model.apply(Variables(variables.state["teacher"]), self.read(batch))
        return {"probabilities": jax.nn.softmax(logits_BC)}

    def allowed(self):
        return {"label": Allowed(0, 9, -1, "there are ten digits, and -1 is no label")}


def main() -> Experiment:
    """Half of the labels are known."""
    return Experiment(
        task=MeanTeacher(model=ViT(outputs=10, patch=2, blocks=Blocks(width=64, layers=2, heads=4, dropout=0.1))),
        data=Pipeline(Digits("train"), (HideLabels(),), batch_size=64),
        optimizer=AdamW(schedule=CosineDecay(peak=2e-3, warmup=20)),
        steps=300,
        evals={"test": Pipeline(Digits("test"), batch_size=64, shuffle=False)},
    )
