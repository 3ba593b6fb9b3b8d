"""Where arrays live: a mesh and one table from the names of array axes to mesh axes.

Not here: what is computed. A model only names the axes of its arrays; every kind of parallelism is a value of `Layout`.

Names for array axes come from Mesh TensorFlow (Shazeer et al. 2018, arXiv:1811.02084) and GSPMD (Xu et al. 2021,
arXiv:2105.04663); the `sequence` axis is that of Korthikanti et al. 2022 (arXiv:2205.05198).
"""

import contextlib
import math
from collections.abc import Generator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtrain.errors import ConfigError, nearest

Rule = str | tuple[str, ...] | None

RULES: Mapping[str, Rule] = {
    # dims of a batch and of activations
    "batch": ("data", "fsdp"),
    "residual": "sequence",  # the sequence dim between blocks, where nothing else is split
    "sequence": None,  # the same dim inside a block, where heads and mlp are split instead
    # dims of parameters
    "embed": "fsdp",
    "heads": ("tensor", "sequence"),
    "kv_heads": ("tensor", "sequence"),
    "mlp": ("tensor", "sequence"),
    "vocab": ("tensor", "sequence"),
    "layers": None,
    "outputs": None,
    "norm": None,
}
"""The standard table. A mesh axis that is absent splits nothing, so one table serves every mesh."""

MEGATRON: Mapping[str, Rule] = {**RULES, "residual": ("sequence", "tensor")}
"""Sequence parallelism on the tensor axis itself: the devices that split the heads also split the residual stream."""


def mesh_axes(rule: Rule) -> tuple[str, ...]:
    """The mesh axes that a rule, or an entry of a partition spec, names."""
    return () if rule is None else (rule,) if isinstance(rule, str) else tuple(rule)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Named:
    """A parameter and the names of its axes, one a dim; what `Task.init` returns at its leaves."""

    value: Any
    axes: tuple[str | None, ...] = field(metadata={"static": True})


def _is_named(leaf: Any) -> bool:
    return isinstance(leaf, Named)


def plain(tree: Any) -> Any:
    """The tree of arrays without the names."""
    return jax.tree.map(lambda leaf: leaf.value if _is_named(leaf) else leaf, tree, is_leaf=_is_named)


def named_leaves(tree: Any) -> list[tuple[Any, Named]]:
    """Every `Named` leaf of a tree with its key path."""
    return jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_named)


