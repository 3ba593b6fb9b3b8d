"""A layout for the eye: its mesh, which dims it splits, and which device holds which part of an array.

Not here: the arrays of a real model (`explain`).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import NamedSharding

import jaxtrain.reports.html as html
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.text import array_type, size
from jaxtrain.reports.html import Markup
from jaxtrain.reports.parts import bytes_of, bytes_on_device, parts_held, planned_parts, sharding_text
from jaxtrain.reports.pictures import array_svg, mesh_svg
from jaxtrain.sharding.layout import Layout, mesh_axes

_DRAWN: dict[str, tuple[str, ...]] = {
    "activations": ("batch", "length"),
    "a kernel": ("embed", "mlp"),
    "kernels of all blocks": ("layers", "embed"),
    "kernels of experts": ("expert", "mlp"),
}
"""Arrays that are drawn where the layout splits them; the last ones only where it splits their first dim."""


def device_count(layout: Layout, devices: int | None = None) -> tuple[int, str]:
    """For how many devices a layout is drawn, and a note where that is only an example.

    Devices are not counted for it: that would start jax, which in a notebook may still have to be set up.
    """
    if devices is not None:
        return devices, ""
    fixed = math.prod(count for count in layout.mesh.values() if count != -1)
    if -1 not in layout.mesh.values():
        return fixed, ""
    found = fixed * max(2, 8 // fixed)
    return found, f"drawn for {found} devices as an example, since -1 takes those that are left"


def layout_html(layout: Layout, devices: int | None = None) -> Markup:
    """The mesh, examples of arrays on it, and a table of the dims. Raises ConfigError for a number of devices that the
    mesh does not fit.
    """
    count, note = device_count(layout, devices)
    sizes = layout.sizes(count)
    numbers = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    words = " × ".join(f"{axis} {size}" for axis, size in sizes.items()) or "one device"
    head = html.joined((html.element("b", "Layout"), f" {words} ", html.dim(note)))
    pictures = [html.figure(mesh_svg(sizes, numbers), "the mesh, by the numbers of devices")]
    pictures += [_example(layout, name, dims, sizes, numbers) for name, dims in _DRAWN.items()]
    rows = [
        (html.code(name), " · ".join(mesh_axes(rule)), _split(rule, sizes))
        for name, rule in layout.rules.items()
        if _split(rule, sizes)
    ]
    whole = [name for name, rule in layout.rules.items() if not _split(rule, sizes)]
    optimizer = [
        (html.code(name), " · ".join(mesh_axes(rule)), f"{_split(rule, sizes)}, of the optimizer's state")
        for name, rule in layout.optimizer_rules.items()
        if _split(rule, sizes)
    ]
    table = html.rows_table(("dim", "rule", "split in"), [*rows, *optimizer]) if rows or optimizer else ""
    rest = html.element("div", html.dim(f"replicated: {', '.join(whole)}")) if whole else ""
    offload = html.element("div", "The optimizer's state is kept in the memory of the host.") if layout.offload else ""
    return html.joined((html.element("div", head), *pictures, table, rest, offload))


def _split(rule: Any, sizes: Any) -> str:
    axes = [axis for axis in mesh_axes(rule) if sizes.get(axis, 1) > 1]
    return f"{math.prod(sizes[axis] for axis in axes)} by {' × '.join(axes)}" if axes else ""


def _example(layout: Layout, name: str, dims: Sequence[str], sizes: Any, numbers: np.ndarray) -> Markup:
    which = dims[:1] if dims[0] in ("layers", "expert") else dims
    if not all(dim in layout.rules for dim in dims) or not any(_split(layout.rules[dim], sizes) for dim in which):
        return Markup()
    shape = [max(math.prod(sizes.get(axis, 1) for axis in mesh_axes(layout.rules[dim])), 1) for dim in dims]
    try:
        spec = layout.spec(dims, sizes, shape, name)
    except ConfigError:  # rules that put both dims on one axis
        return Markup()
    parts = planned_parts(spec, shape, sizes, numbers)
    picture = array_svg(shape, [*dims], parts, sides=dims)
    return html.figure(picture, f"{name} ({', '.join(dims)})")


def array_html(array: Any, dims: Sequence[str | None] = ()) -> Markup:
    """Which device holds which part of a `jax.Array`."""
    names = [name or "" for name in dims] or [""] * len(array.shape)
    sizes = f"{size(bytes_of(array))}, {size(bytes_on_device(array))} a device"
    head = f"{array_type(array)} {sharding_text(array)}, {sizes}"
    parts = parts_held(array)
    held = f"{len(parts)} part{'s' * (len(parts) > 1)}, each by the numbers of the devices that hold it"
    pictures = [html.figure(array_svg(array.shape, names, parts), held)]
    mesh = getattr(array.sharding, "mesh", None)
    if isinstance(array.sharding, NamedSharding) and mesh is not None and mesh.size > 1:
        numbers = np.vectorize(lambda device: device.id)(mesh.devices)
        pictures.insert(0, html.figure(mesh_svg(dict(mesh.shape), numbers), "the mesh"))
    return html.joined((html.element("div", html.element("b", head)), *pictures))
