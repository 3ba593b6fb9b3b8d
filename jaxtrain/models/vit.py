"""A vision transformer: an image cut into patches, read by the blocks of the language model without their mask.

After Dosovitskiy et al. 2020 (arXiv:2010.11929), with learned positions and mean pooling (Zhai et al. 2021,
arXiv:2106.04560). Shapes: B batch, Y rows, X columns, C channels, L patches, D width, O outputs.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.base.errors import ConfigError
from jaxtrain.models.base import Model, Shaped
from jaxtrain.models.layers import Linear, RMSNorm, dropout, fold
from jaxtrain.models.transformer import Blocks
from jaxtrain.sharding.constraints import shard


@dataclass(frozen=True, kw_only=True)
class ViT(Model):
    """Images f32[B, Y, X, C] to logits f32[B, outputs]."""

    outputs: int = 10
    patch: int = 2
    blocks: Blocks = Blocks()

    def build(self, rngs: nnx.Rngs, inputs: Shaped) -> nnx.Module:
        """The module. Raises ConfigError for images that the patch does not divide."""
        _, Y, X, C = inputs.shape
        if Y % self.patch or X % self.patch:
            raise ConfigError(f"images of {Y}×{X} cannot be cut into patches of {self.patch}×{self.patch}")
        return ViTModule(self, rngs, (Y // self.patch) * (X // self.patch), self.patch**2 * C)


class ViTModule(nnx.Module):
    """Patches, positions, blocks, norm, mean, scores."""

    def __init__(self, config: ViT, rngs: nnx.Rngs, patches: int, entries: int):
        blocks = config.blocks
        self.patches = Linear(rngs, (entries, blocks.width), (None, "embed"), blocks.precision)
        positions = 0.02 * jax.random.normal(rngs.params(), (patches, blocks.width))
        self.positions = nnx.Param(positions.astype(blocks.precision.params), axes=(None, "embed"))
        self.blocks = blocks.stack(rngs, causal=False)
        self.norm = RMSNorm(blocks.width, blocks.precision)
        self.head = Linear(rngs, (blocks.width, config.outputs), ("embed", "outputs"), blocks.precision)
        self.config = config

    def __call__(self, image_BYXC: jax.Array, keys_B: jax.Array | None) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits, f32, and penalties."""
        B, Y, X, C = image_BYXC.shape
        p = self.config.patch
        cut = image_BYXC.reshape(B, Y // p, p, X // p, p, C).transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, p * p * C)
        x_BLD = self.patches(cut) + shard(self.positions[...], None, None)
        x_BLD = shard(x_BLD.astype(self.config.blocks.precision.activations), "batch", "residual_length", None)
        x_BLD = dropout(x_BLD, self.config.blocks.dropout, fold(keys_B, self.config.blocks.layers))
        x_BLD, penalties = self.blocks(x_BLD, keys_B, None)
        return self.head(self.norm(x_BLD).mean(1)).astype(jnp.float32), penalties
