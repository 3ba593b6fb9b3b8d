"""A run's metrics.jsonl and events.jsonl."""

import datetime
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtrain.experiment.experiment import Experiment
from jaxtrain.experiment.observers import ObservedRun, Scores
from jaxtrain.runs.json_lines import Check, append_line, read_lines, repair_lines
from jaxtrain.runs.retention import set_aside_no_file
from jaxtrain.runs.watcher import Watcher


class MetricsLog(Watcher):
    """Appends to metrics.jsonl and events.jsonl in `folder`; a line is in the file when its call returns.

    active: False writes nothing, for all processes but the first.
    """

    def __init__(self, folder: Path, active: bool = True) -> None:
        self._active = active
        self._metrics = folder / "metrics.jsonl"
        self._events = folder / "events.jsonl"
        if active:
            folder.mkdir(parents=True, exist_ok=True)

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Append one line: step, split, then the values. Raises TypeError for a metric named step or split."""
        if self._active:
            numbers = {name: float(value) for name, value in values.items()}
            append_line(self._metrics, dict(step=step, split=split, **numbers))

    def event(self, kind: str, **fields: object) -> None:
        """Append one line: the UTC time in ISO 8601, the kind, then the fields (JSON)."""
        if self._active:
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
            append_line(self._events, dict(time=now, kind=kind, **fields))

    def rewind(self, step: int, log_every: int = 1) -> list[str]:
        """Drop the metrics after `step`, for a run that resumes from there, and set damaged lines aside.

        log_every: the steps of a period, where no event says how many there were.

        Returns a message for everything that is damaged or missing.
        """
        if not self._active:
            return []
        wrong = [*set_aside_no_file(self._metrics), *set_aside_no_file(self._events)]
        if step >= log_every and not (self._metrics.exists() and self._metrics.stat().st_size):
            wrong.append(f"{self._metrics} has no line of the {step} steps until here")
        wrong += repair_lines(self._metrics, line_check(), step) + repair_lines(self._events)
        lines, events = read_lines(self._metrics), read_lines(self._events)
        if lost := missing_lines(lines, events, step, log_every):
            names = ", ".join(f"that of {split} at step {at}" for at, split in lost[:3])
            more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
            note = f"{self._metrics} lacks a line for each of these, which were there once: {names}{more}"
            wrong += [note] if note not in {event.get("note") for event in events} else []  # it is said once
        return wrong

    def trained(self, run: ObservedRun, step: int, metrics: Mapping[str, float], rates: Mapping[str, float]) -> None:
        self.metrics(step, "train", {**metrics, **rates})

    def evaluated(self, run: ObservedRun, step: int, scores: Scores) -> None:
        for split, values in scores.items():
            self.metrics(step, split, values)


def intervals(experiment: Experiment) -> dict[str, int]:
    """How many steps there are between two lines of each split."""
    return {"train": experiment.runtime.log_every, **dict.fromkeys(experiment.evals, experiment.runtime.eval_every)}


def missing_lines(
    lines: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]], step: int, log_every: int
) -> list[tuple[int, str]]:
    """Step and split of the lines that metrics.jsonl lacks between others, by what the events say of the intervals with
    which the run was begun and resumed until `step`. An evaluation of `step` itself may still follow.
    """
    begun: list[tuple[int, dict[str, int]]] = []
    for event in events:
        at, every = event.get("step"), event.get("intervals")
        if event.get("kind") == "begun" and type(at) is int and at >= 0:
            every = every if isinstance(every, dict) else {"train": log_every}
            kept = {name: size for name, size in every.items() if type(size) is int and size > 0}
            begun = [*(each for each in begun if each[0] < at), (at, kept)]
    found, missing = {(line["step"], line["split"]) for line in lines}, []
    for (first, every), (last, _) in itertools.pairwise([*begun, (step, {})]):
        for split, size in every.items():
            end = min(last, step if split == "train" else step - 1)
            missing += [(at, split) for at in range(first - first % size + size, end + 1, size)]
    return [each for each in sorted(missing) if found and each not in found]


def line_check() -> Check:
    """A check for the lines of metrics.jsonl, called in order: of their types, and for repeated lines."""
    seen: set[tuple[int, str]] = set()

    def wrong(line: dict[str, Any]) -> str:
        step, split = line.get("step"), line.get("split")
        if type(step) is not int or not 0 <= step < 2**63 or not isinstance(split, str):
            return "it has no step and split"
        others = {name: value for name, value in line.items() if name not in ("step", "split")}
        for name, value in others.items():
            if type(value) not in (int, float) and value not in ("nan", "inf", "-inf"):
                return f"{name} is not a number"
            if type(value) is int and abs(value) > sys.float_info.max:
                return f"{name} is beyond a float64"
        if (step, split) in seen:
            return f"step {step} of {split} is there twice"
        seen.add((step, split))
        return ""

    return wrong


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, with NaN and infinities, which are strings in the file, as floats.

    Damaged lines are left out, with a warning.
    """
    return [
        {name: float(value) if name != "split" and isinstance(value, str) else value for name, value in line.items()}
        for line in read_lines(folder / "metrics.jsonl", line_check())
    ]
