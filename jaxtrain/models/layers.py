"""Layers that the models share: linear, norm, embedding, dropout, rotary positions, and a scanned stack of blocks.

Not here: whole architectures, and any mesh.

Shapes: B batch, L length, D width, F output features, H heads, K head dim, N layers, V vocabulary.
"""

import contextlib
import functools
from collections.abc import Callable, Generator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import Checked
from jaxtrain.models.params import name_axes
from jaxtrain.models.stages import pipeline
from jaxtrain.sharding.constraints import manual_axes, shard, split, target_platform

Remat = Literal["none", "dots", "full"]
"""What the backward pass recomputes: nothing, all but the outputs of matmuls with weights, or everything."""

_PLAIN = ContextVar("plain graph", default=False)

_POLICIES = {"none": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


@dataclass(frozen=True)
class Precision(Checked):
    """The dtype of the parameters, and the dtype of matmul operands."""

    params: Literal["float32", "bfloat16"] = "float32"
    compute: Literal["float32", "bfloat16"] = "float32"

    @property
    def activations(self) -> jnp.dtype:
        """The dtype between matmuls. On a CPU it is f32: elementwise bf16 takes longer there than the matmuls."""
        return jnp.dtype("float32" if target_platform() == "cpu" else self.compute)


@contextlib.contextmanager
def plain_graph() -> Generator[None]:
    """While tracing inside, a `Stack` has no loop and matmuls have operands of f32, rounded to those of `compute`: for
    ONNX, whose loops hide the weights inside of them, and whose runtimes have no bf16.
    """
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def dot(x: jax.Array, kernel_DF: jax.Array, precision: Precision) -> jax.Array:
    """f[..., F]: `x[..., D] @ kernel_DF` with operands in `precision.compute`; f32 on a CPU, else of that dtype."""
    dtype = jnp.dtype(precision.compute)
    if _PLAIN.get():
        rounded, wide = ((each.astype(dtype).astype(jnp.float32)) for each in (x, kernel_DF))
        return jnp.dot(rounded, wide)
    if target_platform() == "cpu":
        return _cpu_dot(dtype, x, kernel_DF.astype(x.dtype))
    return jnp.dot(x.astype(dtype), kernel_DF.astype(dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cpu_dot(dtype: jnp.dtype, x: jax.Array, kernel_DF: jax.Array) -> jax.Array:
    # On a CPU, XLA is fast (and supports bf16 at all) only if both operands have the same dtype, the result is f32, and
    # the contraction is over the last dim of the left and the first dim of the right operand. JAX's own derivative of
    # a dot does not have this form.
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
    # The barrier keeps XLA from folding a transpose (of tied embeddings) into the dot.
    return dx, jax.lax.optimization_barrier(dkernel_DF)


_cpu_dot.defvjp(_cpu_dot_fwd, _cpu_dot_bwd)


class Linear(nnx.Module):
    """Linear layer without bias, f[..., D] to f[..., F]; initial weights have variance `scale`² / D."""

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
        """f[..., F], in the dtype of `dot`."""
        return dot(x, self.kernel[...], self.precision)


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last dim, computed in f32 (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int, precision: Precision, epsilon: float = 1e-6):
        self.scale = nnx.Param(jnp.ones(width, jnp.dtype(precision.params)), axes=("norm",))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """The normed array, of the same shape and dtype."""
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.epsilon)
        return (normed * self.scale[...]).astype(x.dtype)


class Embedding(nnx.Module):
    """Embedding table f[V, D], scaled by √D when it is looked up; it may give the logits too (tied embeddings).

    Initial embeddings, as looked up, have variance `scale`².
    """

    def __init__(self, rngs: nnx.Rngs, rows: int, width: int, precision: Precision, scale: float = 1.0):
        table_VD = jax.random.normal(rngs.params(), (rows, width)) * (scale * width**-0.5)
        self.table = nnx.Param(table_VD.astype(precision.params), axes=("vocab", "embed"))
        self.precision = precision

    def __call__(self, ids_BL: jax.Array) -> jax.Array:
        """The embeddings f[B, L, D] of the ids i[B, L]."""
        if not jnp.issubdtype(ids_BL.dtype, jnp.integer):
            raise ConfigError(f"an embedding is looked up by ints, not by {ids_BL.dtype}{list(ids_BL.shape)}")
        # The table is gathered over `embed` first: where both dims are split, XLA would replicate all of it to index it
        # ("involuntary full rematerialization").
        x_BLD = _look_up(shard(self.table[...], "vocab", None), ids_BL).astype(self.precision.activations)
        # Two constraints, since XLA gathers the table or permutes the rows if it has to sum over the shards of the
        # vocabulary and split by position at once.
        x_BLD = shard(x_BLD, "batch", "length", None)
        return shard(x_BLD * self.table.shape[1] ** 0.5, "batch", "residual_length", None)

    def logits(self, x_BLD: jax.Array) -> jax.Array:
        """The logits f[B, L, V], by the same table (Press & Wolf 2017, arXiv:1608.05859)."""
        return dot(x_BLD, shard(self.table[...], "vocab", None).T, self.precision)


def _look_up(table_VD: jax.Array, ids_BL: jax.Array) -> jax.Array:
    if split("vocab") and manual_axes() and jax.__version_info__ >= (0, 11):
        # This XLA aborts (spmd_partitioner_util.cc: Check failed) where a dim that is split over devices is indexed
        # inside of a shard_map over other mesh axes, as that of microbatches is.
        return rows_by_product(table_VD, ids_BL)
    return table_VD[ids_BL]


def rows_by_product(table_VD: jax.Array, ids_BL: jax.Array) -> jax.Array:
    """`table_VD[ids_BL]` as a product with one-hot vectors, for ids of the table and a table of finite numbers."""
    one_hot_BLV = jax.nn.one_hot(ids_BL, table_VD.shape[0], dtype=table_VD.dtype)
    return jnp.matmul(one_hot_BLV, table_VD, precision="highest")


def dropout(x: jax.Array, rate: float, keys_B: jax.Array | None, order_L: np.ndarray | None = None) -> jax.Array:
    """Dropout on f[B, ...]: entries are zeroed with probability `rate`, the others divided by 1 - `rate`. Without keys
    nothing is dropped.

    Each row draws from a key of its own, and each position the same numbers wherever `order_L` puts it, so that neither
    microbatches nor the mesh change what is dropped.
    """
    if keys_B is None or rate == 0:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys_B)
    return jnp.where(kept if order_L is None else kept[:, order_L], x / (1 - rate), 0)


def fold(keys_B: jax.Array | None, number: int | jax.Array) -> jax.Array | None:
    """New keys, one a row, for the `number`-th use of the keys of the same rows."""
    return None if keys_B is None else jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)


