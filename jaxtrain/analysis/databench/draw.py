"""The timeline of reading and training, as a picture."""

import itertools
import os
from collections.abc import Sequence
from typing import Any

from jaxtrain.analysis.databench.measure import Chain, Report, Span, milliseconds
from jaxtrain.base.errors import ConfigError


def timeline(report: Report, path: str | os.PathLike[str], batches: int = 6) -> None:
    """A PNG of the first `batches` measured, one after another above, and overlapped below in the same length of time.

    Every bar is a stage of one batch as it was measured; above are at most a third of all. Needs matplotlib;
    ConfigError says how to install it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
        from matplotlib.patches import Patch
    except ImportError as error:
        raise ConfigError("drawing a timeline needs matplotlib: pip install 'jaxtrain[datasets]'") from error
    one, two = report.sequential, report.overlapped
    # Overlapped, up to twice as many are done in this time, and others are read ahead, which were measured too.
    shown = one.of("step")[: max(1, min(batches, len(one.of("step")) // 3))]
    begin = min(span.begin for span in one.spans if span.batch == shown[0].batch)
    length = shown[-1].end - begin
    figure = Figure((12, 6.8), dpi=150, layout=ConstrainedLayoutEngine(hspace=0.06, h_pad=0.1))
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    _draw(upper, one, "One after another", begin, length)
    _draw(lower, two, f"Overlapped: {two.flags}", two.of("step")[0].begin, length)
    upper.tick_params(labelbottom=False)
    lower.set_xlabel(f"ms;  numbers are batches of {report.rows} rows;  steps: {report.computing}", color=_INK)
    named = [Patch(color=colour, label=stage) for stage, (_, colour) in _BARS.items()]
    figure.legend(
        handles=[*named, Patch(label="no batch yet", **_IDLE)], loc="outside lower center", ncols=7, frameon=False
    )
    figure.savefig(path, format="png", facecolor="white")


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
"""The row and the colour of every stage."""


def _draw(axes: Any, chain: Chain, title: str, begin: float, length: float) -> None:
    """Draw `length` seconds of a chain."""
    steps = chain.of("step")
    for row in {row for row, _ in _BARS.values()}:
        batches: dict[int, list[Span]] = {}
        for span in sorted(chain.spans, key=lambda span: span.begin):
            if _BARS[span.stage][0] == row and span.begin < begin + length and span.end > begin:
                batches.setdefault(span.batch, []).append(span)
        lanes = _lanes([(spans[0].begin, spans[-1].end) for spans in batches.values()])
        height = 0.76 / (max(lanes, default=0) + 1)
        for lane, (batch, spans) in zip(lanes, batches.items(), strict=True):
            at = row - 0.38 + height * (lane + 0.5)
            for span in spans:
                width = max(span.end - span.begin, 0.003 * length)  # else a short one could not be seen
                left, colour = span.begin - begin, _BARS[span.stage][1]
                axes.barh(at, width, 0.94 * height, left, color=colour, edgecolor="white", linewidth=0.5)
            middle = (spans[0].begin + spans[-1].end) / 2 - begin
            if spans[-1].end - spans[0].begin > 0.02 * length and 0 < middle < length:
                number = batch - steps[0].batch + 1
                axes.text(middle, at, number, ha="center", va="center", fontsize=8, color="white")
    for before, after in itertools.pairwise(steps):
        axes.barh(_BARS["step"][0], after.begin - before.end, 0.7, before.end - begin, **_IDLE)
    said = f"{milliseconds(chain.seconds)} a step; for {chain.wait:.1%} of the time no batch is there"
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK)
    axes.set_title(said, loc="right", fontsize=11, color=_INK)
    axes.set_xlim(0, length)
    axes.set_ylim(3.5, -0.5)
    axes.set_yticks(range(4), ["read, decode", "transform, batch", "transfer", "step"], color=_INK)
    axes.xaxis.set_major_formatter(lambda seconds, _: f"{seconds * 1e3:g}")
    axes.grid(axis="x", color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=_INK)
    axes.spines[:].set_visible(False)


def _lanes(times: Sequence[tuple[float, float]]) -> list[int]:
    """For spans in order of their beginning: the first lane that is free then, so that none covers another."""
    free: list[float] = []
    lanes = []
    for begin, end in times:
        lane = next((lane for lane, until in enumerate(free) if until <= begin), len(free))
        free[lane : lane + 1] = [end]
        lanes.append(lane)
    return lanes
