"""The heartbeat in a run's lock: what a reader on another machine can know of a process that it cannot see.

It says how far the run is, and for how long nothing has changed by the owner's own clock, so that a long compile is not
taken for a hang and clocks of machines need not agree. Not here: the lock (`lock`), and what the numbers mean for the
state of the run (`reports/status`).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtrain.cluster.watchdog import Progress

SILENT = 45.0
"""Seconds without a heartbeat after which an owner on another machine counts as dead."""

_SECONDS = 1e8  # more than three years, in the room for the number


@dataclass(frozen=True)
class Beat:
    """One heartbeat."""

    number: int
    step: int = 0
    phase: str = ""
    """"" where the owner of the lock trains nothing, such as `jaxtrain checkpoints prune`."""
    idle: float = 0.0
    """Seconds since step or phase changed last."""
    pace: float = 0.0
    """Seconds a step, between the last two heartbeats that saw another step; 0 before."""

    def to_json(self) -> dict[str, str]:
        """Texts of the same length for every heartbeat, so that a reader who sees parts of two reads JSON too."""
        seconds = {name: f"{min(getattr(self, name), _SECONDS):013.3f}" for name in ("idle", "pace")}
        return {"beats": f"{self.number:012d}", "step": f"{self.step:012d}", "phase": f"{self.phase:8.8}", **seconds}


def read_beat(value: Any) -> Beat | None:
    """The heartbeat in a lock file, of which earlier versions wrote the number alone; None for any other value."""
    try:
        if isinstance(value, str):
            return Beat(int(value))
        numbers = int(value["beats"]), int(value["step"])
        return Beat(*numbers, str(value["phase"])[:8].strip(), float(value["idle"]), float(value["pace"]))
    except (ValueError, TypeError, KeyError, OverflowError):
        return None


class Heartbeat:
    """Makes the heartbeats of a process. To be used from one thread at a time.

    progress: the step and the phase (of `runs/clock`) that the process is in.
    now: the time in seconds, from any origin.
    """

    def __init__(self, progress: Progress, now: Callable[[], float] = time.monotonic) -> None:
        self._progress, self._now = progress, now
        self._number, self._pace = -1, 0.0
        self._seen, self._since = progress(), now()
        self._stepped = self._seen[0], self._since

    def next(self) -> Beat:
        """The next heartbeat; the first has number 0."""
        now, seen = self._now(), self._progress()
        self._number += 1
        if seen != self._seen:
            self._seen, self._since = seen, now
        step, before = self._stepped
        if seen[0] != step:
            self._pace = (now - before) / (seen[0] - step) if seen[0] > step and step else 0.0
            self._stepped = seen[0], now
        return Beat(self._number, *seen, now - self._since, self._pace)
