"""A run's metrics.jsonl and events.jsonl."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtrain.experiment.observers import ObservedRun, Scores
from jaxtrain.runs.json_lines import append_line, drop_partial_line, read_lines, write_lines
from jaxtrain.runs.watcher import Watcher


class MetricsLog(Watcher):
    """Appends to metrics.jsonl and events.jsonl in `folder`; each call is on disk when it returns.

    active: False writes nothing, for all processes but the first.
    """

    def __init__(self, folder: Path, active: bool = True) -> None:
        self._active = active
        self._metrics = folder / "metrics.jsonl"
        self._events = folder / "events.jsonl"
        if active:
            folder.mkdir(parents=True, exist_ok=True)
            drop_partial_line(self._metrics)
            drop_partial_line(self._events)

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

    def rewind(self, step: int) -> None:
        """Drop the metrics after `step`, for a run that resumes from there."""
        if not self._active:
            return
        lines = read_lines(self._metrics)
        kept = [line for line in lines if line["step"] <= step]
        if len(kept) < len(lines):
            write_lines(self._metrics, kept)

    def trained(self, run: ObservedRun, step: int, metrics: Mapping[str, float], rates: Mapping[str, float]) -> None:
        self.metrics(step, "train", {**metrics, **rates})

    def evaluated(self, run: ObservedRun, step: int, scores: Scores) -> None:
        for split, values in scores.items():
            self.metrics(step, split, values)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, with NaN and infinities as floats: JSON has none, so the file has strings."""
    return [
        {name: float(value) if name != "split" and isinstance(value, str) else value for name, value in line.items()}
        for line in read_lines(folder / "metrics.jsonl")
    ]
