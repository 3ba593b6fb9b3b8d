"""What stands on a page beside plots: text, tables, pictures. All text is escaped.

Not here: what is drawn from numbers, and the page around them.
"""

import base64
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from xml.etree import ElementTree

import numpy as np

from jaxtrain.base.text import number
from jaxtrain.reports.page.arrays import PageData

PNG = b"\x89PNG\r\n\x1a\n"


class Item(ABC):
    """One thing on a page."""

    beside = ""
    """How it stands beside others that follow it where the page is wide: in a "grid" of equal widths, or in a "row"."""

    @abstractmethod
    def html(self, arrays: PageData) -> str:
        """The element; the numbers that scripts draw are added to `arrays`."""


@dataclass(frozen=True)
class Link(Item):
    """A link; an address that does not begin with http:// or https:// is shown as text."""

    text: str
    address: str

    def html(self, arrays: PageData) -> str:
        if not re.fullmatch(r"https?://\S+", self.address):
            return escape(self.text)
        return f'<a href="{escape(self.address)}" rel="noreferrer">{escape(self.text)}</a>'


@dataclass(frozen=True)
class Paragraph(Item):
    """Plain text. kind: "" or "warning", for what the reader must not miss."""

    text: str
    kind: str = ""

    def html(self, arrays: PageData) -> str:
        return f"<p{css_class(self.kind)}>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Preformatted(Item):
    """Text with its spaces and line ends, such as a diff."""

    text: str
    caption: str = ""

    def html(self, arrays: PageData) -> str:
        label = escape(self.caption or "text")
        head = f"<p class=caption>{escape(self.caption)}</p>" if self.caption else ""
        return f'{head}<pre tabindex="0" role="region" aria-label="{label}">{escape(self.text)}</pre>'


@dataclass(frozen=True)
class Picture(Item):
    """An SVG drawing (text; shapes alone, their colours by the classes of the page's style) or the bytes of a PNG.

    alt: what it shows, for those who cannot see it. small: a thumbnail, such as in a cell of a table.

    Raises ValueError for what is neither, and for an SVG that holds scripts, styles or addresses.
    """

    content: str | bytes
    alt: str
    caption: str = ""
    small: bool = False
    beside = "row"

    def __post_init__(self) -> None:
        if isinstance(self.content, str):
            check_svg(self.content)
        elif not self.content.startswith(PNG):
            raise ValueError("a picture is SVG text or the bytes of a PNG")

    def html(self, arrays: PageData) -> str:
        alt = escape(self.alt)
        if isinstance(self.content, str):
            shown = f'<div class=svg role="img" aria-label="{alt}">{self.content}</div>'
        else:
            shown = f'<img alt="{alt}" src="data:image/png;base64,{base64.b64encode(self.content).decode()}">'
        if self.small:
            return shown
        caption = f"<figcaption>{escape(self.caption)}</figcaption>" if self.caption else ""
        return f"<figure class=picture>{shown}{caption}</figure>"


def check_svg(text: str) -> None:
    """Raises ValueError for what is not one svg element, or does more than draw shapes."""
    if "<!" in text:
        raise ValueError("the picture is not a plain svg element: it has a declaration or a comment")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"the picture is not SVG: {error}") from error
    if root.tag.rpartition("}")[2] != "svg":
        raise ValueError("the picture is not an svg element")
    for element in root.iter():
        names = {element.tag, *element.attrib}
        plain = {name.rpartition("}")[2].lower() for name in names}
        if plain & {"script", "style", "foreignobject", "href", "image", "use"} or any(n[:2] == "on" for n in plain):
            raise ValueError(
                f"the picture holds {sorted(plain)}: only shapes and text are taken, without style or links"
            )


@dataclass(frozen=True)
class Table(Item):
    """Rows of cells: text, numbers, None (shown as –), links and small pictures. Numbers stand right-aligned.

    head: whether the first cell of each row names the row.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    head: bool = True

    def html(self, arrays: PageData) -> str:
        def line(row: Sequence[object]) -> str:
            return "".join(self._cell(cell, self.head and place == 0, arrays) for place, cell in enumerate(row))

        caption = f"<caption>{escape(self.caption)}</caption>" if self.caption else ""
        numeric = [all(_is_number(row[place]) for row in self.rows) for place in range(len(self.columns))]
        heads = "".join(
            f'<th scope="col"{css_class("number" if right and self.rows else "")}>{escape(name)}</th>'
            for name, right in zip(self.columns, numeric, strict=True)
        )
        head = f"<thead><tr>{heads}</tr></thead>" if any(self.columns) else ""
        body = "".join(f"<tr>{line(row)}</tr>" for row in self.rows)
        label = escape(self.caption or ", ".join(self.columns) or "table")
        return (
            f'<div class=table tabindex="0" role="region" aria-label="{label}">'
            f"<table>{caption}{head}<tbody>{body}</tbody></table></div>"
        )

    def _cell(self, cell: object, head: bool, arrays: PageData) -> str:
        shown = cell.html(arrays) if isinstance(cell, Item) else escape(cell_text(cell))
        right = css_class("number" if _is_number(cell) else "")
        return f'<th scope="row"{right}>{shown}</th>' if head else f"<td{right}>{shown}</td>"


def _is_number(cell: object) -> bool:
    return cell is None or (isinstance(cell, int | float | np.number) and not isinstance(cell, bool))


def cell_text(cell: object) -> str:
    """A cell as text: integers with commas, floats with four digits, – for None."""
    if isinstance(cell, bool | np.bool_):
        return "yes" if cell else "no"
    if isinstance(cell, int | np.integer):
        return f"{cell:,}"
    if isinstance(cell, float | np.floating):
        return number(float(cell))
    return "–" if cell is None else str(cell)


@dataclass(frozen=True)
class Details(Item):
    """Items that a reader opens; with `open`, they are open at first."""

    summary: str
    items: Sequence[Item]
    open: bool = False

    def html(self, arrays: PageData) -> str:
        how = " open" if self.open else ""
        return f"<details{how}><summary>{escape(self.summary)}</summary>{rendered(self.items, arrays)}</details>"


@dataclass(frozen=True)
class Section(Item):
    """A part of a page with a heading. id: of its address on the page, made of the title by default."""

    title: str
    items: Sequence[Item]
    id: str = ""

    @property
    def anchor(self) -> str:
        """The end of its address on the page."""
        return re.sub(r"[^a-z0-9]+", "-", (self.id or self.title).lower()).strip("-") or "section"

    def html(self, arrays: PageData) -> str:
        return f'<section id="{self.anchor}"><h2>{escape(self.title)}</h2>{rendered(self.items, arrays)}</section>'


def rendered(items: Sequence[Item], arrays: PageData) -> str:
    """The HTML of items in order; neighbours with the same `beside` share a grid or a row."""
    found = []
    for how, group in groupby(items, lambda item: item.beside):
        parts = "".join(item.html(arrays) for item in group)
        found.append(f"<div class={how}>{parts}</div>" if how else parts)
    return "".join(found)


def css_class(name: str) -> str:
    """The attribute for a class of the page's style; "" for none."""
    return f' class="{escape(name)}"' if name else ""
