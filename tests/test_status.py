"""The state of a run as its folder tells it: real runs that end in every way, and folders of any other kind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cluster import until

from jaxtrain.reports import status as module
from jaxtrain.reports.status import HANGS, LOST, Observed, read_status
from jaxtrain.runs.heartbeat import SILENT, Beat, Heartbeat, read_beat
from jaxtrain.runs.owner import FREE, Owner, beat_of
from jaxtrain.runs.steps_log import STEP_COLUMNS, StepsLog

ROOT = Path(__file__).parents[1]
ELSEWHERE = Owner("elsewhere", 7, "another-system pid:[1]", "12", "a" * 32, "yesterday")
NOW = 1_800_000_000.0


def made(folder: Path, steps: Any = 100, **fields: Any) -> Path:
    """A run folder with an experiment.json alone."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = {"origin": "/x/digits.py:main", "experiment": {"steps": steps, "evals": {"test": {}}, **fields}}
    (folder / "experiment.json").write_text(json.dumps(saved))
    return folder


def locked(folder: Path, beat: Beat, ago: float = 1.0, owner: Owner = ELSEWHERE) -> Path:
    """Write the lock of an owner, `ago` seconds before NOW by the file system's clock."""
    (folder / "lock.json").write_bytes(owner.text(beat))
    os.utime(folder / "lock.json", (NOW - ago, NOW - ago))
    return folder


def logged(folder: Path, *events: dict[str, Any]) -> Path:
    lines = [json.dumps({"time": f"2026-01-01T00:00:0{n}.000+00:00", **event}) for n, event in enumerate(events)]
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
    return folder


BEGUN = {"kind": "begun", "step": 0, "of": 100}


@pytest.mark.parametrize(
    ("events", "state", "why"),
    [
        ([BEGUN, {"kind": "ended", "step": 100, "of": 100, "code": 0}], "finished", ""),
        ([BEGUN, {"kind": "ended", "step": 100, "of": 100, "code": 75, "signal": "SIGTERM"}], "finished", ""),
        ([BEGUN, {"kind": "ended", "step": 9, "of": 100, "code": 75, "signal": "SIGTERM"}], "preempted", "SIGTERM"),
        ([BEGUN, {"kind": "ended", "step": 9, "of": 100, "code": 130, "signal": "SIGINT"}], "stopped", "by SIGINT"),
        ([BEGUN, {"kind": "stopped", "reason": "no better"}, {"kind": "ended", "step": 9, "of": 100}], "finished", "no b"),
        ([BEGUN, {"kind": "ended", "step": 9, "of": 100}], "stopped", "before its last step"),
        ([BEGUN, {"kind": "failed", "step": 9, "error": "ValueError: bad"}], "crashed", "ValueError: bad"),
        ([BEGUN, {"kind": "ended", "step": 9, "of": 100}, BEGUN], "crashed", "it has not ended"),
        ([], "crashed", "it has not ended"),
    ],
)  # fmt: skip
def test_a_run_that_no_process_has_is_as_its_last_event_says(
    events: list[dict[str, Any]], state: str, why: str, tmp_path: Path
) -> None:
    folder = logged(made(tmp_path / "run"), *events)
    for free in (False, True):
        if free:
            locked(folder, Beat(9, 9, "step"), owner=replace(ELSEWHERE, state=FREE))
        found = read_status(folder, NOW)
        assert (found.state, found.live) == (state, False)
        assert found.why.find(why) >= 0, found.why
        assert found.step == (events[-1].get("step", 0) if events else 0)


@pytest.mark.parametrize(
    ("beat", "ago", "state", "why"),
    [
        (Beat(9, 7, "step", 1.0, 0.5), 1, "running", ""),
        (Beat(9, 7, "step", 1.0, 0.5), SILENT - 1, "running", ""),
        (Beat(9, 7, "step", 1.0, 0.5), SILENT + 1, "stalled", "no heartbeat from elsewhere for 46s by this machine's clock"),
        (Beat(9, 7, "step", 1.0, 0.5), LOST + 1, "crashed", "process 7 on elsewhere is gone without a word, 1h00m ago"),
        (Beat(9, 7, "step", 1.0, 0.5), -3000, "running", ""),
        (Beat(9, 7, "step", HANGS + 1, 0.5), 1, "stalled", "it has waited for its step for 2m01s"),
        (Beat(9, 7, "data", HANGS + 1, 0.5), 1, "stalled", "it has waited for a batch for 2m01s"),
        (Beat(9, 7, "step", HANGS + 1, 60.0), 1, "running", ""),
        (Beat(9, 0, "step", HANGS + 1, 0.0), 1, "running", ""),
        (Beat(9, 0, "compile", 5000.0), 1, "running", "compiling for 1h23m"),
        (Beat(9, 7, "eval", 5000.0, 0.5), 1, "running", "evaluating for 1h23m"),
        (Beat(9, 7, "save", 5.0, 0.5), 1, "running", "saving"),
    ],
)  # fmt: skip
def test_a_run_on_another_machine_is_as_its_heartbeat_says(
    beat: Beat, ago: float, state: str, why: str, tmp_path: Path
) -> None:
    folder = locked(logged(made(tmp_path / "run"), BEGUN), beat, ago)
    found = read_status(folder, NOW)
    assert (found.state, found.why, found.of) == (state, why, 100)
    if state in ("running", "stalled"):
        assert (found.step, found.phase, found.live, found.host) == (beat.step, beat.phase, True, "elsewhere")


