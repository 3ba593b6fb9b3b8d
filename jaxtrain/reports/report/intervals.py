"""Intervals of the metrics of one evaluation, from its rows. They say how sure the number is of the data that the rows
were drawn from; not of other seeds.

Not here: comparing two runs, which is `reports/paired.py`.
"""

import math
from dataclasses import replace

import numpy as np

from jaxtrain.reports.statistics import Interval
from jaxtrain.runs.rows import RowsOf, arrays_of
from jaxtrain.tasks.metrics import Mean, values_by_name

ROW_RESAMPLES = 1000

ROW_LEVEL = 0.95

NORMAL = 1.959963984540054
"""The quantile of the normal distribution that leaves 2.5 % above it."""

_LARGEST = 50_000_000  # numbers of all metrics of all rows


def select(rows: RowsOf, chosen: np.ndarray) -> RowsOf:
    """Some of the rows, by their numbers i64[m] or bool[n]."""
    metrics = {
        name: type(each)(**{part: x[chosen] for part, x in arrays_of(each).items()})
        for name, each in rows.metrics.items()
    }
    ids = rows.ids[chosen]
    labels = {name: x[chosen] for name, x in rows.labels.items()}
    predictions = {name: x[chosen] for name, x in rows.predictions.items()}
    positions = rows.positions[chosen]
    return replace(
        rows, kept=len(ids), ids=ids, positions=positions, predictions=predictions, labels=labels, metrics=metrics
    )


def metric_intervals(rows: RowsOf, resamples: int = ROW_RESAMPLES, seed: int = 0) -> dict[str, Interval]:
    """The metrics of these rows by name, each with its interval at `ROW_LEVEL`; infinite where nothing bounds it.

    A mean of zeros and ones, such as accuracy, has the interval of Wilson (1927); all else that of the percentiles of a
    bootstrap of the rows.
    """
    found = rows.values()
    if rows.kept < 2:
        return {name: Interval(value, -math.inf, math.inf, ROW_LEVEL) for name, value in found.items()}
    drawn = _drawn(rows, resamples, seed)
    result = {}
    for name, value in found.items():
        share = _share(rows, name)
        sample = drawn.get(name, np.zeros(0))
        if share is not None:
            low, high = wilson(share[0], share[1])
        elif len(sample) and np.isfinite(sample).all():
            low, high = np.quantile(sample, [(1 - ROW_LEVEL) / 2, (1 + ROW_LEVEL) / 2])
        else:
            low, high = -math.inf, math.inf
        result[name] = Interval(value, float(low), float(high), ROW_LEVEL)
    return result


def wilson(hits: float, count: float) -> tuple[float, float]:
    """The interval of a share at `ROW_LEVEL` by Wilson's score. It is never of width 0, even for 0 or all hits."""
    share, z2 = hits / count, NORMAL * NORMAL
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = NORMAL / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def _share(rows: RowsOf, name: str) -> tuple[float, float] | None:
    """Hits and count of a metric that is a mean of zeros and ones of rows that weigh 1 or 0; else None."""
    metric = rows.metrics.get(name)
    if not isinstance(metric, Mean):
        return None
    total, weight = (np.asarray(each, np.float64) for each in (metric.total, metric.weight))
    plain = total.ndim == 1 and np.isin(weight, (0, 1)).all() and np.isin(total, (0, 1)).all() and weight.sum() > 0
    return (float(total.sum()), float(weight.sum())) if plain and (total <= weight).all() else None


def _drawn(rows: RowsOf, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """The values [resamples] of each metric over rows drawn with replacement; {} where these would be too many numbers
    or are not finite.
    """
    parts = [(name, part, x) for name, metric in rows.metrics.items() for part, x in arrays_of(metric).items()]
    if not parts or sum(x.size for *_, x in parts) > _LARGEST:
        return {}
    table = np.concatenate([x.reshape(rows.kept, -1).astype(np.float64) for *_, x in parts], axis=1)
    if not np.isfinite(table).all():
        return {}
    rng, values = np.random.default_rng(seed), list[dict[str, float]]()
    for _ in range(resamples):
        counts = np.bincount(rng.integers(rows.kept, size=rows.kept), minlength=rows.kept)
        values.append(_values(rows, parts, counts @ table))
    return {name: np.array([each[name] for each in values]) for name in values[0]}


def _values(rows: RowsOf, parts: list[tuple[str, str, np.ndarray]], sums: np.ndarray) -> dict[str, float]:
    arrays: dict[str, dict[str, np.ndarray]] = {name: {} for name in rows.metrics}
    start = 0
    for name, part, x in parts:
        end = start + int(np.prod(x.shape[1:], dtype=int))
        arrays[name][part] = sums[start:end].reshape(x.shape[1:])
        start = end
    return values_by_name({name: type(metric)(**arrays[name]) for name, metric in rows.metrics.items()})
