"""Stacked layers as the stages of a pipeline: parts of a batch go round a ring of devices, each with its own layers.

Not here: what a layer computes, and the backward pass: it is the derivative of this one, so it runs the same schedule
from its end.

With `rounds` > 1 every device has that many thinner stages, and each part goes round as many times (Narayanan et al.
2021, arXiv:2104.04473, section 2.2).

Shapes: B batch, R rounds, S stages, C layers a stage and round, M parts, G groups of devices that split rows otherwise,
A rows of a part in a group.
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
"""From x, what else belongs to its rows, some layers' parameters and numbers to x and sums for each row."""


def pipeline(layers: Layers, rounds: int, params: Any, x: jax.Array, rows: Any) -> tuple[jax.Array, Any]:
    """`layers` one after another over all those of `params` (leaves [R, layers / R, …], the second dim split over the
    stages), for `x` f[B, …] and `rows` (a tree of arrays [B, …] or None), in `microbatches()` parts.

    Raises ConfigError where the batch cannot be cut so.
    """
    axis, stages = tuple(split("layers")), math.prod(split("layers").values())
    others = {name: size for name, size in split("batch").items() if name not in axis}
    groups = math.prod(others.values())
    fits(x.shape[0], microbatches(), stages, groups, f"a batch of {x.shape[0]}")
    # Over these gradients are to be summed once, after the loop; left to XLA, they would be in each of its turns.
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
    """What one stage does: part m enters at tick m, each stage passes it on, and stage 0 takes it back every round."""
    stage, C = jax.lax.axis_index(axis), jax.tree.leaves(params)[0].shape[1]
    x_GMA = exchange(functools.partial(jax.lax.all_gather, axis_name=axis, axis=1, tiled=True), x_GMA)
    G, M, A = x_GMA.shape[:3]

    at = functools.partial(jax.lax.dynamic_index_in_dim, axis=1, keepdims=False)

    def pick(tree: Any, part: jax.Array) -> Any:
        return jax.tree.map(lambda a: at(a, part).reshape(G * A, *a.shape[3:]), tree)

    def tick(carry: tuple[jax.Array, jax.Array], t: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Any]:
        x_GMA, x = carry
        part, turn = (t - stage) % M, jnp.clip((t - stage) // M, 0, R - 1)
        x = jnp.where(stage == 0, pick(x_GMA, part), x)
        own = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, turn, keepdims=False), params)
        x, sums = layers(x, pick(rows_GMA, part), own, (turn * S + stage) * C + jnp.arange(C))
        x = jax.lax.ppermute(x, axis, [(s, (s + 1) % S) for s in range(S)])
        back = (t + 1 - S) % M
        came_GA = jnp.where(t + 1 >= S, x.reshape(G, A, *x.shape[1:]), at(x_GMA, back))
        return (jax.lax.dynamic_update_index_in_dim(x_GMA, came_GA, back, 1), x), sums

    (x_GMA, _), sums = jax.lax.scan(tick, (x_GMA, jnp.zeros_like(pick(x_GMA, stage))), jnp.arange(M * R + S - 1))

    def mine(ticks: jax.Array) -> jax.Array:
        # In the other ticks this stage had no part, and what it computed is of nothing.
        return jax.lax.dynamic_slice_in_dim(ticks, stage, M * R).reshape(R, M, G, A).sum(0).swapaxes(0, 1)

    ended = jnp.where(stage == 0, x_GMA, 0), jax.tree.map(mine, sums)
    scatter = functools.partial(jax.lax.psum_scatter, axis_name=axis, scatter_dimension=1, tiled=True)
    return jax.tree.map(functools.partial(exchange, scatter), ended)


def exchange(collective: Callable[[jax.Array], jax.Array], a_GMA: jax.Array) -> jax.Array:
    """A collective of the parts that each device has; by XLA's own ways all would first be gathered over other axes."""
    names = ("batch", None, None, "residual_length", None)[: a_GMA.ndim]
    return shard_map_by_name(lambda a: (collective(a),), [names], [names], a_GMA)[0]
