"""Plots of series of numbers: what the page's script draws from, and beside each a table and a description in words.

Not here: the drawing, which is in `static/plots.js`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

import numpy as np

from jaxtrain.base.text import number
from jaxtrain.reports.page.arrays import MOST_POINTS, PageData, stretches, thinned
from jaxtrain.reports.page.items import Item, Table, cell_text

TABLE_ROWS = 40
"""Points of each series in the table beside a plot."""


@dataclass(frozen=True)
class Mark:
    """A vertical line at `x` of a plot's own x axis. kind: "event", "restart", "warning", "damage" or "save"; a save is
    a small tick on the axis.
    """

    x: float
    text: str
    kind: str = "event"


@dataclass(frozen=True, eq=False)
class Series:
    """A line of a plot.

    x, y: [n]; x ascends in lines (it is sorted where it does not); what is not finite in y is a gap.
    low, high: [n]; a band around the line, such as an interval.
    other_x: [n] each; the same points on other axes, by name, such as {"examples": …, "seconds": …}.
    kind: "points" draws them unconnected, "bars" from 0.
    smooth: whether the page's smoothing applies to it.
    faint: draws it thin and grey, such as a diagonal to compare with.

    Raises ValueError for arrays of different lengths.
    """

    name: str
    x: Any
    y: Any
    low: Any = None
    high: Any = None
    other_x: Mapping[str, Any] = field(default_factory=dict)
    kind: Literal["line", "points", "bars"] = "line"
    smooth: bool = True
    faint: bool = False

    def __post_init__(self) -> None:
        sizes = {len(x) for x in (self.x, self.y, self.low, self.high, *self.other_x.values()) if x is not None}
        if len(sizes) > 1:
            raise ValueError(f"the series {self.name!r} has arrays of different lengths: {sorted(sizes)}")

    def arrays(self, x: str) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
        """The x axes by name with `x` for the series' own, y, low and high, in the order of its own x."""
        axes = {x: np.asarray(self.x), **{name: np.asarray(values) for name, values in self.other_x.items()}}
        y = np.asarray(self.y, np.float64)
        low, high = (y if band is None else np.asarray(band, np.float64) for band in (self.low, self.high))
        with np.errstate(invalid="ignore"):
            known = np.isfinite(np.asarray(axes[x], np.float64))
        order = np.flatnonzero(known)[np.argsort(axes[x][known], kind="stable")]
        return {name: values[order] for name, values in axes.items()}, y[order], low[order], high[order]


@dataclass(frozen=True, eq=False)
class Plot(Item):
    """Series over x, with switches for logarithmic scales, and marks.

    x: the name of the series' own x axis. y: the unit or name on the y axis.
    log_x, log_y: how the switches stand first.
    shown_at_least: the lowest and highest y that the plot shows in any case.
    """

    title: str
    series: Sequence[Series]
    x: str = "step"
    y: str = ""
    log_x: bool = False
    log_y: bool = False
    marks: Sequence[Mark] = ()
    shown_at_least: tuple[float, float] | None = None
    beside = "grid"

    def html(self, arrays: PageData) -> str:
        title, found = escape(self.title), [(each, *each.arrays(self.x)) for each in self.series]
        notes = [note for each, axes, y, *_ in found if (note := _not_finite(each.name, self.x, axes[self.x], y))]
        shown = [one for one in found if np.isfinite(one[2]).any()]
        notes += [f"{each.name} has no number to draw." for each, *_ in found if each not in [one[0] for one in shown]]
        said = "".join(f"<p class=note>{escape(note)}</p>" for note in notes)
        head = f"<figure class=plot><h3>{title}</h3>"
        if not shown:
            return f"{head}<p class=note>There is nothing to draw yet.</p>{said}</figure>"
        arrays.plots.append(
            {
                "title": self.title,
                "x": self.x,
                "y": self.y,
                "logX": self.log_x,
                "logY": self.log_y,
                "least": self.shown_at_least,
                "marks": [[float(mark.x), mark.text, mark.kind] for mark in self.marks if np.isfinite(mark.x)],
                "series": [_drawn(*one, arrays) for one in shown],
            }
        )
        words = "; ".join(_in_words(each.name, self.x, axes[self.x], y) for each, axes, y, *_ in shown)
        label = escape(f"Plot of {self.title} over {self.x}. {words}.")
        number = len(arrays.plots) - 1
        return (
            f"{head}<div class=controls></div>"
            f'<div class=drawing data-plot="{number}" tabindex="0" role="img" aria-label="{label}"></div>'
            f"<p class=readout aria-live=polite></p>{said}{self._tables(shown, arrays)}</figure>"
        )

    def _tables(self, shown: Sequence[tuple[Any, ...]], arrays: PageData) -> str:
        names = [each.name for each, *_ in shown]
        rows: dict[float, list[object]] = {}
        banded = {place for place, (each, *_) in enumerate(shown) if each.low is not None or each.high is not None}
        for place, (_, axes, y, low, high) in enumerate(shown):
            few = thinned(y, y, y, TABLE_ROWS)
            for x, value, under, over in zip(axes[self.x][few].tolist(), y[few], low[few], high[few], strict=True):
                row = rows.setdefault(x, [None] * len(names))
                text = f"{number(value)} ({number(under)} to {number(over)})" if place in banded else float(value)
                row[place] = text if row[place] is None else f"{cell_text(row[place])}, {cell_text(text)}"
        total = sum(len(y) for _, _, y, *_ in shown)
        caption = f"{self.title}: {'all' if total <= TABLE_ROWS else 'some'} of {total:,} points"
        table = Table([self.x, *names], [[x, *rows[x]] for x in sorted(rows)], caption)
        events = ""
        if self.marks:
            marks = Table([self.x, "event"], [[mark.x, mark.text] for mark in self.marks], f"{self.title}: events")
            events = f"<details><summary>Events ({len(self.marks)})</summary>{marks.html(arrays)}</details>"
        return f"<details><summary>Numbers</summary>{table.html(arrays)}</details>{events}"


