"""Curves of a run: loss, metrics, learning rates, gradient norm, speed. Events are marks on them.

Not here: what single examples come to.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxtrain.reports.page import Details, Item, Mark, Paragraph, Plot, Section, Series
from jaxtrain.reports.report.record import RunRecord, plotted_names

MOST_PLOTS = 12
"""Plots of metrics that stand open; further ones are in details."""

MOST_MARKS = 200

_KINDS = {"begun": "restart", "damaged": "damage"}
_WARNINGS = ("skipped", "left_out", "observer_failed", "tensorboard_failed", "hung", "diverged")
_SILENT = ("intervals", "data", "replicated", "never_verified", "schedule", "compiled", "saving", "ended")
"""Events that are no moment of the training."""


def curves(record: RunRecord) -> Section:
    """The section of curves."""
    if not record.lines and not len(record.steps.get("step", ())):
        return Section("Curves", [Paragraph("No step was logged, so there is nothing to draw.")])
    marks = marks_of(record)
    names = plotted_names(record.splits)
    first = [_loss(record, marks)] if "loss" in names or record.steps else []
    rest = [name for name in names if name not in ("loss", "gradient_norm", "skipped")]
    first += [_metric(record, name, marks) for name in rest[:MOST_PLOTS]]
    more = [_metric(record, name, marks) for name in rest[MOST_PLOTS:]]
    items: list[Item] = [*first, *_rates(record, marks), *_gradients(record, marks), *_speed(record)]
    items += [Details(f"{len(more)} more metrics", more)] if more else []
    return Section("Curves", items)


def _series(record: RunRecord, name: str, steps: Any, values: Any, smooth: bool) -> Series:
    return Series(name, steps, values, other_x=record.axes(np.asarray(steps)), smooth=smooth)


def _metric(record: RunRecord, name: str, marks: Sequence[Mark]) -> Plot:
    found = [
        _series(record, split, *metrics[name], smooth=split == "train")
        for split, metrics in record.splits.items()
        if name in metrics
    ]
    return Plot(name, found, marks=marks)


def _loss(record: RunRecord, marks: Sequence[Mark]) -> Plot:
    """The loss of every step where it is known, else its means as logged."""
    plot, steps = _metric(record, "loss", marks), record.steps.get("step", np.zeros(0, np.int64))
    logged = record.splits["train"].get("loss", (np.zeros(0, np.int64),))[0]
    if not len(steps) or (len(logged) and steps[-1] < logged[-1]):
        return plot
    every = _series(record, "train", steps, record.steps["loss"], smooth=True)
    return Plot("loss", [every, *(each for each in plot.series if each.name != "train")], marks=marks)


def _rates(record: RunRecord, marks: Sequence[Mark]) -> list[Item]:
    rates = [name for name in record.splits["train"] if name.startswith("learning_rate")]
    found = [_series(record, name, *record.splits["train"][name], smooth=False) for name in sorted(rates)]
    return [Plot("learning rate", found, marks=marks)] if found else []


def _gradients(record: RunRecord, marks: Sequence[Mark]) -> list[Item]:
    if len(steps := record.steps.get("step", ())):
        norms = record.steps["gradient_norm"].astype(np.float64)
        found = _series(record, "gradient norm", steps, norms, smooth=True)
    elif "gradient_norm" in record.splits["train"]:
        steps, norms = record.splits["train"]["gradient_norm"]
        found = _series(record, "gradient norm", steps, norms, smooth=True)
    else:
        return [Paragraph("The gradient norm is not known: steps.bin and metrics.jsonl do not have it.")]
    usual = norms[np.isfinite(norms) & (norms > 0)]
    wide = len(usual) > 0 and usual.max() > 30 * np.median(usual)
    return [Plot("gradient norm", [found], log_y=bool(wide), marks=marks)]


def _speed(record: RunRecord) -> list[Item]:
    train, found = record.splits["train"], []
    for name, title in (
        ("examples_per_second", "examples per second"),
        ("tokens_per_second", "tokens per second"),
        ("mfu", "model FLOPs utilization"),
    ):
        if name in train:
            plot = Plot(title, [_series(record, title, *train[name], smooth=True)], shown_at_least=(0.0, 0.0))
            found.append(plot)
    if "mfu" in train or not found:
        return found
    why = next((each["no_mfu"] for each in record.events if isinstance(each.get("no_mfu"), str)), "")
    flops = next((each["flops"] for each in record.events if isinstance(each.get("flops"), int)), None)
    why = why or ("the model has no operations that are counted" if flops == 0 else "the run did not log it")
    return [*found, Paragraph(f"Model FLOPs utilization is not known: {why}.")]


def marks_of(record: RunRecord) -> list[Mark]:
    """What happened at which step, for plots over steps."""
    found: list[Mark] = []
    for event in record.events:
        kind, step = event["kind"], event.get("step")
        if kind in _SILENT or (kind == "begun" and step == 0):
            continue
        if kind == "skipped" and isinstance(event.get("steps"), list):
            found += [
                Mark(each["step"], _skipped(each), "warning")
                for each in event["steps"]
                if isinstance(each, dict) and type(each.get("step")) is int
            ]
        elif kind == "left_out" and isinstance(event.get("steps"), list):
            found += [Mark(each, "batch left out", "warning") for each in event["steps"] if type(each) is int]
        elif type(step) is int and 0 <= step < 1 << 62:
            text = f"resumed after step {step:,}" if kind == "begun" else event_words(event)
            found.append(Mark(step, text, _KINDS.get(kind, "warning" if kind in _WARNINGS else "event")))
    checkpoints = record.folder / "checkpoints"
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    saved = sorted(int(name) for name in names if name.isdecimal() and len(name) < 16)
    return [*found[:MOST_MARKS], *(Mark(step, f"checkpoint of step {step:,}", "save") for step in saved[-MOST_MARKS:])]


def _skipped(one: dict[str, Any]) -> str:
    numbers = ", ".join(f"{name.replace('_', ' ')} {one[name]}" for name in ("loss", "gradient_norm") if name in one)
    return f"update skipped: {numbers}" if numbers else "update skipped"


def event_words(event: dict[str, Any]) -> str:
    """An event in words: its kind, and what it says of itself."""
    said = [str(event[name]) for name in ("note", "reason", "why", "error", "file") if name in event]
    return " ".join([event["kind"].replace("_", " "), *said[:1]])
