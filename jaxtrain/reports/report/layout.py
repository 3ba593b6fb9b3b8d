"""Where a run's arrays live: its mesh, a table of parameters, and drawings of some arrays.

Drawn from partition specs; no device and no checkpoint is needed. Not here: the memory of a step.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxtrain.base.text import size
from jaxtrain.models.params import merged
from jaxtrain.program import abstract_state
from jaxtrain.reports.page import Details, Item, Paragraph, Picture, Section, Table
from jaxtrain.reports.parts import bytes_of, bytes_on_device, planned_parts
from jaxtrain.reports.pictures import array_svg, mesh_svg
from jaxtrain.reports.report.record import RunRecord
from jaxtrain.runs.folder import Run
from jaxtrain.sharding.layout import Layout, mesh_axes, named_leaves, path_name
from jaxtrain.tasks.checks import abstract_variables

_MOST_DEVICES = 64
"""Devices of a mesh on which something is drawn."""

_DRAWN = 4
"""Parameters that are drawn."""

_SHOWN = 12


def layout(record: RunRecord, run: Run | None, why: str) -> Section:
    """The section of the layout. why: where there is no run to ask, the reason."""
    mesh = mesh_of(record)
    shown = " × ".join(f"{axis} {count}" for axis, count in mesh.items()) or "one device"
    count = math.prod(mesh.values())
    items: list[Item] = [Paragraph(f"Mesh: {shown}, {count:,} device{'s' if count > 1 else ''} in all.")]
    if 1 < count <= _MOST_DEVICES:
        items.append(
            Picture(mesh_svg(mesh, _numbers(mesh)), f"The mesh {shown} of {count} devices", "Devices by their numbers.")
        )
    elif count > _MOST_DEVICES:
        items.append(Paragraph(f"It is not drawn: {count:,} devices are more than {_MOST_DEVICES}."))
    if run is None:
        return Section("Layout", [*items, Paragraph(f"The arrays are not known: {why}")])
    try:
        items += _arrays(run, mesh)
    except Exception as error:  # of the user's model, or of data that are gone: the rest of the report stands
        items.append(Paragraph(f"The arrays cannot be told: {type(error).__name__}: {error}", "warning"))
    return Section("Layout", items)


def mesh_of(record: RunRecord) -> dict[str, int]:
    """The mesh on which the run was last begun, as far as it is known."""
    meshes = [each.get("mesh") for each in record.events if each.get("kind") == "begun"]
    found = next((each for each in reversed(meshes) if isinstance(each, dict)), {})
    good = {axis: n for axis, n in found.items() if isinstance(axis, str) and type(n) is int and 1 <= n < 1 << 20}
    return good if math.prod(good.values()) < 1 << 20 else {}


def _arrays(run: Run, mesh: dict[str, int]) -> list[Item]:
    experiment = run.without_data().experiment
    abstract = Layout({axis: n for axis, n in mesh.items()}, experiment.layout.rules).abstract_mesh(
        math.prod(mesh.values())
    )
    state = abstract_state(experiment, abstract)
    named = named_leaves(abstract_variables(experiment.task, experiment.data.example()).params)
    dims = {path_name(path): [name or "" for name in leaf.axes] for path, leaf in named}
    leaves = {
        path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(merged(state.params, state.frozen))
    }
    rows = [
        [
            name,
            "×".join(map(str, leaf.shape)) or "one number",
            str(leaf.dtype),
            ", ".join(dims.get(name, [])),
            _spec_text(leaf),
            size(bytes_of(leaf)),
            size(bytes_on_device(leaf)),
        ]
        for name, leaf in leaves.items()
    ]
    total = sum(math.prod(leaf.shape) for leaf in leaves.values())
    columns = ["parameter", "shape", "dtype", "dims", "split over", "bytes", "on a device"]
    caption = f"{total:,} parameters in {len(leaves):,} arrays"
    optimizer = jax.tree.leaves(state.opt_state)
    table: Item = Table(columns, rows, caption)
    if len(rows) > _SHOWN:
        table = Details(f"{caption}: the table", [table])
    whole, part = (size(sum(map(count, leaves.values()))) for count in (bytes_of, bytes_on_device))
    kept = size(sum(map(bytes_on_device, optimizer)))
    items: list[Item] = [Paragraph(f"{caption}, {whole}; on a device {part}, and {kept} of optimizer state."), table]
    if 1 < abstract.size <= _MOST_DEVICES:
        sizes = dict(abstract.shape)
        numbers = _numbers(sizes)
        chosen = sorted(leaves, key=lambda name: (-len([e for e in _spec(leaves[name]) if e]), -bytes_of(leaves[name])))
        for name in chosen[:_DRAWN]:
            leaf = leaves[name]
            parts = planned_parts(leaf.sharding.spec, leaf.shape, sizes, numbers)
            picture = array_svg(leaf.shape, dims.get(name) or [""] * len(leaf.shape), parts)
            words = f"{name} {list(leaf.shape)}, split over {_spec_text(leaf)}"
            items.append(Picture(picture, words, words))
        batch = experiment.data.example()
        field = max(batch, key=lambda name: batch[name].nbytes)
        spec = experiment.layout.batch_sharding(abstract, experiment.data.batch_size).spec
        shape = batch[field].shape
        names = ["rows", *[""] * (len(shape) - 1)]
        words = f"{field} of a batch of {experiment.data.batch_size}"
        items.append(Picture(array_svg(shape, names, planned_parts(spec, shape, sizes, numbers)), words, words))
    return items


def _spec(leaf: Any) -> list[tuple[str, ...]]:
    return [mesh_axes(entry) for entry in leaf.sharding.spec]


def _spec_text(leaf: Any) -> str:
    entries = _spec(leaf)
    return ", ".join("·".join(entry) or "–" for entry in entries) if any(entries) else "nothing: on each device whole"


def _numbers(mesh: Mapping[str, int]) -> np.ndarray:
    """The numbers of a mesh's devices, i[...] of its shape."""
    return np.arange(math.prod(mesh.values())).reshape(tuple(mesh.values()))
