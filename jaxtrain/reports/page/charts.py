"""Small charts that need no script: parts of a whole as a bar, and numbers shaded by their size.

Not here: plots.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from jaxtrain.reports.page.arrays import PageData
from jaxtrain.reports.page.items import Item, cell_text

SHADES = 10
"""Colours of a heat map, from that of 0 to that of the largest number."""

COLOURS = 8
"""Colours of parts; further ones begin again."""


@dataclass(frozen=True)
class Bars(Item):
    """Parts of a whole as one bar, and as a table.

    parts: amount by name, in `unit`; what is not above 0 has no part of the bar.
    """

    title: str
    parts: Mapping[str, float]
    unit: str

    def html(self, arrays: PageData) -> str:
        shown = {name: x for name, x in self.parts.items() if x > 0 and np.isfinite(x)}
        whole, start, rects = sum(shown.values()), 0.0, []
        for place, (name, x) in enumerate(shown.items()):
            width = 1000 * x / whole
            title = f"<title>{escape(name)}: {x / whole:.1%}</title>"
            box = f'x="{start:.2f}" width="{width:.2f}" height="40"'
            rects.append(f'<rect class="fill{place % COLOURS}" {box}>{title}</rect>')
            start += width
        colours = {name: place % COLOURS for place, name in enumerate(shown)}
        rows = [
            f"<tr><th scope=row>{_swatch(colours.get(name))}{escape(name)}</th>"
            f"<td class=number>{escape(cell_text(float(x)))}</td>"
            f"<td class=number>{f'{x / whole:.1%}' if name in shown else '–'}</td></tr>"
            for name, x in self.parts.items()
        ]
        if not shown:
            return f"<figure class=bars><h3>{escape(self.title)}</h3><p>There is nothing to show.</p></figure>"
        label = escape(f"{self.title}: " + ", ".join(f"{name} {x / whole:.1%}" for name, x in shown.items()))
        how = f'viewBox="0 0 1000 40" preserveAspectRatio="none" role="img" aria-label="{label}"'
        svg = f"<svg {how}>{''.join(rects)}</svg>"
        head = f"<thead><tr><th scope=col>part</th><th class=number scope=col>{escape(self.unit)}</th>"
        return (
            f"<figure class=bars><h3>{escape(self.title)}</h3>{svg}<table>{head}"
            f"<th class=number scope=col>share</th></tr></thead><tbody>{''.join(rows)}</tbody></table></figure>"
        )


def _swatch(colour: int | None) -> str:
    if colour is None:
        return ""
    box = f'<rect class="fill{colour}" width="10" height="10"/>'
    return f'<svg class=swatch viewBox="0 0 10 10" aria-hidden="true">{box}</svg>'


@dataclass(frozen=True)
class HeatMap(Item):
    """A table of numbers shaded by their size, such as a confusion matrix.

    counts: [rows, columns], not negative. shade: [rows, columns] in 0 to 1; by default the share of its row.
    rows, columns: names. down, across: what they are.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    counts: np.ndarray
    down: str = ""
    across: str = ""
    shade: np.ndarray | None = None
    beside = "grid"

    def html(self, arrays: PageData) -> str:
        counts = np.asarray(self.counts, np.float64)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-300) if self.shade is None else self.shade
        shades = np.clip(np.nan_to_num(np.ceil(np.asarray(shares) * (SHADES - 1))), 0, SHADES - 1).astype(int)
        heads = "".join(f"<th scope=col>{escape(name)}</th>" for name in self.columns)
        body = "".join(
            f"<tr><th scope=row>{escape(name)}</th>"
            + "".join(
                f'<td class="shade{shades[i, j]}">{cell_text(self.counts[i][j])}</td>' for j in range(len(self.columns))
            )
            + "</tr>"
            for i, name in enumerate(self.rows)
        )
        corner = f"{self.down} ↓ {self.across} →".strip() if self.down or self.across else ""
        return (
            f"<figure class=heat><h3>{escape(self.title)}</h3>"
            f'<div class=table tabindex="0" role="region" aria-label="{escape(self.title)}"><table>'
            f"<thead><tr><td>{escape(corner)}</td>{heads}</tr></thead><tbody>{body}</tbody></table></div></figure>"
        )
