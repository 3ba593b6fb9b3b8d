"""The state of a run, from its folder alone and without writing: running, finished, stopped, preempted, crashed,
stalled, or unreadable. Imports no jax.

On the machine of the run its process is looked up. From elsewhere its heartbeat tells: the owner rewrites its lock
every 5 s. One look compares the time of that write, which the file system keeps, with this machine's clock; `Observed`
compares two looks, and no clocks. Times that the run wrote into its files are shown, and never compared with a clock.
They are compared with each other.

Not here: listing many runs (`listing`), and their metrics as they come (`watch`).
"""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from jaxtrain.base.errors import ConfigError, ExitCode
from jaxtrain.base.text import cut, duration
from jaxtrain.reports.find import LARGEST_RUN_FILE, read_run_file
from jaxtrain.reports.tail import LARGEST_TAIL, last_objects, read_bounded
from jaxtrain.runs.heartbeat import SILENT, Beat
from jaxtrain.runs.owner import FREE, beat_of, last_lock, machine, parsed, process_start
from jaxtrain.runs.view import PHASE_WORDS

State = Literal["running", "finished", "stopped", "preempted", "crashed", "stalled", "unreadable"]

LOST = 3600.0
"""Seconds without a heartbeat after which a run on another machine, stalled after `SILENT`, has crashed.
Clocks of machines seldom differ by so much.
"""

HANGS, HANGS_AT_FIRST, PACES = 120.0, 600.0, 20
"""A run that waits for a step or its batch is stalled after `HANGS` seconds and the time of `PACES` steps; while that
is not known, after `HANGS_AT_FIRST`. Compiling, restoring, evaluating and saving may take any time.
"""

_STEP_HEADER, _STEP_RECORD = 16, 29  # bytes of steps.bin, as in runs/steps_log


@dataclass(frozen=True)
class RunStatus:
    """What a run's folder says of its state."""

    state: State
    why: str
    """One line for people."""
    step: int = 0
    """The last step that is known to be done."""
    of: int = 0
    phase: str = ""
    """Of a run that lives: compile, restore, data, step, eval, save or other."""
    updated: float = 0.0
    """When the folder was written last, in seconds since 1970, by the file system's clock."""
    began: float = 0.0
    """When the run began, in seconds since 1970, by its own clock; 0 if unknown."""
    host: str = ""
    pid: int = 0
    live: bool = False
    """Whether a process holds the folder."""


@dataclass
class Observed:
    """The heartbeat of one run between several looks, timed by this process's own clock."""

    content: bytes = b""
    changed: float = 0.0
    """When another heartbeat was seen last."""
    looks: int = 0


@dataclass(frozen=True)
class _Lock:
    content: bytes
    silent: float
    """Seconds since the last heartbeat."""
    sure: bool
    """Whether that is known from two looks, and not by comparing clocks."""
    written: float


