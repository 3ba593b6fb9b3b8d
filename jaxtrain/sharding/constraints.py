"""Constraints by name while tracing: what models call, with the layout taken from the scope around them."""

import contextlib
from collections.abc import Callable, Generator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P

from jaxtrain.sharding.layout import Layout, mesh_axes


@dataclass(frozen=True)
class _Scope:
    layout: Layout
    platform: str | None
    microbatches: int
    used: set[str]


_SCOPE: ContextVar[_Scope | None] = ContextVar("scope", default=None)


@contextlib.contextmanager
def scope(
    layout: Layout,
    mesh: Mesh | AbstractMesh,
    microbatches: int = 1,
    used: set[str] | None = None,
    platform: str | None = None,
) -> Generator[None]:
    """While tracing inside, `shard` and `shard_map_by_name` place arrays on `mesh` by the rules of `layout`.

    microbatches: of a pipeline, how many a batch is cut into.
    used: the mesh axes that split activations (other than their rows) are added to it.
    platform: what the program is for, `cpu`, `gpu` or `tpu`; None is the platform of the mesh's devices.
    """
    abstract = mesh if isinstance(mesh, AbstractMesh) else mesh.abstract_mesh
    if platform is None and isinstance(mesh, Mesh):
        platform = mesh.devices.flat[0].platform
    token = _SCOPE.set(_Scope(layout, platform, microbatches, set() if used is None else used))
    try:
        with jax.sharding.use_abstract_mesh(abstract):
            yield
    finally:
        _SCOPE.reset(token)


def _sizes() -> dict[str, int]:
    """The mesh axes with automatic sharding, by size; axes that an enclosing shard_map made manual are left out."""
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
    """`x`, placed by the names of its dims; as it is where no layout is in scope (a notebook, one device)."""
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


def manual_axes() -> tuple[str, ...]:
    """The mesh axes of the `jax.shard_map` that is being traced."""
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)


def sum_over_rows(x: jax.Array) -> jax.Array:
    """`x`, a sum over the rows that are here, summed over all devices: inside of a `jax.shard_map` over the mesh axes
    that split rows, a device holds a part of them. Elsewhere rows are those of the whole batch, and `x` is returned.
    """
    scope, manual = _SCOPE.get(), manual_axes()
    axes = tuple(axis for axis in mesh_axes(scope.layout.rules["batch"]) if axis in manual) if scope else ()
    return jax.lax.psum(x, axes) if axes else x


def microbatches() -> int:
    """How many microbatches a batch goes through a pipeline in."""
    scope = _SCOPE.get()
    return scope.microbatches if scope else 1


Names = tuple[str | None, ...]


def shard_map_by_name(
    function: Callable[..., Any], given: Sequence[Names], returned: Sequence[Names], *arrays: jax.Array
) -> Any:
    """`jax.shard_map` by the names of dims: calls `function` on the local shards of `arrays`, for explicit collectives.
    Where no layout is in scope it is called on the whole arrays.

    given, returned: the names of the dims of each argument, and of each array in the tuple that `function` returns. A
        returned dim has the size that its name has in `arrays`.
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


def shard_map_rows(function: Callable[..., Any], params: Any, *arrays: jax.Array) -> Any:
    """`function(params, *arrays)` on the local rows of each device, for a loop that uses parameters in every iteration,
    such as a `jax.lax.scan` over time.

    Each parameter is gathered once before the loop, and its gradient is summed over devices once after it. XLA alone
    sums in every iteration, and on CPUs wrongly where parameters are split (jax 0.10.2 to 0.12.0). Dims that other mesh
    axes split stay split; `shard(kernel_DF, None, None)` within `function` gathers these too.

    params: a tree of whole parameters.
    arrays: rows on dim 0, as in all that `function` returns.

    Where no layout is in scope it is called on all rows.
    """
    axes = tuple(split("batch"))
    if not axes:
        return function(params, *arrays)
    specs = (P(), *(P(axes),) * len(arrays))
    # With check_vma the sums over devices of gradients would be put inside the loop.
    run = jax.shard_map(function, in_specs=specs, out_specs=P(axes), axis_names={*axes}, check_vma=False)
    return run(params, *arrays)


def target_platform() -> str:
    """`cpu`, `gpu` or `tpu`: what the program being traced is for."""
    scope = _SCOPE.get()
    return (scope.platform if scope else None) or jax.default_backend()
