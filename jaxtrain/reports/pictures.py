"""Pictures as inline SVG: a mesh of devices, an array on a mesh, a curve; and pixels as a PNG.

In SVG text and lines have the colour of the page or notebook, so that they are legible on light and dark ones.
Not here: which part of an array a device holds (`parts`).
"""

import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from jaxtrain.base.text import cut, number
from jaxtrain.reports.html import Markup, element, joined
from jaxtrain.reports.parts import Part

MOST_CELLS = 16
"""Devices, or parts of an array, that are drawn along a side; of more, these are drawn and the number is said."""

_TURN = 137.508  # degrees of hue from one device to the next: neighbours differ, and no two of a few hundred agree


def colour(device: int) -> str:
    """The colour of a device, the same in all pictures."""
    return f"hsl({device * _TURN % 360:.0f} 70% 50%)"


def svg(width: float, height: float, parts: Sequence[Markup], label: str) -> Markup:
    """A picture of this size in pixels. label: what a screen reader says."""
    return element(
        "svg",
        joined((element("title", label), *parts)),
        xmlns="http://www.w3.org/2000/svg",
        width=f"{width:g}",
        height=f"{height:g}",
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        font_family="system-ui, sans-serif",
        font_size="11",
        fill="currentColor",
    )


def _text(x: float, y: float, content: object, anchor: str = "middle") -> Markup:
    return element("text", content, x=f"{x:g}", y=f"{y:g}", text_anchor=anchor)


def _cell(x: float, y: float, width: float, height: float, device: int, words: str) -> Markup:
    box = element(
        "rect",
        x=f"{x:g}",
        y=f"{y:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        fill=colour(device),
        fill_opacity=".3",
        stroke="currentColor",
        stroke_opacity=".6",
    )
    return joined((box, _text(x + width / 2, y + height / 2 + 4, words)))


def mesh_svg(sizes: Mapping[str, int], devices: np.ndarray) -> Markup:
    """The devices of a mesh: its last axis goes to the right, all others down.

    devices: their numbers, i[...] of the mesh's shape.
    """
    *outer, last = sizes or {"": 1}
    grid = devices.reshape(-1, sizes[last] if sizes else 1)
    rows, columns = (min(size, MOST_CELLS) for size in grid.shape)
    left, top, width, height = 7 * max(map(len, _row_names(sizes, outer)), default=0) + 8, 18, 38, 24
    parts = [_text(left + columns * width / 2, 12, f"{last} = {grid.shape[1]}" if last else "one device")]
    for row, name in enumerate(_row_names(sizes, outer)[:rows]):
        parts.append(_text(left - 6, top + row * height + 16, name, "end"))
        for column in range(columns):
            device = int(grid[row, column])
            parts.append(_cell(left + column * width, top + row * height, width, height, device, str(device)))
    more = _more(grid.shape)
    parts += [_text(left, top + rows * height + 14, more, "start")] if more else []
    words = " × ".join(f"{axis} {size}" for axis, size in sizes.items()) or "one device"
    across, down = left + max(columns * width, 70, 6 * len(more)) + 2, top + rows * height + (20 if more else 2)
    return svg(across, down, parts, f"a mesh of {words}")


def _row_names(sizes: Mapping[str, int], outer: Sequence[str]) -> list[str]:
    places = np.ndindex(*(sizes[axis] for axis in outer))
    return [", ".join(f"{axis} {at}" for axis, at in zip(outer, place, strict=True)) for place in places]


def _more(shape: Sequence[int]) -> str:
    return f"of {shape[0]} × {shape[1]} these are drawn" if max(shape) > MOST_CELLS else ""


