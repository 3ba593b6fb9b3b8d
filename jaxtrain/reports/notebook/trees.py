"""Trees of arrays for the eye: states, parameters, models, batches, metrics; shape, names of dims, dtype, bytes, place.

Not here: arrays on a mesh as pictures (`layouts`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

import jaxtrain.reports.html as html
from jaxtrain.base.text import size, table
from jaxtrain.reports.html import Markup
from jaxtrain.reports.parts import bytes_of, bytes_on_device, sharding_text
from jaxtrain.sharding.layout import AxisNamed, named_leaves, path_name

MOST_LEAVES = 2000
"""Leaves that are shown; of more, the sums are shown."""

HEAD = ("", "shape", "dims", "dtype", "bytes", "on a device", "sharding")


@dataclass(frozen=True)
class Leaf:
    """One array of a tree."""

    path: str
    shape: tuple[int, ...]
    dims: str
    """The names of its dims; "" where they are not known."""
    dtype: str
    bytes: int
    on_device: int
    sharding: str

    def cells(self, name: str) -> tuple[str, ...]:
        """The columns of `HEAD`."""
        shape = "×".join(map(str, self.shape)) or "scalar"
        return (name, shape, self.dims, self.dtype, size(self.bytes), size(self.on_device), self.sharding)


@dataclass
class Branch:
    """The leaves and branches below a place of a tree."""

    leaves: dict[str, Leaf] = field(default_factory=dict)
    branches: dict[str, "Branch"] = field(default_factory=dict)

    def everything(self) -> list[Leaf]:
        """All leaves below."""
        return [*self.leaves.values(), *(leaf for branch in self.branches.values() for leaf in branch.everything())]


def leaves_of(tree: Any, dims: Mapping[str, Sequence[str | None]]) -> list[Leaf]:
    """The arrays of a tree of arrays, shapes, numbers and `AxisNamed` leaves, in their order.

    dims: the names of dims by the path of a leaf, or by the end of its path.
    """
    found = []
    for path, leaf in named_leaves(tree):
        name, named = path_name(path), leaf.axes if isinstance(leaf, AxisNamed) else None
        array = leaf.value if isinstance(leaf, AxisNamed) else leaf
        if not (hasattr(array, "shape") and hasattr(array, "dtype")):
            array = np.asarray(array)
        named = _names(name, array.ndim, dims) if named is None else named
        found.append(
            Leaf(
                name,
                tuple(array.shape),
                ", ".join("·" if each is None else each for each in named),
                str(array.dtype),
                bytes_of(array),
                bytes_on_device(array),
                sharding_text(array),
            )
        )
    return found


def _names(path: str, ndim: int, dims: Mapping[str, Sequence[str | None]]) -> Sequence[str | None]:
    """The names of a leaf's dims: those of the parameter at its path, or of which it is the optimizer's state."""
    parts = path.split("/")
    for first in range(len(parts)):
        found = dims.get("/".join(parts[first:]))
        if found is not None:
            return found if len(found) == ndim else ()
    return ()


def dims_of(named: Any) -> dict[str, tuple[str | None, ...]]:
    """The names of dims by path, of a tree with `AxisNamed` leaves."""
    return {path_name(path): leaf.axes for path, leaf in named_leaves(named) if isinstance(leaf, AxisNamed)}


def tree_text(leaves: Sequence[Leaf]) -> str:
    """A table of the leaves."""
    if not leaves:
        return "no arrays"
    rows = [leaf.cells(leaf.path) for leaf in leaves[:MOST_LEAVES]]
    kept = [column for column in range(len(HEAD)) if column == 0 or any(row[column] for row in rows)]
    lines = [[row[column] for column in kept] for row in (("array", *HEAD[1:]), *rows)]
    return f"{table(lines)}\n{summed(leaves)}"


def summed(leaves: Sequence[Leaf]) -> str:
    """How many arrays there are, and their size."""
    entries = sum(math.prod(leaf.shape) for leaf in leaves)
    total, here = (sum(found) for found in zip(*((leaf.bytes, leaf.on_device) for leaf in leaves), strict=True))
    own = "" if here == total else f", {size(here)} on a device"
    more = f"; the first {MOST_LEAVES:,} are shown" if len(leaves) > MOST_LEAVES else ""
    return f"{len(leaves):,} array{'s' * (len(leaves) > 1)}, {entries:,} numbers, {size(total)}{own}{more}"


def tree_html(leaves: Sequence[Leaf], title: str) -> Markup:
    """The leaves as branches that fold; the first level is unfolded."""
    if not leaves:
        return html.joined((html.element("b", title), " no arrays"))
    root = Branch()
    for leaf in leaves[:MOST_LEAVES]:
        *above, name = leaf.path.split("/")
        here = root
        for each in above:
            here = here.branches.setdefault(each, Branch())
        here.leaves[name] = leaf
    kept = [column for column, name in enumerate(HEAD) if not name or any(leaf.cells("x")[column] for leaf in leaves)]
    head = html.joined((html.element("b", title), " ", html.dim(summed(leaves))))
    return html.joined((html.element("div", head), _branch(root, kept, 0)))


def _branch(branch: Branch, kept: Sequence[int], depth: int) -> Markup:
    rows = [leaf.cells(name) for name, leaf in branch.leaves.items()]
    right = [place for place, column in enumerate(kept) if HEAD[column] in ("bytes", "on a device")]
    own = html.rows_table(
        [HEAD[column] for column in kept],
        [[html.code(row[0]), *(row[column] for column in kept[1:])] for row in rows],
        right,
    )
    below = [
        html.details(
            html.joined((html.code(name), " ", html.dim(summed(found.everything())))),
            _branch(found, kept, depth + 1),
            unfolded=depth == 0 and len(branch.branches) <= 8 and name != "opt_state",
        )
        for name, found in branch.branches.items()
    ]
    return html.joined(([own] if rows else []) + below)


def is_tree_of_arrays(value: Any) -> bool:
    """Whether a value is a pytree that has an array, or the shape of one, as a leaf."""
    leaves = jax.tree.leaves(value, is_leaf=lambda leaf: isinstance(leaf, AxisNamed))
    return any(isinstance(leaf, AxisNamed) or (hasattr(leaf, "shape") and hasattr(leaf, "dtype")) for leaf in leaves)
