"""Where arrays live: a mesh and one table from the names of array axes to mesh axes.

Not here: what is computed. A model only names the axes of its arrays; every kind of parallelism is a value of `Layout`.

Names for array axes come from Mesh TensorFlow (Shazeer et al. 2018, arXiv:1811.02084) and GSPMD (Xu et al. 2021,
arXiv:2105.04663); the `sequence` axis is that of Korthikanti et al. 2022 (arXiv:2205.05198).
"""

import contextlib
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtrain.errors import ConfigError, nearest

Rule = str | tuple[str, ...] | None

RULES: Mapping[str, Rule] = {
    # dims of a batch and of activations
    "batch": ("data", "fsdp", "expert", "stage"),
    "residual": ("context", "sequence"),  # the sequence dim between blocks, where nothing else is split
    "sequence": "context",  # the same dim inside a block, where heads and mlp are split instead
    # dims of parameters
    "embed": "fsdp",
    "heads": ("tensor", "sequence"),
    "kv_heads": ("tensor", "sequence"),
    "mlp": ("tensor", "sequence"),
    "vocab": ("tensor", "sequence"),
    "expert": "expert",
    "layers": "stage",
    "rounds": None,
    "outputs": None,
    "norm": None,
}
"""The standard table. A mesh axis that is absent splits nothing, so one table serves every mesh."""

MEGATRON: Mapping[str, Rule] = {**RULES, "residual": ("context", "sequence", "tensor")}
"""Sequence parallelism on the tensor axis itself: the devices that split the heads also split the residual stream."""

ZERO1: Mapping[str, Rule] = {"embed": ("fsdp", "data")}
"""For `Layout.kept`: each device keeps the optimizer's state of a part of the parameters, of which all have a copy
(stage 1 of Rajbhandari et al. 2020, arXiv:1910.02054).
"""


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
    parallel; `{"data": -1, "tensor": 2}` both. One -1 takes the devices that are left. Where devices are on several
    slices of TPUs, whose network is slower between them than within, the outermost axes go across.
    """

    mesh: Mapping[str, int] = field(default_factory=dict)
    rules: Mapping[str, Rule] = field(default_factory=lambda: RULES)
    kept: Mapping[str, Rule] = field(default_factory=dict)
    """Rules that differ for what the optimizer keeps: `ZERO1`."""
    offload: bool = False
    """Keep the optimizer's state in the memory of the host, from where each step fetches it."""

    def __post_init__(self) -> None:
        """Raises ConfigError for an axis that no rule uses and for sizes that cannot be."""
        for name in self.kept:
            if name not in self.rules:
                raise ConfigError(f"layout.kept: layout.rules has no axis named {name!r}{nearest(name, self.rules)}")
        known = {axis for rule in (*self.rules.values(), *self.kept.values()) for axis in mesh_axes(rule)}
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
            raise ConfigError(f"{what}: {len(axes)} axis names {tuple(axes)} for {len(shape)} dims {tuple(shape)}")
        for name, size in zip(axes, shape, strict=True):
            if name is not None and name not in rules:
                raise ConfigError(f"{what}: layout.rules has no axis named {name!r}{nearest(name, rules)}")
            here = tuple(axis for axis in mesh_axes(rules[name] if name else None) if sizes.get(axis, 1) > 1)
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

    def specs(self, tree: Any, sizes: Mapping[str, int], where: str = "params", kept: bool = False) -> Any:
        """The partition spec of every `Named` leaf, as a tree without names; `kept` for what the optimizer keeps."""
        rules = self.kept if kept else {}

        def one(path: Sequence[Any], leaf: Named) -> P:
            return self.spec(leaf.axes, sizes, leaf.value.shape, f"{where}/{path_name(path)}", rules)

        return jax.tree_util.tree_map_with_path(one, tree, is_leaf=_is_named)

    def stages(self, sizes: Mapping[str, int]) -> tuple[int, int]:
        """How many stages a pipeline has on this mesh, and how many groups of devices split the rows of each part."""
        stages, rows = (mesh_axes(self.rules.get(name)) for name in ("layers", "batch"))
        count, groups = (math.prod(sizes.get(axis, 1) for axis in axes) for axes in (stages, set(rows) - set(stages)))
        return count, groups

    def row_axes(self, sizes: Mapping[str, int] | None = None) -> tuple[str, ...]:
        """The mesh axes that split the rows of a batch and nothing else: every device along them has all parameters,
        so that gradients can be summed over them once, after the last microbatch.

        Only those that `sizes` has more than one device on; None is all that the rules know.
        """
        others = {axis for name, rule in self.rules.items() if name != "batch" for axis in mesh_axes(rule)}
        rows = mesh_axes(self.rules.get("batch"))
        return tuple(axis for axis in rows if axis not in others and (sizes is None or sizes.get(axis, 1) > 1))

    def batch_sharding(self, mesh: Mesh | AbstractMesh, batch_size: int) -> NamedSharding:
        """Where the rows of a batch of so many live."""
        return NamedSharding(mesh, self.spec(("batch",), mesh.shape, (batch_size,), f"a batch of {batch_size}"))

    @contextlib.contextmanager
    def scope(self, mesh: Mesh | AbstractMesh, parts: int = 1, used: set[str] | None = None) -> Generator[None]:
        """While tracing inside, `shard` places arrays on this mesh by these rules.

        `parts` is how many parts a batch goes through pipeline stages in. The mesh axes that split activations (other
        than their rows) are added to `used`.
        """
        abstract = mesh if isinstance(mesh, AbstractMesh) else mesh.abstract_mesh
        platform = None if isinstance(mesh, AbstractMesh) else mesh.devices.flat[0].platform
        token = _SCOPE.set(_Scope(self, platform, parts, set() if used is None else used))
        try:
            with jax.sharding.use_abstract_mesh(abstract):
                yield
        finally:
            _SCOPE.reset(token)


