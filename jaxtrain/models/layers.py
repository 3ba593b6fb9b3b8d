"""The few layers that the models share. Not here: whole architectures, and any mesh.

Shapes: B batch, L length, D width, F features out, H heads, K head dim, G key/value heads, N layers.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.models.stages import pipeline
from jaxtrain.sharding.constraints import shard, split, target_platform

Remat = Literal["none", "dots", "full"]
"""What the backward pass recomputes: nothing, all but the outputs of weight matmuls, everything."""

_POLICIES = {"none": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


@dataclass(frozen=True)
class Precision:
    """The dtypes that parameters are kept in and matmuls computed in."""

    params: Literal["float32", "bfloat16"] = "float32"
    compute: Literal["float32", "bfloat16"] = "float32"

    @property
    def activations(self) -> jnp.dtype:
        """The dtype between matmuls. On a CPU that is f32: its elementwise bf16 is slower than the matmuls it feeds."""
        return jnp.dtype("float32" if target_platform() == "cpu" else self.compute)


def dot(x: jax.Array, kernel_DF: jax.Array, precision: Precision) -> jax.Array:
    """`x[..., D] @ kernel_DF`, computed and returned as `precision` says."""
    dtype = jnp.dtype(precision.compute)
    if target_platform() == "cpu":
        return _cpu_dot(dtype, x, kernel_DF.astype(x.dtype))
    return jnp.dot(x.astype(dtype), kernel_DF.astype(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cpu_dot(dtype: jnp.dtype, x: jax.Array, kernel_DF: jax.Array) -> jax.Array:
    # XLA on a CPU is fast, and in bf16 works at all, only where both operands have one dtype, the result is f32 and the
    # sum runs over the last dim of the one and the first of the other. Its own derivative is not like that.
    return jnp.dot(x.astype(dtype), kernel_DF.astype(dtype), preferred_element_type=jnp.float32)


def _cpu_dot_fwd(dtype: jnp.dtype, x: jax.Array, kernel_DF: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    x, kernel_DF = x.astype(dtype), kernel_DF.astype(dtype)
    return jnp.dot(x, kernel_DF, preferred_element_type=jnp.float32), (x, kernel_DF)


def _cpu_dot_bwd(dtype: jnp.dtype, saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel_DF = saved
    g = g.astype(dtype)
    rows = tuple(range(x.ndim - 1))
    dx = jnp.dot(g, kernel_DF.T, preferred_element_type=jnp.float32)
    dkernel_DF = jax.lax.dot_general(x, g, ((rows, rows), ((), ())), preferred_element_type=jnp.float32)
    # Behind the barrier no transpose (of tied embeddings) can be folded into the dot.
    return dx, jax.lax.optimization_barrier(dkernel_DF)


_cpu_dot.defvjp(_cpu_dot_fwd, _cpu_dot_bwd)


class Linear(nnx.Module):
    """`x[..., D] -> x[..., F]` with no bias."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        shape: tuple[int, int],
        axes: tuple[str | None, str | None],
        precision: Precision,
        scale: float = 1.0,
    ):
        init = jax.nn.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal")
        # Drawn in f32: a draw in bf16 has 128 different values, whose mean is not 0. (So are all parameters.)
        self.kernel = nnx.Param(init(rngs.params(), shape).astype(precision.params), axes=axes)
        self.precision = precision

    def __call__(self, x: jax.Array) -> jax.Array:
        """The product, in the activations' dtype."""
        return dot(x, self.kernel[...], self.precision)


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last dim (Zhang & Sennrich 2019, arXiv:1910.07467), computed in f32."""

    def __init__(self, width: int, precision: Precision, epsilon: float = 1e-6):
        self.scale = nnx.Param(jnp.ones(width, jnp.dtype(precision.params)), axes=("norm",))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """Same shape and dtype."""
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.epsilon)
        return (normed * self.scale[...]).astype(x.dtype)


class Embedding(nnx.Module):
    """A table of V rows of width D, looked up by integers, and used the other way round to score them."""

    def __init__(self, rngs: nnx.Rngs, rows: int, width: int, precision: Precision):
        table_VD = jax.random.normal(rngs.params(), (rows, width)) * width**-0.5
        self.table = nnx.Param(table_VD.astype(precision.params), axes=("vocab", "embed"))
        self.precision = precision

    def __call__(self, ids_BL: jax.Array) -> jax.Array:
        """f[B, L, D] rows. The table is gathered over `embed` first: indexing what is split on both dims would make XLA
        replicate it all ("involuntary full rematerialisation").
        """
        x_BLD = shard(self.table[...], "vocab", None)[ids_BL].astype(self.precision.activations)
        # Rows first add up over the parts of the vocabulary, and only then are they split by position: asked for both
        # at once, XLA gathers the table or permutes the rows.
        x_BLD = shard(x_BLD, "batch", "length", None)
        return shard(x_BLD * self.table.shape[1] ** 0.5, "batch", "residual_length", None)

    def scores(self, x_BLD: jax.Array) -> jax.Array:
        """f[B, L, V] logits of every row of the table (tied embeddings: Press & Wolf 2017, arXiv:1608.05859)."""
        return dot(x_BLD, shard(self.table[...], "vocab", None).T, self.precision)


def dropout(x: jax.Array, rate: float, keys_B: jax.Array | None, order_L: np.ndarray | None = None) -> jax.Array:
    """`x[B, ...]` with entries zeroed at `rate`, the rest scaled up; as it is without keys.

    Every row draws from its own key, and for each position the same wherever `order_L` puts it, so that neither
    microbatches nor the mesh change what is dropped.
    """
    if keys_B is None or rate == 0:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys_B)
    return jnp.where(kept if order_L is None else kept[:, order_L], x / (1 - rate), 0)


def fold(keys_B: jax.Array | None, number: int | jax.Array) -> jax.Array | None:
    """Other keys for another use of the same rows."""
    return None if keys_B is None else jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)


class Stack(nnx.Module):
    """N blocks of one kind whose parameters are stacked on a `layers` axis and scanned: compile and host time do not
    grow with depth. `unroll` blocks are laid out one after another in each turn of the scan. Where a mesh axis splits
    `layers` they are the stages of a pipeline, which a batch goes through `rounds` times.
    """

    def __init__(
        self,
        make: Callable[[nnx.Rngs], nnx.Module],
        layers: int,
        rngs: nnx.Rngs,
        remat: Remat,
        unroll: int,
        rounds: int = 1,
    ):
        self.block = nnx.vmap(lambda key: make(nnx.Rngs(key)))(jax.random.split(rngs.params(), layers))
        stacked, axes = ((), ("layers",)) if rounds == 1 else ((rounds, layers // rounds), ("rounds", "layers"))
        for _, variable in nnx.to_flat_state(nnx.state(self.block)):
            variable.set_metadata("axes", (*axes, *variable.get_metadata("axes")))
            if stacked:
                value = variable.get_value()
                variable.set_value(value.reshape(*stacked, *value.shape[1:]))
        self.layers, self.remat, self.unroll, self.rounds = layers, remat, unroll, rounds

    def __call__(
        self, x: jax.Array, keys_B: jax.Array | None, rows: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`x` after every block, and the sums over blocks of what each of them adds to the loss of a row, f32[B].

        Each block is called with x, one key a row, and `rows`, which has the rows of the batch too.
        """
        structure, params = nnx.split(self.block)

        def some(x: jax.Array, rows: Any, params: Any, numbers: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            keys_B, more = rows

            def once(x: jax.Array, layer: tuple[Any, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
                return nnx.merge(structure, layer[0])(x, fold(keys_B, layer[1]), more)

            kept = _POLICIES[self.remat]
            body = once if self.remat == "none" else jax.checkpoint(once, policy=kept, prevent_cse=False)
            x, penalties = jax.lax.scan(body, x, (params, numbers), unroll=min(self.unroll, len(numbers)))
            return x, jax.tree.map(lambda penalty_NB: penalty_NB.sum(0), penalties)

        if split("layers"):
            by_round = params if self.rounds > 1 else jax.tree.map(lambda leaf: leaf[None], params)
            return pipeline(some, self.rounds, by_round, x, (keys_B, rows))
        flat = params if self.rounds == 1 else jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), params)
        return some(x, (keys_B, rows), flat, jnp.arange(self.layers))


@functools.cache
def _rotation(length: int, head_dim: int, base: float) -> tuple[np.ndarray, np.ndarray]:
    angles = np.arange(length)[:, None] * base ** (-np.arange(0, head_dim, 2) / head_dim)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x_BLHK: jax.Array, order_L: np.ndarray | None, base: float = 10_000.0) -> jax.Array:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864): pairs of dims (k, k + K/2) turned by position, in f32.

    `order_L` says which position stands where; None is 0, 1, ….
    """
    order = slice(None) if order_L is None else order_L
    cos_LK, sin_LK = (table[order, None] for table in _rotation(x_BLHK.shape[1], x_BLHK.shape[3], base))
    left, right = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos_LK - right * sin_LK, right * cos_LK + left * sin_LK], axis=-1)
    return turned.astype(x_BLHK.dtype)
