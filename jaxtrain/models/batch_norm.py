"""Batch normalisation whose statistics are those of the whole batch, on any mesh.

Shapes: B batch, F features.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.models.variables import Context, Sums
from jaxtrain.sharding.constraints import sum_over_rows


class BatchNorm(nnx.Module):
    """Batch normalisation over all dims but the last, in f32 (Ioffe & Szegedy 2015, arXiv:1502.03167).

    In training the mean and the (biased) variance are those of all rows that the mask marks, on all devices; with
    gradient accumulation, of all rows of the microbatch. In evaluation they are running averages, which one step moves
    by 1 - `momentum` towards those of its whole batch, also with gradient accumulation.
    """

    def __init__(self, width: int, momentum: float = 0.9, epsilon: float = 1e-5, axis: str | None = "norm"):
        self.scale, self.bias = nnx.Param(jnp.ones(width), axes=(axis,)), nnx.Param(jnp.zeros(width), axes=(axis,))
        self.mean = nnx.BatchStat(jnp.zeros(width), axes=(axis,))
        self.variance = nnx.BatchStat(jnp.ones(width), axes=(axis,))
        self.momentum, self.epsilon = momentum, epsilon

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """The normalised array f[B, ..., F], of the same shape and dtype."""
        # Relative to the running mean: of values far from 0 neither mean nor variance could be computed in f32.
        centred, variance_F = x.astype(jnp.float32) - self.mean[...], self.variance[...]
        if context.training:
            sums = _sums(centred, context.mask_B)
            self.sums = Sums(jax.lax.stop_gradient(sums))
            shift_F, variance_F = _moments(sum_over_rows(sums))
            centred -= shift_F
        normed = centred * jax.lax.rsqrt(variance_F + self.epsilon)
        return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)

    def advance(self, sums: jax.Array) -> None:
        """Move the running averages towards the moments of a whole batch; one without rows leaves them as they are."""
        rate = jnp.where(sums[2] > 0, 1 - self.momentum, 0)
        shift_F, variance_F = _moments(sums)
        self.mean[...] += rate * shift_F
        self.variance[...] += rate * (variance_F - self.variance[...])


def _moments(sums: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance."""
    mean_F, square_F = sums[:2] / jnp.maximum(sums[2], 1)
    return mean_F, square_F - jnp.square(mean_F)


def _sums(x: jax.Array, mask_B: jax.Array | None) -> jax.Array:
    """The sums of values, squares and weights over the rows that the mask marks, f32[3, F]."""
    others = tuple(range(x.ndim - 1))
    mask = jnp.ones(x.shape[0], bool) if mask_B is None else mask_B
    mask = mask.reshape(-1, *(1,) * (x.ndim - 1))
    x = jnp.where(mask, x, 0)
    weight = jnp.broadcast_to(mask, x.shape).astype(jnp.float32)
    return jnp.stack([each.sum(others) for each in (x, jnp.square(x), weight)])
