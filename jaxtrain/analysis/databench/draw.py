"""Draws the timeline of reading and training."""

import itertools
import os
from collections.abc import Sequence
from typing import Any

from jaxtrain.analysis.databench.report import Measurement, Report, StageTime, milliseconds
from jaxtrain.base.packages import needs

_INK = "#2b2f36"

_IDLE: dict[str, Any] = {"facecolor": "#fbeaea", "edgecolor": "#cf5b5b", "hatch": "////", "linewidth": 0}

_BARS = {
    "read": (0, "#4f94cd"),
    "decode": (0, "#24598f"),
    "transform": (1, "#dd8a1f"),
    "batch": (1, "#a8570b"),
    "transfer": (2, "#8d6bb8"),
    "step": (3, "#3f9c5a"),
}
"""Row and colour of every stage."""


def timeline(report: Report, path: str | os.PathLike[str], batches: int = 6) -> None:
    """Write a PNG of the first `batches` that were measured, at most a third of all.

    The upper panel shows the sequential measurement, the lower one the overlapped measurement over the same length of
    time. Each bar is one stage of one batch. Raises ConfigError without matplotlib.
    """
    with needs("drawing a timeline", "matplotlib", "datasets"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
        from matplotlib.patches import Patch
    one, two = report.sequential, report.overlapped
    # A third, since in the same time the overlapped measurement does up to twice as many batches and reads ahead.
    shown = one.of("step")[: max(1, min(batches, len(one.of("step")) // 3))]
    begin = min(other.begin for other in one.intervals if other.batch == shown[0].batch)
    length = shown[-1].end - begin
    figure = Figure((12, 6.8), dpi=150, layout=ConstrainedLayoutEngine(hspace=0.06, h_pad=0.1))
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    _draw(upper, one, "One after another", begin, length)
    _draw(lower, two, f"Overlapped: {two.flags}", two.of("step")[0].begin, length)
    upper.tick_params(labelbottom=False)
    lower.set_xlabel(f"ms;  numbers are batches of {report.rows} rows;  steps: {report.device}", color=_INK)
    named = [Patch(color=colour, label=stage) for stage, (_, colour) in _BARS.items()]
    figure.legend(
        handles=[*named, Patch(label="no batch yet", **_IDLE)], loc="outside lower center", ncols=7, frameon=False
    )
    figure.savefig(path, format="png", facecolor="white")


def _draw(axes: Any, measured: Measurement, title: str, begin: float, length: float) -> None:
    """Draw `length` seconds of a measurement."""
    steps = measured.of("step")
    for row in {row for row, _ in _BARS.values()}:
        batches: dict[int, list[StageTime]] = {}
        for one in sorted(measured.intervals, key=lambda one: one.begin):
            if _BARS[one.stage][0] == row and one.begin < begin + length and one.end > begin:
                batches.setdefault(one.batch, []).append(one)
        lanes = _lanes([(intervals[0].begin, intervals[-1].end) for intervals in batches.values()])
        height = 0.76 / (max(lanes, default=0) + 1)
        for lane, (batch, intervals) in zip(lanes, batches.items(), strict=True):
            at = row - 0.38 + height * (lane + 0.5)
            for one in intervals:
                width = max(one.end - one.begin, 0.003 * length)  # so that short ones stay visible
                left, colour = one.begin - begin, _BARS[one.stage][1]
                axes.barh(at, width, 0.94 * height, left, color=colour, edgecolor="white", linewidth=0.5)
            first, last = intervals[0].begin, intervals[-1].end
            middle = (first + last) / 2 - begin
            if last - first > 0.02 * length and 0 < middle < length:
                number = batch - steps[0].batch + 1
                axes.text(middle, at, number, ha="center", va="center", fontsize=8, color="white")
    for before, after in itertools.pairwise(steps):
        axes.barh(_BARS["step"][0], after.begin - before.end, 0.7, before.end - begin, **_IDLE)
    summary = f"{milliseconds(measured.seconds)} a step; for {measured.wait:.1%} of the time no batch is there"
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK)
    axes.set_title(summary, loc="right", fontsize=11, color=_INK)
    axes.set_xlim(0, length)
    axes.set_ylim(3.5, -0.5)
    axes.set_yticks(range(4), ["read, decode", "transform, batch", "transfer", "step"], color=_INK)
    axes.xaxis.set_major_formatter(lambda seconds, _: f"{seconds * 1e3:g}")
    axes.grid(axis="x", color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=_INK)
    axes.spines[:].set_visible(False)


def _lanes(times: Sequence[tuple[float, float]]) -> list[int]:
    """The lane of each interval, the first free one, so that no bar covers another. times: sorted by beginning."""
    free: list[float] = []
    lanes = []
    for begin, end in times:
        lane = next((lane for lane, until in enumerate(free) if until <= begin), len(free))
        free[lane : lane + 1] = [end]
        lanes.append(lane)
    return lanes
