"""Trackers can neither stop, nor slow, nor outlive a run: one that raises, one that hangs, one that is slow, one that fills
its disk. What they were given is counted by hand.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny
from small_disk import run_on_small_disk

from jaxtrain import ConfigError, Experiment
from jaxtrain.base.config import from_json, to_json
from jaxtrain.cluster.stop import StopSignal
from jaxtrain.runs.json_lines import read_lines
from jaxtrain.runs.observers import Observers
from jaxtrain.runs.trackers import Lines, MLflow, Sink, TrackedRun, Tracker, WandB
from jaxtrain.runs.trackers.base import tracked_config
from jaxtrain.train import train


@dataclass
class Memory(Sink):
    """Keeps what it is given."""

    lines: list[Lines] = field(default_factory=list)
    events: list[Mapping[str, Any]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def open(self) -> None:
        self.calls.append("open")

    def send(self, lines: Sequence[Lines], events: Sequence[Mapping[str, Any]]) -> None:
        self.lines += lines
        self.events += events

    def close(self, failed: bool) -> None:
        self.calls.append("failed" if failed else "finished")

    def abandon(self) -> None:
        self.calls.append("abandoned")


@dataclass(frozen=True, kw_only=True)
class Remembering(Tracker):
    found: ClassVar[dict[str, tuple[TrackedRun, Memory]]] = {}

    def connect(self, run: TrackedRun) -> Sink:
        self.found[run.name] = run, Memory()
        return self.found[run.name][1]


class Broken(Memory):
    def send(self, lines: Sequence[Lines], events: Sequence[Mapping[str, Any]]) -> None:
        raise OSError("the tool is gone")


@dataclass(frozen=True, kw_only=True)
class Raising(Tracker):
    when: str = "send"

    def connect(self, run: TrackedRun) -> Sink:
        if self.when == "connect":
            raise OSError("the tool is gone")
        return Broken()


class Hung(Memory):
    go: ClassVar[threading.Event] = threading.Event()

    def open(self) -> None:
        assert self.go.wait(60)
        super().open()

    def send(self, lines: Sequence[Lines], events: Sequence[Mapping[str, Any]]) -> None:
        self.calls.append("sent")


@dataclass(frozen=True, kw_only=True)
class Hanging(Tracker):
    sinks: ClassVar[list[Memory]] = []

    def connect(self, run: TrackedRun) -> Sink:
        self.sinks.append(Hung())
        return self.sinks[-1]


def observers(folder: Path, tracker: Tracker, step: int = 0) -> Observers:
    """A run that has begun."""
    found = Observers(folder, replace(tiny.main(), observers=(tracker,)), step, StopSignal())
    found.log_event("begun", step=step)
    found.begun(step)
    return found


def periods(run: Observers, count: int, start: int = 0) -> None:
    for step in range(start + 1, start + count + 1):
        run.trained(step, {"loss": float(step)}, {"learning_rate": 0.5})


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_lines(folder / "events.jsonl") if event["kind"] == kind]


def test_a_tracker_gets_config_folder_metrics_by_split_and_events(tmp_path: Path) -> None:
    experiment = replace(tiny.main(), steps=2, observers=(Remembering(),))
    train(experiment, tmp_path / "whole")
    run, sink = Remembering.found["whole"]
    assert (run.folder, run.step) == (tmp_path / "whole", 0)
    assert run.config["task.model.blocks.width"] == 32
    assert run.config["optimizer.schedule.peak"] == 0.01
    assert run.config["runtime.log_every"] == 1
    assert run.config["steps"] == 2
    assert [path for path in run.config if path.startswith("observers")] == []
    assert {(line.step, next(iter(line.values)).partition("/")[0]) for line in sink.lines} == {
        (1, "train"),
        (2, "train"),
        (2, "validation"),
    }
    written = {line["step"]: line for line in read_lines(run.folder / "metrics.jsonl") if line["split"] == "train"}
    for line in sink.lines:
        if "train/loss" in line.values:
            own = {
                f"train/{name}": value for name, value in written[line.step].items() if name not in ("step", "split")
            }
            assert dict(line.values) == own
    kinds = [event["kind"] for event in read_lines(run.folder / "events.jsonl")]
    assert [event["kind"] for event in sink.events] == kinds
    assert (kinds[0], kinds[-1]) == ("begun", "ended")
    assert sink.calls == ["open", "finished"]


def test_a_resumed_run_gives_the_events_of_its_own_session_only(tmp_path: Path) -> None:
    run = observers(tmp_path / "again", Remembering())
    run.ended(0)
    run.close()
    run = observers(tmp_path / "again", Remembering(), 4)
    run.log_event("ended", step=4)
    run.ended(4)
    run.close()
    tracked, sink = Remembering.found["again"]
    assert tracked.step == 4
    assert [(event["kind"], event["step"]) for event in sink.events] == [("begun", 4), ("ended", 4)]


@pytest.mark.parametrize("when", ["connect", "send"])
def test_a_tracker_that_raises_is_named_in_an_event_and_the_run_goes_on(when: str, tmp_path: Path) -> None:
    run = observers(tmp_path, Raising(when=when))
    deadline = time.monotonic() + 60
    count = 0
    while not events(tmp_path, "observer_failed") and time.monotonic() < deadline:
        periods(run, 1, count)
        count += 1
    run.ended(count)
    run.close()
    (event,) = events(tmp_path, "observer_failed")
    assert event["observer"] == "Raising"
    assert "OSError: the tool is gone (test_trackers.py, line " in event["error"]
    assert len(read_lines(tmp_path / "metrics.jsonl")) == count


def test_a_tracker_that_raises_only_at_the_end_is_named_too(tmp_path: Path) -> None:
    run = observers(tmp_path, Raising(when="send"))
    run.ended(0)
    run.close()
    assert [event["method"] for event in events(tmp_path, "observer_failed")] == ["ended"]
    assert events(tmp_path, "tracker") == []


def test_a_tracker_that_hangs_delays_no_call_and_the_end_by_its_wait_and_what_is_lost_is_counted(
    tmp_path: Path,
) -> None:
    Hung.go.clear()
    Hanging.sinks.clear()
    begun = time.monotonic()
    run = observers(tmp_path, Hanging(queue=3, wait=0.5))
    periods(run, 10)
    run.evaluated(10, {"validation": {"loss": 1.0}, "test": {"loss": 1.0}})
    before = time.monotonic()
    assert before - begun < 30  # a run that waited for the tool would take 60
    run.ended(10)
    run.close()
    assert 0.4 < time.monotonic() - before < 20
    (event,) = events(tmp_path, "tracker")
    assert event["tracker"] == "Hanging"
    assert event["note"].startswith(
        "Hanging did not get 12 of 12 lines of metrics: it did not answer; it was given up 0.5 s"
    )
    (sink,) = Hanging.sinks
    assert sink.calls == ["abandoned"]
    Hung.go.set()
    deadline = time.monotonic() + 30
    while "open" not in sink.calls and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert sink.calls == ["abandoned", "open"]  # nothing is sent by a thread that outlives its run


def test_a_tool_that_was_slow_and_answers_in_the_end_gets_what_the_queue_held(tmp_path: Path) -> None:
    Hung.go.clear()
    run = observers(tmp_path, Hanging(queue=3, wait=60))
    periods(run, 10)
    threading.Timer(0.2, Hung.go.set).start()
    run.ended(10)
    run.close()
    (event,) = events(tmp_path, "tracker")
    assert event["note"] == "Hanging did not get 7 of 10 lines of metrics: it is slower than the run"
    assert Hanging.sinks[-1].calls == ["open", "sent", "finished"]


AFTER_AN_ERROR = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_trackers import Hanging, Hung, Remembering, observers, periods
import test_trackers

class Printing(test_trackers.Memory):
    def close(self, failed):
        print("failed" if failed else "finished", len(self.lines), flush=True)

class Told(Remembering):
    def connect(self, run):
        return Printing()

kind = Hanging if sys.argv[3] == "hangs" else Told
run = observers(Path(sys.argv[1]), kind(wait=0.5))
periods(run, 3)
raise SystemExit(7)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "said"), [("well", "failed 3"), ("hangs", "")])
def test_a_run_that_ends_by_an_error_tells_the_tool_and_exits_though_it_hangs(
    how: str, said: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", AFTER_AN_ERROR, str(tmp_path), str(Path(__file__).parent), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 7, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith(("failed", "finished"))] == (
        [said] if said else []
    )


FILLING = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import test_trackers

class Disk(test_trackers.Memory):
    def send(self, lines, events):
        with open(sys.argv[1] + "/copy", "ab") as file:
            file.write(bytes(1 << 20))

class Filling(test_trackers.Tracker):
    def connect(self, run):
        return Disk()

run = test_trackers.observers(Path(sys.argv[2]), Filling())
count = 0
while not test_trackers.events(Path(sys.argv[2]), "observer_failed") and count < 5000:
    test_trackers.periods(run, 1, count)
    count += 1
run.ended(count)
run.close()
print("lines", len(test_trackers.read_lines(Path(sys.argv[2]) / "metrics.jsonl")) == count)
"""