def array_svg(
    shape: Sequence[int], names: Sequence[str], parts: Sequence[Part], sides: Sequence[str] | None = None
) -> Markup:
    """An array as a rectangle, cut into the parts that devices hold. Each part names its devices.

    Two dims are drawn, the first down and the second to the right: those that are split, else the last.

    names: of its dims, "" where one has none. sides: what is written along each dim, in place of its name and size.
    """
    said = sides or [f"{cut(name, 9)} {size}".strip() for name, size in zip(names, shape, strict=True)]
    split = [dim for dim in range(len(shape)) if len({part.start[dim] for part in parts}) > 1]
    drawn = sorted((split + [dim for dim in reversed(range(len(shape))) if dim not in split])[:2])
    down, right = drawn if len(drawn) == 2 else (None, drawn[0] if drawn else None)
    rows, columns = ([0] if dim is None else sorted({part.start[dim] for part in parts}) for dim in (down, right))
    held: dict[tuple[int, int], list[int]] = {}
    for part in parts:
        place = (rows.index(_at(part, down)), columns.index(_at(part, right)))
        held.setdefault(place, []).extend(part.devices)
    width, height = max(150 / len(columns), 44), max(84 / len(rows), 22)
    left, top = 74, 18
    drawn_rows, drawn_columns = min(len(rows), MOST_CELLS), min(len(columns), MOST_CELLS)
    across, below = left + drawn_columns * width, top + drawn_rows * height
    cells = [
        _cell(left + column * width, top + row * height, width, height, min(devices), _devices(devices, width))
        for (row, column), devices in sorted(held.items())
        if row < MOST_CELLS and column < MOST_CELLS
    ]
    more = _more((len(rows), len(columns)))
    words = [_text((left + across) / 2, 12, "a scalar" if right is None else said[right])]
    words += [_text(left - 6, (top + below) / 2 + 4, said[down], "end")] if down is not None else []
    words += [_text(left, below + 14, more, "start")] if more else []
    label = f"an array {list(shape)} in {len(parts)} parts on {sum(len(part.devices) for part in parts)} devices"
    return svg(across + 2, below + (20 if more else 2), [*cells, *words], label)


def _at(part: Part, dim: int | None) -> int:
    return 0 if dim is None else part.start[dim]


def _devices(devices: Sequence[int], width: float) -> str:
    """The numbers of devices, as many as fit into a width of pixels."""
    found = sorted(devices)
    words = " ".join(map(str, found))
    if 6 * len(words) <= width - 6:
        return words
    short = f"{found[0]}–{found[-1]}" if found == list(range(found[0], found[-1] + 1)) else f"{found[0]} … {found[-1]}"
    return short if 6 * len(short) <= width - 4 else f"{len(found)}"


def curve_svg(x: np.ndarray, y: np.ndarray, x_name: str, y_name: str) -> Markup:
    """A curve. NaN and infinities break it; of many points, the lowest and highest of each column of pixels stay."""
    width, height, left, top = 320, 110, 52, 8
    kept = np.isfinite(y)
    if not kept.any():
        return Markup()
    low, high = float(y[kept].min()), float(y[kept].max())
    first, last = float(x.min()), float(x.max())
    lines, run = [], []
    for index in _drawn(y, width):
        if not kept[index]:
            lines, run = [*lines, run], []
            continue
        across = left + (x[index] - first) / ((last - first) or 1) * width
        down = top + (high - y[index]) / ((high - low) or 1) * height
        run.append(f"{across:.1f},{down:.1f}")
    shapes = [
        element("polyline", points=" ".join(run), fill="none", stroke=colour(4), stroke_width="1.6")
        if len(run) > 1
        else element("circle", cx=run[0].partition(",")[0], cy=run[0].partition(",")[2], r="2", fill=colour(4))
        for run in [*lines, run]
        if run
    ]
    frame = element(
        "path",
        d=f"M{left},{top}V{top + height}H{left + width}",
        fill="none",
        stroke="currentColor",
        stroke_opacity=".5",
    )
    words = [
        _text(left - 5, top + 9, number(high), "end"),
        _text(left - 5, top + height, number(low), "end"),
        _text(left, top + height + 14, f"{first:g}", "start"),
        _text(left + width, top + height + 14, f"{last:g}", "end"),
        _text(left + width / 2, top + height + 14, x_name),
    ]
    label = f"{y_name} from {number(float(y[kept][0]))} to {number(float(y[kept][-1]))} over {x_name}"
    return svg(left + width + 6, top + height + 20, [frame, *shapes, *words], label)


def _drawn(y: np.ndarray, columns: int) -> list[int]:
    """The indices of the points to draw: in each column of pixels the lowest, the highest, one that is not finite."""
    if len(y) <= 2 * columns:
        return list(range(len(y)))
    found: set[int] = set()
    for block in np.array_split(np.arange(len(y)), columns):
        values = y[block]
        fine = np.isfinite(values)
        if fine.any():
            found |= {
                int(block[np.where(fine, values, np.inf).argmin()]),
                int(block[np.where(fine, values, -np.inf).argmax()]),
            }
        if not fine.all():
            found.add(int(block[fine.argmin()]))
    return sorted(found)


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
