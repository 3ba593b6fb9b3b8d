"""Residual network for small images (He et al. 2016, arXiv:1512.03385, section 4.2), with batch normalisation.

Shapes: B batch, Y image height, X image width, C channels, F features, O outputs.
"""

from dataclasses import dataclass, replace
from typing import Self

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import FractionBelow1, PositiveInt
from jaxtrain.models.base import Model, Shaped
from jaxtrain.models.batch_norm import BatchNorm
from jaxtrain.models.checks import image_dims
from jaxtrain.models.layers import Linear, Precision
from jaxtrain.models.sizes import smaller
from jaxtrain.models.variables import Context
from jaxtrain.sharding.constraints import shard


@dataclass(frozen=True, kw_only=True)
class ResNet(Model):
    """A residual network from images f32[B, Y, X, C] to logits f32[B, O]."""

    outputs: PositiveInt = 10
    widths: tuple[PositiveInt, ...] = (16, 32, 64)
    """Features of each stage; every stage but the first halves height and width."""
    blocks: PositiveInt = 3
    """Residual blocks a stage, of two convolutions each."""
    momentum: FractionBelow1 = 0.9
    """Of the running statistics of `BatchNorm`."""
    precision: Precision = Precision()

    def __post_init__(self) -> None:
        """Raises ConfigError for no stages."""
        if not self.widths:
            raise ConfigError("ResNet.widths: give the features of at least one stage")

    def build(self, rngs: nnx.Rngs, inputs: Shaped) -> nnx.Module:
        """The module."""
        return ResNetModule(self, rngs, image_dims(inputs, "ResNet")[-1])

    def shrunk(self, devices: int) -> Self:
        """One block a stage, of fewer features."""
        widths = tuple(smaller(width, 8, devices) for width in self.widths[:2])
        return replace(self, widths=widths, blocks=1, precision=Precision())


class Conv(nnx.Module):
    """Convolution without bias, f[B, Y, X, C] to f[B, Y/stride, X/stride, F]; initialised by He et al. (2015,
    arXiv:1502.01852). `axis` is the name of the input dim of its kernel.
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        channels: int,
        features: int,
        precision: Precision,
        side: int = 3,
        stride: int = 1,
        axis: str | None = "embed",
    ):
        init = jax.nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
        kernel = init(rngs.params(), (side, side, channels, features)).astype(precision.params)
        self.kernel = nnx.Param(kernel, axes=(None, None, axis, "mlp"))
        self.stride, self.precision = stride, precision

    def __call__(self, x_BYXC: jax.Array) -> jax.Array:
        """The convolution, in the dtype of activations."""
        dtype = self.precision.activations
        kernel = shard(self.kernel[...].astype(dtype), None, None, None, "mlp")
        dims = ("NHWC", "HWIO", "NHWC")
        strides = (self.stride, self.stride)
        y = jax.lax.conv_general_dilated(x_BYXC.astype(dtype), kernel, strides, "SAME", dimension_numbers=dims)
        # Without this constraint XLA (jaxlib 0.10.2) computes a wrong gradient of the kernel on three mesh axes.
        return shard(y, "batch", None, None, None)


class ResidualBlock(nnx.Module):
    """Two convolutions, each followed by batch normalisation, added to the input or to its projection."""

    def __init__(self, config: ResNet, rngs: nnx.Rngs, channels: int, features: int, stride: int):
        self.first = Conv(rngs, channels, features, config.precision, stride=stride)
        self.norm_first = BatchNorm(features, config.momentum)
        self.second = Conv(rngs, features, features, config.precision)
        self.norm_second = BatchNorm(features, config.momentum)
        self.projects = stride > 1 or channels != features
        if self.projects:
            self.projection = Conv(rngs, channels, features, config.precision, side=1, stride=stride)
            self.norm_projection = BatchNorm(features, config.momentum)

    def __call__(self, x_BYXC: jax.Array, context: Context) -> jax.Array:
        """f[B, Y/stride, X/stride, F]."""
        y = nnx.relu(self.norm_first(self.first(x_BYXC), context))
        y = self.norm_second(self.second(y), context)
        if self.projects:
            x_BYXC = self.norm_projection(self.projection(x_BYXC), context)
        return nnx.relu(x_BYXC + y)


class ResNetModule(nnx.Module):
    """Convolution, residual blocks, mean over pixels, logits."""

    def __init__(self, config: ResNet, rngs: nnx.Rngs, channels: int):
        self.stem = Conv(rngs, channels, config.widths[0], config.precision, axis=None)
        self.norm = BatchNorm(config.widths[0], config.momentum)
        blocks, features = [], config.widths[0]
        for stage, width in enumerate(config.widths):
            for number in range(config.blocks):
                stride = 2 if stage and not number else 1
                blocks.append(ResidualBlock(config, rngs, features, width, stride))
                features = width
        self.blocks = nnx.List(blocks)
        self.head = Linear(rngs, (features, config.outputs), ("embed", "outputs"), config.precision)

    def __call__(self, image_BYXC: jax.Array, context: Context) -> jax.Array:
        """The logits f32[B, O]."""
        x = nnx.relu(self.norm(self.stem(image_BYXC), context))
        for block in self.blocks:
            x = block(x, context)
        return self.head(x.mean((1, 2))).astype(jnp.float32)
