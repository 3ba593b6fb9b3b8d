"""Whether one run is better than another, in words that say how sure that is and of what.

Not here: the numbers.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxtrain.base.text import number
from jaxtrain.reports.statistics import FEWEST, Interval

Direction = Literal["lower", "higher", ""]

LOWER = r"loss|perplexity|.*error|.*errors|mae|mse|rmse|nll|brier|ece|.*calibration.*|bits_per_.*|nats_per_.*|wer|cer"
HIGHER = r"accuracy.*|auc|f1.*|precision.*|recall.*|r2|spearman|pearson|kendall|mcc|kappa|bleu|.*accuracy|.*correlation"
"""Names of metrics of which less, and more, is better. Of others a run is only said to be lower or higher."""

SHARES = r"accuracy.*|.*accuracy|auc|f1.*|precision.*|recall.*"
"""Names of metrics from 0 to 1 whose differences are said in points, hundredths."""

ROUNDED = 1e-6
"""Values that are relatively as close as this are equal within the rounding of f32."""


@dataclass(frozen=True)
class MetricVerdict:
    """What is said of a metric of a run beside that of the first."""

    kind: Literal["better", "worse", "lower", "higher", "not told apart", "not comparable", "no interval"]
    words: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    level: float | None = None
    examples: int | None = None


def direction(metric: str, run: Mapping[str, Any] | None = None, split: str = "") -> Direction:
    """Whether less or more of a metric is better, by what the run keeps its best checkpoint by, else by its name."""
    keep = ((run or {}).get("runtime") or {}).get("keep") or {}
    if keep.get("best") == f"{split}/{metric}":
        return "higher" if keep.get("mode") == "max" else "lower"
    name = metric.lower()
    for each in (name, *reversed(name.split("/"))):
        if re.fullmatch(LOWER, each):
            return "lower"
        if re.fullmatch(HIGHER, each):
            return "higher"
    return ""


def amount(metric: str, difference: float, margin: float | None = None) -> str:
    """A difference without its sign, with half the width of its interval: `0.8 ± 0.3 points`."""
    points = any(re.fullmatch(SHARES, part) for part in metric.lower().split("/"))
    scale, unit = (100, " points") if points else (1, "")
    if margin is None:
        return f"{number(abs(difference) * scale)}{unit}"
    digits = 3 if not margin else max(0, 1 - math.floor(math.log10(margin * scale)))
    if digits > 6:
        return f"{abs(difference) * scale:.2g} ± {margin * scale:.2g}{unit}"
    return f"{abs(difference) * scale:.{digits}f} ± {margin * scale:.{digits}f}{unit}"


def judged(
    name: str, metric: str, better: Direction, interval: Interval, told: bool, where: str, size: float
) -> MetricVerdict:
    """The verdict on a difference with an interval. told: whether it may be called one, after corrections. where: on
    what, such as "on the same 20 examples". size: of the values.
    """
    percent = f"({number(100 * interval.level)} %)"

    def verdict(kind: Any, words: str) -> MetricVerdict:
        low, high = (each if math.isfinite(each) else None for each in (interval.low, interval.high))
        return MetricVerdict(kind, words, interval.value, low, high, interval.level)

    if interval.value and abs(interval.value) <= ROUNDED * size:
        return verdict("not told apart", f"not told apart: equal within rounding {where}")
    if not math.isfinite(interval.margin):
        return verdict("not told apart", f"not told apart: {amount(metric, interval.value)} {where}, with no interval")
    shown = f"{amount(metric, interval.value, interval.margin)} {percent} {where}"
    if not told:
        sign = "-" if interval.value < 0 else "+"
        corrected = ", after the correction for several comparisons" if interval.excludes(0) else ""
        return verdict("not told apart", f"not told apart: {sign}{shown}{corrected}")
    word = "higher" if interval.value > 0 else "lower"
    if better:
        word = "better" if word == better else "worse"
    return verdict(word, f"{name} is {word} by {shown}")


def too_few(differ: int, examples: int) -> str:
    """Why there is no interval where systems differ on few examples."""
    if not differ:
        return f"not told apart: equal on all {examples:,} examples"
    return f"not told apart: they differ on {differ} of {examples:,} examples, fewer than the {FEWEST} that it takes"