def test_two_looks_tell_without_comparing_clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    folder, observed = locked(made(tmp_path / "run"), Beat(1, 7, "step", 0, 1), ago=2 * SILENT), Observed()
    assert read_status(folder, NOW, observed).state == "stalled"  # or the clocks differ
    clock[0] += 5
    locked(folder, Beat(2, 8, "step", 0, 1), ago=2 * SILENT)
    assert read_status(folder, NOW, observed).state == "running"
    clock[0] += SILENT + 1
    os.utime(folder / "lock.json", (NOW, NOW))  # by a clock that is ahead
    found = read_status(folder, NOW, observed)
    assert (found.state, found.why) == ("stalled", "no heartbeat from elsewhere for 46s")


def test_a_restart_of_the_machine_ends_its_runs(tmp_path: Path) -> None:
    same_host = replace(ELSEWHERE, host=os.uname().nodename)
    folder = locked(made(tmp_path / "run"), Beat(1, 7, "step"), SILENT + 1, same_host)
    assert read_status(folder, NOW).state == "crashed"
    assert read_status(locked(folder, Beat(1, 7, "step"), 1, same_host), NOW).state == "running"


def test_the_lock_of_a_command_that_trains_nothing_is_not_a_run_that_lives(tmp_path: Path) -> None:
    folder = logged(made(tmp_path / "run"), BEGUN, {"kind": "ended", "step": 9, "of": 100, "code": 130})
    assert read_status(locked(folder, Beat(3)), NOW).state == "stopped"
    old = json.loads(ELSEWHERE.text(Beat(3))) | {"heartbeat": "000000000003"}  # as earlier versions wrote it
    (folder / "lock.json").write_text(json.dumps(old))
    os.utime(folder / "lock.json", (NOW, NOW))
    assert read_status(folder, NOW).state == "running"


def test_a_heartbeat_says_for_how_long_nothing_changed_and_how_long_a_step_takes() -> None:
    now, at = [0.0], [(0, "compile")]
    heart = Heartbeat(lambda: at[0], lambda: now[0])
    found = [heart.next()]
    for seconds, step, phase in ((5, 0, "compile"), (5, 0, "step"), (5, 10, "step"), (5, 20, "data"), (5, 20, "data")):
        now[0] += seconds
        at[0] = (step, phase)
        found.append(heart.next())
    assert [beat.idle for beat in found] == [0, 5, 0, 0, 0, 5]
    assert [beat.pace for beat in found] == [0, 0, 0, 0, 0.5, 0.5]
    assert [beat.number for beat in found] == [0, 1, 2, 3, 4, 5]


def test_every_heartbeat_has_the_same_length_and_is_read_back() -> None:
    beats = [Beat(0), Beat(10**11, 2**31, "restore", 1e12, 1e12), Beat(5, 6, "a phase of a later version", 0.25, 1e-3)]
    assert len({len(ELSEWHERE.text(beat)) for beat in beats}) == 1
    assert beat_of(ELSEWHERE.text(Beat(5, 6, "step", 0.25, 0.001))) == Beat(5, 6, "step", 0.25, 0.001)
    assert read_beat("000000000012") == Beat(12)
    for wrong in (None, 5, [], {}, {"beats": "x"}, "x", {"beats": "1", "step": "2", "phase": 3, "idle": {}}):
        assert read_beat(wrong) is None


FOREIGN: list[tuple[str, Callable[[Path], object]]] = [
    ("there is no such folder", lambda folder: folder.rmdir()),
    ("it is not a run: it has no experiment.json", lambda folder: None),
    ("it ended before it was a run", lambda folder: (folder / "environment.json").write_text("{}")),
    ("is not that of a run, or damaged", lambda folder: (folder / "experiment.json").write_text("{}")),
    ("is not that of a run, or damaged", lambda folder: (folder / "experiment.json").write_text('{"experiment": {')),
    ("is not that of a run, or damaged", lambda folder: (folder / "experiment.json").write_text("[" * 100_000)),
    ("experiment.json has no number of steps", lambda folder: made(folder, "many")),
    ("experiment.json is no file", lambda folder: os.mkfifo(folder / "experiment.json")),
    ("experiment.json is no file", lambda folder: (folder / "experiment.json").mkdir()),
    ("Too many levels of symbolic links", lambda folder: (folder / "experiment.json").symlink_to("experiment.json")),
    ("events.jsonl is no file", lambda folder: os.mkfifo(made(folder) / "events.jsonl")),
    ("flight.json is no file", lambda folder: os.mkfifo(made(folder) / "flight.json")),
]


