"""Config values for the eye, such as an experiment: its fields as parts that fold; and metrics with their values.

Not here: layouts and runs.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

import jaxtrain.reports.html as html
from jaxtrain.base.text import array_type, cut, number, table
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.reports.html import Markup
from jaxtrain.tasks.classification_metrics import Confusion
from jaxtrain.tasks.metrics import Metric, flat

_DEEPEST, _LONGEST, _MOST = 12, 200, 100  # levels of values; characters of one; entries of a mapping or tuple


def value_html(value: Any) -> Markup:
    """A config value with its fields. Those that have their default are paler."""
    return _part(type(value).__name__, value, 0, unfolded=True)


def experiment_html(experiment: Experiment) -> Markup:
    """The five decisions of an experiment, and the rest of its fields."""
    evals = ", ".join(experiment.evals) or "none"
    mesh = " × ".join(f"{axis} {count}" for axis, count in experiment.layout.mesh.items()) or "one device"
    data = experiment.data
    rows = [
        ("task", f"{type(experiment.task).__name__} of {type(experiment.task.model).__name__}"),
        ("data", f"{_source(data.source)}, batches of {data.batch_size:,}"),
        ("evals", evals),
        ("optimizer", type(experiment.optimizer).__name__),
        ("steps", f"{experiment.steps:,}"),
        ("layout", mesh),
    ]
    return html.joined(
        (html.element("b", "Experiment"), html.rows_table(("", ""), rows), _part("all fields", experiment, 0, False))
    )


def _source(source: Any) -> str:
    name = type(source).__name__
    try:
        return f"{name} of {len(source):,} examples"
    except Exception:  # files that are gone: a picture of the experiment does not need them
        return name


def _part(name: str, value: Any, depth: int, unfolded: bool = False, usual: bool = False) -> Markup:
    """A field with its value: on a line, or as a part that folds."""
    inside = _inside(value) if depth < _DEEPEST else []
    title = html.dim(html.code(name)) if usual else html.code(name)
    if not inside:
        words = cut(_shown(value), _LONGEST)
        return html.element("div", html.joined((title, " ", html.dim(words) if usual else words)))
    kind = html.dim(type(value).__name__) if type(value).__name__ != name else ""
    body = [_part(key, part, depth + 1, usual=same) for key, part, same in inside[:_MOST]]
    body += [html.element("div", html.dim(f"and {len(inside) - _MOST:,} more"))] if len(inside) > _MOST else []
    return html.details(html.joined((title, " ", kind)), *body, unfolded=unfolded)


def _inside(value: Any) -> list[tuple[str, Any, bool]]:
    """Names and values of what a value is made of, and whether each is the default."""
    if isinstance(value, type):
        return []
    if dataclasses.is_dataclass(value):
        return [
            (each.name, found := getattr(value, each.name), _is_default(each, found))
            for each in dataclasses.fields(value)
        ]
    if isinstance(value, Mapping):
        return [(str(name), part, False) for name, part in value.items()]
    if isinstance(value, tuple | list) and any(dataclasses.is_dataclass(part) for part in value):
        return [(str(place), part, False) for place, part in enumerate(value)]
    return []


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if default is dataclasses.MISSING or type(default) is not type(value):
        return False
    try:
        return bool(default == value)
    except ValueError:  # arrays
        return False


def _shown(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return array_type(value)
    return str(value) if isinstance(value, str) else repr(value)


def metrics_table(metrics: Mapping[str, Metric]) -> str:
    """Names and values of metrics as a table."""
    rows = [
        (name, number(value)) for each, metric in metrics.items() for name, value in flat(each, metric.value()).items()
    ]
    return table([("metric", "value"), *rows]) if rows else "no metrics"


def metrics_html(metrics: Mapping[str, Metric]) -> Markup:
    """Values of metrics, and the sums that they are made of."""
    rows = [
        (html.code(name), number(value), type(metric).__name__)
        for each, metric in metrics.items()
        for name, value in flat(each, metric.value()).items()
    ]
    matrices = [confusion_html(name, metric) for name, metric in metrics.items() if isinstance(metric, Confusion)]
    return html.joined((html.rows_table(("metric", "value", ""), rows, [1]), *matrices))


def metric_html(metric: Metric) -> Markup:
    """One metric: its values, and its sums."""
    values = flat("value", metric.value())
    if len(values) == 1:
        head = html.joined((html.element("b", type(metric).__name__), " ", number(next(iter(values.values())))))
    else:
        rows = [(html.code(name.removeprefix("value/")), number(value)) for name, value in values.items()]
        head = html.joined((html.element("b", type(metric).__name__), html.rows_table(("", ""), rows, [1])))
    sums = [(html.code(field.name), _sums(getattr(metric, field.name))) for field in dataclasses.fields(metric)]
    matrix = confusion_html("", metric) if isinstance(metric, Confusion) else ""
    return html.joined((head, matrix, html.details(html.dim("sums"), html.rows_table(("", ""), sums))))


def _sums(array: Any) -> str:
    found = np.asarray(array)
    return number(float(found)) if found.ndim == 0 else array_type(found)


def confusion_html(name: str, metric: Confusion) -> Markup:
    """A confusion matrix: the classes of the labels down, those predicted to the right; only of up to 20 classes."""
    counts = np.asarray(metric.counts, np.float64)
    if len(counts) > 20:
        return Markup()
    rows = [
        [
            html.code(row),
            *(_share(count, float(counts[row].sum()), row == column) for column, count in enumerate(counts[row])),
        ]
        for row in range(len(counts))
    ]
    head = ["labels ↓ predicted →", *map(html.code, range(len(counts)))]
    title = html.element("div", html.dim(name)) if name else ""
    return html.joined((title, html.rows_table(head, rows, range(1, len(counts) + 1))))


def _share(count: float, total: float, right: bool) -> Markup:
    """A cell whose background says which share of its row it is."""
    hue, share = (140 if right else 10), count / total if total else 0.0
    style = f"background:hsl({hue} 70% 50% / {0.6 * share:.2f});padding:0 6px"
    return html.element("span", number(float(count)), style=style)
