"""A driver of a sweep: runs trials, as many at once as it has slots, and records how each ended.

Several drivers may work on one folder, on this host or others. Whatever is killed, a driver or a trial, a later driver
resumes: a trial is a run folder, and `jaxtrain train` resumes it. Not here: which values trials have (`search`).
"""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtrain.base.errors import ConfigError, ExitCode
from jaxtrain.base.files import read_json, write_json
from jaxtrain.base.text import cut
from jaxtrain.launch.job import should_restart
from jaxtrain.launch.local import Processes
from jaxtrain.launch.sweep.claims import Claims
from jaxtrain.launch.sweep.search import Search
from jaxtrain.launch.sweep.slots import Slot
from jaxtrain.reports.sweep.read import Sweep, label
from jaxtrain.reports.sweep.space import as_values
from jaxtrain.runs.lock import Watch
from jaxtrain.runs.metrics_log import read_metrics

LOOK = 0.1
"""Seconds between two looks at the running trials."""

LOOK_ELSEWHERE = 1.0
"""Seconds between two looks at the trials of other drivers."""

LONGEST_PAUSE = 60.0
"""Seconds before a trial that asked to be run again is, at most; the first time it is at once, then 2, 4, 8 …"""

LOG_END = 1 << 16
"""Bytes of a log in which the reason of a failure is looked for."""

Say = Callable[[str], None]


@dataclass
class _Running:
    number: int
    asked: dict[str, Any]
    slot: Slot
    process: subprocess.Popen | None = None
    """None while it waits to be run again."""
    starts: int = 0
    due: float = 0.0
    watch: Watch | None = None
    """Of its run folder, while a process that its former driver left behind may still write there."""
    log_from: int = 0


