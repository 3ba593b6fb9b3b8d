"""Parameters as nested dicts of plain arrays: taken from a Flax NNX module with the names of their dims, and put back.

Only such dicts are part of the training state, so that the host handles a plain pytree in each step. Not here: what a
model computes.
"""

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.models.variables import Variables
from jaxtrain.sharding.layout import AxisNamed, named_leaves, path_name

Params = Any
"""Nested dicts of arrays; from `init`, of `AxisNamed` arrays."""

Axes = tuple[str | None, ...]
"""The names of an array's dims; None is a dim that no rule splits."""

STACKED = ("rounds", "layers")
"""The names of the leading dims of parameters that are stacked, one entry a block."""

INSTEAD: tuple[tuple[type, str], ...] = (
    (
        nnx.RngState,
        "draw dropout from the keys of the rows: jaxtrain.models.layers.dropout(x, rate, context.keys_B)",
    ),
    (object, "make it an nnx.Param if it is trained, else compute it in __call__"),
)
"""What to use in place of an array that is neither parameter nor state."""


def named_variables(module: nnx.Module, patterns: Mapping[str, Axes], model: str) -> Variables:
    """The parameters (`nnx.Param`) and the state (`nnx.BatchStat`) of a module, with the names of their dims.

    patterns: names by path, such as `{"conv/kernel": (None, None, None, "mlp")}` or `"*/kernel"`; they take precedence
        over the names that a module gives.
    model: the class that error messages name.

    Raises ConfigError for any other variable, for `nnx.BatchNorm`, and for a pattern that matches no parameter.
    """
    variables = Variables({}, {})
    for path, layer in nnx.iter_graph(module):
        name = "/".join(map(str, path))
        if isinstance(layer, nnx.Dropout):
            raise ConfigError(f"{model}: {name} is an nnx.Dropout: {INSTEAD[0][1]}")
        if isinstance(layer, nnx.BatchNorm):
            raise ConfigError(
                f"{model}: {name} is an nnx.BatchNorm, whose statistics microbatches would overwrite: use "
                "jaxtrain.models.BatchNorm(width), called as norm(x, context), or nnx.GroupNorm"
            )
    found = {"/".join(map(str, path)): (path, variable) for path, variable in nnx.to_flat_state(nnx.state(module))}
    check_patterns(patterns, found, f"{model}.param_axes")
    for name, (path, variable) in found.items():
        if not isinstance(variable, nnx.Param | nnx.BatchStat):
            instead = next(words for kind, words in INSTEAD if isinstance(variable, kind))
            raise ConfigError(f"{model}: {name} is {_described(variable)}, not an nnx.Param: {instead}")
        if isinstance(variable, nnx.Param) and not jnp.issubdtype(variable.get_value().dtype, jnp.inexact):
            dtype = variable.get_value().dtype
            raise ConfigError(
                f"{model}: {name} is an nnx.Param of {dtype}, which has no gradient: compute it in __call__"
            )
        own = [axes for pattern, axes in patterns.items() if fnmatchcase(name, pattern)]
        leaf = AxisNamed(variable.get_value(), own[0] if own else tuple(variable.get_metadata("axes")))
        kind = variables.params if isinstance(variable, nnx.Param) else variables.state
        insert(kind, [str(part) for part in path], leaf)
    return variables


def name_axes(module: nnx.Module) -> nnx.Module:
    """The module, with `axes` in the metadata of every variable: the names of its dims that were put there, else those
    of Flax's own metadata (`nnx.with_partitioning`), else None for each.
    """
    for _, variable in nnx.to_flat_state(nnx.state(module, (nnx.Param, nnx.BatchStat))):
        metadata, dims = variable.get_metadata(), variable.get_value().ndim
        flax = tuple(metadata.pop("out_sharding", None) or ())  # left there, Flax would take the names for mesh axes
        variable.set_metadata({"axes": flax + (None,) * (dims - len(flax)), **metadata})
    return module


def unnamed(named: Any) -> list[str]:
    """The paths of the parameters none of whose dims has a name: every device holds all of them, whatever the rules."""
    leaves = [(path_name(path), leaf) for path, leaf in named_leaves(named)]
    return [path for path, leaf in leaves if leaf.value.ndim and not set(leaf.axes) - {*STACKED, None}]


@dataclass(frozen=True)
class Graph:
    """A module without its arrays: the graph definition, and the paths of its parameters and of its state."""

    definition: Any
    params: tuple[tuple[Any, ...], ...]
    state: tuple[tuple[Any, ...], ...]


def with_variables(graph: Graph, variables: Variables) -> nnx.Module:
    """The module of this graph with these arrays."""
    tree: dict[Any, Any] = {}
    for paths, arrays in ((graph.params, variables.params), (graph.state, variables.state)):
        for path in paths:  # whose parts are numbers in a list of layers, but strings in `arrays`
            insert(tree, path, at(arrays, path))
    return nnx.merge(graph.definition, tree)


def at(tree: Mapping[str, Any], path: Iterable[Any]) -> Any:
    """The node of nested dicts at a path."""
    return functools.reduce(lambda node, part: node[str(part)], path, tree)


def by_path(state: nnx.State) -> dict[str, Any]:
    """The arrays of a state as nested dicts with strings as keys."""
    tree: dict[str, Any] = {}
    for path, variable in nnx.to_flat_state(state):
        insert(tree, [str(part) for part in path], variable.get_value())
    return tree


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of two nested dicts that have none in common, in one."""
    both = {key: merged(one[key], other[key]) for key in one.keys() & other.keys()}
    return {**one, **other, **both}


def parted(params: Mapping[str, Any], patterns: Sequence[str], setting: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Nested dicts of the leaves whose path matches none of the patterns, and of those whose path matches one.

    Raises ConfigError, naming the setting that holds the patterns, for a pattern that matches nothing.
    """
    parts: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    paths = {path_name(path): (path, leaf) for path, leaf in named_leaves(params)}
    check_patterns(patterns, paths, setting)
    for name, (path, leaf) in paths.items():
        chosen = parts[any(fnmatchcase(name, pattern) for pattern in patterns)]
        insert(chosen, [part.key for part in path], leaf)
    return parts


def check_patterns(patterns: Iterable[str], names: Collection[str], setting: str) -> None:
    """Raises ConfigError, naming the setting that holds the patterns, for a pattern that matches no name."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"{setting}: no parameter matches {pattern!r}{nearest(pattern, names)}")


def _described(variable: Any) -> str:
    return f"a {type(variable).__name__}" if isinstance(variable, nnx.Variable) else "a plain array"


def insert(tree: dict[Any, Any], path: Sequence[Any], leaf: Any) -> None:
    """Put a leaf into nested dicts at a path, making the dicts on the way."""
    *parents, last = path
    functools.reduce(lambda node, parent: node.setdefault(parent, {}), parents, tree)[last] = leaf


@functools.lru_cache
def graph_of(build: Callable[[nnx.Rngs, Any], nnx.Module], structure: Any, shapes: tuple[Any, ...]) -> Graph:
    """The graph of the module that `build(rngs, inputs)` would build. The inputs are given as their tree structure and
    leaves, which are hashable.
    """
    inputs = jax.tree.unflatten(structure, shapes)
    definition, *states = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0), inputs)), nnx.Param, ...)
    params, others = (tuple(path for path, _ in nnx.to_flat_state(state)) for state in states)
    return Graph(definition, params, others)
