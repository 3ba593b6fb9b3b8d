"""Metrics of two evaluations on the same examples: which rows are the same ones, and how much the metrics differ.

Not here: the statistics, and reading the rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxtrain.reports.statistics import PairedDifference, ValueOfSums, paired_difference
from jaxtrain.runs.rows import RowsOf, arrays_of
from jaxtrain.tasks.metrics import Mean, Metric, Perplexity, flat


@dataclass(frozen=True)
class Pairs:
    """The examples that two evaluations have in common."""

    same: int
    """How many."""
    alone: tuple[int, int]
    """How many each has and the other has not."""
    differences: Mapping[str, PairedDifference]
    """How much larger each value of the second is, by its name."""
    values: Mapping[str, tuple[float, float]]
    """The values of both on the common examples."""
    refused: Mapping[str, str]
    """Why other values cannot be compared."""


def pairs(one: RowsOf, two: RowsOf, level: float = 0.95, comparisons: int = 1) -> Pairs:
    """The metrics of two evaluations, on the examples that both have.

    Rows with one id are one example, since equal rows are not independent; where the two have another number of them,
    the example is left out. comparisons: as in `paired_difference`.
    """
    (ids_a, rows_a, counts_a), (ids_b, rows_b, counts_b) = (_examples(each) for each in (one, two))
    _, at_a, at_b = np.intersect1d(ids_a, ids_b, return_indices=True)
    equal = counts_a[at_a] == counts_b[at_b]
    at_a, at_b, same = at_a[equal], at_b[equal], int(equal.sum())
    alone = (len(ids_a) - same, len(ids_b) - same)
    found: dict[str, PairedDifference] = {}
    values: dict[str, tuple[float, float]] = {}
    refused: dict[str, str] = {}
    labels = _labels_differ(one, two, (at_a, at_b), (rows_a, rows_b)) if same else ""
    for name in [name for name in one.metrics if name in two.metrics] if same else []:
        a, b = one.metrics[name], two.metrics[name]
        why = labels or _unlike(a, b)
        if not why:
            sums = [
                _sums(m, rows, len(ids))[at]
                for m, rows, ids, at in ((a, rows_a, ids_a, at_a), (b, rows_b, ids_b, at_b))
            ]
            why = _no_pairs(a, *sums)
        if why:
            refused[name] = why
            continue
        names = [*_values(a, name, sums[0].sum(0)), *_values(b, name, sums[1].sum(0))]
        names = list(dict.fromkeys(names))
        differ = paired_difference(sums[0], sums[1], _value(a, name, names), level, comparisons)
        found |= dict(zip(names, differ, strict=True))
        both = [_values(a, name, each.sum(0)) for each in sums]
        values |= {part: (both[0].get(part, np.nan), both[1].get(part, np.nan)) for part in names}
    return Pairs(same, alone, found, values, refused)


def _examples(rows: RowsOf) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ids of the examples, the number of the example of each row, and how many rows each example has."""
    return np.unique(np.asarray(rows.ids), return_inverse=True, return_counts=True)


def _sums(metric: Metric, example: np.ndarray, count: int) -> np.ndarray:
    """The sums of each example, f64[count, K], all fields of the metric one after another."""
    columns = [np.asarray(array, np.float64).reshape(len(example), -1) for array in arrays_of(metric).values()]
    rows = np.concatenate(columns, 1)
    if count == len(example):
        merged = np.empty_like(rows)
        merged[example] = rows
        return merged
    merged = np.zeros((count, rows.shape[1]))
    np.add.at(merged, example, rows)
    return merged


def _values(metric: Metric, name: str, sums: np.ndarray) -> dict[str, float]:
    """The values of the metric with these sums, f64[K]."""
    parts, start = {}, 0
    for field, array in arrays_of(metric).items():
        size = int(np.prod(array.shape[1:], dtype=int))
        parts[field] = sums[start : start + size].reshape(array.shape[1:])
        start += size
    with np.errstate(all="ignore"):
        return flat(name, type(metric)(**parts).value())


def _value(metric: Metric, name: str, names: Sequence[str]) -> ValueOfSums:
    """From rows of sums to rows of the named values."""

    def value(sums: np.ndarray) -> np.ndarray:
        if type(metric) in (Mean, Perplexity) and sums.shape[1] == 2:  # a hundred times quicker than one by one
            ratios = sums[:, 0] / sums[:, 1]
            return np.exp(ratios) if type(metric) is Perplexity else ratios
        found = [_values(metric, name, each) for each in sums]
        return np.array([[each.get(part, np.nan) for part in names] for each in found])

    return value


def _unlike(a: Metric, b: Metric) -> str:
    shapes = [{field: array.shape[1:] for field, array in arrays_of(each).items()} for each in (a, b)]
    return "" if type(a) is type(b) and shapes[0] == shapes[1] else "it is another metric in each"


def _no_pairs(metric: Metric, a: np.ndarray, b: np.ndarray) -> str:
    """Why the sums of two runs on the same examples cannot be paired, or ""."""
    for each in (a, b):
        if not np.isfinite(each).all():
            return f"it is not finite on {int((~np.isfinite(each).all(1)).sum()):,} examples of one of them"
    start = 0
    for field, array in arrays_of(metric).items():
        size = int(np.prod(array.shape[1:], dtype=int))
        part = slice(start, start + size)
        if field == "weight" and (a[:, part] != b[:, part]).any():
            return "the examples are weighed otherwise, as by another tokenizer or other class weights"
        start += size
    return ""


def _labels_differ(
    one: RowsOf, two: RowsOf, at: tuple[np.ndarray, np.ndarray], rows: tuple[np.ndarray, np.ndarray]
) -> str:
    """Where the labels of the common examples differ, how many do; else ""."""
    firsts = [np.unique(example, return_index=True)[1][where] for example, where in zip(rows, at, strict=True)]
    for name in one.labels.keys() & two.labels.keys():
        a, b = one.labels[name][firsts[0]], two.labels[name][firsts[1]]
        if a.shape != b.shape:
            return f"the labels {name!r} have another shape in each"
        other = (a != b) & ~((a != a) & (b != b))
        if other.any():
            count = int(other.reshape(len(other), -1).any(1).sum())
            return f"the labels {name!r} of {count:,} of the same examples differ"
    return ""


def integer_labels(rows: RowsOf) -> bool:
    """Whether what the rows are compared with are class numbers, which no transform scales."""
    arrays = [*rows.labels.values()]
    return bool(arrays) and all(each.ndim == 1 and each.dtype.kind in "iub" for each in arrays)
