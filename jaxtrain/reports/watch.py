"""The live view of a run from another shell or machine: reads the folder alone, and writes nothing into it. Imports no
jax.

Not here: what the view shows (`runs/view`), and the state of the run (`status`).
"""

import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from jaxtrain.base.errors import ConfigError
from jaxtrain.reports.find import read_run_file
from jaxtrain.reports.status import Observed, RunStatus, read_status
from jaxtrain.reports.tail import Follower
from jaxtrain.runs.screen import Screen, draws, terminal_size
from jaxtrain.runs.view import RunView, event_text, metrics_text, plain_lines

INTERVAL = 1.0
"""Seconds between two looks."""

OVER = ("finished", "stopped", "preempted", "crashed", "unreadable")


class WatchedRun:
    """What is known of a run from its folder, look by look."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._observed = folder, Observed()
        self._metrics, self._events = Follower(folder / "metrics.jsonl"), Follower(folder / "events.jsonl")
        self.view = RunView(folder.absolute().name, 0)
        self.status = RunStatus("unreadable", "")

    def look(self) -> list[str]:
        """Look again; returns what is new, as lines for a log."""
        self.status = read_status(self._folder, observed=self._observed)
        lines, events = self._metrics.read(), self._events.read()
        if self._metrics.begun_anew:  # a run that resumes has dropped the metrics after its checkpoint
            self.view = RunView(self.view.name, self.view.steps, batch=self.view.batch)
        view, status, new = self.view, self.status, []
        view.steps, view.batch = status.of, view.batch or _batch_of(self._folder)
        for event in events:
            kind = str(event.pop("kind", "event"))
            event.pop("time", None)
            view.event(kind, event)
            new.append(event_text(kind, event))
        for line in lines:
            step, split = line.pop("step", None), line.pop("split", None)
            if type(step) is int and isinstance(split, str):
                new.append(f"step {step}/{status.of}  {split} {self._take(step, split, _numbers(line))}")
        view.done = status.step
        view.stepped(status.step, time.monotonic())
        view.saved(max(saved_steps_of(self._folder), default=0))
        view.note = " ".join(part for part in ("" if status.state == "running" else status.state, status.why) if part)
        return new

    def _take(self, step: int, split: str, values: Mapping[str, float]) -> str:
        if split == "train":
            self.view.trained(step, values)
        else:
            self.view.evaluated(step, split, values)
        return metrics_text({name: value for name, value in values.items() if not name.startswith("seconds_")})


def watch(
    folder: Path,
    stream: TextIO | None = None,
    once: bool = False,
    interval: float = INTERVAL,
    sleep: Callable[[float], object] = time.sleep,
) -> RunStatus:
    """Show a run on `stream` (None: standard output) until it ends; returns its last state. On a terminal that is the
    view, else lines: those that there are, once, then each new one.

    once: show it as it is, and end.

    Raises ConfigError where there is no run.
    """
    stream = stream or sys.stdout
    seen = WatchedRun(folder)
    new = seen.look()
    if not folder.is_dir() or (seen.status.state == "unreadable" and not (folder / "lock.json").exists()):
        raise ConfigError(f"{folder} is not a run: {seen.status.why}")
    live = draws(stream)
    if once:
        lines = seen.view.lines(terminal_size(stream)[0] - 1, 100, color=True) if live else plain_lines(seen.view)
        print("\n".join([*lines, *([] if live else [said(folder, seen.status)])]), file=stream)
        return seen.status
    screen = Screen(stream, (lambda width, height: seen.view.lines(width, height, True)) if live else None)
    screen.write([] if live else new)
    while seen.status.state not in OVER and not screen.lost:
        sleep(interval)
        new = seen.look()
        screen.write([] if live else new)
    screen.close([said(folder, seen.status)])
    return seen.status


def said(folder: Path, status: RunStatus) -> str:
    """The state in a line."""
    return f"{folder}: {status.state}{f' ({status.why})' if status.why else ''}, step {status.step}/{status.of}"


def saved_steps_of(folder: Path) -> list[int]:
    """The steps whose checkpoints are complete, by their names; [] where there are none that can be read."""
    try:
        names = os.listdir(folder / "checkpoints")
    except OSError:
        return []
    return [int(name) for name in names if name.isdecimal() and len(name) < 12]


def _batch_of(folder: Path) -> int:
    """The examples in a step of a run; 0 if unknown."""
    try:
        data = (read_run_file(folder) or {"experiment": {}})["experiment"].get("data")
    except (OSError, ConfigError):
        return 0
    size = data.get("batch_size") if isinstance(data, dict) else None
    return size if type(size) is int else 0


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl, in which those that are not finite are texts."""
    found = {name: math.nan if isinstance(value, str) else value for name, value in line.items()}
    return {name: float(value) for name, value in found.items() if isinstance(value, float | int)}
