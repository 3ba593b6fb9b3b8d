"""Parallel coordinates of a sweep as an SVG drawing: one line a trial, from field to field to the metric.

Not here: which trials there are.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jaxtrain.base.text import cut, number
from jaxtrain.reports.sweep.findings import is_number
from jaxtrain.reports.sweep.read import value_text

WIDTH, HEIGHT, TOP, SIDE = 1000, 420, 40, 70
"""Sizes in the units of the drawing."""

QUARTERS = (("trial", 1.0, 0.25), ("trial", 1.0, 0.45), ("trial leads", 1.2, 0.6), ("trial leads", 2.4, 1.0))
"""Class of the page's style, width and opacity of the lines, by quarters of the trials, from the worst on."""

MOST_TRIALS_DRAWN = 500
"""Lines that are drawn: the best and the worst ones."""


def parallel_coordinates(
    axes: Mapping[str, Sequence[Any]], names: Mapping[str, str], metric: str, values: Sequence[float], best_first: bool
) -> str:
    """The drawing. axes: the values of the trials by path; values: their metric, in the same order; best_first: whether
    low values are good. Axes of positive numbers that span more than a factor of 30 are logarithmic.
    """
    order = sorted(range(len(values)), key=lambda at: values[at], reverse=best_first)
    if len(order) > MOST_TRIALS_DRAWN:
        order = [*order[: MOST_TRIALS_DRAWN // 2], *order[-MOST_TRIALS_DRAWN // 2 :]]
    columns = [(names[path], *_scale(each)) for path, each in axes.items()]
    columns.append((metric, *_scale(values, allow_log=False)))
    gap = (WIDTH - 2 * SIDE) / max(1, len(columns) - 1)
    xs = [SIDE + gap * at for at in range(len(columns))]
    parts = []
    for rank, trial in enumerate(order):
        points = " ".join(f"{x:.1f},{heights[trial]:.1f}" for x, (_, heights, _) in zip(xs, columns, strict=True))
        style, width, opacity = QUARTERS[rank * len(QUARTERS) // len(order)]
        title = f"<title>{escape(metric)} {escape(number(values[trial]))}</title>"
        parts.append(
            f'<polyline class="{style}" points="{points}" stroke-width="{width}" opacity="{opacity}">{title}</polyline>'
        )
    for x, (name, _, ticks) in zip(xs, columns, strict=True):
        low, high = TOP, HEIGHT - TOP
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low}" y2="{high}" class="outline"/>')
        parts.append(_text(x, TOP - 18, cut(name, 26), "middle", bold=True))
        parts += [_text(x + 6, y + 4, cut(text, 14), "start") for text, y in ticks]
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(parts)}</svg>'


def _scale(values: Sequence[Any], allow_log: bool = True) -> tuple[list[float], list[tuple[str, float]]]:
    """The height of each value, and texts with theirs."""
    span = HEIGHT - 2 * TOP
    numbers = [float(value) for value in values if is_number(value)]
    texts = [value_text(value) for value in values]
    if len(numbers) == len(values) and len(set(numbers)) > 1:
        log = allow_log and min(numbers) > 0 and max(numbers) / min(numbers) > 30
        at = [math.log(x) if log else x for x in numbers]
        low, high = min(at), max(at)
        heights = [HEIGHT - TOP - span * (x - low) / (high - low) for x in at]
        distinct = sorted(set(numbers))
        shown = distinct if len(distinct) <= 8 else [distinct[0], distinct[-1]]
        return heights, [(number(x), heights[numbers.index(x)]) for x in shown]
    kinds = sorted(set(texts))
    places = {text: HEIGHT - TOP - span * (at + 0.5) / len(kinds) for at, text in enumerate(kinds)}
    return [places[text] for text in texts], list(places.items())[:12]


def _text(x: float, y: float, text: str, anchor: str, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="13" class="ink"{weight}>{escape(text)}</text>'
    )
