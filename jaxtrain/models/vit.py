"""Vision transformer (Dosovitskiy et al. 2020, arXiv:2010.11929) with learned position embeddings and mean pooling
(Zhai et al. 2021, arXiv:2106.04560).

Shapes: B batch, Y image height, X image width, C channels, L patches, D width, O outputs, P patch side.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import PositiveInt
from jaxtrain.models.base import Model, Shaped
from jaxtrain.models.checks import image_dims
from jaxtrain.models.layers import Linear, RMSNorm, dropout, fold
from jaxtrain.models.sizes import Activations
from jaxtrain.models.transformer import Blocks
from jaxtrain.models.variables import Context
from jaxtrain.sharding.constraints import shard


@dataclass(frozen=True, kw_only=True)
class ViT(Model):
    """A vision transformer from images f32[B, Y, X, C] to logits f32[B, O]."""

    outputs: PositiveInt = 10
    patch: PositiveInt = 2
    """The side of a square patch, in pixels."""
    blocks: Blocks = Blocks()

    def build(self, rngs: nnx.Rngs, inputs: Shaped) -> nnx.Module:
        """The module. Raises ConfigError for images that cannot be cut into whole patches."""
        Y, X, C = image_dims(inputs, "ViT")
        if Y % self.patch or X % self.patch:
            raise ConfigError(f"images of {Y}×{X} cannot be cut into patches of {self.patch}×{self.patch}")
        return ViTModule(self, rngs, (Y // self.patch) * (X // self.patch), self.patch**2 * C)

    def shrunk(self, devices: int) -> Self:
        """Fewer, narrower blocks."""
        return replace(self, blocks=self.blocks.shrunk(devices))

    def describe(self, inputs: Shaped) -> Activations:
        """The activations of the blocks."""
        return self.blocks.describe(math.prod(inputs.shape[1:3]) // self.patch**2, causal=False)


class ViTModule(nnx.Module):
    """Patch embedding, position embedding, blocks, norm, mean, logits."""

    def __init__(self, config: ViT, rngs: nnx.Rngs, patches: int, values: int):
        blocks = config.blocks
        self.patches = Linear(rngs, (values, blocks.width), (None, "embed"), blocks.precision)
        positions = 0.02 * jax.random.normal(rngs.params(), (patches, blocks.width))
        self.positions = nnx.Param(positions.astype(blocks.precision.params), axes=(None, "embed"))
        self.blocks = blocks.stack(rngs, causal=False)
        self.norm = RMSNorm(blocks.width, blocks.precision)
        self.head = Linear(rngs, (blocks.width, config.outputs), ("embed", "outputs"), blocks.precision)
        self.config = config

    def __call__(self, image_BYXC: jax.Array, context: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The logits f32[B, O], and the auxiliary losses of experts."""
        B, Y, X, C = image_BYXC.shape
        P = self.config.patch
        patches = image_BYXC.reshape(B, Y // P, P, X // P, P, C).transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, P * P * C)
        x_BLD = self.patches(patches) + shard(self.positions[...], None, None)
        x_BLD = shard(x_BLD.astype(self.config.blocks.precision.activations), "batch", "residual_length", None)
        x_BLD = dropout(x_BLD, self.config.blocks.dropout, fold(context.keys_B, self.config.blocks.layers))
        x_BLD, aux_losses = self.blocks(x_BLD, context.keys_B, None)
        return self.head(self.norm(x_BLD).mean(1)).astype(jnp.float32), aux_losses