def path_name(path: Sequence[Any]) -> str:
    """`params/blocks/mlp/up/kernel` for a key path of `jax.tree_util`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


@dataclass(frozen=True)
class Layout:
    """A mesh by the sizes of its axes, outermost first, and the rules that put arrays on it.

    `Layout()` is one device; `Layout({"data": -1})` data parallel; `{"fsdp": -1}` fully sharded; `{"tensor": 4}` tensor
    parallel; `{"data": -1, "tensor": 2}` both. One -1 takes the devices that are left.
    """

    mesh: Mapping[str, int] = field(default_factory=dict)
    rules: Mapping[str, Rule] = field(default_factory=lambda: RULES)

    def __post_init__(self) -> None:
        """Raises ConfigError for an axis that no rule uses and for sizes that cannot be."""
        known = {axis for rule in self.rules.values() for axis in mesh_axes(rule)}
        for axis, size in self.mesh.items():
            if axis not in known:
                raise ConfigError(f"layout.mesh: no rule uses the mesh axis {axis!r}{nearest(axis, known)}")
            if size != -1 and size < 1:
                raise ConfigError(
                    f"layout.mesh: axis {axis!r} has size {size}; it must be at least 1, or -1 for the rest"
                )
        if list(self.mesh.values()).count(-1) > 1:
            raise ConfigError(f"layout.mesh: {dict(self.mesh)} has more than one -1; only one axis can take the rest")

    def sizes(self, devices: int) -> dict[str, int]:
        """The size of every mesh axis on so many devices. Raises ConfigError where the mesh does not fit them."""
        fixed = math.prod(size for size in self.mesh.values() if size != -1)
        free = [axis for axis, size in self.mesh.items() if size == -1]
        if (devices % fixed or devices < fixed) if free else (self.mesh and fixed != devices):
            raise ConfigError(
                f"layout.mesh: {dict(self.mesh)} needs {'a multiple of ' if free else ''}{fixed} devices, but there "
                f"{'is' if devices == 1 else 'are'} {devices}: change a size, or let one axis be -1"
            )
        return {axis: devices // fixed if size == -1 else size for axis, size in self.mesh.items()}

    def make_mesh(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """The mesh on these devices (all there are, if none are given); `Layout()` takes just the first."""
        devices = list(jax.devices() if devices is None else devices)
        if not self.mesh and jax.process_count() > 1:
            raise ConfigError(f'layout.mesh: {{}} is one device, but there are {len(devices)}: say {{"data": -1}}')
        sizes = self.sizes(len(devices)) or {"data": 1}
        names = tuple(sizes)
        return jax.make_mesh(
            tuple(sizes.values()),
            names,
            axis_types=(AxisType.Auto,) * len(names),
            devices=devices[: math.prod(sizes.values())],
        )

    def abstract_mesh(self, devices: int) -> AbstractMesh:
        """The same mesh with no devices behind it, for planning."""
        sizes = self.sizes(devices) or {"data": 1}
        names = tuple(sizes)
        return AbstractMesh(tuple(sizes.values()), names, axis_types=(AxisType.Auto,) * len(names))

    def spec(self, axes: Sequence[str | None], sizes: Mapping[str, int], shape: Sequence[int], what: str) -> P:
        """The partition spec of an array whose dims have these names.

        Raises ConfigError (naming `what`) for a name with no rule, two dims on one mesh axis, and a dim that its mesh
        axes do not divide.
        """
        taken: dict[str, str] = {}
        entries: list[Rule] = []
        if len(axes) != len(shape):
            raise ConfigError(f"{what}: {len(axes)} axis names {tuple(axes)} for {len(shape)} dims {tuple(shape)}")
        for name, size in zip(axes, shape, strict=True):
            if name is not None and name not in self.rules:
                raise ConfigError(f"{what}: layout.rules has no axis named {name!r}{nearest(name, self.rules)}")
            here = tuple(axis for axis in mesh_axes(self.rules[name] if name else None) if sizes.get(axis, 1) > 1)
            for axis in here:
                if axis in taken:
                    raise ConfigError(f"{what}: axes {taken[axis]!r} and {name!r} are both on the mesh axis {axis!r}")
                taken[axis] = str(name)
            parts = math.prod(sizes[axis] for axis in here)
            if size % parts:
                raise ConfigError(
                    f"{what}: axis {name!r} has {size} entries, which the mesh axes "
                    f"{' × '.join(f'{axis}={sizes[axis]}' for axis in here)} do not divide: change the size of either"
                )
            entries.append(here[0] if len(here) == 1 else here or None)
        return P(*entries)

    def specs(self, tree: Any, sizes: Mapping[str, int], where: str = "params") -> Any:
        """The partition spec of every `Named` leaf, as a tree without names."""

        def one(path: Sequence[Any], leaf: Named) -> P:
            return self.spec(leaf.axes, sizes, leaf.value.shape, f"{where}/{path_name(path)}")

        return jax.tree_util.tree_map_with_path(one, tree, is_leaf=_is_named)

    def batch_sharding(self, mesh: Mesh | AbstractMesh, batch_size: int) -> NamedSharding:
        """Where the rows of a batch of so many live."""
        return NamedSharding(mesh, self.spec(("batch",), mesh.shape, (batch_size,), f"a batch of {batch_size}"))

    @contextlib.contextmanager
    def scope(self, mesh: Mesh | AbstractMesh) -> Generator[None, None, None]:
        """While tracing inside, `shard` places arrays on this mesh by these rules."""
        abstract = mesh if isinstance(mesh, AbstractMesh) else mesh.abstract_mesh
        platform = None if isinstance(mesh, AbstractMesh) else mesh.devices.flat[0].platform
        token = _SCOPE.set((self, platform))
        try:
            with jax.sharding.use_abstract_mesh(abstract):
                yield
        finally:
            _SCOPE.reset(token)


_SCOPE: ContextVar[tuple[Layout, str | None] | None] = ContextVar("layout", default=None)


def shard(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x`, placed by the names of its axes; as it is where no layout is in scope (a notebook, one device)."""
    scope, mesh = _SCOPE.get(), jax.sharding.get_abstract_mesh()
    if scope is None or mesh.empty:
        return x
    # Inside a shard_map some axes are manual: those have split the array already.
    kinds = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    sizes = {name: size for name, size, kind in kinds if kind == AxisType.Auto}
    return jax.lax.with_sharding_constraint(x, scope[0].spec(axes, sizes, x.shape, f"an activation {axes}"))


def platform() -> str:
    """`cpu`, `gpu` or `tpu`: what the program being traced is for."""
    scope = _SCOPE.get()
    return (scope and scope[1]) or jax.default_backend()


def local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """Which rows of the global batch the devices of this process hold, ascending: the rows it must read."""
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices]))


def put_rows(
    sharding: NamedSharding, batch: Mapping[str, np.ndarray], rows: np.ndarray, size: int
) -> dict[str, jax.Array]:
    """The global arrays of a batch of `size` rows, of which this process has read `rows`."""

    def one(local: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(
            (size, *local.shape[1:]),
            sharding,
            lambda index: local[np.searchsorted(rows, np.arange(size)[index[0] if index else slice(None)])],
        )

    return {name: one(local) for name, local in batch.items()}
