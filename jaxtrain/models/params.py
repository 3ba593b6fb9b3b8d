"""Parameters as nested dicts of plain arrays: taken from a Flax NNX module with the names of their dims, and put back.

Only such dicts are part of the training state, so that the host handles a plain pytree in each step. Not here: what a
model computes.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import jax
from flax import nnx

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.sharding.layout import AxisNamed, named_leaves, path_name

Params = Any
"""Nested dicts of arrays; from `init`, of `AxisNamed` arrays."""

Axes = tuple[str | None, ...]
"""The names of an array's dims; None is a dim that no rule splits."""

STACKED = ("rounds", "layers")
"""The names of the leading dims of parameters that are stacked, one entry a block."""

INSTEAD: tuple[tuple[type, str], ...] = (
    (nnx.BatchStat, "statistics that training updates are not supported: use nnx.GroupNorm or nnx.LayerNorm"),
    (nnx.RngState, "draw dropout from the keys of the rows, with jaxtrain.models.layers.dropout(x, rate, keys_B)"),
    (object, "make it an nnx.Param if it is trained, else compute it in __call__"),
)
"""What to use in place of an array that is no parameter."""


def named_params(module: nnx.Module, patterns: Mapping[str, Axes], model: str) -> Params:
    """The parameters of a module, each with the names of its dims.

    patterns: names by path, such as `{"conv/kernel": (None, None, None, "mlp")}` or `"*/kernel"`; they take precedence
        over the names that a module gives.
    model: the class that error messages name.

    Raises ConfigError for an array that is no `nnx.Param`, and for a pattern that matches no parameter.
    """
    tree: dict[str, Any] = {}
    found = {"/".join(map(str, path)): (path, variable) for path, variable in nnx.to_flat_state(nnx.state(module))}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise ConfigError(f"{model}.param_axes: no parameter matches {pattern!r}{nearest(pattern, found)}")
    for name, (path, variable) in found.items():
        if not isinstance(variable, nnx.Param):
            instead = next(words for kind, words in INSTEAD if isinstance(variable, kind))
            raise ConfigError(f"{model}: {name} is {_described(variable)}, not an nnx.Param: {instead}")
        own = [axes for pattern, axes in patterns.items() if fnmatchcase(name, pattern)]
        leaf = AxisNamed(variable.get_value(), own[0] if own else tuple(variable.get_metadata("axes")))
        _insert(tree, [str(part) for part in path], leaf)
    return tree


def name_axes(module: nnx.Module) -> nnx.Module:
    """The module, with `axes` in the metadata of every parameter: the names of its dims that were put there, else those
    of Flax's own metadata (`nnx.with_partitioning`), else None for each.
    """
    for _, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
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
    """A module without its arrays: the graph definition, and the paths of the arrays."""

    definition: Any
    paths: tuple[tuple[Any, ...], ...]


def with_params(graph: Graph, params: Params) -> nnx.Module:
    """The module of this graph with these parameters."""
    tree: dict[Any, Any] = {}
    for path in graph.paths:  # whose parts are numbers in a list of layers, but strings in `params`
        _insert(tree, path, functools.reduce(lambda node, part: node[str(part)], path, params))
    return nnx.merge(graph.definition, tree)


def _described(variable: Any) -> str:
    return f"a {type(variable).__name__}" if isinstance(variable, nnx.Variable) else "a plain array"


def _insert(tree: dict[Any, Any], path: Sequence[Any], leaf: Any) -> None:
    *parents, last = path
    functools.reduce(lambda node, parent: node.setdefault(parent, {}), parents, tree)[last] = leaf


@functools.lru_cache
def graph_of(build: Callable[[nnx.Rngs, Any], nnx.Module], structure: Any, shapes: tuple[Any, ...]) -> Graph:
    """The graph of the module that `build(rngs, inputs)` would build. The inputs are given as their tree structure and
    leaves, which are hashable.
    """
    inputs = jax.tree.unflatten(structure, shapes)
    definition, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0), inputs)))
    return Graph(definition, tuple(path for path, _ in nnx.to_flat_state(state)))
