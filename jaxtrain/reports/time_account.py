"""Where the wall-clock time of a run went, over all its sessions: from the start of its first process to the end of
the last one, with the time between two sessions and the steps that were trained twice.

A session is one process from its start to its end. The clock of a session says where its seconds went (`runs/clock`);
what a killed session left of it is in the event that begins the next one. Not here: speed by step, which is a curve.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jaxtrain.base.text import duration
from jaxtrain.runs.clock import Clock
from jaxtrain.runs.json_lines import read_lines
from jaxtrain.runs.metrics_log import read_metrics
from jaxtrain.runs.sessions import last_sign, seconds_of_line

STEPS, AGAIN, START, UNKNOWN, DOWN = "steps", "steps trained again", "start of the process", "not accounted for", "down"

PHASE_NAMES = {
    "data": "waiting for data",
    "eval": "evaluation",
    "save": "saving",
    "compile": "compiling",
    "restore": "restoring",
    "other": "other",
}
"""The names of the phases of `runs/clock`, but "step", which is `STEPS` and `AGAIN`."""


@dataclass(frozen=True)
class Session:
    """One process of a run, on process 0's clock."""

    start: float
    """When the process started, in seconds since 1970; where a notebook trained, when `train` was called."""
    end: float
    """When it ended; of one that was killed, when it wrote last."""
    ended: bool
    """Whether it said that it ends."""
    startup: float
    """Seconds from the start of the process to `train`, in which Python imports."""
    seconds: Mapping[str, float]
    """Seconds by phase of `runs/clock`, as last known."""
    first: int
    """The steps that were done when it began."""
    last: int
    """The last step that it is known to have trained."""
    kept: int
    """The last of its steps that no later session trained again."""
    kept_seconds: float
    """Seconds of the phase "step" until `kept`."""


@dataclass(frozen=True)
class TimeAccount:
    """The wall-clock time of a run, in seconds."""

    sessions: tuple[Session, ...]
    seconds: Mapping[str, float]
    """Seconds by use: they sum to `total`. `not accounted for` is what no clock reports, such as the last seconds of a
    killed session.
    """
    total: float
    """From the start of the first process to the end of the last one."""
    complete: bool
    """Whether every session recorded its account. Runs of earlier versions did not."""

    @property
    def goodput(self) -> float:
        """The share of the wall-clock time in which steps were trained that no later session trained again, between 0
        and 1; NaN for a run without any time. Waiting for data, evaluations and saving do not count as training.
        """
        return self.seconds[STEPS] / self.total if self.total > 0 else math.nan

    @property
    def text(self) -> str:
        """A line for each use of the time, the longest first."""
        uses = sorted(self.seconds.items(), key=lambda use: -use[1])
        lines = [f"{name:<22} {duration(x):>9} {x / self.total:6.1%}" for name, x in uses if x > 0]
        many = f"{len(self.sessions)} session{'s' if len(self.sessions) != 1 else ''}"
        return "\n".join([f"{duration(self.total)} in {many}, goodput {self.goodput:.1%}", *lines])


def time_account(folder: Path) -> TimeAccount:
    """The account of the run in a folder, from its events and metrics. Damaged lines are left out, with a warning. One
    that is being trained is accounted for until it wrote last; one without any session has a total of 0.
    """
    lines = read_metrics(folder)
    return account_of(read_lines(folder / "events.jsonl"), lines, last_sign(folder, lines))


def account_of(
    events: Sequence[Mapping[str, Any]], lines: Sequence[Mapping[str, Any]], sign: Mapping[str, Any]
) -> TimeAccount:
    """`time_account` of a run with these objects of events.jsonl and metrics.jsonl, and with what `last_sign` tells."""
    parts = list(_parts([event for event in events if _time(event) is not None]))
    trained = [line for line in lines if line.get("split") == "train"]
    sessions: list[Session] = []
    limit = math.inf  # the step from which on a later session trained again
    for number in reversed(range(len(parts))):
        left = parts[number + 1][0].get("before", {}) if number + 1 < len(parts) else sign
        first = _step(parts[number][0])
        own = [(_step(line), _numbers(seconds_of_line(line))) for line in trained if first < _step(line) <= limit]
        sessions.insert(0, _session(parts[number], left, limit, own))
        limit = min(limit, first)
    complete = all("seconds_by_phase" in part[0] for part in parts)
    total = max(each.end for each in sessions) - sessions[0].start if sessions else 0.0
    return TimeAccount(tuple(sessions), _summed(sessions, total), total, complete)