def read_status(
    folder: Path, now: float | None = None, observed: Observed | None = None, saved: Mapping[str, Any] | None = None
) -> RunStatus:
    """The state of the run in a folder, whatever the folder holds: nothing is raised, and nothing written.

    now: the time in seconds since 1970; by default this machine's.
    observed: the same object at every look at this run, which makes the answer independent of clocks.
    saved: the content of experiment.json, where it has been read already.
    """
    now = time.time() if now is None else now
    try:
        if not folder.is_dir():
            return RunStatus("unreadable", "there is no such folder")
        lock = _read_lock(folder, now, observed)
        saved = read_run_file(folder) if saved is None else saved
        if saved is None:
            return _without_run_file(folder, lock)
        return _status(folder, saved, lock)
    except (OSError, ConfigError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return RunStatus("unreadable", cut(reason, 200))


def _read_lock(folder: Path, now: float, observed: Observed | None) -> _Lock | None:
    try:
        last = last_lock(folder)
    except ConfigError:
        last = None
    if last is None:
        return None
    path, content = last
    try:
        written = os.stat(path).st_mtime
    except OSError:
        return None
    silent, sure = now - written, False
    if observed is not None:
        here = time.monotonic()
        if content != observed.content:
            sure = observed.looks > 0
            observed.content, observed.changed = content, here
        else:
            sure = here - observed.changed >= SILENT
        observed.looks += 1
        silent = here - observed.changed if sure else silent
    return _Lock(content, silent, sure, written)


def _without_run_file(folder: Path, lock: _Lock | None) -> RunStatus:
    owner = parsed(lock.content) if lock else None
    if lock and owner and owner.state != FREE and owner.seen() is not False and lock.silent < SILENT:
        return RunStatus("running", "it begins", updated=lock.written, host=owner.host, pid=owner.pid, live=True)
    what = "it ended before it was a run" if lock or (folder / "environment.json").exists() else "it is not a run"
    return RunStatus("unreadable", f"{what}: it has no experiment.json")


def _status(folder: Path, saved: Mapping[str, Any], lock: _Lock | None) -> RunStatus:
    events, began, said = _events(folder)
    logged, wrote = _last_step(folder)
    updated = max(said, wrote, lock.written if lock else 0.0)
    of, owner = saved["experiment"]["steps"], parsed(lock.content) if lock else None
    beat = (beat_of(lock.content) if lock else None) or Beat(0)
    facts: dict[str, Any] = {"of": of, "updated": updated, "began": began}
    if lock is not None and owner is not None:
        facts |= {"host": owner.host, "pid": owner.pid}
        found = None if owner.state == FREE else _alive(owner, lock)
        if found is not None:
            state, why = found
            trains = bool(beat.phase) or isinstance(json.loads(lock.content)["heartbeat"], str)
            if state == "running" and trains:
                state, why = _progress(beat)
            if trains:
                return RunStatus(state, why, max(beat.step, logged), phase=beat.phase, live=True, **facts)
    state, why, step = _ended(folder, events, owner is not None and owner.state != FREE, owner, lock)
    return RunStatus(state, why, max(step, logged) if step is not None else logged, **facts)


def _alive(owner: Any, lock: _Lock) -> tuple[State, str] | None:
    """The state of a run whose owner holds its lock; None if the owner is dead."""
    seen = owner.seen()
    if seen is False:
        return None
    if seen is True:
        suspended = process_start(owner.pid)[0] in ("T", "t")
        return ("stalled", f"process {owner.pid} is suspended") if suspended else ("running", "")
    if lock.silent < SILENT:
        return "running", ""
    if lock.silent >= LOST or (owner.machine != machine() and owner.host == machine_name() and lock.silent >= SILENT):
        return None
    by = "" if lock.sure else " by this machine's clock"
    return "stalled", f"no heartbeat from {owner.host} for {duration(lock.silent)}{by}"


def machine_name() -> str:
    """The host name."""
    return os.uname().nodename


def _progress(beat: Beat) -> tuple[State, str]:
    """Of a process that lives: whether it goes on, by its own account."""
    if beat.phase in ("step", "data"):
        limit = max(HANGS, PACES * beat.pace) if beat.pace else HANGS_AT_FIRST
        if beat.idle > limit:
            what = "a batch" if beat.phase == "data" else "its step"
            return "stalled", f"it has waited for {what} for {duration(beat.idle)}"
        return "running", ""
    return "running", f"{PHASE_WORDS.get(beat.phase, '')}{_for(beat.idle)}".strip()


def _for(seconds: float) -> str:
    return f" for {duration(seconds)}" if seconds >= 10 else ""


def _ended(
    folder: Path, events: Sequence[Mapping[str, Any]], held: bool, owner: Any, lock: _Lock | None
) -> tuple[State, str, int | None]:
    """The state, the reason and the last step of a run that no process trains."""
    last = next((event for event in reversed(events) if event.get("kind") in ("begun", "ended", "failed")), {})
    kind, step = last.get("kind"), last.get("step")
    step = step if type(step) is int else None
    if kind == "ended":
        return *_by_code(last, events), step
    if kind == "failed":
        return "crashed", cut(str(last.get("error", "")), 300), step
    if why := _flight(folder, last):
        return "crashed", why, step
    if held and owner is not None and lock is not None:
        ago = f", {duration(lock.silent)} ago" if lock.silent >= 1 else ""
        return "crashed", f"process {owner.pid} on {owner.host} is gone without a word{ago}", step
    return "crashed", "it has not ended, and no process has it", step


def _by_code(ended: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> tuple[State, str]:
    code, step, of = ended.get("code"), ended.get("step"), ended.get("of")
    reason = next((str(e.get("reason")) for e in reversed(events) if e.get("kind") == "stopped"), "")
    complete = type(step) is int and type(of) is int and step >= of
    signal = f"by {cut(str(ended['signal']), 20)}" if "signal" in ended else "by a signal"
    if complete:
        return "finished", ""
    if code == ExitCode.RETRY:
        return "preempted", f"stopped {signal}; the same command resumes it"
    if code == ExitCode.FINISHED or (code is None and reason):
        return "finished", cut(reason, 200)
    return "stopped", signal if code is not None else "before its last step"


def _flight(folder: Path, begun: Mapping[str, Any]) -> str:
    """Why the run failed, as in a flight.json of this session; "" without one."""
    found = read_bounded(folder / "flight.json", LARGEST_RUN_FILE)
    try:
        flight = json.loads(found[0]) if found else None
    except (ValueError, RecursionError):
        return ""
    if not isinstance(flight, dict) or not isinstance(flight.get("why"), str):
        return ""
    # Both times are of the same process's clock.
    return cut(flight["why"], 300) if str(flight.get("time", "")) >= str(begun.get("time", "")) else ""


def _events(folder: Path) -> tuple[list[dict[str, Any]], float, float]:
    """The last events, the time of the first one, and when the file was written."""
    path = folder / "events.jsonl"
    found = read_bounded(path, LARGEST_TAIL, from_end=True)
    if found is None:
        return [], 0.0, 0.0
    data, facts = found
    whole = facts.st_size <= LARGEST_TAIL
    events = last_objects(data, whole)
    head = events[:1] if whole else last_objects((read_bounded(path, 4096) or (b"", 0))[0], True)[:1]
    return events, seconds_of(head[0].get("time")) if head else 0.0, facts.st_mtime


def seconds_of(time_of_event: Any) -> float:
    """The time of an event in seconds since 1970; 0 for what is no time."""
    try:
        return datetime.fromisoformat(str(time_of_event)).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0


def _last_step(folder: Path) -> tuple[int, float]:
    """The last step in steps.bin, and when it was written; 0 and 0 without any."""
    try:
        found = read_bounded(folder / "steps.bin", 2 * _STEP_RECORD, from_end=True)
    except OSError:
        return 0, 0.0
    if found is None or found[1].st_size < _STEP_HEADER + _STEP_RECORD:
        return 0, 0.0
    data, facts = found
    count = (facts.st_size - _STEP_HEADER) // _STEP_RECORD
    start = _STEP_HEADER + (count - 1) * _STEP_RECORD - (facts.st_size - len(data))
    step = int.from_bytes(data[start : start + 8], "little", signed=True) if start >= 0 else 0
    return (step if 0 < step < 2**31 else 0), facts.st_mtime if math.isfinite(facts.st_mtime) else 0.0
