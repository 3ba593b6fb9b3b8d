"""What a sweep says of each field: its response curve over seeds, and its importance. Not here: the page."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtrain.reports.statistics import Interval, t_interval
from jaxtrain.reports.sweep.read import SEED, Setting, Sweep, value_text

RANGE_GROUPS = 4
"""Groups with as many trials each, into which a field with a range is divided for its importance."""

FEWEST_TRIALS = 4
"""Trials that finished, without which there is no importance."""


@dataclass(frozen=True)
class Point:
    """The trials with one value of a field."""

    value: Any
    interval: Interval
    """The mean over seeds of the mean over the other fields, and its t-interval, unbounded for a single seed."""
    best: float
    """The best mean over seeds of a setting with this value."""
    trials: int
    """The trials that the mean is made of."""


def response(sweep: Sweep, path: str) -> list[Point]:
    """The response curve of a field: one point for each value that a trial has, in their order.

    The trials of one seed, over the settings of the other fields, are one number. Where not all trials have finished,
    only the settings count that have the most seeds, and of these only the seeds that all have: else the numbers would
    be means over different settings.
    """
    groups: dict[str, list[Setting]] = {}
    for setting in sweep.settings():
        if setting.numbers:
            groups.setdefault(_key(setting.values.get(path)), []).append(setting)
    points = []
    for settings in groups.values():
        by_seed = [_by_seed(setting) for setting in settings]
        most = max(map(len, by_seed))
        whole = [values for values in by_seed if len(values) == most]
        common = set.intersection(*(set(values) for values in whole))
        if not common:  # such as seeds that were drawn: each setting has its own
            whole, common = [{"": setting.mean} for setting in settings], {""}
        means = [statistics.fmean(values[seed] for values in whole) for seed in sorted(common)]
        best = min((setting.mean for setting in settings), key=sweep.badness)
        points.append(Point(settings[0].values.get(path), t_interval(means), best, len(whole) * len(common)))
    return sorted(points, key=lambda point: _order(point.value))


def _by_seed(setting: Setting) -> dict[str, float]:
    ended = (trial for trial in setting.trials if trial.state == "finished")
    return {_key(trial.values.get(SEED)): trial.value for trial in ended if trial.value is not None}


def importance(sweep: Sweep) -> dict[str, float]:
    """The share of the variance of the metric over trials that the value of each field explains alone, from 0 to 1; the
    largest first. {} for fewer than `FEWEST_TRIALS`, or where all trials are equal.

    It is ε² of a one-way analysis of variance, 1 - (within / its degrees of freedom) / (total / its own), at least 0:
    without that bound a field that explains nothing has 0 on average, however many values it has. A range is divided
    into `RANGE_GROUPS` groups. The effect of several fields together is in none, so the shares need not sum to 1.
    """
    trials = [trial for trial in sweep.trials if trial.state == "finished" and trial.value is not None]
    values = np.array([trial.value for trial in trials], np.float64)
    if len(values) < FEWEST_TRIALS or not np.isfinite(values).all() or np.ptp(values) == 0:
        return {}
    total = float(((values - values.mean()) ** 2).sum())
    found = {}
    for axis in sweep.space.axes:
        groups = _groups([trial.values.get(axis.path) for trial in trials])
        count = len(set(groups))
        if count < 2 or count >= len(values):
            found[axis.path] = math.nan  # every trial has a value of its own: nothing can be said
            continue
        members = [values[np.array(groups) == group] for group in sorted(set(groups))]
        within = sum(float(((one - one.mean()) ** 2).sum()) for one in members)
        share = 1 - (within / (len(values) - count)) / (total / (len(values) - 1))
        found[axis.path] = max(0.0, share)
    return dict(sorted(found.items(), key=lambda item: -item[1] if math.isfinite(item[1]) else 1.0))


def _groups(values: Sequence[Any]) -> list[int]:
    """The group of each value: equal values have the same one; of many numbers, neighbours."""
    keys = [_key(value) for value in values]
    kinds = sorted(set(keys))
    if len(kinds) <= max(RANGE_GROUPS, len(values) // 2) or not all(is_number(value) for value in values):
        return [kinds.index(key) for key in keys]
    ranks = np.argsort(np.argsort(np.array(values, np.float64), kind="stable"), kind="stable")
    return (ranks * RANGE_GROUPS // len(values)).tolist()


def is_number(value: Any) -> bool:
    """Whether a value of a field has a place on an axis of numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _order(value: Any) -> tuple[bool, float, str]:
    return (not is_number(value), float(value) if is_number(value) else 0.0, str(value))


def winner_file(sweep: Sweep, values: Mapping[str, Any]) -> str:
    """An experiment file with the values of a trial, to paste beside the sweep's own file, which it imports."""
    file, _, function = sweep.experiment.rpartition(":")
    module = file.rpartition("/")[2].removesuffix(".py")
    lines = [f"    experiment = override(experiment, {path!r}, {value!r})" for path, value in values.items()]
    fixed = [f"    experiment = override(experiment, {path!r}, {value!r})" for path, value in sweep.fixed.items()]
    told = ", ".join(f"{path} {value_text(value)}" for path, value in values.items())
    flags = ["    # The flags of all trials.", *fixed] if fixed else []
    body = [*flags, "    # The values of the best trial.", *lines]
    return "\n".join(
        [
            f'"""The best trial of a sweep of {module}.py: {told}."""',
            "",
            f"from {module} import {function} as base",
            "",
            "from jaxtrain import Experiment, override",
            "",
            "",
            "def main() -> Experiment:",
            f'    """{sweep.metric} was the {"highest" if sweep.mode == "max" else "lowest"} of the sweep."""',
            "    experiment = base()",
            *body,
            "    return experiment",
            "",
        ]
    )
