"""HTML for the output of a notebook's cell, and of pictures: escaped text, tables, and parts that fold.

It is legible on light and dark pages alike: text and lines have the page's own colour, surfaces are half transparent.
Where a viewer removes styles, as GitHub does, tables and their text are left. Not here: what is shown.
"""

import html
from collections.abc import Iterable, Sequence

STYLE = (
    ".jt{font-size:13px;line-height:1.45;overflow-x:auto}"
    ".jt table{font-size:inherit!important;border-collapse:collapse;margin:4px 0 8px;font-variant-numeric:tabular-nums}"
    ".jt th,.jt td{text-align:left!important;padding:2px 12px 2px 0!important;vertical-align:top;border:0;"
    "border-bottom:1px solid rgba(128,128,128,.3);background:none!important;color:inherit;white-space:nowrap}"
    ".jt td.n,.jt th.n{text-align:right!important}"
    ".jt details>:not(summary){margin-left:16px}.jt summary{cursor:pointer}"
    ".jt .dim{opacity:.7}.jt code{background:none;color:inherit;padding:0}"
    ".jt figure{display:inline-block;margin:4px 24px 8px 0;vertical-align:top}"
    ".jt figcaption{opacity:.8}.jt svg{max-width:100%}"
    ".jt .state{border:1px solid currentColor;border-radius:9px;padding:0 8px;margin-left:6px}"
)


class Markup(str):
    """Text that is HTML already; any other text is escaped where it is put into HTML."""


def markup(value: object) -> Markup:
    """HTML of a value: escaped, unless it is `Markup`."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def joined(parts: Iterable[object], between: str = "") -> Markup:
    """Parts one after another."""
    return Markup(between.join(map(markup, parts)))


def element(name: str, content: object = "", **attributes: object) -> Markup:
    """An element; `class_` is the attribute `class`, and `_` stands for `-` in names."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items()
    )
    return Markup(f"<{name}{given}>{markup(content)}</{name}>")


def cell(*parts: object) -> str:
    """What a cell shows: the parts, with their style."""
    return str(element("div", joined((element("style", Markup(STYLE)), *parts)), class_="jt"))


def rows_table(head: Sequence[object], rows: Iterable[Sequence[object]], numbers: Iterable[int] = ()) -> Markup:
    """A table. numbers: the columns that are aligned on the right."""
    right = set(numbers)

    def row(cells: Sequence[object], name: str) -> Markup:
        return element(
            "tr",
            joined(
                element(name, cell, **({"class_": "n"} if column in right else {})) for column, cell in enumerate(cells)
            ),
        )

    first = element("thead", row(head, "th")) if any(head) else Markup()
    return element("table", joined((first, element("tbody", joined(row(cells, "td") for cells in rows)))))


def details(summary: object, *body: object, unfolded: bool = False) -> Markup:
    """A part that folds."""
    return Markup(
        f"<details{' open' if unfolded else ''}>{element('summary', summary)}{element('div', joined(body))}</details>"
    )


def code(value: object) -> Markup:
    """A value in the font of code."""
    return element("code", value)


def dim(value: object) -> Markup:
    """Less important text."""
    return element("span", value, class_="dim")


def figure(picture: Markup, caption: object) -> Markup:
    """A picture over its caption."""
    return element("figure", joined((picture, element("figcaption", caption))))