@dataclass
class Driver:
    """One driver; `run` does all its work."""

    sweep: Sweep
    claims: Claims
    processes: Processes
    slots: Sequence[Slot]
    search: Search
    command: Callable[[Path, Mapping[str, Any]], list[str]]
    """The command line of a trial, from its run folder and its values."""
    restarts: int
    wait: bool
    """Whether to wait for the trials of other drivers, to take them over where their driver dies."""
    say: Say
    _running: list[_Running] = field(default_factory=list)
    _elsewhere: set[int] = field(default_factory=set)
    _fresh: int = 1
    _looked: float = -math.inf

    def run(self) -> ExitCode:
        """Run trials until all have ended, or a signal has come: RETRY then, and INTERRUPTED after Ctrl-C."""
        while True:
            for one in list(self._running):
                self._look(one)
            if not self.processes.signalled:
                self._fill()
            if not self._running:
                if self.processes.signalled:
                    return ExitCode.INTERRUPTED if self.processes.signalled == signal.SIGINT else ExitCode.RETRY
                if not self._elsewhere or not self.wait:
                    return ExitCode.FINISHED
            time.sleep(LOOK)

    def _fill(self) -> None:
        free = list(self.slots)
        for one in self._running:
            free.remove(one.slot)
        for slot in free:
            number = self._next()
            if number is None:
                return
            one = _Running(number, self._asked(number), slot)
            self._running.append(one)
            self._start(one)

    def _next(self) -> int | None:
        """A trial that is now this driver's; None where there is none at the moment."""
        while self._fresh <= len(self.sweep.space):
            self._fresh += 1
            if not self._has_ended(self._fresh - 1):
                if self.claims.take(self._fresh - 1):
                    return self._fresh - 1
                self._elsewhere.add(self._fresh - 1)
        if time.monotonic() - self._looked >= LOOK_ELSEWHERE:
            self._looked = time.monotonic()
            self._elsewhere = {number for number in self._elsewhere if not self._has_ended(number)}
            for number in sorted(self._elsewhere):
                if self.claims.take(number):
                    self._elsewhere.remove(number)
                    self._looked = -math.inf
                    return number
        return None

    def _has_ended(self, number: int) -> bool:
        return self._file("results", number).exists()

    def _file(self, place: str, number: int) -> Path:
        return self.sweep.folder / place / f"{label(number)}.json"

    def _folder(self, number: int) -> Path:
        return self.sweep.folder / "trials" / label(number)

    def _asked(self, number: int) -> dict[str, Any]:
        """The values of a trial: those that an earlier driver recorded for it, else new ones from the search."""
        file = self._file("asked", number)
        if file.is_file():
            asked = read_json(file)
            if not isinstance(asked, dict) or not isinstance(asked.get("values"), dict):
                raise ConfigError(f"{file} was not written by a sweep: move it away")
            return {**asked, "values": as_values(asked["values"])}
        asked = self.search.ask(number)
        file.parent.mkdir(exist_ok=True)
        write_json(file, asked)
        return asked

    def _start(self, one: _Running) -> None:
        """Start the process of a trial, unless that of a driver that died still trains it; then look again later."""
        if self._folder(one.number).is_dir():
            first, one.watch = one.watch is None, one.watch or Watch(self._folder(one.number))
            if not one.watch.is_free():
                one.due = time.monotonic() + LOOK
                if first:
                    self.say(f"trial {one.number} is still trained by a process of another driver: waiting for it")
                return
            one.watch = None
        log = self.sweep.folder / "logs" / f"{label(one.number)}.log"
        log.parent.mkdir(exist_ok=True)
        command = self.command(self._folder(one.number), one.asked["values"])
        one.starts += 1
        again = "resumed" if self._folder(one.number).is_dir() else "began"
        self.say(f"trial {one.number} {again}: {' '.join(command[command.index('--run') + 2 :])}")
        cores = os.sched_getaffinity(0) if one.slot.cores and hasattr(os, "sched_getaffinity") else None
        with log.open("ab") as out:
            one.log_from = out.tell()
            if cores is not None:
                os.sched_setaffinity(0, one.slot.cores)  # a child inherits the cores of the thread that starts it
            try:
                one.process = subprocess.Popen(
                    command,
                    env=one.slot.environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            finally:
                if cores is not None:
                    os.sched_setaffinity(0, cores)
        self.processes.running.append(one.process)

    def _look(self, one: _Running) -> None:
        """What to do with a trial that runs, has ended, or waits to be run again."""
        if one.process is None:
            if self.processes.signalled:
                self._running.remove(one)
            elif time.monotonic() >= one.due:
                self._start(one)
            return
        code = one.process.poll()
        if code is None:
            return
        self.processes.running.remove(one.process)
        one.process = None
        code = code if code >= 0 else 128 - code
        if not self.claims.holds(one.number):
            self.say(f"trial {one.number} was taken over by another driver")
            self._elsewhere.add(one.number)
        elif code == ExitCode.FINISHED:
            self._record(one, code, *self._outcome(one.number))
        elif self.processes.signalled:
            self.say(f"trial {one.number} stopped (exit code {code}); it will be resumed")
        elif should_restart(code) and one.starts <= self.restarts:
            pause = min(LONGEST_PAUSE, 2.0 ** (one.starts - 1)) if one.starts > 1 else 0.0
            one.due = time.monotonic() + pause
            when = f" in {pause:.0f} s" if pause else ""
            self.say(f"trial {one.number} ended with exit code {code}: it is resumed{when}")
            return
        else:
            self._record(one, code, "failed", self._reason(one, code), 0, None)
        self._running.remove(one)

    def _record(self, one: _Running, code: int, state: str, why: str, step: int, value: float | None) -> None:
        found = {"number": one.number, "state": state, "why": why, "code": code, "step": step, "value": value}
        self.search.tell(one.asked, state, value)
        file = self._file("results", one.number)
        file.parent.mkdir(exist_ok=True)
        write_json(file, found)
        self.say(f"trial {one.number} {state}: {why or f'{self.sweep.metric} {value:.6g}'}")

    def _outcome(self, number: int) -> tuple[str, str, int, float | None]:
        """State, reason, step and value of a trial whose process ended with exit code 0."""
        split, _, name = self.sweep.metric.partition("/")
        lines = [line for line in read_metrics(self._folder(number)) if line["split"] == split and name in line]
        if not lines:
            return "failed", f"its run holds no {self.sweep.metric}", 0, None
        finite = [line for line in lines if math.isfinite(line[name])]
        last = min(finite, key=lambda line: self.sweep.badness(line[name])) if self.sweep.best and finite else lines[-1]
        step, value = last["step"], float(last[name])
        file = self._file("evaluations", number)
        if file.is_file() and (why := read_json(file).get("pruned")):
            return "pruned", str(why).removeprefix("pruned: "), step, value
        if not math.isfinite(value):
            return "failed", f"{self.sweep.metric} is {value} at step {step}", step, None
        return "finished", "", step, value

    def _reason(self, one: _Running, code: int) -> str:
        """Why a trial failed, from its exit code and the last message in its log."""
        log = self.sweep.folder / "logs" / f"{label(one.number)}.log"
        with log.open("rb") as file:
            file.seek(max(one.log_from, log.stat().st_size - LOG_END))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        said = [line for line in lines if line.startswith("jaxtrain: ")] or lines[-1:]
        how = f"exit code {code}" if code <= 128 else f"killed by signal {code - 128}"
        times = f", {one.starts} times" if one.starts > 1 else ""
        why = f": {cut(said[-1].removeprefix('jaxtrain: '), 300)}" if said else ""
        return f"{how}{times}{why}"


def to_stderr(line: str) -> None:
    """Print a line of progress, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)