@pytest.mark.parametrize(("why", "make"), FOREIGN)
def test_what_is_no_run_is_unreadable_with_its_reason(why: str, make: Callable[[Path], object], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    make(folder)
    found = read_status(folder, NOW)
    assert found.state == "unreadable"
    assert why in found.why


def test_odd_files_beside_a_run_hide_nothing_of_it(tmp_path: Path) -> None:
    folder = logged(made(tmp_path / "run"), BEGUN)
    (folder / "events.jsonl").write_bytes(b"\xff\n[]\n{\n" + (folder / "events.jsonl").read_bytes() + b'{"kind": "ende')
    (folder / "flight.json").write_text("{")
    for name, make in (
        ("steps.bin", os.mkfifo),
        ("lock.json", os.mkfifo),
        ("steps.bin", lambda at: at.write_bytes(b"x" * 1000)),
    ):
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
        found = read_status(folder, NOW)
        assert (found.state, found.why, found.step) == ("crashed", "it has not ended, and no process has it", 0)


def test_the_reason_of_a_run_that_its_watchdog_ended_is_in_its_flight_record(tmp_path: Path) -> None:
    folder = logged(made(tmp_path / "run"), BEGUN, {"kind": "compiled"})
    (folder / "flight.json").write_text(json.dumps({"why": "step 9 hangs", "time": "2026-01-01T00:00:09.000+00:00"}))
    assert read_status(folder, NOW).why == "step 9 hangs"
    (folder / "flight.json").write_text(json.dumps({"why": "step 9 hangs", "time": "2025-01-01T00:00:09.000+00:00"}))
    assert read_status(folder, NOW).why == "it has not ended, and no process has it"  # of a session before


def test_the_last_step_is_that_of_the_last_whole_record_of_steps_bin(tmp_path: Path) -> None:
    folder, log = made(tmp_path / "run"), StepsLog(tmp_path / "run")
    for first in (1, 4):
        log.append({"step": range(first, first + 3), **{name: [0] * 3 for name in STEP_COLUMNS[1:]}})
    assert read_status(folder, NOW).step == 6
    with (folder / "steps.bin").open("ab") as file:
        file.write(b"x" * 28)  # a record that is being written
    assert read_status(folder, NOW).step == 6


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Size, modification and change time of all below a folder, and of itself."""
    found = [folder, *folder.rglob("*")]
    facts = {str(path): path.lstat() for path in found}
    return {name: (fact.st_size, fact.st_mtime_ns, fact.st_ctime_ns) for name, fact in facts.items()}


TRAIN = """
import sys, tiny
from dataclasses import replace
from pathlib import Path
from jaxtrain.cluster.stop import signals_of_command
from jaxtrain.runs import lock
from jaxtrain.train import train
lock.Lock.__init__.__defaults__ = (*lock.Lock.__init__.__defaults__[:2], 0.2, *lock.Lock.__init__.__defaults__[3:])
with signals_of_command() as stop:
    train(replace(tiny.main(), steps=1_000_000), Path(sys.argv[1]), stop=stop)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "state", "why"),
    [(signal.SIGTERM, "preempted", "SIGTERM"), (signal.SIGINT, "stopped", "SIGINT"), (signal.SIGKILL, "crashed", "gone")],
)  # fmt: skip
def test_a_real_run_is_running_and_then_as_it_was_ended(
    number: signal.Signals, state: str, why: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    own = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    process = subprocess.Popen([sys.executable, "-c", TRAIN, str(folder)], env=own, stderr=subprocess.DEVNULL)
    try:
        until(lambda: read_status(folder).step > 20, 60, lambda: str(read_status(folder)))
        found = read_status(folder)
        assert (found.state, found.of, found.pid, found.live) == ("running", 1_000_000, process.pid, True)
        process.send_signal(signal.SIGSTOP)
        until(lambda: read_status(folder).state == "stalled", 10, lambda: str(read_status(folder)))
        process.send_signal(signal.SIGCONT)
        process.send_signal(number)
        process.wait(60)
    finally:
        process.kill()
        process.wait()
    before = tree(folder)
    ended = read_status(folder)
    assert (ended.state, ended.live) == (state, False)
    assert why in ended.why
    assert ended.step >= 20
    assert abs(ended.updated - time.time()) < 60
    assert tree(folder) == before