def _drawn(
    series: Series,
    axes: dict[str, np.ndarray],
    y: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    arrays: PageData,
) -> dict[str, Any]:
    """What the script reads of a series: arrays by their number in the page."""
    kept = thinned(y, low, high) if series.kind != "points" else _spread(y)
    found: dict[str, Any] = {"name": series.name, "kind": series.kind, "smooth": series.smooth, "faint": series.faint}
    found["x"] = {name: arrays.add(values[kept]) for name, values in axes.items()}
    found["y"] = arrays.add(y[kept])
    if series.low is not None or series.high is not None:
        found |= {"low": arrays.add(low[kept]), "high": arrays.add(high[kept])}
    if series.smooth and len(y) > MOST_POINTS:
        used = np.isfinite(y)
        means, counts = stretches(y, used)
        middles = {name: stretches(np.asarray(values, np.float64), used)[0] for name, values in axes.items()}
        found["mean"] = {
            "x": {name: arrays.add(values) for name, values in middles.items()},
            "y": arrays.add(means),
            "count": arrays.add(counts),
        }
    return found


def _spread(y: np.ndarray) -> np.ndarray:
    """The positions of at most `MOST_POINTS` points, as dense as all are, with the extremes: extremes alone would show
    a cloud as its outline.
    """
    evenly = np.linspace(0, len(y) - 1, min(len(y), MOST_POINTS - 200)).astype(np.int64)
    return np.unique(np.concatenate([evenly, thinned(y, y, y, 40)])) if len(y) > MOST_POINTS else np.arange(len(y))


def _not_finite(name: str, x: str, own: np.ndarray, y: np.ndarray) -> str:
    """Which points are gaps, in a sentence; "" where none is."""
    bad = np.flatnonzero(~np.isfinite(y))
    if not len(bad) or len(bad) == len(y):
        return ""
    first = f"{name} is not finite (NaN or infinite) at {x} {cell_text(own[bad[0]])}"
    return first + (f" and at {len(bad) - 1:,} more: these are gaps." if len(bad) > 1 else ": a gap.")


def _in_words(name: str, x: str, own: np.ndarray, y: np.ndarray) -> str:
    """Where a series begins and ends, and its extremes."""
    at = np.flatnonzero(np.isfinite(y))
    if len(at) == 1:
        return f"{name}: one point, {number(y[at[0]])} at {x} {cell_text(own[at[0]])}"
    first, last, least, most = at[0], at[-1], at[y[at].argmin()], at[y[at].argmax()]
    return (
        f"{name}: from {number(y[first])} at {x} {cell_text(own[first])} to {number(y[last])} at "
        f"{cell_text(own[last])}, lowest {number(y[least])} at {cell_text(own[least])}, "
        f"highest {number(y[most])} at {cell_text(own[most])}"
    )
