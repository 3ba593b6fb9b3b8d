"""A generative adversarial network (Goodfellow et al. 2014, arXiv:1406.2661): two losses in one sum, two groups of
parameters, and one train step. `stop_gradient` decides which loss trains which network.

    uv run jaxtrain train experiments/recipes/gan.py

Shapes: B batch, Z noise, P pixels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain import Experiment, Mean
from jaxtrain.base.ranges import PositiveInt
from jaxtrain.data import Pipeline
from jaxtrain.datasets import Digits
from jaxtrain.models import Model
from jaxtrain.optimizers import AdamW, ConstantRate, Groups
from jaxtrain.tasks import Loss, Task, Variables


@dataclass(frozen=True)
class MLP(Model):
    """f32[B, …] to f32[B, outputs]."""

    param_axes: ClassVar[Mapping[str, tuple[str | None, ...]]] = {
        "layers/1/kernel": ("embed", "mlp"),
        "layers/3/kernel": ("mlp", None),
    }
    outputs: PositiveInt = 1
    width: PositiveInt = 64

    def build(self, rngs, inputs):
        features = math.prod(inputs.shape[1:])
        return nnx.Sequential(
            lambda x: x.reshape(-1, features),
            nnx.Linear(features, self.width, rngs=rngs),
            nnx.relu,
            nnx.Linear(self.width, self.outputs, rngs=rngs),
        )


@dataclass(frozen=True, kw_only=True)
class GAN(Task):
    """`model` is the discriminator, one logit an image."""

    not_exported: ClassVar[str] = "its generator reads no input, and its discriminator is of no use afterwards"
    inputs: str = "image"
    generator: Model = MLP(outputs=64)
    noise: PositiveInt = 16

    def init(self, key, batch):
        one, two = jax.random.split(key)
        noise_BZ = jnp.zeros((1, self.noise))
        params = {
            "discriminator": self.model.init(one, self.read(batch)).params,
            "generator": self.generator.init(two, noise_BZ).params,
        }
        return Variables(params)

    def loss(self, variables, batch, context):
        real, params = self.read(batch), variables.params
        keys_B = context.keys_B if context.training else jax.random.split(jax.random.key(0), real.shape[0])
        noise_BZ = jax.vmap(lambda key: jax.random.normal(key, (self.noise,)))(keys_B)
        fake = self.generate(params["generator"], noise_BZ, real.shape)
        right_B = nnx.softplus(-self.judge(params["discriminator"], real))
        wrong_B = nnx.softplus(self.judge(params["discriminator"], jax.lax.stop_gradient(fake)))
        fooled_B = nnx.softplus(-self.judge(jax.lax.stop_gradient(params["discriminator"]), fake))
        metrics = {
            "discriminator": Mean.of(right_B + wrong_B, batch["mask"]),
            "generator": Mean.of(fooled_B, batch["mask"]),
        }
        return Loss(Mean.of(right_B + wrong_B + fooled_B, batch["mask"]), metrics)

    def predict(self, variables, batch):
        return {"logit": self.model.apply(Variables(variables.params["discriminator"]), self.read(batch))[0]}

    def judge(self, params, images):
        """The discriminator's logit of each image, f32[B]."""
        return self.model.apply(Variables(params), images)[0][:, 0]

    def generate(self, params, noise_BZ, shape):
        """Images of noise."""
        return jax.nn.sigmoid(self.generator.apply(Variables(params), noise_BZ)[0]).reshape(shape)


def main() -> Experiment:
    """A generator and a discriminator of one hidden layer each."""
    return Experiment(
        task=GAN(model=MLP()),
        data=Pipeline(Digits("train"), batch_size=64),
        optimizer=Groups(
            groups={
                "generator/*": AdamW(schedule=ConstantRate(peak=1e-3), b1=0.5),
                "discriminator/*": AdamW(schedule=ConstantRate(peak=3e-4), b1=0.5),
            }
        ),
        steps=300,
        evals={"test": Pipeline(Digits("test"), batch_size=64, shuffle=False)},
    )
