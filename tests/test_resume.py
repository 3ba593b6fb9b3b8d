"""An interrupted and resumed run equals an uninterrupted one, whatever stopped it and whenever."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from jaxtrain.optimizers import CosineDecay
from jaxtrain.program import Program
from jaxtrain.runs.begin import begin
from jaxtrain.runs.checkpoints import Checkpoints
from jaxtrain.runs.clock import Clock
from jaxtrain.runs.folder import Run
from jaxtrain.runs.journal import Journal, Metrics
from jaxtrain.runs.metrics_log import read_metrics
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
def test_a_killed_and_resumed_run_ends_bitwise_as_an_undisturbed_one(
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
def test_a_killed_run_resumes_with_the_same_batches_on_another_mesh_and_number_of_processes(
    undisturbed: Path, tmp_path: Path, function: str, devices: int, processes: int
) -> None:
    run = tmp_path / "run"
    launch.train_killed("data", run, 7, "step", devices=2)
    launch.train(function, run, devices=devices, processes=processes)
    # A batch in another order gives a loss that differs in the second digit.
    assert launch.relative_difference(run, undisturbed) < 2e-5


@pytest.mark.slow
def test_ctrl_c_saves_and_prints_the_command_that_resumes(undisturbed: Path, tmp_path: Path) -> None:
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


def test_a_run_in_this_process_stops_at_a_signal_and_resumes_to_the_same_losses(
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


@pytest.mark.slow
def test_a_finished_run_stays_as_it_is_and_one_with_more_steps_resumes(tmp_path: Path) -> None:
    experiment = replace(tiny.main(), steps=4)
    train(experiment, tmp_path / "run")
    _, state = train(experiment, tmp_path / "run")
    assert int(state.step) == 4
    assert launch.losses(tmp_path / "run").keys() == {1, 2, 3, 4}
    left = tmp_path / "run" / ".flight.json.5313-140495194467200.tmp"  # by a process that was killed while it wrote
    left.write_text("{")
    train(replace(experiment, steps=6), tmp_path / "run")
    assert launch.losses(tmp_path / "run").keys() == {1, 2, 3, 4, 5, 6}
    assert not left.exists()


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
    schedule = CosineDecay(peak=1e-2, warmup=2, steps=STEPS)
    assert run.experiment == replace(experiment, optimizer=replace(tiny.main().optimizer, schedule=schedule))
    restored = run.restore(8, devices=jax.devices()[:1])
    assert int(restored.state.step) == 8
    state = restored.state
    for _ in range(4):
        state, _ = restored.program.step(state, next(restored.batches))
    same = [np.array_equal(a, b) for a, b in zip(_leaves(state.params), _leaves(trained.params), strict=True)]
    assert all(same)


def test_every_second_of_a_run_is_in_its_account_and_speeds_count_reading_and_training_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.0

    def takes(duration: float, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, during which time passes by a clock that nothing else moves."""

        def timed(*arguments: Any, **named: Any) -> Any:
            nonlocal seconds
            seconds += duration
            return function(*arguments, **named)

        return timed

    def slowly(batches: Iterator[Any], put: Callable[..., Any]) -> Iterator[Any]:
        read = takes(1, next)
        with contextlib.suppress(StopIteration):
            while True:
                yield put(read(batches))

    monkeypatch.setattr("jaxtrain.train.Clock", lambda: Clock(lambda: seconds))
    monkeypatch.setattr(Program, "lower", takes(1000, Program.lower))
    monkeypatch.setattr("jaxtrain.data.reading.to_device", slowly)
    monkeypatch.setattr(Journal, "trained", takes(3, Journal.trained))
    monkeypatch.setattr(jax, "device_get", takes(4, jax.device_get))
    monkeypatch.setattr("jaxtrain.evaluate.evaluate", takes(20, lambda *_: {"loss": 1.0}))
    monkeypatch.setattr(Checkpoints, "save", takes(100, Checkpoints.save))
    monkeypatch.setattr("jaxtrain.train.begin", takes(7, begin))
    run, _ = train(tiny.main(), tmp_path / "run")
    lines = [line for line in read_metrics(run.folder) if line["split"] == "train"]
    # 12 steps; evaluated after 6 and 12; saved after 4, 8 and 12, the last time after the last line.
    assert {name: lines[-1][name] for name in lines[-1] if name.startswith("seconds_")} == {
        "seconds_compile": 1000,
        "seconds_restore": 0,
        "seconds_data": 12,
        "seconds_step": 12 * (3 + 4),
        "seconds_eval": 20,
        "seconds_save": 200 + 2 * 4 + 3 * (4 + 4),  # a fetch a save, and two before each save and evaluation
        "seconds_other": 7,
        "seconds_total": 1355,
    }
    # 16 rows of 16 tokens, in 1 second of reading, 3 of training, and 4 of waiting for the metrics of the period before.
    assert [line["examples_per_second"] for line in lines] == [4, *[2] * 11]
    assert [line["tokens_per_second"] for line in lines] == [64, *[32] * 11]


