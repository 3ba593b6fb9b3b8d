"""Experiments with a fault in them: an example, a layer or a learning rate, each known."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxtrain.data import Arrays, Pipeline
from jaxtrain.experiment import Experiment, Retention, Runtime
from jaxtrain.models import Model
from jaxtrain.optimizers import AdamW, ConstantRate
from jaxtrain.sharding import shard
from jaxtrain.sharding.layout import Layout
from jaxtrain.tasks.supervised import Supervised

WIDTH, LAYERS, ROWS = 8, 5, 32
POISON = 13
"""The example that is poison."""

X = np.random.default_rng(0).uniform(0.5, 1, (ROWS, WIDTH)).astype(np.float32)

FLOORS = jnp.array([1.0, 1.0, 1.0, 0.0, 1.0])
"""What each layer adds before it takes a logarithm or a root: nothing in layer 3."""

Fault = Literal["none", "log", "sqrt", "exp"]


class Tower(nnx.Module):
    """Layers that are scanned. A row of zeros stays one, up to the layer that cannot take it."""

    def __init__(self, rngs: nnx.Rngs, fault: Fault):
        small = 0.1 * jax.random.normal(rngs.params(), (LAYERS, WIDTH, WIDTH))
        self.kernel = nnx.Param(jnp.eye(WIDTH) + small, axes=("layers", "embed", "mlp"))
        self.head = nnx.Param(jnp.ones(WIDTH), axes=(None,))
        self.fault = fault

    def __call__(self, x_BD: jax.Array, context: Any) -> jax.Array:
        x_BD, _ = jax.lax.scan(self.layer, x_BD, (self.kernel[...], FLOORS))
        return x_BD @ self.head[...][:, None]

    def layer(self, x_BD: jax.Array, layer: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        kernel_DD, floor = layer
        h_BD = shard(x_BD @ kernel_DD, "batch", "mlp")
        if self.fault == "log":
            h_BD = h_BD * (1 + 0.1 * jnp.log(jnp.abs(h_BD) + floor))  # LOG
        if self.fault == "sqrt":
            h_BD = h_BD * (1 + 0.1 * jnp.sqrt(jnp.abs(h_BD) + floor))  # SQRT
        return shard(0.5 * h_BD, "batch", None), None


@dataclass(frozen=True)
class Deep(Model):
    fault: Fault = "none"

    def build(self, rngs: nnx.Rngs, inputs: Any) -> nnx.Module:
        return Tower(rngs, self.fault)


@dataclass(frozen=True, kw_only=True)
class Squares(Supervised):
    exponential: bool = False

    def rows(self, outputs: jax.Array, batch: Mapping[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
        wanted_B = batch["target"]
        if self.exponential:
            wanted_B = jnp.exp(wanted_B)  # EXP
        return (outputs[:, 0] - wanted_B) ** 2, {}

    def prediction(self, outputs: jax.Array) -> dict[str, jax.Array]:
        return {"value": outputs[:, 0]}


@dataclass(frozen=True, kw_only=True)
class Spike(ConstantRate):
    """A constant rate, but for one step."""

    at: int = 9
    times: float = 50.0

    def after(self, steps: int) -> optax.Schedule:
        return lambda step: jnp.where(step == self.at - 1, self.times * self.peak, self.peak)


def columns(fault: Fault) -> dict[str, np.ndarray]:
    x, target = X.copy(), 0.1 * X.sum(1)
    if fault in ("log", "sqrt"):
        x[POISON] = 0
    if fault == "exp":
        target[POISON] = 90
    return {"x": x, "target": target}


def experiment(fault: Fault = "none", spike: int | None = None, **changes: Any) -> Experiment:
    """Example 13 is in the batch of some step of the first epoch, which has four."""
    schedule = ConstantRate(peak=1e-3) if spike is None else Spike(peak=1e-3, at=spike)
    made = Experiment(
        task=Squares(model=Deep(fault), inputs="x", exponential=fault == "exp"),
        data=Pipeline(Arrays(columns(fault)), batch_size=8, seed=1, threads=0),
        optimizer=AdamW(schedule=schedule, clip=None),
        steps=12,
        runtime=Runtime(log_every=1, save_every=4, eval_every=100, keep=Retention(last=10)),
    )
    return replace(made, **changes)


def log() -> Experiment:
    return experiment("log")


def mesh() -> Experiment:
    return experiment("log", layout=Layout({"data": 4, "tensor": 2}))


def spike() -> Experiment:
    return experiment(spike=9)