@dataclass(frozen=True)
class _Scope:
    layout: Layout
    platform: str | None
    parts: int
    used: set[str]


_SCOPE: ContextVar[_Scope | None] = ContextVar("layout", default=None)


def _sizes() -> dict[str, int]:
    """The mesh axes that may still split arrays: those that a shard_map around has made manual have done so already."""
    mesh = jax.sharding.get_abstract_mesh()
    if _SCOPE.get() is None or mesh.empty:
        return {}
    kinds = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return {name: size for name, size, kind in kinds if kind == AxisType.Auto}


def _spec(axes: Sequence[str | None], shape: Sequence[int]) -> P:
    scope = _SCOPE.get()
    assert scope is not None
    spec = scope.layout.spec(axes, _sizes(), shape, f"an activation {axes}")
    scope.used.update(*(mesh_axes(entry) for name, entry in zip(axes, spec, strict=True) if name != "batch"))
    return spec


def shard(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x`, placed by the names of its axes; as it is where no layout is in scope (a notebook, one device)."""
    return jax.lax.with_sharding_constraint(x, _spec(axes, x.shape)) if _sizes() else x


def split(name: str) -> dict[str, int]:
    """The mesh axes that split dims of this name here, and their sizes; {} where no layout is in scope."""
    scope, sizes = _SCOPE.get(), _sizes()
    axes = mesh_axes(scope.layout.rules[name]) if scope else ()
    return {axis: sizes[axis] for axis in axes if sizes.get(axis, 1) > 1}


def row_axes() -> tuple[str, ...]:
    """`Layout.row_axes` of the mesh here; () where no layout is in scope."""
    scope = _SCOPE.get()
    return scope.layout.row_axes(_sizes()) if scope else ()


def parts() -> int:
    """How many parts a batch goes through pipeline stages in."""
    scope = _SCOPE.get()
    return scope.parts if scope else 1


Names = tuple[str | None, ...]


def island(function: Callable[..., Any], given: Sequence[Names], returned: Sequence[Names], *arrays: jax.Array) -> Any:
    """`function` of the parts of `arrays` that lie on each device by the names of their axes, for what no spec can say:
    it may use collectives. Where no layout is in scope it is called as it is.

    It returns a tuple, whose arrays have the axes `returned`, each with the sizes that the names have in `arrays`.
    """
    if not _sizes():
        return function(*arrays)
    lengths = {name: n for axes, x in zip(given, arrays, strict=True) for name, n in zip(axes, x.shape, strict=True)}
    outputs = tuple(_spec(axes, [lengths[name] for name in axes]) for axes in returned)
    inputs = tuple(_spec(axes, x.shape) for axes, x in zip(given, arrays, strict=True))
    # Axes that split none of them are left to XLA: gradients would be summed over those once more.
    names = {axis for spec in (*inputs, *outputs) for entry in spec for axis in mesh_axes(entry)}
    if not names:
        return function(*arrays)
    # With check_vma the sums over devices of gradients that repeat in a loop around would be put inside the loop.
    return jax.shard_map(function, in_specs=inputs, out_specs=outputs, axis_names=names, check_vma=False)(*arrays)


def platform() -> str:
    """`cpu`, `gpu` or `tpu`: what the program being traced is for."""
    scope = _SCOPE.get()
    return (scope.platform if scope else None) or jax.default_backend()


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
