"""Draws the pictures of the docs from the code: `python scripts/pictures.py [layouts] [rooms] [timeline]`; all by default.

`layouts` asks `Layout` where arrays live, `rooms` reads the package and the law on its imports, and `timeline` measures a
training with and without reading ahead, so that its numbers differ from one machine to another.
Not here: the measurement (timeline.py), and how a shape is written as SVG (svg.py).
"""

import ast
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from svg import COLOURS, Drawing
from timeline import draw_timeline, measure_timelines, note_of

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
LAYOUTS = {
    "data parallel": ({"data": 8}, "each device has all of the kernel;", "gradients are summed"),
    "fully sharded": ({"fsdp": 8}, "each device keeps an eighth of the", "kernel, and gathers it to compute"),
    "data and tensor parallel": (
        {"data": 2, "tensor": 4},
        "four devices share their rows and",
        "split the kernel's columns",
    ),
}


def draw_layouts() -> str:
    """A batch [16, 8] and a kernel [embed 16, mlp 32] on eight devices, under three layouts."""
    import jax
    from jax.sharding import NamedSharding

    from jaxtrain.sharding import Layout

    drawing = Drawing(
        960,
        330,
        "A batch and a kernel on eight devices under three layouts",
        "Under data, the batch is split into eight parts and the kernel is on every device. Under fsdp, both are split "
        "into eight. Under data 2 and tensor 4, the batch is split into two and the kernel's columns into four.",
    )
    drawing.text(20, 24, "Where arrays live on eight devices", size=15, bold=True, anchor="start")
    drawing.text(540, 24, "device", size=13, anchor="end")
    for device in range(8):
        drawing.chip(552 + 24 * device, 10, str(device), COLOURS[device])
    drawing.box(760, 10, 18, 18, "#c3cbd4")
    drawing.text(786, 24, "the same on several", size=13, anchor="start")
    for number, (title, (mesh, *words)) in enumerate(LAYOUTS.items()):
        layout, left = Layout(mesh), 20 + 315 * number
        on = layout.make_mesh(jax.devices()[:8])
        spelled = ", ".join(f'"{axis}": {size}' for axis, size in mesh.items())
        drawing.text(left + 145, 62, f"Layout({{{spelled}}})", size=13, mono=True)
        drawing.text(left + 145, 82, title, size=14, bold=True)
        for name, axes, shape, x, width in (
            ("batch", ("batch", None), (16, 8), left, 100),
            ("kernel", ("embed", "mlp"), (16, 32), left + 120, 184),
        ):
            spec = layout.spec(axes, on.shape, shape, name)
            places = NamedSharding(on, spec).devices_indices_map(shape)
            parts: dict[tuple[float, float, float, float], list[int]] = {}
            for device, (rows, columns) in places.items():
                top, bottom, _ = rows.indices(shape[0])
                first, last, _ = columns.indices(shape[1])
                part = (top / shape[0], bottom / shape[0], first / shape[1], last / shape[1])
                parts.setdefault(part, []).append(device.id)
            drawing.text(x + width / 2, 110, name, size=13)
            drawing.text(x + width / 2, 126, "rows ↓" if name == "batch" else "embed ↓  mlp →", size=12)
            for (top, bottom, first, last), devices in parts.items():
                place = (x + width * first, 134 + 128 * top, width * (last - first), 128 * (bottom - top))
                drawing.part(*place, devices)
        for line, words_of_line in enumerate(words):
            drawing.text(left + 145, 288 + 17 * line, words_of_line, size=13)
    return drawing.svg()


LAYERS = {
    "the decisions": ("base", "sharding", "models", "tasks", "optimizers", "data", "datasets"),
    "one step": ("experiment", "step", "program"),
    "what runs": ("cluster", "runs", "evaluate", "generation", "deploy", "train"),
    "what you type": ("analysis", "reports", "launch", "cli"),
}


def rooms() -> list[str]:
    """The rooms in the order that tests/test_rooms.py holds."""
    for node in ast.parse((ROOT / "tests" / "test_rooms.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ROOMS":
            return list(ast.literal_eval(node.value))
    raise SystemExit("tests/test_rooms.py has no ROOMS")


def files_of(room: str) -> list[Path]:
    folder = ROOT / "jaxtrain" / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def room_doc(room: str, most: int = 60) -> str:
    """The first sentence of the room's docstring, up to a colon or a word that fits."""
    text = " ".join((ast.get_docstring(ast.parse(files_of(room)[0].read_text())) or "").split()).replace("`", "")
    sentence = text.split(". ")[0].rstrip(".")
    if len(sentence) <= most:
        return sentence
    stops = [place for place in range(12, most) if sentence[place : place + 2] in (": ", "; ")]
    return sentence[: stops[-1]] if stops else sentence[:most].rsplit(" ", 1)[0].rstrip(",") + " …"


def imports_of(room: str, known: Sequence[str]) -> set[str]:
    """The other rooms that a room's modules import from."""
    nodes = [node for file in files_of(room) for node in ast.walk(ast.parse(file.read_text()))]
    names = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "jaxtrain" and len(part) > 1 and part[1] in known} - {room}


def draw_rooms() -> str:
    """The rooms, one below the other, and which of those above each of them imports from."""
    order = [room for room in rooms() if files_of(room) and files_of(room)[0].exists()]
    step, left = 26, 560
    drawing = Drawing(
        960,
        70 + step * len(order),
        "The rooms of the library, and which imports which",
        "A table of rooms in order. A dot says that the room of the row imports from the room of the column; all dots "
        "are left of the diagonal, since a room imports only from those above it.",
    )
    drawing.text(20, 24, "Rooms: each imports only from those above it", size=15, bold=True, anchor="start")
    drawing.text(left, 24, "● imports from, ■ the room itself", size=13, anchor="start")
    layer_of = {room: number for number, names in enumerate(LAYERS.values()) for room in names}
    for row, room in enumerate(order):
        y, colour = 44 + step * row, COLOURS[layer_of[room]]
        drawing.box(20, y, 104, step - 4, colour, rounded=4)
        drawing.text(72, y + 16, room, size=13, colour="#ffffff", mono=True)
        drawing.text(134, y + 16, room_doc(room), size=12.5, anchor="start")
        found = imports_of(room, order)
        drawing.line(left, y + step / 2 - 2, left + step * 0.72 * row, y + step / 2 - 2)
        for column, other in enumerate(order):
            x = left + step * 0.72 * column
            if other == room:
                drawing.box(x - 6, y + 4, 12, 12, colour, rounded=3)
            elif other in found:
                drawing.dot(x, y + 10, 5, COLOURS[layer_of[other]])
    for number, name in enumerate(LAYERS):
        drawing.box(20 + 190 * number, 52 + step * len(order), 12, 12, COLOURS[number], rounded=3)
        drawing.text(38 + 190 * number, 63 + step * len(order), name, size=13, anchor="start")
    return drawing.svg()


def main(names: Sequence[str]) -> None:
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    PICTURES.mkdir(exist_ok=True)
    if "layouts" in names:
        (PICTURES / "layouts.svg").write_text(draw_layouts())
    if "rooms" in names:
        (PICTURES / "rooms.svg").write_text(draw_rooms())
    if "timeline" in names:
        without, ahead = measure_timelines()
        (PICTURES / "timeline.svg").write_text(draw_timeline(without, ahead, note_of(ahead)))
        for each in (without, ahead):
            print(f"{each.step_ms:.1f} ms a step, {each.waiting:.0%} waiting")


if __name__ == "__main__":
    main(sys.argv[1:] or ["layouts", "rooms", "timeline"])
