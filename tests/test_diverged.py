"""A run whose loss or gradients are not finite stops with exit code 4, and its state is not saved."""

import errno
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxtrain import Experiment, Run
from jaxtrain.base.errors import ConfigError, Diverged, ExitCode, Retry
from jaxtrain.cli.terminal import report_error
from jaxtrain.data import Arrays, Pipeline
from jaxtrain.experiment.experiment import Runtime
from jaxtrain.models import Model
from jaxtrain.optimizers import SGD, ConstantRate, Guarded, Optimizer, Rewind, Skip, SkipSpikes
from jaxtrain.program import Program
from jaxtrain.runs.metrics_log import read_metrics
from jaxtrain.runs.saving import Save
from jaxtrain.tasks import Regression
from jaxtrain.train import train

X = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)


@dataclass(frozen=True)
class Line(Model):
    def build(self, rngs: nnx.Rngs, inputs: Any) -> nnx.Module:
        return nnx.Linear(inputs.shape[-1], 1, rngs=rngs)


@dataclass(frozen=True, kw_only=True)
class Big(Optimizer):
    """Makes an infinite number of every parameter, whatever the gradient is."""

    def build(self, steps: int) -> optax.GradientTransformation:
        return optax.stateless(lambda updates, params: jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), updates))


def first_params(made: Experiment) -> tuple[Any, Any]:
    """Kernel and bias before the first step."""
    params = Program(made, jax.devices()[:1]).init().params
    return params["kernel"], params["bias"]


LOSS_SCALE = 2
"""The loss is the squared error, whose gradient is twice the error."""


def experiment(peak: float = 1e20, **changes: Any) -> Experiment:
    """The first update moves the parameters by about 1e20: the second step's loss is infinite."""
    made = Experiment(
        task=Regression(model=Line(), inputs="x"),
        data=Pipeline(Arrays({"x": X, "target": X.sum(1)}), batch_size=8),
        optimizer=SGD(schedule=ConstantRate(peak=peak), clip=None),
        steps=40,
        runtime=Runtime(log_every=10, save_every=1),
    )
    return replace(made, **changes)


@pytest.mark.parametrize("log_every", [10, 1])
def test_a_run_that_diverges_stops_and_keeps_its_last_finite_state(log_every: int, tmp_path: Path) -> None:
    made = experiment(runtime=Runtime(log_every=log_every, save_every=1))
    with pytest.raises(Diverged, match=r"step 2: this run has diverged and stops; .*\nloss is inf: ") as stopped:
        train(made, tmp_path / "run")
    lines = str(stopped.value).splitlines()
    assert len(lines) == 3
    assert lines[2] == f"jaxtrain replay {tmp_path / 'run'} --step 2"
    run = Run(tmp_path / "run", experiment=made)
    restored = run.restore()
    assert int(restored.state.step) == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(restored.state.params)))
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert not np.isfinite(float(last["gradient_norm"])) or not np.isfinite(float(last["loss"]))


def test_divergence_between_checkpoints_is_seen_at_the_end_of_a_period_and_its_step_is_named(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"step 2: .*; there is no checkpoint\nloss is inf"):
        train(experiment(runtime=Runtime(log_every=10, save_every=40)), tmp_path / "run")


@pytest.mark.parametrize("steps", [2, 40])
def test_parameters_that_an_update_made_infinite_are_neither_saved_nor_evaluated(steps: int, tmp_path: Path) -> None:
    data = Pipeline(Arrays({"x": X, "target": X.sum(1)}), batch_size=8)
    seen = experiment(
        1e38, steps=steps, evals={"test": data}, runtime=Runtime(save_every=1, eval_every=1, log_every=50)
    )
    big = replace(seen, optimizer=Big())
    with pytest.raises(Diverged, match=r"step 1: .*\nthe update made (bias|kernel) and 1 more infinite or NaN, though"):
        train(big, tmp_path / "run")
    assert not [path for path in (tmp_path / "run" / "checkpoints").glob("*") if path.name.isdecimal()]
    assert (
        not (tmp_path / "run" / "metrics.jsonl").exists()
        or "test" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    )


def poisoned(optimizer: Optimizer, bad: float, **changes: Any) -> Experiment:
    """Row 41 of 64 has this target: step 6 of 8 sees it."""
    x = np.tile(X, (2, 1))
    target = x.sum(1)
    target[41] = bad
    data = Pipeline(Arrays({"x": x, "target": target}), batch_size=8, shuffle=False)
    runtime = Runtime(log_every=4, save_every=2)
    return experiment(data=data, optimizer=optimizer, steps=8, runtime=runtime, **changes)


RATE = SGD(schedule=ConstantRate(peak=0.01), momentum=0.0, ema=0.5)


def test_a_skipped_batch_leaves_no_trace_in_the_means_of_its_period_and_is_named(tmp_path: Path) -> None:
    run, _ = train(poisoned(Guarded(RATE, Skip()), 1e30), tmp_path / "run")
    first, second = read_metrics(run.folder)
    assert (first["skipped"], second["skipped"]) == (0, 1)
    assert np.isfinite([second["loss"], second["gradient_norm"], second["absolute_error"]]).all()
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    [event] = [event for event in events if event["kind"] == "skipped"]
    assert [step["step"] for step in event["steps"]] == [6]


def test_too_many_updates_skipped_in_a_row_stop_the_run_over_a_resume_too(tmp_path: Path) -> None:
    made = poisoned(Guarded(RATE, Skip(at_most=2)), 0.0)
    bad = replace(made, data=replace(made.data, source=Arrays({"x": X, "target": np.full(32, 1e30, np.float32)})))
    train(replace(bad, steps=2), tmp_path / "run")  # two updates, both skipped
    with pytest.raises(Diverged, match=r"step 3: .*step 2\nloss is inf, and this is update 3 in a row .*allowed are 2"):
        train(bad, tmp_path / "run")


