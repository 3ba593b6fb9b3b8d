"""Drawings in SVG: a mesh of devices, and which device holds which part of an array.

Not here: where arrays live, which partition specs say.
"""

import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

MOST_DEVICES = 64
"""Devices of a mesh that are drawn one by one."""

_CELL, _GAP, _TEXT = 34, 4, 15
_COLOURS = 8


def held_parts(
    shape: Sequence[int], spec: Sequence[tuple[str, ...]], mesh: Mapping[str, int]
) -> dict[tuple[tuple[int, int], ...], list[int]]:
    """The parts of an array and the devices, numbered along the mesh with its last axis fastest, that hold each: a part
    is (start, end) in each dim.

    spec: the mesh axes that split each dim, the first the slowest; dims beyond it are whole. The dims divide.
    """
    entries = [*spec, *[()] * (len(shape) - len(spec))]
    found: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for device in range(math.prod(mesh.values())):
        at = dict(zip(mesh, np.unravel_index(device, tuple(mesh.values())), strict=True)) if mesh else {}
        part = []
        for size, axes in zip(shape, entries, strict=True):
            count = math.prod(mesh[axis] for axis in axes)
            place = int(np.ravel_multi_index([at[axis] for axis in axes], [mesh[axis] for axis in axes])) if axes else 0
            part.append((size * place // count, size * (place + 1) // count))
        found.setdefault(tuple(part), []).append(device)
    return found


def mesh_picture(mesh: Mapping[str, int]) -> str:
    """The devices of a mesh in rows, the last of its axes that is longer than 1 across, all others down."""
    long = {axis: size for axis, size in mesh.items() if size > 1} or {"device": 1}
    *down, (across, columns) = long.items()
    rows = math.prod(size for _, size in down)
    cells = []
    for device in range(rows * columns):
        row, column = divmod(device, columns)
        cells.append(_box(90 + column * (_CELL + _GAP), 24 + row * (_CELL + _GAP), _CELL, _CELL, device, str(device)))
    names = [_label(90, 15, f"{across} → {columns}")]
    for row in range(rows if down else 0):
        at = np.unravel_index(row, [size for _, size in down])
        text = " ".join(f"{axis} {place}" for (axis, _), place in zip(down, at, strict=True))
        names.append(_label(84, 24 + row * (_CELL + _GAP) + _CELL / 2 + 4, text, "end"))
    return _svg(90 + columns * (_CELL + _GAP) + 10, 30 + rows * (_CELL + _GAP), [*names, *cells])


def array_picture(
    name: str, shape: Sequence[int], spec: Sequence[tuple[str, ...]], mesh: Mapping[str, int], dims: Sequence[str]
) -> str:
    """An array as a rectangle cut into its parts, each with the devices that hold it.

    Its two most split dims are drawn, down and across; the largest ones where none is split. dims: names.
    """
    split = [math.prod(mesh[axis] for axis in axes) for axes in [*spec, *[()] * (len(shape) - len(spec))]]
    order = sorted(range(len(shape)), key=lambda dim: (-split[dim], -shape[dim], dim))[:2]
    drawn = sorted(order) if len(order) == 2 else order
    rows, columns = (split[drawn[0]], split[drawn[1]]) if len(drawn) == 2 else (1, split[drawn[0]] if drawn else 1)
    holders: dict[tuple[int, int], list[int]] = {}
    for part, devices in held_parts(shape, spec, mesh).items():
        at = [part[dim][0] * split[dim] // max(1, shape[dim]) for dim in drawn]
        place = (at[0], at[1]) if len(at) == 2 else (0, at[0] if at else 0)
        holders[place] = sorted({*holders.get(place, []), *devices})
    width, height, top = 230, 120 if len(drawn) == 2 else 44, 40
    w, h = width / columns, height / rows
    boxes = []
    for (row, column), devices in sorted(holders.items()):
        text = _devices(devices, max(3, int(w / 7)))
        boxes.append(_box(70 + column * w, top + row * h, w, h, devices[0] if len(holders) > 1 else -1, text))
    title = [_label(0, 14, name, size=12), *_dim_labels(shape, spec, drawn, dims, width, height, top)]
    return _svg(310, top + height + 8, [*title, *boxes])


def _dim_labels(
    shape: Sequence[int],
    spec: Sequence[tuple[str, ...]],
    drawn: Sequence[int],
    dims: Sequence[str],
    width: float,
    height: float,
    top: float,
) -> list[str]:
    def text(dim: int) -> str:
        axes = "·".join(spec[dim]) if dim < len(spec) and spec[dim] else "whole"
        return f"{dims[dim] if dim < len(dims) and dims[dim] else f'dim {dim}'} {shape[dim]:,}: {axes}"

    if not drawn:
        return []
    across = [_label(70, top - 8, text(drawn[-1]))]
    if len(drawn) == 1:
        return across
    x, y = 60, top + height / 2
    return [
        *across,
        f'<text class="soft" x="{x}" y="{y}" font-size="10" text-anchor="middle" transform="rotate(-90 {x} {y})">'
        f"{escape(text(drawn[0]))}</text>",
    ]


def _devices(devices: Sequence[int], room: int) -> str:
    text = ",".join(map(str, devices))
    if len(text) > room and len(devices) > 2 and devices[-1] - devices[0] == len(devices) - 1:
        text = f"{devices[0]}–{devices[-1]}"
    return text if len(text) <= room else f"{len(devices)}×"


def _box(x: float, y: float, width: float, height: float, colour: int, text: str) -> str:
    how = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    fill = f"fill{colour % _COLOURS} pale" if colour >= 0 else "blank"
    return (
        f'<rect class="{fill}" {how}/><rect class="outline" fill="none" {how}/>'
        f'<text class="ink" x="{x + width / 2:.1f}" y="{y + height / 2 + 4:.1f}" font-size="11" text-anchor="middle">'
        f"{escape(text)}</text>"
    )


def _label(x: float, y: float, text: str, anchor: str = "start", size: int = 10) -> str:
    kind = "ink" if size > 10 else "soft"
    return f'<text class="{kind}" x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}">{"".join(parts)}</svg>'
    )


def png(pixels: np.ndarray) -> bytes:
    """A PNG of pixels u8[Y, X] (grey) or u8[Y, X, 3] (red, green, blue)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    unfiltered = np.zeros((height, 1), np.uint8)  # each line begins with the number of its filter
    lines = np.concatenate([unfiltered, rows], axis=1).tobytes()
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts
