"""Contrastive learning of image representations (SimCLR's loss: Chen et al. 2020, arXiv:2002.05709): every row is
compared with all rows of the global batch, on any mesh.

    uv run jaxtrain train experiments/recipes/contrastive.py

Shapes: B batch, D representation.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain import Experiment, Mean
from jaxtrain.base.ranges import NonNegative, Positive
from jaxtrain.data import Pipeline, Transform
from jaxtrain.datasets import Digits
from jaxtrain.models import Blocks, ViT
from jaxtrain.optimizers import AdamW, CosineDecay
from jaxtrain.tasks import Loss, Task


@dataclass(frozen=True)
class Views(Transform):
    """`image` and `other`: the image with two draws of noise."""

    noise: NonNegative = 0.2

    def __call__(self, example, rng):
        image = np.asarray(example["image"], np.float32)
        views = [image + self.noise * rng.normal(size=image.shape).astype(np.float32) for _ in range(2)]
        return {"image": views[0], "other": views[1]}


@dataclass(frozen=True, kw_only=True)
class Contrastive(Task):
    """Each view has to be found again among the other views of the whole batch."""

    inputs: str = "image"
    temperature: Positive = 0.2
    whole_batch: ClassVar[bool] = True

    def loss(self, variables, batch, context):
        one_BD, other_BD = (self.represent(variables, batch[name], context) for name in ("image", "other"))
        scores_BB = one_BD @ other_BD.T / self.temperature
        scores_BB = jnp.where(batch["mask"][None, :], scores_BB, -jnp.inf)  # rows that only fill up are not compared
        right_B = jnp.diagonal(jnp.where(batch["mask"][:, None], scores_BB, 0))
        losses_B = jnp.where(batch["mask"], jax.nn.logsumexp(scores_BB, -1) - right_B, 0)
        found_B = scores_BB.argmax(-1) == jnp.arange(len(losses_B))
        return Loss(Mean.of(losses_B, batch["mask"]), {"accuracy": Mean.of(found_B, batch["mask"])})

    def represent(self, variables, images, context):
        """Unit vectors f32[B, D]."""
        vectors_BD, _ = self.model.apply(variables, images, context)
        return vectors_BD / (jnp.linalg.norm(vectors_BD, axis=-1, keepdims=True) + 1e-6)

    def predict(self, variables, batch):
        return {"representation": self.model.apply(variables, self.read(batch))[0]}


def main() -> Experiment:
    """A vision transformer with 32 outputs as the representation."""
    return Experiment(
        task=Contrastive(model=ViT(outputs=32, patch=2, blocks=Blocks(width=64, layers=2, heads=4))),
        data=Pipeline(Digits("train"), (Views(),), batch_size=64),
        optimizer=AdamW(schedule=CosineDecay(peak=1e-3, warmup=20)),
        steps=300,
        evals={"test": Pipeline(Digits("test"), (Views(),), batch_size=64, shuffle=False)},
    )
