"""Pipeline parallelism: a circular schedule over microbatches (GPipe; interleaved with `rounds` > 1).

Each device along the stage axis holds some of the layers. Microbatches enter one after another, and each stage passes
its output on to the next (Huang et al. 2019, arXiv:1811.06965). With `rounds` > 1 a device has that many thinner
stages, and every microbatch passes through all devices as many times (Narayanan et al. 2021, arXiv:2104.04473, section
2.2). The backward pass is the derivative of this one, so it runs the same schedule in reverse.

Not here: what a layer computes.

Shapes: B batch, R rounds, S stages, C layers in a stage of a round, M microbatches, G groups of devices that split the
batch along other mesh axes, A rows of a microbatch in one group.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxtrain.sharding.constraints import microbatches, row_axes, shard_map_by_name, split
from jaxtrain.sharding.stages import fits

Layers = Callable[[jax.Array, Any, Any, jax.Array], tuple[jax.Array, Mapping[str, jax.Array]]]
"""`layers(x, rows, params, numbers)`: applies the layers with these parameters and numbers, and returns x and the
auxiliary losses of each row, summed over these layers."""


def pipeline(layers: Layers, rounds: int, params: Any, x: jax.Array, rows: Any) -> tuple[jax.Array, Any]:
    """All layers applied to `x` f[B, …], in `microbatches()` microbatches; also the auxiliary losses f[B].

    params: leaves [R, layers / R, …], whose second dim is split over the stages.
    rows: a tree of other arrays [B, …] that the layers read, or None.

    Raises ConfigError where the batch cannot be cut into as many microbatches.
    """
    axis, stages = tuple(split("layers")), math.prod(split("layers").values())
    others = {name: size for name, size in split("batch").items() if name not in axis}
    groups = math.prod(others.values())
    fits(x.shape[0], microbatches(), stages, groups, f"a batch of {x.shape[0]}")
    # Over these gradients are to be summed once, after the loop; XLA alone would sum them in each of its iterations.
    replicas = row_axes()
    cut = functools.partial(jax.tree.map, lambda a: a.reshape(groups, microbatches(), -1, *a.shape[1:]))
    run = jax.shard_map(
        functools.partial(_stage, layers, axis, stages, rounds),
        in_specs=(P(None, axis), P(replicas or None, axis), P(replicas or None)),
        out_specs=P(replicas or None, axis),
        axis_names={*axis, *replicas},
        check_vma=False,
    )
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[3:]), run(params, cut(x), cut(rows)))


def _stage(layers: Layers, axis: tuple[str, ...], S: int, R: int, params: Any, x_GMA: jax.Array, rows_GMA: Any) -> Any:
    """The schedule of one stage: microbatch m enters stage 0 at tick m, moves one stage on each tick, and returns to
    stage 0 after each round.
    """
    stage, C = jax.lax.axis_index(axis), jax.tree.leaves(params)[0].shape[1]
    x_GMA = exchange(functools.partial(jax.lax.all_gather, axis_name=axis, axis=1, tiled=True), x_GMA)
    G, M, A = x_GMA.shape[:3]

    at = functools.partial(jax.lax.dynamic_index_in_dim, axis=1, keepdims=False)

    def pick(tree: Any, microbatch: jax.Array) -> Any:
        return jax.tree.map(lambda a: at(a, microbatch).reshape(G * A, *a.shape[3:]), tree)

    def tick(carry: tuple[jax.Array, jax.Array], t: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Any]:
        x_GMA, x = carry
        microbatch, round_ = (t - stage) % M, jnp.clip((t - stage) // M, 0, R - 1)
        x = jnp.where(stage == 0, pick(x_GMA, microbatch), x)
        own = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, round_, keepdims=False), params)
        x, aux_losses = layers(x, pick(rows_GMA, microbatch), own, (round_ * S + stage) * C + jnp.arange(C))
        x = jax.lax.ppermute(x, axis, [(s, (s + 1) % S) for s in range(S)])
        returned = (t + 1 - S) % M
        x_GA = jnp.where(t + 1 >= S, x.reshape(G, A, *x.shape[1:]), at(x_GMA, returned))
        return (jax.lax.dynamic_update_index_in_dim(x_GMA, x_GA, returned, 1), x), aux_losses

    (x_GMA, _), aux_losses = jax.lax.scan(tick, (x_GMA, jnp.zeros_like(pick(x_GMA, stage))), jnp.arange(M * R + S - 1))

    def own_ticks(ticks: jax.Array) -> jax.Array:
        # In the other ticks, the pipeline bubble, this stage has no microbatch and its results mean nothing.
        return jax.lax.dynamic_slice_in_dim(ticks, stage, M * R).reshape(R, M, G, A).sum(0).swapaxes(0, 1)

    ended = jnp.where(stage == 0, x_GMA, 0), jax.tree.map(own_ticks, aux_losses)
    scatter = functools.partial(jax.lax.psum_scatter, axis_name=axis, scatter_dimension=1, tiled=True)
    return jax.tree.map(functools.partial(exchange, scatter), ended)


def exchange(collective: Callable[[jax.Array], jax.Array], a_GMA: jax.Array) -> jax.Array:
    """A collective along the stage axis, whose operand stays split over all others; XLA alone would gather it."""
    names = ("batch", None, None, "residual_length", None)[: a_GMA.ndim]
    return shard_map_by_name(lambda a: (collective(a),), [names], [names], a_GMA)[0]