@pytest.mark.parametrize(("policy", "bad"), [(Rewind(), 1e30), (Rewind(when=SkipSpikes(warmup=3)), 1e4)])
def test_a_run_goes_back_and_leaves_out_the_batch(policy: Rewind, bad: float, tmp_path: Path) -> None:
    made, folder = poisoned(Guarded(RATE, policy), bad), tmp_path / "run"
    with pytest.raises(Retry, match=r"step 6: loss .* goes back to step 4 and leaves out the batch of step 6") as back:
        train(made, folder)
    assert report_error(back.value) == ExitCode.RETRY == 75
    assert [each["left_out"] for each in json.loads((folder / "skipped.json").read_text())["rewinds"]] == [[6]]
    run, state = train(made, folder)
    assert run.left_out == {6}
    # An independent loop over the same batches without the sixth, by hand.
    kernel, bias = (np.asarray(jax.device_get(first), np.float64) for first in first_params(made))
    for step in [1, 2, 3, 4, 5, 7, 8]:
        batch: Any = made.data.steps()[step - 1]
        error = batch["x"] @ kernel[:, 0] + bias[0] - batch["target"]
        grad = np.concatenate([batch["x"].T @ error, [error.sum()]]) / 8 * LOSS_SCALE
        grad *= min(1.0, 1 / np.linalg.norm(grad))
        kernel, bias = kernel - 0.01 * grad[:3, None], bias - 0.01 * grad[3]
    np.testing.assert_allclose(state.params["kernel"], kernel, rtol=1e-5)
    np.testing.assert_allclose(state.params["bias"], bias, rtol=1e-5)


@pytest.mark.parametrize("kind", ["garbage", "empty", "a folder", "a link to nothing"])
def test_a_damaged_list_of_left_out_steps_is_refused_before_anything_is_written(kind: str, tmp_path: Path) -> None:
    made, folder = experiment(peak=1e-3, steps=2), tmp_path / "run"
    train(made, folder)
    file = folder / "skipped.json"
    if kind == "a folder":
        file.mkdir()
    elif kind == "a link to nothing":
        file.symlink_to("/nonexistent/place")
    else:
        file.write_text("{" if kind == "garbage" else "")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"skipped\.json"):
        train(replace(made, steps=4), folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_a_run_that_goes_back_too_often_has_diverged(tmp_path: Path) -> None:
    made = poisoned(Guarded(RATE, Rewind(at_most=1)), 0.0)
    bad = replace(made, data=replace(made.data, source=Arrays({"x": X, "target": np.full(32, 1e30, np.float32)})))
    with pytest.raises(Retry):
        train(bad, tmp_path / "run")
    with pytest.raises(Diverged, match=r"step 2: .*\nloss is inf, and the run went back to step 0 1 times already"):
        train(bad, tmp_path / "run")


def test_a_guard_is_part_of_the_fingerprint_and_its_limit_is_not(tmp_path: Path) -> None:
    made = poisoned(
        RATE,
        0.0,
    )
    train(replace(made, steps=2), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"optimizer.kind: SGD → Guarded"):
        train(replace(made, optimizer=Guarded(RATE)), tmp_path / "run")
    train(replace(made, steps=2, optimizer=Guarded(RATE)), tmp_path / "guarded")
    with pytest.raises(ConfigError, match=r"optimizer.kind: Guarded → SGD"):
        train(made, tmp_path / "guarded")
    train(replace(made, steps=4, optimizer=Guarded(RATE, Skip(at_most=99))), tmp_path / "guarded")


def test_its_exit_code_is_4_and_no_traceback_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_error(Diverged("step 3: loss is inf")) == ExitCode.DIVERGED == 4
    assert capsys.readouterr().err == "jaxtrain: step 3: loss is inf\n"


def test_a_period_in_which_no_row_weighs_anything_does_not_diverge(tmp_path: Path) -> None:
    columns = {"x": X, "target": X.sum(1), "w": np.zeros(32, np.float32)}
    task = replace(experiment().task, weights="w")
    run, _ = train(experiment(1e-3, task=task, data=Pipeline(Arrays(columns), batch_size=8), steps=2), tmp_path / "run")
    assert np.isnan(read_metrics(run.folder)[-1]["loss"])


def failing_saves(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """The saves of these steps fail in the background, at their end."""
    original = Save.complete

    def complete(self: Save, finalize: Any) -> None:
        if self.step in steps:
            raise OSError(errno.EIO, "no such luck")
        original(self, finalize)

    monkeypatch.setattr(Save, "complete", complete)


@pytest.mark.parametrize("log_every", [10, 1])
def test_the_checkpoint_that_is_named_is_one_that_was_saved(
    log_every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_saves(monkeypatch, 1)
    made = experiment(runtime=Runtime(log_every=log_every, save_every=1))
    with pytest.raises(Diverged, match=r"step 2: this run has diverged and stops; there is no checkpoint\n"):
        train(made, tmp_path / "run")


def test_a_run_goes_back_to_a_checkpoint_that_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_saves(monkeypatch, 4)
    made, folder = poisoned(Guarded(RATE, Rewind()), 1e30), tmp_path / "run"
    with pytest.raises(Retry, match="it goes back to step 2 and leaves out the batch of step 6"):
        train(made, folder)
    assert [each["after"] for each in json.loads((folder / "skipped.json").read_text())["rewinds"]] == [2]
