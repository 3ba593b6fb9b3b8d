"""Who observes a run: what each is called with and when, what an error of one costs, and what a resumed run writes."""

import gzip
import json
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import pytest
import tiny

from jaxtrain import ConfigError, Experiment, Observer, Run, Runtime, Scores
from jaxtrain.cluster.stop import StopSignal
from jaxtrain.experiment import ObservedRun
from jaxtrain.experiment.experiment import fingerprint
from jaxtrain.optimizers import SGD, LinearDecay
from jaxtrain.runs.checkpoints import Checkpoints
from jaxtrain.runs.journal import Journal, Metrics
from jaxtrain.runs.json_lines import read_lines
from jaxtrain.runs.metrics_log import read_metrics
from jaxtrain.runs.observers import Observers
from jaxtrain.train import train


@dataclass(frozen=True)
class Recording(Observer):
    """Remembers how it was called."""

    calls: ClassVar[list[tuple[Any, ...]]] = []

    def begun(self, run: ObservedRun, step: int) -> None:
        self.calls.append(("begun", step))

    def trained(self, run: ObservedRun, step: int, metrics: Mapping[str, float], rates: Mapping[str, float]) -> None:
        self.calls.append(("trained", step, sorted(metrics), "learning_rate" in rates))

    def evaluated(self, run: ObservedRun, step: int, scores: Scores) -> None:
        written = [line for line in run.metrics() if line["split"] == "validation"][-1]
        self.calls.append(("evaluated", step, scores["validation"]["loss"] == written["loss"]))

    def saved(self, run: ObservedRun, step: int) -> None:
        self.calls.append(("saved", step, (run.folder / "checkpoints" / str(step)).is_dir()))

    def ended(self, run: ObservedRun, step: int) -> None:
        self.calls.append(("ended", step))


def observed(*observers: Observer, **changes: Any) -> Experiment:
    """Six steps; a line after every second one, evaluated after 3 and 6, saved after 4 and 6."""
    runtime = replace(tiny.main().runtime, log_every=2, eval_every=3, save_every=4)
    return replace(tiny.main(), observers=observers, steps=6, **{"runtime": runtime, **changes})


@pytest.mark.slow
def test_an_observer_is_called_in_the_order_of_the_run_with_periods_and_checkpoints_late(tmp_path: Path) -> None:
    Recording.calls.clear()
    train(observed(Recording()), tmp_path / "run")
    names = ["accuracy", "gradient_norm", "loss"]
    assert Recording.calls == [
        ("begun", 0),
        ("trained", 2, names, True),  # that of the period before an evaluation is not later than it
        ("evaluated", 3, True),
        ("trained", 4, names, True),
        ("trained", 6, names, True),
        ("evaluated", 6, True),
        ("saved", 4, True),  # known when the next save begins
        ("saved", 6, True),
        ("ended", 6),
    ]


def test_observers_are_no_part_of_what_is_computed() -> None:
    assert fingerprint(observed(Recording())) == fingerprint(observed())


@dataclass(frozen=True)
class Failing(Observer):
    """Raises in one of its methods."""

    method: str

    def begun(self, run: ObservedRun, step: int) -> None:
        assert self.method != "begun", step

    def trained(self, run: ObservedRun, step: int, metrics: Mapping[str, float], rates: Mapping[str, float]) -> None:
        if self.method == "trained":
            raise OSError(f"no space after step {step}")

    def ended(self, run: ObservedRun, step: int) -> None:
        assert self.method != "ended", step


@pytest.mark.parametrize("method", ["trained", pytest.param("begun", marks=pytest.mark.slow), "ended"])
@pytest.mark.slow
def test_an_error_of_an_observer_is_an_event_that_names_the_line_and_the_run_goes_on(
    method: str, tmp_path: Path
) -> None:
    Recording.calls.clear()
    run, state = train(observed(Failing(method), Recording(), evals={}), tmp_path / "run")
    assert int(state.step) == 6
    (event,) = [event for event in read_lines(run.folder / "events.jsonl") if event["kind"] == "observer_failed"]
    assert (event["observer"], event["method"]) == ("Failing", method)
    assert event["step"] == {"trained": 2, "begun": 0, "ended": 6}[method]
    assert "(test_observers.py, line " in event["error"]
    assert Recording.calls[-1] == ("ended", 6)


