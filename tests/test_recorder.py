"""The flight recorder: what a failed run leaves, and that steps.bin is the same whatever stopped the run."""

import json
import os
import signal
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import launch
import numpy as np
import pytest
import tiny

from jaxtrain import Experiment
from jaxtrain.experiment.experiment import fingerprint
from jaxtrain.optimizers import SGD, ConstantRate
from jaxtrain.optimizers.recorded import norms_by_group, update_squares
from jaxtrain.program import Program
from jaxtrain.runs.folder import Run
from jaxtrain.runs.journal import Journal
from jaxtrain.runs.metrics_log import read_metrics
from jaxtrain.runs.recorder import Recorder
from jaxtrain.runs.steps_log import read_steps
from jaxtrain.sharding.checksum import checksum_on_host
from jaxtrain.train import train


def short(**changes: Any) -> Experiment:
    runtime = replace(tiny.main().runtime, log_every=3, save_every=4, flight=3)
    return replace(tiny.main(), evals={}, **{"runtime": runtime, **changes})


def checksums(count: int) -> list[int]:
    with closing(short().data.batches()) as batches:
        return [checksum_on_host(batch) for batch in islice(batches, count)]


def flight(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "flight.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(short(), folder)
    return folder


def stopped(folder: Path, monkeypatch: pytest.MonkeyPatch, step: int, how: Any) -> None:
    """A run to which something happens after a step."""
    original = Journal.trained

    def trained(self: Journal, done: int, metrics: Any) -> None:
        original(self, done, metrics)
        if done == step:
            how()

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "trained", trained)
        train(short(), folder)


def fail() -> None:
    raise RuntimeError("planted")


def test_every_step_is_recorded_with_the_checksum_of_its_batch(whole: Path) -> None:
    steps = Run(whole).steps()
    assert steps["step"].tolist() == list(range(1, 13))
    assert steps["batch"].tolist() == checksums(12)
    train_lines = [line for line in read_metrics(whole) if line["split"] == "train"]
    for line in train_lines:  # all steps weigh the same: a period's value is the mean of its steps
        period = slice(line["step"] - 3, line["step"])
        np.testing.assert_allclose(steps["loss"][period].mean(), line["loss"], rtol=1e-6)
        np.testing.assert_allclose(steps["gradient_norm"][period].mean(), line["gradient_norm"], rtol=1e-6)
    assert not (whole / "flight.json").exists()


@pytest.mark.parametrize("step", [5, *(pytest.param(step, marks=pytest.mark.slow) for step in (2, 10))])
def test_a_run_that_failed_leaves_its_last_steps_and_resumes_to_the_same_bytes(
    step: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="planted"):
        stopped(tmp_path / "run", monkeypatch, step, fail)
    found = flight(tmp_path / "run")
    assert (found["step"], found["why"], found["unread"]) == (step, "RuntimeError: planted", [])
    assert [each["step"] for each in found["steps"]] == list(range(max(1, step - 2), step + 1))
    expected = read_steps(whole)
    for each in found["steps"]:
        assert each["batch"] == expected["batch"][each["step"] - 1]
        assert np.float32(each["loss"]) == expected["loss"][each["step"] - 1]
        data = tiny.main().data
        assert each["examples"] == [data.record(each["step"] - 1, row, training=True) for row in range(16)]
    assert "blocks/block/down/kernel[1]" in found["steps"][-1]["update_norms"]
    train(short(), tmp_path / "run")
    assert (tmp_path / "run" / "steps.bin").read_bytes() == (whole / "steps.bin").read_bytes()


def test_a_signal_leaves_them_too(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(tmp_path / "run", monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    found = flight(tmp_path / "run")
    assert (found["step"], found["why"]) == (5, "stopped by a signal")
    assert read_steps(tmp_path / "run")["step"].tolist() == [1, 2, 3, 4, 5]


def test_a_device_that_cannot_be_read_is_said_and_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Recorder.stepped

    def lost(self: Recorder, run: Any, step: int, metrics: Any) -> None:
        original(self, run, step, metrics)
        if step == 2:
            for leaf in jax.tree.leaves(self._last[-1].numbers):
                leaf.delete()

    monkeypatch.setattr(Recorder, "stepped", lost)
    monkeypatch.setattr(Journal, "_fetched", lambda self, step, metrics, batches: [])
    with pytest.raises(RuntimeError, match="planted"):
        stopped(tmp_path / "run", monkeypatch, 2, fail)
    found = flight(tmp_path / "run")
    assert [line[:8] for line in found["unread"]] == ["step 2: "]
    assert [set(each) for each in found["steps"]][1] == {"step", "examples"}
    assert found["steps"][0]["loss"] > 0


def test_the_size_is_no_part_of_what_is_computed_and_0_keeps_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = short(runtime=replace(short().runtime, flight=0))
    assert fingerprint(none) == fingerprint(short())
    recorder = Recorder(tmp_path, 0)
    run: Any = None
    recorder.stepped(run, 1, {})
    assert len(recorder._last) == 0


def test_norms_by_group_are_those_of_float64() -> None:
    experiment = short(optimizer=SGD(schedule=ConstantRate(peak=0.5), clip=None, momentum=0.0))
    program = Program(experiment)
    state, batches = program.init(), program.batches(experiment.data)
    with closing(batches):
        batch = next(batches)
        state, _ = program.step(state, batch)
        first, before = program.record(state, batch), jax.device_get(state.params)
        batch = next(batches)
        state, metrics = program.step(state, batch)
        second = program.record(state, batch)
    assert "recorded" not in metrics
    after = jax.device_get(state.params)
    recorded = second["recorded"]
    updates = norms_by_group(np.asarray(update_squares(first["recorded"], recorded)), recorded.groups)
    one, other = (tree["blocks"]["block"]["down"]["kernel"].astype(np.float64) for tree in (before, after))
    for layer in (0, 1):
        name = f"blocks/block/down/kernel[{layer}]"
        norm = np.linalg.norm(other[layer] - one[layer])
        np.testing.assert_allclose(updates[name], norm, rtol=1e-5)


@pytest.mark.slow
def test_two_processes_write_the_same_checksums(tmp_path: Path) -> None:
    launch.train("data", tmp_path / "run", devices=1, processes=2)
    steps = read_steps(tmp_path / "run")
    assert steps["step"].tolist() == list(range(1, 13))
    assert steps["batch"].tolist() == checksums(12)
