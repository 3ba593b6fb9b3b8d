"""The pictures of the docs show what the code does: parts of arrays, imports between rooms, a measured timeline."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pictures
import pytest
import timeline
from svg import COLOURS, Drawing

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"


def elements(text: str, kind: str) -> list[ElementTree.Element]:
    return [each for each in ElementTree.fromstring(text).iter() if each.tag.endswith(kind)]


def test_the_picture_of_layouts_shows_where_each_device_keeps_its_part() -> None:
    drawn = pictures.draw_layouts()
    assert (PICTURES / "layouts.svg").read_text() == drawn
    numbers = [
        (float(each.get("x") or 0), each.text) for each in elements(drawn, "text") if (each.text or "").isdigit()
    ]
    legend, panels = numbers[:8], numbers[8:]
    assert [text for _, text in legend] == list("01234567")
    by_panel = ["".join(text or "" for x, text in panels if 315 * n + 20 <= x < 315 * n + 335) for n in range(3)]
    assert by_panel == [
        "01234567" + "01234567",  # a part of the batch each; the kernel on all
        "01234567" + "01234567",  # a part each of both
        "0123" + "4567" + "04152637",  # a mesh of two rows of four: a column of it has a part of the kernel's columns
    ]
    sizes = [(each.get("width"), each.get("height")) for each in elements(drawn, "rect")]
    assert sizes.count(("98.5", "14.5")) == 16  # an eighth of 128 rows of the batch, in two panels
    assert sizes.count(("182.5", "14.5")) == 8  # of the kernel's rows under fsdp
    assert sizes.count(("44.5", "126.5")) == 4  # a quarter of its 184 columns
    assert sizes.count(("182.5", "126.5")) == 1  # all of it


def test_the_picture_of_rooms_has_a_dot_for_each_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {
        "jaxtrain/base/__init__.py": '"""Helpers: files and texts. More."""',
        "jaxtrain/models/__init__.py": '"""A room whose first sentence is so long that it does not fit beside the dots."""',
        "jaxtrain/models/one.py": "import jaxtrain.base.files\nfrom jaxtrain.models import two\nimport jax",
        "jaxtrain/train.py": '"""The loop."""\nfrom jaxtrain.models.one import x\n',
        "tests/test_rooms.py": 'ROOMS = {"base": (), "models": ("one",), "later": (), "train": ()}',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(pictures, "ROOT", tmp_path)
    drawn = pictures.draw_rooms()
    words = [each.text for each in elements(drawn, "text")]
    assert [word for word in words if word in ("base", "models", "later", "train")] == ["base", "models", "train"]
    assert "Helpers: files and texts" in words
    assert "A room whose first sentence is so long that it does not fit …" in words
    step = 26 * 0.72
    assert [(each.get("cx"), each.get("cy")) for each in elements(drawn, "circle")] == [
        ("560", f"{44 + 26 + 10}"),  # models imports from base
        (f"{560 + step:.1f}", f"{44 + 52 + 10}"),  # train from models
    ]


def test_every_room_has_a_layer() -> None:
    assert {room for rooms in pictures.LAYERS.values() for room in rooms} == set(pictures.rooms())


def test_a_timeline_is_what_was_logged() -> None:
    # Two rows a batch; thread 7 read a batch before the first step, which is left out, and then two; thread 9 one.
    log = [
        (7, 0.0, 0.1),
        (7, 0.1, 0.2),
        (7, 1.0, 1.1),
        (7, 1.1, 1.2),
        (9, 1.0, 1.2),
        (9, 1.2, 1.5),
        (7, 1.5, 1.6),
        (7, 1.6, 1.9),
    ]
    found = timeline.timeline_of(log, waits=[(1.0, 1.1), (1.5, 1.6)], steps=[(1.1, 1.5), (1.6, 2.0)], rows=2)
    assert {number: [[round(x, 9) for x in span] for span in spans] for number, spans in found.reads.items()} == {
        0: [[0.0, 0.2], [0.5, 0.9]],
        1: [[0.0, 0.5]],
    }
    assert found.step_ms == pytest.approx(500)
    assert found.waiting == pytest.approx(0.2)
    drawn = timeline.draw_timeline(found, found, "a note <here>")
    assert "500.0 ms a step, of which 20% waits for data" in drawn
    assert "a note &lt;here&gt;" in drawn
    steps = [each for each in elements(drawn, "rect") if each.get("fill") == COLOURS[2]]
    assert [(each.get("x"), each.get("width")) for each in steps[:2]] == [
        ("210", "319"),
        ("610", "319"),
    ]  # 130 px to 0 ms, then 0.8 a ms


@pytest.mark.parametrize("name", ["layouts", "rooms", "timeline", "overview"])
def test_a_picture_is_well_formed_and_names_nothing_elsewhere(name: str) -> None:
    text = (PICTURES / f"{name}.svg").read_text()
    assert elements(text, "title")[0].text
    assert elements(text, "desc")[0].text
    assert text.count("http") == text.count('"http://www.w3.org/2000/svg"') == 1


def contrast(one: str, other: str) -> float:
    """The contrast of two colours (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_words_are_legible_on_light_and_dark_pages() -> None:
    drawing = Drawing(10, 10, "a", "b")
    drawing.text(0, 0, "words")
    grey = elements(drawing.svg(), "text")[0].get("fill") or ""
    assert min(contrast(grey, page) for page in ("#ffffff", "#0f1117", "#1a1c23")) > 3.9
    assert min(contrast("#ffffff", colour) for colour in COLOURS) > 4.5


@pytest.mark.full
def test_the_picture_of_rooms_is_as_the_code_draws_it() -> None:
    assert (PICTURES / "rooms.svg").read_text() == pictures.draw_rooms()
