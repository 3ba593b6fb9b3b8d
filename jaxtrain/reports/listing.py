"""A list of runs: the state, progress, best metric and origin of each, sorted and filtered. Imports no jax.

Not here: how a state is found (`status`), and what a single run looks like (`watch`).
"""

import fnmatch
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.text import duration, number, printable, table
from jaxtrain.reports.find import experiment_name, find_runs, parent_of, read_run_file, sweep_of
from jaxtrain.reports.status import RunStatus, read_status
from jaxtrain.reports.tail import json_object, read_bounded

LARGEST_METRICS = 1 << 26
"""Bytes of a metrics.jsonl that are searched for the best value, from its end."""


@dataclass(frozen=True)
class Best:
    """The best value of a metric in a run's evaluations; the last one of the train split, if nothing is evaluated."""

    metric: str
    value: float
    step: int
    lowest: bool = True
    """Whether lower values are better."""


@dataclass(frozen=True)
class Listed:
    """A run in the list."""

    folder: Path
    status: RunStatus
    experiment: str = ""
    best: Best | None = None
    parent: str = ""
    sweep: str = ""

    def fact(self, key: str) -> Any:
        """The value of one of `FACTS`."""
        return FACTS[key](self)


FACTS: Mapping[str, Callable[[Listed], Any]] = {
    "run": lambda run: str(run.folder),
    "state": lambda run: run.status.state,
    "experiment": lambda run: run.experiment,
    "step": lambda run: run.status.step,
    "of": lambda run: run.status.of,
    "phase": lambda run: run.status.phase,
    "best": lambda run: math.nan if run.best is None else run.best.value,
    "began": lambda run: run.status.began,
    "updated": lambda run: run.status.updated,
    "parent": lambda run: run.parent,
    "sweep": lambda run: run.sweep,
    "host": lambda run: run.status.host,
}
"""What runs are sorted and filtered by."""

_NEWEST_FIRST = ("began", "updated", "step", "of")


def list_runs(place: Path, now: float | None = None) -> list[Listed]:
    """The runs below a folder, in order of their names. Raises ConfigError where there is no such folder.

    now: the time in seconds since 1970; by default this machine's.
    """
    if not place.is_dir():
        raise ConfigError(f"there is no folder {place}: give one that holds runs")
    now = time.time() if now is None else now
    return [_listed(folder, why, now) for folder, why in find_runs(place)]


def _listed(folder: Path, why: str, now: float) -> Listed:
    if why:
        return Listed(folder, RunStatus("unreadable", why))
    try:
        saved = read_run_file(folder)
    except (OSError, ConfigError):
        saved = None
    status = read_status(folder, now, saved=saved)
    if saved is None:
        return Listed(folder, status)
    try:
        best = best_of(folder, saved)
    except OSError:
        best = None
    return Listed(folder, status, experiment_name(saved), best, parent_of(saved), sweep_of(folder))


def best_of(folder: Path, saved: Mapping[str, Any]) -> Best | None:
    """The best evaluation by the run's `keep.best`, or the lowest loss of its first split; None before the first.

    Raises OSError where metrics.jsonl cannot be read.
    """
    runtime, evals = saved["experiment"].get("runtime"), saved["experiment"].get("evals")
    keep = runtime.get("keep") if isinstance(runtime, dict) else None
    named = keep.get("best") if isinstance(keep, dict) else None
    lowest = not (isinstance(keep, dict) and named and keep.get("mode") == "max")
    first = next(iter(evals), None) if isinstance(evals, dict) else None
    split, _, metric = str(named or f"{first or 'train'}/loss").partition("/")
    found = read_bounded(folder / "metrics.jsonl", LARGEST_METRICS if first else 1 << 14, from_end=True)
    values: list[tuple[float, int]] = []
    mark = f'"split": "{split}"'.encode()
    for line in found[0].split(b"\n") if found else []:
        if mark in line and (each := json_object(line)) and each.get("split") == split:
            value, step = each.get(metric), each.get("step")
            if isinstance(value, float | int) and math.isfinite(value) and type(step) is int:
                values.append((float(value), step))
    if not values:
        return None
    chosen = min if lowest else max
    value, step = chosen(values, key=lambda pair: pair[0]) if first else values[-1]
    return Best(f"{split}/{metric}", value, step, lowest)


