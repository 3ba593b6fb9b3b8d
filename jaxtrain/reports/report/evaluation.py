"""What the last evaluation found in each row: metrics with intervals, slices, and pictures of a classifier's or a
regression's errors.

Not here: the examples themselves.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.base.text import number
from jaxtrain.reports.page import Details, HeatMap, Item, Paragraph, Plot, Section, Series, Table
from jaxtrain.reports.report.examples import SplitRecords, worst
from jaxtrain.reports.report.intervals import ROW_RESAMPLES, metric_intervals, select, wilson
from jaxtrain.reports.report.record import RunRecord
from jaxtrain.reports.statistics import Interval
from jaxtrain.runs.folder import Run
from jaxtrain.runs.rows import RowsOf, read_rows, rows_kept
from jaxtrain.tasks.metrics import Mean

FEW = 30
"""Rows below which a slice is said to be small."""

_MOST_CLASSES = 24
_BINS = 10
_GONE = "the experiment has no such split"
_SLICED = 300  # resamples of a slice


def evaluation(record: RunRecord, run: Run | None, why: str) -> Section:
    """The section of the evaluation. why: where there is no run, the reason."""
    kept, items, found = rows_kept(record.folder), list[Item](), dict[str, RowsOf]()
    for split in kept:
        try:
            found[split] = read_rows(record.folder, split)
        except (ConfigError, Damaged, OSError) as error:
            items.append(Paragraph(f"The rows of {split} cannot be read: {error}", "warning"))
    if not kept:
        command = f"jaxtrain evaluate {record.folder} --keep-rows"
        items.append(Paragraph(f"No predictions of single examples were kept; `{command}` makes them."))
    if found:
        items += _metrics(found, record.last_step)
    for split, rows in found.items():
        if rows.kept:
            items += _of_split(
                record,
                rows,
                SplitRecords(run.experiment.evals.get(split) if run else None, split, why or _GONE),
                len(found) > 1,
            )
    return Section("Evaluation", items)


def _metrics(found: Mapping[str, RowsOf], last: int) -> list[Item]:
    each = {split: metric_intervals(rows) for split, rows in found.items()}
    names = list(dict.fromkeys(name for values in each.values() for name in values))
    main = [name for name in names if "/" not in name] or names
    counts = ", ".join(
        f"{split}: {rows.kept:,} rows"
        + (f" of {rows.of:,}, those with the smallest hashes" if rows.kept < rows.of else "")
        for split, rows in found.items()
    )
    items: list[Item] = [
        _table(main, each, f"95 % intervals over rows ({counts})"),
        Paragraph(
            f"Intervals: Wilson's for shares such as accuracy, else of {ROW_RESAMPLES:,} bootstrap resamples of rows. "
            "They are about other rows of the same kind, not about other seeds of the training.",
            "note",
        ),
    ]
    rest = [name for name in names if name not in main]
    items += [Details(f"{len(rest)} more numbers", [_table(rest, each, "95 % intervals over rows")])] if rest else []
    steps = {rows.step for rows in found.values()}
    if steps != {last}:
        items.append(
            Paragraph(f"These rows are of step {', '.join(f'{step:,}' for step in sorted(steps))}.", "warning")
        )
    gone = [f"{name} of {split} ({why})" for split, rows in found.items() for name, why in rows.left_out.items()]
    items += [Paragraph(f"Not kept: {'; '.join(gone)}.", "note")] if gone else []
    return items


def _table(names: Sequence[str], each: Mapping[str, Mapping[str, Interval]], caption: str) -> Table:
    rows = [
        [name, *(with_interval(values[name]) if name in values else None for values in each.values())] for name in names
    ]
    return Table(["metric", *each], rows, caption)


def with_interval(one: Interval) -> str:
    """A value with its interval, such as `0.9227 (0.912 to 0.9325)`."""
    if not np.isfinite([one.low, one.high]).all():
        return f"{number(one.value)} (no interval)"
    return f"{number(one.value)} ({number(one.low)} to {number(one.high)})"


def _of_split(record: RunRecord, rows: RowsOf, records: SplitRecords, named: bool) -> list[Item]:
    config, items = record.saved.get("config", {}), list[Item]()
    suffix = f" of {rows.split}" if named else ""
    kind = config.get("task.kind")
    labels, classes = labels_of(rows, config)
    slices: dict[str, np.ndarray] = {}
    if labels is not None:
        probabilities = np.asarray(rows.predictions["probabilities"], np.float64)
        items += _classifier(probabilities, labels, classes, suffix)
        slices |= {f"label {name}": labels == place for place, name in enumerate(classes) if (labels == place).any()}
    elif kind == "Regression" and (pair := _targets(rows, config)) is not None:
        items += _regression(*pair, suffix)
        if pair[1].shape[1] == 1:
            slices |= quarters("target", pair[1][:, 0])
    slices |= quarters(*lengths) if (lengths := records.lengths(rows)) else {}
    items += _slices(rows, slices, suffix)
    items += worst(rows, records, labels, classes, suffix)
    if len(items) and named:
        return [Details(f"Split {rows.split}, {rows.kept:,} rows", items, open=True)]
    return items


def labels_of(rows: RowsOf, config: Mapping[str, Any]) -> tuple[np.ndarray | None, list[str]]:
    """The class of each row of a classifier i64[n], -1 for rows without one, and the names of the classes; None for
    other tasks.
    """
    probabilities, label = (
        rows.predictions.get("probabilities"),
        rows.labels.get(str(config.get("task.label", "label"))),
    )
    if probabilities is None or probabilities.ndim != 2 or label is None or config.get("task.kind") != "Classification":
        return None, []
    if label.ndim == 2 and label.shape == probabilities.shape:
        label = label.argmax(axis=1)
    if label.ndim != 1:
        return None, []
    count = probabilities.shape[1]
    names = config.get("task.classes")
    names = [str(name) for name in names] if isinstance(names, list) and len(names) == count else []
    known = (label >= 0) & (label < count) & (label != config.get("task.ignore", -1))
    return np.where(known, label, -1).astype(np.int64), names or [f"class {place}" for place in range(count)]


def _classifier(probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str], suffix: str) -> list[Item]:
    known = labels >= 0
    labels, probabilities = labels[known], probabilities[known]
    chosen, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (labels, chosen), 1)
    items: list[Item] = []
    if len(classes) <= _MOST_CLASSES:
        items.append(HeatMap(f"Confusion matrix{suffix}", classes, classes, counts, "label", "predicted"))
    else:
        wrong = counts - np.diag(counts.diagonal())
        order = np.argsort(-wrong, axis=None, kind="stable")[:20]
        pairs = [np.unravel_index(one, wrong.shape) for one in order]
        rows = [[classes[i], classes[j], int(wrong[i, j])] for i, j in pairs if wrong[i, j]]
        items.append(Table(["label", "predicted as", "rows"], rows, f"The classes most often taken for others{suffix}"))
    return items + _calibration(confidence, chosen == labels, suffix)


def _calibration(confidence: np.ndarray, right: np.ndarray, suffix: str) -> list[Item]:
    """The reliability diagram: how often predictions of a confidence are right (Guo et al. 2017, arXiv:1706.04599)."""
    if not len(confidence) or not np.isfinite(confidence).all():
        return [Paragraph(f"Calibration{suffix} cannot be told: there are no finite probabilities of labelled rows.")]
    places = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    rows, points = list[list[object]](), list[tuple[float, float, float, float, float]]()
    error = 0.0
    for place in np.unique(places):
        inside = places == place
        count, hits, mean = int(inside.sum()), float(right[inside].sum()), float(confidence[inside].mean())
        low, high = wilson(hits, count)
        error += abs(hits / count - mean) * count / len(confidence)
        points.append((mean, hits / count, low, high, count / len(confidence)))
        rows.append([f"{place / _BINS:g} to {(place + 1) / _BINS:g}", count, mean, hits / count])
    x, y, low, high, share = np.array(points).T
    plot = Plot(
        f"Calibration{suffix}",
        [
            Series("share of rows", x, share, kind="bars", smooth=False),
            Series("accuracy", x, y, low=low, high=high, smooth=False),
            Series("calibrated", [0.0, 1.0], [0.0, 1.0], smooth=False, faint=True),
        ],
        x="confidence",
        shown_at_least=(0.0, 1.0),
    )
    caption = f"Expected calibration error {error:.3f}, in {_BINS} bins; bands are 95 % intervals"
    return [plot, Details("Counts of the bins", [Table(["confidence", "rows", "mean", "accuracy"], rows, caption)])]


def _targets(rows: RowsOf, config: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    values, target = rows.predictions.get("values"), rows.labels.get(str(config.get("task.target", "target")))
    if values is None or target is None or values.ndim != 2 or target.size != values.size:
        return None
    return values.astype(np.float64), target.reshape(values.shape).astype(np.float64)


def _regression(values: np.ndarray, targets: np.ndarray, suffix: str) -> list[Item]:
    items: list[Item] = []
    for place in range(min(values.shape[1], 4)):
        name = f" of output {place}" if values.shape[1] > 1 else ""
        residual, target = values[:, place] - targets[:, place], targets[:, place]
        ends = np.array([values[:, place].min(), values[:, place].max()])
        items.append(
            Plot(
                f"Residuals{name}{suffix}",
                [
                    Series("predicted − target", values[:, place], residual, kind="points", smooth=False),
                    Series("no error", ends, np.zeros(2), smooth=False, faint=True),
                ],
                x="predicted",
            )
        )
        spread = ((target - target.mean()) ** 2).sum()
        table: list[list[object]] = [
            ["mean of the residuals", float(residual.mean())],
            ["root mean square", float(np.sqrt((residual**2).mean()))],
            [
                "R², the share of the variance that is explained",
                float(1 - (residual**2).sum() / spread) if spread else None,
            ],
        ]
        items.append(Table(["", "in units of the data"], table))
    if values.shape[1] > 4:
        items.append(Paragraph(f"The first 4 of {values.shape[1]} outputs are shown."))
    return items


def quarters(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Four slices of about as many rows, by a number of each row [n]; fewer where many are equal."""
    edges = np.unique(np.quantile(values, [0, 0.25, 0.5, 0.75, 1])) if len(values) else np.zeros(0)
    if len(edges) < 3:
        return {}
    place = np.clip(np.searchsorted(edges, values, side="left") - 1, 0, len(edges) - 2)
    return {
        f"{name} {'from' if k == 0 else 'above'} {number(edges[k])} to {number(edges[k + 1])}": place == k
        for k in range(len(edges) - 1)
    }


def _slices(rows: RowsOf, slices: Mapping[str, np.ndarray], suffix: str) -> list[Item]:
    means = [name for name, metric in rows.metrics.items() if isinstance(metric, Mean)]
    few = {name: chosen for name, chosen in slices.items() if chosen.any()}
    if len(few) < 2 or not means:
        return []
    lines = list[list[object]]()
    for name, chosen in few.items():
        found = metric_intervals(select(rows, chosen), _SLICED)
        size = int(chosen.sum())
        note = f"small: fewer than {FEW} rows" if size < FEW else ""
        lines.append([name, size, *(with_interval(found[mean]) for mean in means), note])
    return [Table(["slice", "rows", *means, ""], lines, f"Slices{suffix}, with 95 % intervals")]