@pytest.mark.slow
def test_a_tracker_that_fills_its_disk_ends_and_the_run_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = run_on_small_disk(FILLING, tmp_path / "disk", "4m", str(run), str(Path(__file__).parent))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "lines True"
    (event,) = events(run, "observer_failed")
    assert "No space left on device" in event["error"]


def test_trackers_are_values_with_short_names_and_no_part_of_what_is_computed() -> None:
    for tracker in (WandB(project="x", tags=("a",), mode="offline"), MLflow(url="http://localhost:5000")):
        saved = json.loads(json.dumps(to_json(tracker)))
        assert saved["$kind"] == type(tracker).__name__
        assert from_json(saved) == tracker
    config = tracked_config(replace(tiny.main(), observers=(WandB(),)))
    assert config == tracked_config(tiny.main())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLflow(url="localhost:5000"), r"MLflow.url: 'localhost:5000' is not an address such as http://"),
        (lambda: MLflow(url="http://me:secret@host"), r"MLflow.url: leave user and password out"),
        (lambda: MLflow(url="http://host", timeout=0.0), r"timeout.*is not above 0"),
        (lambda: replace(WandB(), mode="off"), r"mode.*'off'"),
        (lambda: WandB(queue=0), r"queue.*0 is not at least 1"),
        (lambda: WandB(wait=-1.0), r"wait.*-1.0 is not from 0 to 600"),
    ],
)
def test_wrong_values_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_without_wandb_the_experiment_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    experiment: Experiment = tiny.main()
    with pytest.raises(ConfigError, match=r"the tracker WandB needs wandb: pip install 'jaxtrain\[wandb\]'"):
        WandB().check(experiment)