def _summed(sessions: Sequence[Session], total: float) -> dict[str, float]:
    found = dict.fromkeys((STEPS, AGAIN, *PHASE_NAMES.values(), START, UNKNOWN, DOWN), 0.0)
    ended = math.inf
    for each in sessions:
        found[STEPS] += each.kept_seconds
        found[AGAIN] += each.seconds.get("step", 0.0) - each.kept_seconds
        for phase, name in PHASE_NAMES.items():
            found[name] += each.seconds.get(phase, 0.0)
        found[START] += each.startup
        found[DOWN] += max(0.0, each.start - ended)
        ended = each.end
    found[UNKNOWN] = total - sum(found.values())  # negative where clocks of machines differ
    return found


def _parts(events: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """The events of each session, from its event `begun` on."""
    begun = [place for place, event in enumerate(events) if event.get("kind") == "begun"]
    for first, after in itertools.pairwise([*begun, len(events)]):
        yield list(events[first:after])


def _session(
    events: Sequence[Mapping[str, Any]], left: Any, limit: float, lines: Sequence[tuple[int, dict[str, float]]]
) -> Session:
    begun, first = events[0], _step(events[0])
    accounts = [(_step(each), _seconds(each)) for each in events if each.get("kind") in ("begun", "saving")]
    end = max(_time(each) or 0.0 for each in events)
    closing = next((each for each in reversed(events) if each.get("kind") in ("ended", "failed")), None)
    if closing is not None:
        accounts.append((_step(closing), _seconds(closing)))
        end = _time(closing) or end
    elif isinstance(left, Mapping):
        end = max(end, _time({"time": left.get("alive")}) or 0.0)
        if _step(left) > first:  # else it is a line of the session before
            accounts.append((_step(left), _numbers(left.get("seconds"))))
    last, seconds = max(accounts, key=lambda account: sum(account[1].values()))
    last = max(last, first)
    kept = int(min(last, max(limit, first)))
    startup = _number(begun.get("startup"))
    start = (_time(begun) or 0.0) - sum(_seconds(begun).values()) - startup
    known = [*accounts, *lines]
    return Session(start, end, closing is not None, startup, seconds, first, last, kept, _until(kept, last, known))


def _until(kept: int, last: int, accounts: Sequence[tuple[int, Mapping[str, float]]]) -> float:
    """Seconds of the phase "step" at the step `kept`, between known steps in proportion."""
    at = {step: seconds.get("step", 0.0) for step, seconds in sorted(accounts, key=lambda each: sum(each[1].values()))}
    if kept in at:
        return at[kept]
    before = max((step for step in at if step <= kept), default=0)
    later = min((step for step in at if step >= kept), default=last)
    if later == before:
        return at.get(before, 0.0)
    share = (kept - before) / (later - before)
    return at.get(before, 0.0) + share * (at.get(later, 0.0) - at.get(before, 0.0))


def _time(event: Mapping[str, Any]) -> float | None:
    try:
        return datetime.fromisoformat(str(event.get("time"))).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _step(event: Mapping[str, Any]) -> int:
    step = event.get("step")
    return step if type(step) is int and step >= 0 else 0


def _seconds(event: Mapping[str, Any]) -> dict[str, float]:
    return _numbers(event.get("seconds_by_phase"))


def _numbers(found: Any) -> dict[str, float]:
    found = found if isinstance(found, Mapping) else {}
    return {phase: _number(found.get(phase)) for phase in Clock.PHASES}


def _number(value: Any) -> float:
    return float(value) if type(value) in (int, float) and math.isfinite(value) and value >= 0 else 0.0
