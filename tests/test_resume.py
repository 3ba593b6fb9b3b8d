"""Interrupted and resumed is the same as uninterrupted, whatever killed the run and whenever."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import launch
import numpy as np
import pytest
import tiny

from jaxtrain import Runtime
from jaxtrain import program as program_module
from jaxtrain.base.files import read_json
from jaxtrain.data import Arrays, Pipeline, Take, Windows
from jaxtrain.evaluate import evaluate_run, predict_run
from jaxtrain.runs.folder import Run
from jaxtrain.runs.journal import Journal, Metrics
from jaxtrain.sharding.layout import Layout
from jaxtrain.train import train

STEPS = 12


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    launch.train("data", run, devices=2)
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "during"),
    [(2, "step"), (7, "step"), (8, "save")],
    ids=["before anything was saved", "between two saves", "during a save"],
)
def test_a_run_killed_and_resumed_ends_bitwise_as_one_left_alone(
    undisturbed: Path, tmp_path: Path, step: int, during: str
) -> None:
    run = tmp_path / "run"
    launch.train_killed("data", run, step, during, devices=2)
    launch.train("data", run, devices=2)
    ended = launch.final_leaves(run, STEPS, "data", devices=2)
    expected = launch.final_leaves(undisturbed, STEPS, "data", devices=2)
    assert [x.tobytes() for x in ended] == [x.tobytes() for x in expected]
    assert launch.losses(run) == launch.losses(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(("function", "devices", "processes"), [("fsdp", 4, 1), ("tensor", 1, 2), ("main", 1, 1)])
def test_a_killed_run_goes_on_with_the_same_batches_on_another_mesh_and_number_of_processes(
    undisturbed: Path, tmp_path: Path, function: str, devices: int, processes: int
) -> None:
    run = tmp_path / "run"
    launch.train_killed("data", run, 7, "step", devices=2)
    launch.train(function, run, devices=devices, processes=processes)
    # A batch in another order gives a loss that differs in the second digit.
    assert launch.relative_difference(run, undisturbed) < 2e-5


@pytest.mark.slow
def test_ctrl_c_saves_and_says_the_command_that_goes_on(undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "jaxtrain", "train", f"{launch.HERE / 'tiny.py'}:data", "--run", str(run)]
    program = launch.killed(5, by="SIGINT")
    done = subprocess.run(
        [sys.executable, "-c", program, *command[3:]],
        env=launch.environment(2),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert (
        f"stopped after step 5 of 12; resume with:\njaxtrain train {launch.HERE / 'tiny.py'}:data --run {run}"
        in done.stderr
    )
    subprocess.run(command, env=launch.environment(2), check=True, capture_output=True, timeout=240)
    assert launch.losses(run) == launch.losses(undisturbed)


def test_a_run_in_this_process_stops_at_a_signal_and_goes_on_to_the_same_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = train(tiny.main(), tmp_path / "whole")
    original = Journal.trained

    def interrupted(self: Journal, step: int, metrics: Metrics) -> None:
        original(self, step, metrics)
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "trained", interrupted)
        _, state = train(tiny.main(), tmp_path / "run")
    assert int(state.step) == 5
    _, state = train(tiny.main(), tmp_path / "run")
    assert int(state.step) == STEPS
    assert launch.losses(tmp_path / "run") == launch.losses(tmp_path / "whole")
    same = [np.array_equal(a, b) for a, b in zip(_leaves(state.params), _leaves(whole.params), strict=True)]
    assert all(same)


def test_a_finished_run_is_left_as_it_is_and_a_longer_one_goes_on(tmp_path: Path) -> None:
    experiment = replace(tiny.main(), steps=4)
    train(experiment, tmp_path / "run")
    _, state = train(experiment, tmp_path / "run")
    assert int(state.step) == 4
    assert launch.losses(tmp_path / "run").keys() == {1, 2, 3, 4}
    train(replace(experiment, steps=6), tmp_path / "run")
    assert launch.losses(tmp_path / "run").keys() == {1, 2, 3, 4, 5, 6}


def test_a_run_folder_explains_itself_and_gives_back_experiment_state_and_data(tmp_path: Path) -> None:
    experiment = tiny.main()
    _, trained = train(experiment, tmp_path / "run", None)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {
        "experiment.json",
        "environment.json",
        "metrics.jsonl",
        "events.jsonl",
        "checkpoints",
        "tensorboard",
    } <= names
    assert {"git", "packages", "hardware"} <= read_json(tmp_path / "run" / "environment.json").keys()

    run = Run(tmp_path / "run", code=tiny.__file__)
    assert run.experiment == experiment
    restored = run.restore(8, devices=jax.devices()[:1])
    assert int(restored.state.step) == 8
    state = restored.state
    for _ in range(4):
        state, _ = restored.program.step(state, next(restored.batches))
    same = [np.array_equal(a, b) for a, b in zip(_leaves(state.params), _leaves(trained.params), strict=True)]
    assert all(same)


def test_the_time_account_of_a_run_sums_to_its_total(tmp_path: Path) -> None:
    run, _ = train(tiny.main(), tmp_path / "run")
    lines = [line for line in run.metrics() if line["split"] == "train"]
    line = lines[-1]
    parts = {name: value for name, value in line.items() if name.startswith("seconds_")}
    total = parts.pop("seconds_total")
    assert {"seconds_compile", "seconds_data", "seconds_step", "seconds_eval", "seconds_checkpoint"} < parts.keys()
    assert sum(parts.values()) == pytest.approx(total, rel=1e-6)
    # Speeds count what training took: neither compiling, which the first period follows, nor evaluating and saving.
    trained = sum(16 / line["examples_per_second"] for line in lines)
    assert trained == pytest.approx(parts["seconds_data"] + parts["seconds_step"], rel=0.05)
    assert trained < parts["seconds_compile"]
    assert line["tokens_per_second"] == pytest.approx(16 * line["examples_per_second"])


def test_no_step_moves_anything_between_host_and_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    fetch = jax.device_get
    at = [0]
    original = Journal.trained

    def counted(self: Journal, step: int, metrics: Metrics) -> None:
        at[0] = step
        original(self, step, metrics)

    monkeypatch.setattr(Journal, "trained", counted)
    monkeypatch.setattr(jax, "device_get", lambda tree: (read.append(at[0]), fetch(tree))[1])

    train(
        replace(tiny.main(), evals={}, runtime=Runtime(log_every=4, eval_every=100, save_every=100)), tmp_path / "run"
    )
    # Periods end at 4, 8 and 12; each is read when the next one ends, the last when the run does.
    assert read == [8, 12, 12]


def test_a_batch_that_was_left_on_the_host_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_module, "put_rows", lambda sharding, batch, rows, size: batch)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        train(replace(tiny.main(), runtime=Runtime(log_every=20)), tmp_path / "run")


def test_a_language_model_on_windows_of_text_predicts_from_texts_of_any_length(tmp_path: Path) -> None:
    source = Take(Windows(Arrays({"text": ["abcabcabc" * 20] * 4}), 16), 40)
    experiment = replace(
        tiny.main(), data=Pipeline(source, batch_size=16), steps=60, evals={}, runtime=Runtime(save_every=60)
    )
    experiment = replace(experiment, task=replace(experiment.task, model=replace(experiment.task.model, vocab=256)))
    train(experiment, tmp_path / "run")
    after = predict_run(Run(tmp_path / "run", experiment=experiment), ["abcab", "bcabcabca"])
    assert [line.split()[1] for line in after] == ["b'c'", "b'b'"]


def _leaves(tree: object) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_a_run_of_many_devices_is_evaluated_to_the_same_scores_on_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = train(replace(tiny.main(), steps=4, layout=Layout({"fsdp": 8})), tmp_path / "run", None)
    run = Run(run.folder, code=tiny.__file__)
    here = evaluate_run(run)["validation"]
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    alone = evaluate_run(run)["validation"]
    assert "on one device" in capsys.readouterr().err
    assert alone["loss"] == pytest.approx(here["loss"], rel=2e-5)