def sort_runs(runs: Iterable[Listed], key: str, reverse: bool = False) -> list[Listed]:
    """The runs by one of `FACTS`: texts in order, times and steps with the latest first, the best value first.

    Raises ConfigError for another key.
    """
    _check_key(key, "--sort")

    def order(run: Listed) -> tuple[bool, Any]:
        value = run.fact(key)
        if isinstance(value, str):
            return value == "", value
        if key == "best" and run.best is not None and not run.best.lowest:
            value = -value
        return math.isnan(value), -value if key in _NEWEST_FIRST else value

    return sorted(runs, key=order, reverse=reverse)


def keep_runs(runs: Iterable[Listed], conditions: Sequence[str]) -> list[Listed]:
    """The runs that meet all conditions, such as "state=running", "experiment=digits*", "step>100", "parent!=".

    Raises ConfigError for what is no condition.
    """
    tests = [_condition(text) for text in conditions]
    return [run for run in runs if all(test(run) for test in tests)]


def _condition(text: str) -> Callable[[Listed], bool]:
    match = re.fullmatch(r"\s*(\w+)\s*(!=|=|<|>)\s*(.*?)\s*", text, re.DOTALL)
    if match is None:
        raise ConfigError(f"--where {text!r}: give KEY=VALUE, KEY!=VALUE, KEY<NUMBER or KEY>NUMBER")
    key, sign, value = match.groups()
    _check_key(key, "--where")
    if sign in "<>":
        try:
            limit = float(value)
        except ValueError:
            raise ConfigError(f"--where {text}: {value!r} is not a number") from None
        if isinstance(FACTS[key](Listed(Path(), RunStatus("running", ""))), str):
            raise ConfigError(f"--where {text}: {key} is a text, which has = and != alone")
        return lambda run: run.fact(key) < limit if sign == "<" else run.fact(key) > limit

    def same(run: Listed) -> bool:
        fact = run.fact(key)
        return fnmatch.fnmatchcase(fact if isinstance(fact, str) else f"{fact:g}", value)

    return same if sign == "=" else lambda run: not same(run)


def _check_key(key: str, flag: str) -> None:
    if key not in FACTS:
        raise ConfigError(f"{flag} {key}: runs have no {key!r}{nearest(key, FACTS)}")


def as_table(runs: Sequence[Listed], place: Path, now: float | None = None) -> str:
    """The runs as a table; columns that are empty for all are left out."""
    now = time.time() if now is None else now
    rows = [["run", "state", "step", "best", "age", "parent", "sweep", "why"]]
    for run in runs:
        status, best = run.status, run.best
        done = f"{status.step}/{status.of}" if status.of else ""
        shown = f"{best.metric} {number(best.value)} at {best.step}" if best else ""
        age = duration(max(0.0, now - status.began)) if status.began else ""
        links = [run.parent, Path(run.sweep).name]
        rows.append([_short(run.folder, place), status.state, done, shown, age, *links, status.why])
    cells = [[printable(cell, 100) for cell in row] for row in rows]
    filled = [column for column in range(len(rows[0])) if column < 2 or any(row[column] for row in cells[1:])]
    return table([[row[column] for column in filled] for row in cells])


def _short(folder: Path, place: Path) -> str:
    return str(folder.relative_to(place)) if folder != place and folder.is_relative_to(place) else str(folder)


def as_facts(runs: Iterable[Listed]) -> list[dict[str, Any]]:
    """The runs as plain values, for JSON."""
    return [{**asdict(run), "folder": str(run.folder)} for run in runs]