def residual(x_BLD: jax.Array) -> jax.Array:
    """Activations f[B, L, D], placed as the residual stream between blocks."""
    # Where an axis splits `length` already, the sum over shards of `mlp` or `heads` comes before the split by
    # `residual_length`: XLA gathers the positions if it has to do both at once.
    return shard(shard(x_BLD, "batch", "length", None) if split("length") else x_BLD, "batch", "residual_length", None)


class Stack(nnx.Module):
    """N equal blocks whose parameters are stacked on a `layers` dim and scanned, so that compile time and host time do
    not grow with depth.

    make: builds one block, which is called as `block(x, keys_B, rows)` and returns `(x, aux_losses)`.
    unroll: blocks an iteration of the scan.
    rounds: where a mesh axis splits `layers`, the blocks run as pipeline stages, through which a batch passes this many
        times.
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
        self.block = nnx.vmap(lambda key: name_axes(make(nnx.Rngs(key))))(jax.random.split(rngs.params(), layers))
        stacked, axes = ((), ("layers",)) if rounds == 1 else ((rounds, layers // rounds), ("rounds", "layers"))
        for _, variable in nnx.to_flat_state(nnx.state(self.block, nnx.Param)):
            variable.set_metadata("axes", (*axes, *variable.get_metadata("axes")))
            if stacked:
                value = variable.get_value()
                variable.set_value(value.reshape(*stacked, *value.shape[1:]))
        self.layers, self.remat, self.unroll, self.rounds = layers, remat, unroll, rounds

    def __call__(
        self, x: jax.Array, keys_B: jax.Array | None, rows: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`x` after the last block, and the auxiliary losses f32[B] summed over the blocks.

        keys_B: one PRNG key a row; each block gets keys of its own.
        rows: an array with the rows of the batch on its first dim, which every block gets.
        """
        structure, params = nnx.split(self.block)

        def scan(x: jax.Array, rows: Any, params: Any, numbers: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            keys_B, more = rows

            def apply(x: jax.Array, layer: tuple[Any, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
                return nnx.merge(structure, layer[0])(x, fold(keys_B, layer[1]), more)

            if _PLAIN.get():
                return _unrolled(apply, x, (params, numbers))
            policy = _POLICIES[self.remat]
            body = apply if self.remat == "none" else jax.checkpoint(apply, policy=policy, prevent_cse=False)
            x, aux_losses = jax.lax.scan(body, x, (params, numbers), unroll=min(self.unroll, len(numbers)))
            return x, jax.tree.map(lambda losses_NB: losses_NB.sum(0), aux_losses)

        if split("layers"):
            by_round = params if self.rounds > 1 else jax.tree.map(lambda leaf: leaf[None], params)
            return pipeline(scan, self.rounds, by_round, x, (keys_B, rows))
        flat = params if self.rounds == 1 else jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), params)
        return scan(x, (keys_B, rows), flat, jnp.arange(self.layers))


def _unrolled(
    apply: Callable[..., tuple[jax.Array, dict[str, jax.Array]]], x: jax.Array, layers: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What a scan of `apply` over `layers` gives, without its loop. Parameters that are numpy arrays stay constants."""
    losses = []
    for number in range(len(layers[1])):
        x, aux_losses = apply(x, jax.tree.map(lambda leaf, number=number: leaf[number], layers))
        losses.append(aux_losses)
    return x, jax.tree.map(lambda *each: sum(each), *losses)


@functools.cache
def _rotation(length: int, head_dim: int, base: float) -> tuple[np.ndarray, np.ndarray]:
    angles = np.arange(length)[:, None] * base ** (-np.arange(0, head_dim, 2) / head_dim)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x_BLHK: jax.Array, order_L: np.ndarray | None, base: float = 10_000.0) -> jax.Array:
    """Rotary position embedding, in f32: pairs of dims (k, k + K/2) are rotated by an angle that grows with position
    (Su et al. 2021, arXiv:2104.09864).

    order_L: the position of each entry; None is 0, 1, ….
    """
    order = slice(None) if order_L is None else order_L
    cos_LK, sin_LK = (table[order, None] for table in _rotation(x_BLHK.shape[1], x_BLHK.shape[3], base))
    left, right = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos_LK - right * sin_LK, right * cos_LK + left * sin_LK], axis=-1)
    return turned.astype(x_BLHK.dtype)
