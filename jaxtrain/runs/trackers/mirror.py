"""The thread of a tracker: takes lines from a bounded queue and gives them to the tool.

Not here: which lines there are (`base`).
"""

import atexit
import json
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxtrain.base.text import cut

AT_ONCE = 200
"""The most lines that a tool is given in one call."""

_EVENTS_AT_ONCE = 1 << 20  # bytes of events.jsonl that are read at once


class Lines(NamedTuple):
    """Metrics by name at a step, and the time in seconds since 1970; values may be NaN and infinite."""

    step: int
    values: Mapping[str, float]
    time: float


class Sink(ABC):
    """A run that is open in a tool. Its methods are called in the tracker's thread, and may take any time."""

    problem: str = ""
    """Why the tool does not take what it is given, while that may still pass."""

    @abstractmethod
    def open(self) -> None:
        """Open the run in the tool, or open it again where it resumes."""

    @abstractmethod
    def send(self, lines: Sequence[Lines], events: Sequence[Mapping[str, Any]]) -> None:
        """Give the tool lines of metrics, and events as they are in events.jsonl. An exception ends the tracker."""

    @abstractmethod
    def close(self, failed: bool) -> None:
        """The run has ended. failed: by an error."""

    @abstractmethod
    def abandon(self) -> None:
        """Give up at once whatever is being done; called in another thread, when the time is over."""


class Courier:
    """Calls a tool in a daemon thread.

    connect: opens the run in the tool. folder: the run's, from where its events are read.
    most: lines that may wait; what comes beyond is dropped. wait: the seconds for which `end` waits.
    """

    def __init__(self, connect: Callable[[], Sink], folder: Path, most: int, wait: float, name: str) -> None:
        self._connect, self._most, self._wait, self._name = connect, most, wait, name
        self._events = _Events(folder / "events.jsonl")
        self._changed = threading.Condition()
        self._lines: list[Lines] = []
        self._sink: Sink | None = None
        self._error: Exception | None = None
        self._total = self._dropped = self._sending = 0
        self._ended = self._failed = self._abandoned = False
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._thread.start()
        self._at_exit = lambda: self.end(failed=True)
        atexit.register(self._at_exit)  # a run that ends by an error calls no observer

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Queue a line, or drop it. Raises the error that ended the thread."""
        self.check()
        with self._changed:
            self._total += bool(values)
            if len(self._lines) >= self._most:
                self._dropped += bool(values)
            else:
                self._lines.append(Lines(step, values, time.time()))
            self._changed.notify()

    def check(self) -> None:
        """Raises the error that ended the thread, if there is one."""
        with self._changed:
            error, self._error = self._error, None
        if error is not None:
            self._leave()
            raise error

    def end(self, failed: bool) -> str:
        """No more lines follow. Waits for those that are left, and gives up what takes longer. Returns what the tool
        did not get, and why, or "".
        """
        with self._changed:
            again, self._ended, self._failed = self._ended, True, failed
            self._changed.notify()
        if again:
            return ""
        self._thread.join(self._wait)
        self._leave()
        with self._changed:
            late = self._thread.is_alive()
            self._abandoned = True
            lost = self._dropped + (self._sending + len(self._lines) if late else 0)
            sink, total = self._sink, self._total
        if late and sink is not None:
            sink.abandon()
        if self._error is not None or not (late or lost):
            return ""
        reason = (sink.problem if sink else "") or ("it did not answer" if late else "it is slower than the run")
        ending = f"; it was given up {self._wait:g} s after the end of the run" if late else ""
        return f"{self._name} did not get {lost} of {total} lines of metrics: {cut(reason, 300)}{ending}"

    def _leave(self) -> None:
        atexit.unregister(self._at_exit)

    def _run(self) -> None:
        try:
            sink = self._connect()
            with self._changed:
                self._sink, abandoned = sink, self._abandoned
            if abandoned:
                sink.abandon()
                return
            sink.open()
            while True:
                with self._changed:
                    while not (self._lines or self._ended):
                        self._changed.wait()
                    if self._abandoned:
                        return
                    lines, self._lines = self._lines[:AT_ONCE], self._lines[AT_ONCE:]
                    self._sending, last = sum(bool(line.values) for line in lines), self._ended and not self._lines
                sink.send([line for line in lines if line.values], self._events.new())
                with self._changed:
                    self._sending = 0
                if last:
                    sink.close(self._failed)
                    return
        except Exception as error:  # of any tool: the run's next call raises it
            with self._changed:
                self._error = error


class _Events:
    """Reads the events of a session as they come."""

    def __init__(self, path: Path) -> None:
        self._path, self._rest = path, b""
        try:
            with path.open("rb") as file:
                first = max(0, file.seek(0, os.SEEK_END) - _EVENTS_AT_ONCE)
                file.seek(first)
                data = file.read(_EVENTS_AT_ONCE)
        except OSError:
            first, data = 0, b""
        self._at = first + data.rfind(b"\n", 0, max(data.rfind(b'"kind": "begun"'), 0)) + 1

    def new(self) -> list[dict[str, Any]]:
        """The events since the last call, from the last `begun` on; [] where the file is gone."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                data = file.read(_EVENTS_AT_ONCE)
        except OSError:
            return []
        self._at += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        found = []
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                found.append(event)
        return found
