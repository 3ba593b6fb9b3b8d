"""What the loop promises and no number shows: nothing piles up on the devices, and every line is written just once."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import test_metrics_log
import tiny

from jaxtrain import ConfigError, Mean, Program
from jaxtrain.cluster.stop import StopSignal
from jaxtrain.data import Pipeline
from jaxtrain.evaluate import evaluate
from jaxtrain.experiment import Retention
from jaxtrain.runs.clock import Clock
from jaxtrain.runs.journal import Journal, Metrics
from jaxtrain.runs.metrics_log import read_metrics
from jaxtrain.runs.observers import Observers
from jaxtrain.train import train

STATE: Any = None
"""What a device that computes nothing needs of a state."""


class Device:
    """A device that finishes a computation only when somebody waits for its result, and all those before it."""

    def __init__(self) -> None:
        self.started = self.finished = 0

    @property
    def unfinished(self) -> int:
        return self.started - self.finished

    def start(self, value: float) -> dict[str, Mean]:
        self.started += 1
        total: Any = Result(self, self.started, value)
        weight: Any = Result(self, self.started, 1.0)
        return {"loss": Mean(total, weight)}


class Result:
    """A number that a `Device` has not computed yet."""

    def __init__(self, device: Device, number: int, value: float) -> None:
        self.device, self.number, self.value = device, number, value

    def block_until_ready(self) -> "Result":
        self.device.finished = max(self.device.finished, self.number)
        return self

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        return np.asarray(self.block_until_ready().value, np.float32)


def test_the_loop_is_never_more_than_two_steps_ahead_of_the_device(tmp_path: Path) -> None:
    experiment = replace(tiny.main(), runtime=replace(tiny.main().runtime, log_every=100, flight=0))
    device, ahead = Device(), []
    journal = Journal(Observers(tmp_path, experiment, 0, StopSignal()), Clock())
    for step in range(1, 12):
        journal.trained(step, device.start(float(step)))
        ahead.append(device.unfinished)
    journal.close()
    # Nor is it less, so that the device never idles.
    assert ahead == [1, *[2] * 10]


@pytest.mark.parametrize("batches", [0, 1, 2, 100])
def test_an_evaluation_is_never_more_than_two_batches_ahead_of_the_device(batches: int) -> None:
    device, ahead = Device(), []

    def epoch(*_: Any) -> Iterator[int]:
        for number in range(batches):
            ahead.append(device.unfinished)
            yield number

    program: Any = SimpleNamespace(
        epoch=epoch, evaluate=lambda state, number: device.start(float(number)), experiment=tiny.main()
    )
    found = evaluate(program, STATE, tiny.main().data)
    assert ahead == [0, 1, *[2] * 98][:batches]
    assert found == ({"loss": (batches - 1) / 2} if batches else {})
    assert device.unfinished == 0


def test_an_evaluation_without_end_asks_for_a_batch_only_when_there_is_room_for_it() -> None:
    device = Device()
    endless = itertools.count()

    def one(state: Any, number: int) -> dict[str, Mean]:
        if number == 5000:
            raise KeyboardInterrupt
        return device.start(1.0)

    program: Any = SimpleNamespace(epoch=lambda *_: endless, evaluate=one, experiment=tiny.main())
    with pytest.raises(KeyboardInterrupt):
        evaluate(program, STATE, tiny.main().data)
    assert (device.started, device.unfinished) == (5000, 2)


def test_an_evaluation_gives_the_sums_of_all_batches_in_float64_to_the_last_bit() -> None:
    program = Program(tiny.main(), jax.devices()[:1])
    state, data = program.init(), Pipeline(tiny.Counting(50), batch_size=8, shuffle=False)
    parts = jax.device_get([program.evaluate(state, batch) for batch in program.epoch(data)])
    total, weight = 0.0, 0.0
    for part in parts:
        assert part["loss"].total.dtype == np.float32
        total, weight = total + float(part["loss"].total), weight + float(part["loss"].weight)
    assert len(parts) == 7
    assert weight == 50 * 16
    assert evaluate(program, state, data)["loss"] == total / weight


@pytest.mark.parametrize(
    ("log_every", "trained"), [(1, list(range(1, 13))), pytest.param(5, [5, 10, 12], marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_after_a_kill_and_a_resume_every_step_of_every_split_is_written_once_and_in_order(
    log_every: int, trained: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = replace(tiny.main(), runtime=replace(tiny.main().runtime, log_every=log_every))
    original = Journal.trained

    class Killed(BaseException):
        """Not to be caught by anything on the way."""

    def killed(self: Journal, step: int, metrics: Metrics) -> None:
        original(self, step, metrics)
        if step == 7:  # the checkpoint is of step 4; steps 5 and 6 are written already
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "trained", killed)
        with pytest.raises(Killed):
            train(experiment, tmp_path / "run")
    run, _ = train(experiment, tmp_path / "run")
    found = [(line["step"], line["split"]) for line in read_metrics(run.folder)]
    expected = [*((step, "train") for step in trained), (6, "validation"), (12, "validation")]
    assert sorted(found) == sorted(expected)
    assert [step for step, _ in found] == sorted(step for step, _ in found)
    assert shown(run.folder) == {
        split: [step for step, of in found if of == split] for split in ("train", "validation")
    }


@pytest.mark.slow
def test_the_best_checkpoint_by_the_scores_of_its_own_step_stays_and_the_last_step_is_saved(tmp_path: Path) -> None:
    # The loss falls, so the highest one is the first: it stays only if it was saved with its score.
    keep = Retention(last=1, best="validation/loss", mode="max")
    runtime = replace(tiny.main().runtime, eval_every=2, save_every=2, keep=keep)
    run, _ = train(replace(tiny.main(), steps=5, runtime=runtime), tmp_path / "run")
    losses = {line["step"]: line["loss"] for line in read_metrics(run.folder) if line["split"] == "validation"}
    assert max(losses, key=losses.__getitem__) == 2
    with run.checkpoints(read_only=True) as checkpoints:
        assert (checkpoints.best(), checkpoints.steps()) == (2, [2, 5])


def test_compiler_options_reach_the_compiler_of_the_step(tmp_path: Path) -> None:
    runtime = replace(tiny.main().runtime, compiler_options={"xla_no_such_option": "1"})
    with pytest.raises(ConfigError, match="compiler_options: No such compile option: 'xla_no_such_option'"):
        train(replace(tiny.main(), runtime=runtime), tmp_path / "run")


def shown(folder: Path) -> dict[str, list[int]]:
    """The steps by split that TensorBoard shows of the loss: the start of a session hides all later ones before it."""
    steps: dict[str, list[int]] = {}
    for event in test_metrics_log.tensorboard_events(folder):
        if event.HasField("session_log"):
            steps = {split: [step for step in before if step < event.step] for split, before in steps.items()}
        for value in event.summary.value:
            split, _, name = value.tag.rpartition("/")
            if name == "loss":
                steps.setdefault(split, []).append(event.step)
    return steps


def test_a_folder_that_is_a_str_is_refused_with_what_to_give_instead(tmp_path):
    folder: Any = str(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"^the folder of a run is a path: give pathlib.Path\('.*run'\), not a str$"):
        train(tiny.main(), folder)
    assert not (tmp_path / "run").exists()
