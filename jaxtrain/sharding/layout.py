"""Where arrays live: a mesh and one table from the names of array dims to mesh axes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.ranges import Checked, Range

Rule = str | tuple[str, ...] | None

RULES: Mapping[str, Rule] = {
    # dims of a batch and of activations
    "batch": ("data", "fsdp", "expert", "stage"),
    "length": "context",  # positions within a block, where heads and mlp may be split too
    "residual_length": "context",  # the same dim between blocks, where no other dim of activations is split
    # dims of parameters
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "expert": "expert",
    "layers": "stage",
    "rounds": None,
    "outputs": None,
    "norm": None,
}
"""The standard table. A mesh axis that is absent splits nothing, so one table serves every mesh."""

FULLY_SHARDED: Mapping[str, int] = {"fsdp": -1}
"""The mesh on which every parameter is sharded over all devices (ZeRO-3)."""

MEGATRON: Mapping[str, Rule] = {**RULES, "residual_length": ("context", "tensor")}
"""Sequence parallelism (Korthikanti et al. 2022, arXiv:2205.05198): between blocks, activations are split by
length over the `tensor` axis, which splits heads and mlp within them.
"""

ZERO1: Mapping[str, Rule] = {"embed": ("fsdp", "data")}
"""For `Layout.optimizer_rules`: the optimizer state is sharded over `data`, the parameters are replicated
(stage 1 of Rajbhandari et al. 2020, arXiv:1910.02054).
"""


def mesh_axes(rule: Rule) -> tuple[str, ...]:
    """The mesh axes that a rule, or an entry of a partition spec, names."""
    return () if rule is None else (rule,) if isinstance(rule, str) else tuple(rule)


AxisSize = Annotated[int, Range(at_least=1, also=-1, hint="-1: the devices that are left")]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AxisNamed:
    """A parameter and the names of its dims; what `Task.init` returns at its leaves."""

    value: Any
    axes: tuple[str | None, ...] = field(metadata={"static": True})


def _is_axis_named(leaf: Any) -> bool:
    return isinstance(leaf, AxisNamed)


def plain(tree: Any) -> Any:
    """The tree of arrays without the names."""
    return jax.tree.map(lambda leaf: leaf.value if _is_axis_named(leaf) else leaf, tree, is_leaf=_is_axis_named)


def named_leaves(tree: Any) -> list[tuple[Any, AxisNamed]]:
    """Every `AxisNamed` leaf of a tree with its key path."""
    return jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_axis_named)


def path_name(path: Sequence[Any]) -> str:
    """`params/blocks/mlp/up/kernel` for a key path of `jax.tree_util`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