@pytest.mark.slow
def test_metrics_are_fetched_from_the_device_once_a_period_when_the_next_one_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched_after: list[int] = []
    fetch, trained, last_step = jax.device_get, Journal.trained, [0]

    def count_step(self: Journal, step: int, metrics: Metrics) -> None:
        last_step[0] = step
        trained(self, step, metrics)

    def count_fetch(tree: Any) -> Any:
        if jax.tree.leaves(tree):
            fetched_after.append(last_step[0])
        return fetch(tree)

    monkeypatch.setattr(Journal, "trained", count_step)
    monkeypatch.setattr(jax, "device_get", count_fetch)
    runtime = Runtime(log_every=4, eval_every=100, save_every=100)
    train(replace(tiny.main(), evals={}, runtime=runtime), tmp_path / "run")
    # Periods end at 4, 8 and 12; each is fetched when the next one ends, the last when the run does. Then, before the
    # last evaluation and the save, whether every parameter is finite; and at the end the step whose rows are kept.
    assert fetched_after == [8, 12, 12, *[12] * 2, 12]


@pytest.mark.slow
@pytest.mark.parametrize("saved", [4, *(pytest.param(step, marks=pytest.mark.slow) for step in (8, 12))])
def test_a_run_killed_as_soon_as_a_checkpoint_is_durable_has_every_line_of_metrics_once(
    saved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Checkpoints.save

    class Killed(BaseException):
        """Nothing catches it."""

    def save(self: Checkpoints, step: int, *rest: Any) -> None:
        original(self, step, *rest)
        if step == saved:
            self.wait()
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", save)
        with pytest.raises(Killed):
            train(tiny.main(), tmp_path / "run")
    run, _ = train(tiny.main(), tmp_path / "run")
    steps = {
        split: [line["step"] for line in read_metrics(run.folder) if line["split"] == split]
        for split in tiny.main().evals
    }
    assert steps == {"validation": [6, 12]}
    assert list(launch.losses(tmp_path / "run")) == list(range(1, 13))


def test_a_batch_that_was_left_on_the_host_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_module, "put_rows", lambda sharding, batch, rows, size: batch)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        train(replace(tiny.main(), runtime=Runtime(log_every=20)), tmp_path / "run")


@pytest.mark.slow
def test_a_language_model_on_windows_of_text_predicts_from_texts_of_any_length(tmp_path: Path) -> None:
    source = Take(Windows(Arrays({"text": ["abcabcabc" * 20] * 4}), 16), 40)
    experiment = replace(
        tiny.main(), data=Pipeline(source, batch_size=16), steps=60, evals={}, runtime=Runtime(save_every=60)
    )
    experiment = replace(experiment, task=replace(experiment.task, model=replace(experiment.task.model, vocab=256)))
    train(experiment, tmp_path / "run")
    after = predict_run(Run(tmp_path / "run", experiment=experiment), ["abcab", "bcabcabca"])
    assert [line.split()[1] for line in after] == ["b'c'", "b'b'"]


@pytest.mark.slow
def test_a_run_of_many_devices_predicts_one_row_at_a_time(tmp_path: Path) -> None:
    source = Windows(Arrays({"text": ["abcabcabc" * 20] * 4}), 16)
    task = replace(tiny.main().task, model=replace(tiny.main().task.model, vocab=256))
    experiment = replace(
        tiny.data(), task=task, data=Pipeline(source, batch_size=16), steps=2, evals={}, runtime=Runtime(save_every=2)
    )
    train(experiment, tmp_path / "run")
    assert len(predict_run(Run(tmp_path / "run", experiment=experiment), ["abcab"])) == 1


def test_runs_that_begin_in_the_same_second_get_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.0)
    made = [begin(None, replace(tiny.main(), seed=seed), None).folder for seed in (1, 1, 2)]
    first = made[0].name
    assert [folder.name for folder in made] == [first, f"{first}-2", f"{first}-3"]


def _leaves(tree: object) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.slow
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
