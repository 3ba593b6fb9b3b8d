"""Distillation (Hinton et al. 2015, arXiv:1503.02531): a small student learns the probabilities of a frozen teacher,
which is another run.

    uv run jaxtrain train experiments/digits.py:transformer --run runs/teacher
    uv run jaxtrain train experiments/recipes/teacher.py
"""

from dataclasses import dataclass

import jax
import optax

from jaxtrain import Experiment, Mean, Start
from jaxtrain.base.ranges import Positive
from jaxtrain.data import Pipeline
from jaxtrain.datasets import Digits
from jaxtrain.models import Blocks, Model, ViT
from jaxtrain.optimizers import AdamW, CosineDecay, Frozen, Groups
from jaxtrain.tasks import Loss, Task, Variables

TEACHER = ViT(outputs=10, patch=2, blocks=Blocks(width=64, layers=4, heads=4))
"""That of experiments/digits.py:transformer."""


@dataclass(frozen=True, kw_only=True)
class Distillation(Task):
    """`model` is the student."""

    inputs: str = "image"
    teacher: Model = TEACHER
    temperature: Positive = 2.0

    def init(self, key, batch):
        one, two = jax.random.split(key)
        image = self.read(batch)
        student, teacher = self.model.init(one, image), self.teacher.init(two, image)
        return Variables({"student": student.params, "teacher": teacher.params})

    def loss(self, variables, batch, context):
        image, params = self.read(batch), variables.params
        student_BC, extras = self.model.apply(Variables(params["student"]), image, context)
        teacher_BC, _ = self.teacher.apply(Variables(params["teacher"]), image)
        target_BC = jax.nn.softmax(teacher_BC / self.temperature)
        losses_B = optax.softmax_cross_entropy(student_BC / self.temperature, target_BC)
        right_B = student_BC.argmax(-1) == batch["label"]
        metrics = {"accuracy": Mean.of(right_B, batch["mask"])}
        return Loss.of(Mean.of(losses_B, batch["mask"]), metrics, extras, batch["mask"])

    def predict(self, variables, batch):
        logits_BC, _ = self.model.apply(Variables(variables.params["student"]), self.read(batch))
        return {"probabilities": jax.nn.softmax(logits_BC)}


def main() -> Experiment:
    """A student with one block."""
    return Experiment(
        task=Distillation(model=ViT(outputs=10, patch=2, blocks=Blocks(width=32, layers=1, heads=2))),
        data=Pipeline(Digits("train"), batch_size=64),
        optimizer=Groups(groups={"teacher/*": Frozen(), "*": AdamW(schedule=CosineDecay(peak=3e-3, warmup=20))}),
        steps=300,
        start=Start("runs/teacher", only=("teacher/*",), rename={"": "teacher"}),
        evals={"test": Pipeline(Digits("test"), batch_size=64, shuffle=False)},
    )
