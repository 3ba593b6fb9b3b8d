"""A multi-layer perceptron. Shapes: B batch, D numbers in, M hidden, O outputs."""

from dataclasses import dataclass

import jax
from flax import nnx

from jaxtrain.models.base import Model, Shaped
from jaxtrain.models.layers import Linear, Precision
from jaxtrain.models.variables import Context


@dataclass(frozen=True, kw_only=True)
class Perceptron(Model):
    """Numbers f32[B, D] to logits f32[B, O]."""

    outputs: int = 2
    width: int = 16

    def build(self, rngs: nnx.Rngs, inputs: Shaped) -> nnx.Module:
        """The module."""
        return PerceptronModule(self, rngs, inputs.shape[-1])


class PerceptronModule(nnx.Module):
    """Two layers."""

    def __init__(self, config: Perceptron, rngs: nnx.Rngs, entries: int):
        self.up = Linear(rngs, (entries, config.width), ("embed", "mlp"), Precision())
        self.down = Linear(rngs, (config.width, config.outputs), ("mlp", "outputs"), Precision())

    def __call__(self, x_BD: jax.Array, context: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits."""
        return self.down(jax.nn.relu(self.up(x_BD))), {}