@dataclass(frozen=True)
class Layout(Checked):
    """A mesh by the sizes of its axes, outermost first, and the rules that put arrays on it.

    `Layout()` is one device; `Layout({"data": -1})` data parallel; `{"fsdp": -1}` fully sharded; `{"tensor": 4}` tensor
    parallel; `{"data": -1, "tensor": 2}` both. One -1 takes the devices that are left. Where devices are on several
    slices of TPUs, whose network is slower between them than within, the outermost axes go across.
    """

    mesh: Mapping[str, AxisSize] = field(default_factory=dict)
    rules: Mapping[str, Rule] = field(default_factory=lambda: RULES)
    optimizer_rules: Mapping[str, Rule] = field(default_factory=dict)
    """Rules that differ for the optimizer state: `ZERO1`."""
    offload: bool = False
    """Keep the optimizer's state in the memory of the host, from where each step fetches it."""

    def __post_init__(self) -> None:
        """Raises ConfigError for an axis that no rule uses and for more than one -1."""
        for name in self.optimizer_rules:
            if name not in self.rules:
                raise ConfigError(
                    f"layout.optimizer_rules: layout.rules has no dim named {name!r}{nearest(name, self.rules)}"
                )
        known = {axis for rule in (*self.rules.values(), *self.optimizer_rules.values()) for axis in mesh_axes(rule)}
        for axis in self.mesh:
            if axis not in known:
                raise ConfigError(f"layout.mesh: no rule uses the mesh axis {axis!r}{nearest(axis, known)}")
        if list(self.mesh.values()).count(-1) > 1:
            raise ConfigError(f"layout.mesh: {dict(self.mesh)} has more than one -1; only one axis can take the rest")

    @property
    def one_device(self) -> bool:
        """Whether the mesh is one device, however many there are: `{}`, or all sizes 1."""
        return all(size == 1 for size in self.mesh.values())

    def sizes(self, devices: int) -> dict[str, int]:
        """The size of every mesh axis on this many devices.

        Raises ConfigError where the mesh does not fit them: it has to use all, or to be one device.
        """
        fixed = math.prod(size for size in self.mesh.values() if size != -1)
        free = [axis for axis, size in self.mesh.items() if size == -1]
        if (devices % fixed or devices < fixed) if free else (not self.one_device and fixed != devices):
            raise ConfigError(
                f"layout.mesh: {dict(self.mesh)} needs {'a multiple of ' if free else ''}{fixed} devices, but there "
                f"{'is' if devices == 1 else 'are'} {devices}: change a size, or let one axis be -1"
            )
        return {axis: devices // fixed if size == -1 else size for axis, size in self.mesh.items()}

    def make_mesh(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """The mesh on these devices (all there are, if none are given); a mesh of one device takes just the first."""
        devices = list(jax.devices() if devices is None else devices)
        if self.one_device and jax.process_count() > 1:
            raise ConfigError(
                f'layout.mesh: {dict(self.mesh)} is one device, but there are {len(devices)}: say {{"data": -1}}'
            )
        if self.offload and "pinned_host" not in {memory.kind for memory in devices[0].addressable_memories()}:
            raise ConfigError(
                f"layout.offload: a {devices[0].device_kind} has no 'pinned_host' memory here: leave it out"
            )
        sizes = self.sizes(len(devices)) or {"data": 1}
        names, devices = tuple(sizes), devices[: math.prod(sizes.values())]
        types = (AxisType.Auto,) * len(names)
        if len({getattr(device, "slice_index", 0) for device in devices}) > 1:
            return Mesh(self.arranged(sizes, devices), names, axis_types=types)
        return jax.make_mesh(tuple(sizes.values()), names, axis_types=types, devices=devices)

    def arranged(self, sizes: Mapping[str, int], devices: Sequence[jax.Device]) -> np.ndarray:
        """The devices of several slices as a mesh of these sizes."""
        across = self.across(sizes, len({device.slice_index for device in devices}))
        within = [size // across[axis] for axis, size in sizes.items()]
        return create_hybrid_device_mesh(within, list(across.values()), devices)

    def across(self, sizes: Mapping[str, int], slices: int) -> dict[str, int]:
        """In how many parts each mesh axis lies over the slices, outermost axes first.

        Raises ConfigError where they cannot make use of every slice.
        """
        parts, left = {}, slices
        for axis, size in sizes.items():
            parts[axis] = math.gcd(size, left)
            left //= parts[axis]
        if left > 1:
            raise ConfigError(
                f"layout.mesh: the devices are on {slices} slices, which {dict(sizes)} cannot be laid over: let the "
                f"outermost axis, which goes across slices, be a multiple of {slices}"
            )
        return parts

    def abstract_mesh(self, devices: int) -> AbstractMesh:
        """The same mesh with no devices behind it, for planning."""
        sizes = self.sizes(devices) or {"data": 1}
        names = tuple(sizes)
        return AbstractMesh(tuple(sizes.values()), names, axis_types=(AxisType.Auto,) * len(names))

    def spec(
        self,
        axes: Sequence[str | None],
        sizes: Mapping[str, int],
        shape: Sequence[int],
        what: str,
        rules: Mapping[str, Rule] | None = None,
    ) -> P:
        """The partition spec of an array whose dims have these names; `rules` go before the layout's own.

        Raises ConfigError (naming `what`) for a name with no rule, two dims on one mesh axis, and a dim that its mesh
        axes do not divide.
        """
        taken: dict[str, str] = {}
        entries: list[Rule] = []
        rules = {**self.rules, **(rules or {})}
        if len(axes) != len(shape):
            raise ConfigError(f"{what}: {len(axes)} dim names {tuple(axes)} for {len(shape)} dims {tuple(shape)}")
        for name, size in zip(axes, shape, strict=True):
            if name is not None and name not in rules:
                raise ConfigError(f"{what}: layout.rules has no dim named {name!r}{nearest(name, rules)}")
            here = tuple(axis for axis in mesh_axes(rules[name] if name else None) if sizes.get(axis, 1) > 1)
            for axis in here:
                if axis in taken:
                    raise ConfigError(f"{what}: dims {taken[axis]!r} and {name!r} are both on the mesh axis {axis!r}")
                taken[axis] = str(name)
            parts = math.prod(sizes[axis] for axis in here)
            if size % parts:
                raise ConfigError(
                    f"{what}: dim {name!r} has {size} entries, which the mesh axes "
                    f"{' × '.join(f'{axis}={sizes[axis]}' for axis in here)} do not divide: change the size of either"
                )
            entries.append(here[0] if len(here) == 1 else here or None)
        return P(*entries)

    def specs(self, tree: Any, sizes: Mapping[str, int], where: str = "params", kept: bool = False) -> Any:
        """The partition spec of every `AxisNamed` leaf, as a tree without names; `kept` for the optimizer state."""
        rules = self.optimizer_rules if kept else {}

        def one(path: Sequence[Any], leaf: AxisNamed) -> P:
            return self.spec(leaf.axes, sizes, leaf.value.shape, f"{where}/{path_name(path)}", rules)

        return jax.tree_util.tree_map_with_path(one, tree, is_leaf=_is_axis_named)

    def stages(self, sizes: Mapping[str, int]) -> tuple[int, int]:
        """How many stages a pipeline has on this mesh, and how many groups of devices split the rows of each part."""
        stages, rows = (mesh_axes(self.rules.get(name)) for name in ("layers", "batch"))
        count, groups = (math.prod(sizes.get(axis, 1) for axis in axes) for axes in (stages, set(rows) - set(stages)))
        return count, groups

    def row_axes(self, sizes: Mapping[str, int] | None = None) -> tuple[str, ...]:
        """The mesh axes that split the rows of a batch and nothing else. Every device along them has all parameters, so
        that gradients can be summed over them once, after the last microbatch.

        sizes: only axes with more than one device of these; None is all that the rules name.
        """
        others = {axis for name, rule in self.rules.items() if name != "batch" for axis in mesh_axes(rule)}
        rows = mesh_axes(self.rules.get("batch"))
        return tuple(axis for axis in rows if axis not in others and (sizes is None or sizes.get(axis, 1) > 1))

    def batch_sharding(self, mesh: Mesh | AbstractMesh, batch_size: int) -> NamedSharding:
        """The sharding of a batch of `batch_size` rows."""
        return NamedSharding(mesh, self.spec(("batch",), mesh.shape, (batch_size,), f"a batch of {batch_size}"))
