"""The leaves of a state by path, and comparing them with those of a checkpoint. Not here: their values."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from jaxtrain.base.errors import ConfigError, nearest


def check_leaves(checkpoint: Path, saved: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Raises ConfigError where saved and wanted leaves differ in path, dtype or shape, naming each."""
    lines = []
    for name in sorted(saved.keys() | wanted.keys()):
        if name not in saved:
            close = nearest(name, saved.keys() - wanted.keys())
            lines.append(f"  {name}: wanted {wanted[name]}, not saved{close}")
        elif name not in wanted:
            lines.append(f"  {name}: saved {saved[name]}, not wanted")
        elif saved[name] != wanted[name]:
            lines.append(f"  {name}: saved {saved[name]}, wanted {wanted[name]}")
    if lines:
        more = [f"  and {len(lines) - 20} more"] if len(lines) > 20 else []
        head = f"the checkpoint of step {checkpoint.name} in {checkpoint.parent} does not match the state:"
        raise ConfigError("\n".join([head, *lines[:20], *more]))


def leaves_by_path(tree: object) -> dict[str, Any]:
    """The leaves of a tree by path, such as `params/blocks/mlp/up/kernel`."""
    leaves = jax.tree.leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ConfigError("two leaves of the state have the same path: a key holds a '/'")
    return named


def on_first_device(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """A leaf with its sharding; on the first device if it has none."""
    sharding = leaf.sharding or SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def without_elements(wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Arrays for the leaves without elements, which are not in a checkpoint."""
    empty = {name: leaf for name, leaf in wanted.items() if not leaf.size}
    return {name: jax.device_put(jnp.zeros(x.shape, x.dtype), x.sharding) for name, x in empty.items()}
