"""A variational autoencoder (Kingma & Welling 2014, arXiv:1312.6114) whose KL divergence is warmed up: a loss that sees
the step, and a model that draws noise from the keys of the rows.

    uv run jaxtrain train experiments/recipes/vae.py

Shapes: B batch, P pixels, M hidden, Z latent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxtrain import Experiment, Mean
from jaxtrain.base.ranges import PositiveInt
from jaxtrain.data import Pipeline
from jaxtrain.datasets import Digits
from jaxtrain.models import Model
from jaxtrain.optimizers import AdamW, ConstantRate
from jaxtrain.sharding import shard
from jaxtrain.tasks import Loss, Task


@dataclass(frozen=True)
class Autoencoder(Model):
    """Images f32[B, Y, X, C] in 0…1 to a dict: `logits` like the images, `mean` and `log_variance` f32[B, Z]."""

    param_axes: ClassVar[Mapping[str, tuple[str | None, ...]]] = {"*/kernel": ("embed", "mlp")}
    hidden: PositiveInt = 64
    latent: PositiveInt = 8

    def build(self, rngs, inputs):
        return AutoencoderModule(self, inputs.shape[1:], rngs)


class AutoencoderModule(nnx.Module):
    """One hidden layer on either side."""

    def __init__(self, config, shape, rngs):
        P, M, Z = shape[0] * shape[1] * shape[2], config.hidden, config.latent
        self.encoder, self.moments = nnx.Linear(P, M, rngs=rngs), nnx.Linear(M, 2 * Z, rngs=rngs)
        self.decoder, self.pixels = nnx.Linear(Z, M, rngs=rngs), nnx.Linear(M, P, rngs=rngs)

    def __call__(self, image_BYXC, context):
        hidden_BM = shard(nnx.relu(self.encoder(image_BYXC.reshape(image_BYXC.shape[0], -1))), "batch", "mlp")
        mean_BZ, log_variance_BZ = jnp.split(shard(self.moments(hidden_BM), "batch", None), 2, axis=-1)
        latent_BZ = mean_BZ
        if context.training:
            noise_BZ = jax.vmap(lambda key: jax.random.normal(key, mean_BZ.shape[1:]))(context.keys_B)
            latent_BZ += noise_BZ * jnp.exp(log_variance_BZ / 2)
        hidden_BM = shard(nnx.relu(self.decoder(latent_BZ)), "batch", "mlp")
        logits = shard(self.pixels(hidden_BM), "batch", None).reshape(image_BYXC.shape)
        return {"logits": logits, "mean": mean_BZ, "log_variance": log_variance_BZ}


@dataclass(frozen=True, kw_only=True)
class VAE(Task):
    """Minimises reconstruction error plus a share of the KL divergence that grows to 1 over `warmup` steps."""

    inputs: str = "image"
    warmup: PositiveInt = 100

    def loss(self, variables, batch, context):
        image = self.read(batch)
        out, extras = self.model.apply(variables, image, context)
        error_B = optax.sigmoid_binary_cross_entropy(out["logits"], image).sum((1, 2, 3))
        divergence = jnp.exp(out["log_variance"]) + out["mean"] ** 2 - 1 - out["log_variance"]
        divergence_B = divergence.sum(-1) / 2
        share = jnp.minimum(context.step / self.warmup, 1)
        metrics = {
            "reconstruction": Mean.of(error_B, batch["mask"]),
            "divergence": Mean.of(divergence_B, batch["mask"]),
        }
        return Loss.of(Mean.of(error_B + share * divergence_B, batch["mask"]), metrics, extras, batch["mask"])

    def predict(self, variables, batch):
        out, _ = self.model.apply(variables, self.read(batch))
        return {"image": jax.nn.sigmoid(out["logits"]), "latent": out["mean"]}


def main() -> Experiment:
    """Eight latent numbers for 64 pixels."""
    return Experiment(
        task=VAE(model=Autoencoder()),
        data=Pipeline(Digits("train"), batch_size=64),
        optimizer=AdamW(schedule=ConstantRate(peak=1e-3)),
        steps=300,
        evals={"test": Pipeline(Digits("test"), batch_size=64, shuffle=False)},
    )