class Answering(Observer):
    """Returns what ends no run."""

    def __init__(self, method: str, answer: object) -> None:
        object.__setattr__(self, method, lambda *_: answer)


@pytest.mark.parametrize(
    ("method", "answer", "kind"),
    [
        ("begun", "done", "stopped"),
        ("evaluated", "done", "stopped"),
        ("evaluated", True, "observer_failed"),
        ("trained", "done", "observer_failed"),
    ],
)
def test_only_a_text_from_begun_or_evaluated_ends_a_run(method: str, answer: object, kind: str, tmp_path: Path) -> None:
    stop = StopSignal()
    observers = Observers(tmp_path, observed(Answering(method, answer)), 0, stop)
    observers.begun(0)
    observers.trained(2, {"loss": 1.0}, {})
    observers.evaluated(3, {"validation": {"loss": 1.0}})
    observers.close()
    assert [event["kind"] for event in read_lines(tmp_path / "events.jsonl")] == [kind]
    assert stop.requested() == (kind == "stopped")


@dataclass(frozen=True)
class Refusing(Observer):
    """Refuses short runs."""

    def check(self, experiment: Experiment) -> None:
        if experiment.steps < 7:
            raise ConfigError(f"observers: {experiment.steps} steps are too few")


def test_an_observer_may_refuse_an_experiment_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="6 steps are too few"):
        train(observed(Refusing()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@dataclass(frozen=True)
class Slow(Observer):
    """Returns from `trained` only when it is let go."""

    go: ClassVar[threading.Event] = threading.Event()
    done: ClassVar[list[int]] = []

    def trained(self, run: ObservedRun, step: int, metrics: Mapping[str, float], rates: Mapping[str, float]) -> None:
        assert self.go.wait(timeout=60)
        self.done.append(step)


def test_the_loop_does_not_wait_for_a_slow_observer_until_the_next_call(tmp_path: Path) -> None:
    Slow.go.clear()
    Slow.done.clear()
    observers = Observers(tmp_path, observed(Slow()), 0, StopSignal())
    observers.trained(2, {"loss": 1.0}, {})
    assert Slow.done == []  # it was called, and its call has not returned
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [2]
    Slow.go.set()
    observers.ended(2)
    assert Slow.done == [2]
    observers.close()


def test_processes_other_than_the_first_call_no_observer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxtrain.runs.observers.is_first_process", lambda: False)
    Recording.calls.clear()
    observers = Observers(tmp_path / "run", observed(Recording()), 0, StopSignal())
    observers.begun(0)
    observers.trained(2, {"loss": 1.0}, {})
    observers.ended(2)
    observers.close()
    assert Recording.calls == []
    assert not (tmp_path / "run").exists()


# What a resumed run writes


class Killed(BaseException):
    """Nothing catches it."""


def killed_after_saving(saved: int, experiment: Experiment, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until the checkpoint of a step is durable, and no further."""
    original = Checkpoints.save

    def save(self: Checkpoints, step: int, *rest: Any) -> None:
        original(self, step, *rest)
        if step == saved:
            self.wait()
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", save)
        with pytest.raises(Killed):
            train(experiment, folder)


def values(run: Any) -> list[dict[str, Any]]:
    """The lines of metrics without what depends on the speed of the machine."""
    speeds = ("seconds_", "examples_per", "tokens_per", "mfu")
    return [
        {name: value for name, value in line.items() if not name.startswith(speeds)}
        for line in read_metrics(run.folder)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("log_every", [5, pytest.param(3, marks=pytest.mark.slow)])
def test_every_line_is_the_same_to_the_last_bit_whether_or_not_the_run_was_resumed_within_its_period(
    log_every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = replace(tiny.main(), runtime=replace(tiny.main().runtime, log_every=log_every))
    whole, _ = train(experiment, tmp_path / "whole")
    killed_after_saving(4, experiment, tmp_path / "run", monkeypatch)
    killed_after_saving(8, experiment, tmp_path / "run", monkeypatch)
    run, _ = train(experiment, tmp_path / "run")
    assert values(run) == values(whole)
    trained = [line for line in values(run) if line["split"] == "train"]
    assert [line["step"] for line in trained] == [*range(log_every, 12, log_every), 12]


@pytest.mark.slow
def test_a_run_that_a_signal_stops_within_a_period_writes_its_line_when_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = replace(tiny.main(), runtime=replace(tiny.main().runtime, log_every=5))
    whole, _ = train(experiment, tmp_path / "whole")
    original = Journal.trained

    def interrupted(self: Journal, step: int, metrics: Metrics) -> None:
        original(self, step, metrics)
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "trained", interrupted)
        run, _ = train(experiment, tmp_path / "run")
    assert [line["step"] for line in read_metrics(run.folder) if line["split"] == "train"] == [5]
    run, _ = train(experiment, tmp_path / "run")
    assert values(run) == values(whole)


@pytest.mark.slow
def test_speeds_are_those_of_the_steps_that_this_process_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxtrain.runs.utilization.peak_flops", lambda devices: None)
    experiment = replace(tiny.main(), steps=10, runtime=replace(tiny.main().runtime, log_every=5))
    killed_after_saving(8, experiment, tmp_path / "run", monkeypatch)
    run, _ = train(experiment, tmp_path / "run")
    for line in read_metrics(run.folder):
        if line["split"] == "train":  # 16 tokens an example, also where only 2 of 5 steps are of this process
            assert line["tokens_per_second"] / line["examples_per_second"] == pytest.approx(16, rel=1e-12)


def test_the_sums_of_a_period_pass_through_a_checkpoint_exactly_nan_and_infinity_too(tmp_path: Path) -> None:
    sums = {"total": [0.1, 1 / 3, float("nan"), float("inf"), 5e-324, 1e308], "weight": 2.0**60 + 2**8}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jax.numpy.ones(3)}, {"period": sums})
        abstract = {"x": jax.ShapeDtypeStruct((3,), np.float32)}
        _, record = checkpoints.restore(abstract)
    assert np.asarray(record["period"]["total"]).tobytes() == np.asarray(sums["total"]).tobytes()
    assert record["period"]["weight"] == 1152921504606847232.0


# A schedule's horizon


def rates(run: Any) -> list[float]:
    return [line["learning_rate"] for line in read_metrics(run.folder) if line["split"] == "train"]


def line_decay(steps: int, horizon: int | None = None) -> Experiment:
    optimizer = SGD(schedule=LinearDecay(peak=1.0, warmup=0, floor=0.25, steps=horizon))
    runtime = Runtime(log_every=1, eval_every=100, save_every=100)
    return replace(tiny.main(), optimizer=optimizer, steps=steps, evals={}, runtime=runtime)


@pytest.mark.slow
def test_a_run_keeps_its_horizon_when_it_is_resumed_with_other_steps_and_says_so_first(tmp_path: Path) -> None:
    train(line_decay(3), tmp_path / "run")
    run, _ = train(line_decay(6), tmp_path / "run")
    assert rates(run) == [1.0, 0.75, 0.5, 0.25, 0.25, 0.25]
    optimizer = Run(run.folder, code=tiny.__file__).experiment.optimizer
    assert isinstance(optimizer, SGD)
    assert optimizer.schedule.steps == 3
    events = [event for event in read_lines(run.folder / "events.jsonl") if event["kind"] in ("schedule", "compiled")]
    assert [event["kind"] for event in events] == ["compiled", "schedule", "compiled"]
    assert (events[1]["horizon"], events[1]["of"]) == (3, 6)
    assert events[1]["note"] == "the learning rate stays at its end value after step 3"
    with pytest.raises(ConfigError, match=r"another experiment.*\n.*optimizer\.schedule\.steps: 3 → 6"):
        train(line_decay(6, horizon=6), tmp_path / "run")


@pytest.mark.slow
def test_a_run_may_begin_with_a_horizon_of_its_own(tmp_path: Path) -> None:
    run, _ = train(line_decay(3, horizon=6), tmp_path / "run")
    assert rates(run) == [1.0, 0.875, 0.75]
    (event,) = [event for event in read_lines(run.folder / "events.jsonl") if event["kind"] == "schedule"]
    assert event["note"] == "the run ends before its learning rate schedule"


# Profiles


@pytest.mark.slow
def test_a_range_of_steps_is_traced_and_its_place_is_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = observed(evals={})
    run, _ = train(replace(experiment, runtime=replace(experiment.runtime, profile="3:4")), tmp_path / "run")
    (event,) = [event for event in read_lines(run.folder / "events.jsonl") if event["kind"] == "profiled"]
    assert event["steps"] == "3:4"
    assert event["open"] == f"xprof --logdir {run.folder / 'profile'}"
    assert list((run.folder / "profile").rglob("*.xplane.pb"))
    with gzip.open(event["perfetto"]) as file:
        names = [str(each.get("name")) for each in json.load(file)["traceEvents"]]
    # Python's own calls are in it too: two batches were read.
    assert sum(name.startswith("$reading.py") and name.endswith(" read") for name in names) == 2
    assert f"xprof --logdir {run.folder / 'profile'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("profile", "traced"), [("1:2", [1, 2]), ("3:3", [3]), ("2:9", [2, 3, 4, 5])], ids=["first", "one", "cut off"]
)
def test_a_trace_holds_its_steps_and_no_others(
    profile: str, traced: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running: list[str] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: running.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: running.append("stop"))
    experiment = observed(runtime=replace(observed().runtime, profile=profile))
    observers = Observers(tmp_path, experiment, 0, StopSignal())
    found = []
    observers.begun(0)
    for step in range(1, 6):
        if running[-1:] == ["start"]:
            found.append(step)
        observers.stepped(step, {})
    observers.ended(5)
    observers.close()
    assert found == traced
    assert running == ["start", "stop"]


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("5", "profile: '5' is not a range of steps from 1 on, such as 100:110"),
        ("0:2", "profile: '0:2' is not a range"),
        ("4:2", "profile: '4:2' is not a range"),
        ("4:-2", "profile: '4:-2' is not a range"),
        ("5:7", "profile: '5:7' ends with step 7, but the run has 6 steps"),
    ],
)
def test_a_range_that_the_run_does_not_have_is_refused(profile: str, message: str, tmp_path: Path) -> None:
    made: Callable[[], Experiment] = lambda: observed(runtime=Runtime(profile=profile))  # noqa: E731
    with pytest.raises(ConfigError, match=message):
        train(made(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Memory and model FLOPs utilization


@pytest.mark.slow
def test_utilization_is_logged_once_a_period_and_memory_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxtrain.runs.utilization.peak_flops", lambda devices: 34603008 * 8.0)
    run, _ = train(observed(evals={}), tmp_path / "run")
    for line in read_metrics(run.folder):
        # 16 examples a step: at as many steps a second, of 34,603,008 operations each, 8 steps a second were the peak.
        assert line["mfu"] == pytest.approx(line["examples_per_second"] / 16 / 8, rel=1e-12)
    (event,) = [event for event in read_lines(run.folder / "events.jsonl") if event["kind"] == "compiled"]
    parameters = sum(x.size for x in jax.tree.leaves(run.restore(6, devices=jax.devices()[:1]).state.params))
    assert (event["flops"], event["peak_flops"]) == (34603008, 34603008 * 8)
    # Parameters, their average and two moments, in f32, at least.
    assert 4 * 4 * parameters < event["peak_memory"] < 100 * 4 * 4 * parameters
