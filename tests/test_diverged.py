"""A run whose loss or gradients are not finite stops with exit code 4, and its state is not saved."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from jaxtrain import Experiment, Run
from jaxtrain.base.errors import Diverged, ExitCode
from jaxtrain.cli.terminal import report_error
from jaxtrain.data import Arrays, Pipeline
from jaxtrain.experiment.experiment import Runtime
from jaxtrain.models import Model
from jaxtrain.optimizers import SGD, ConstantRate
from jaxtrain.tasks import Regression
from jaxtrain.train import train

X = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)


@dataclass(frozen=True)
class Line(Model):
    def build(self, rngs: nnx.Rngs, inputs: Any) -> nnx.Module:
        return nnx.Linear(inputs.shape[-1], 1, rngs=rngs)


def experiment(peak: float = 1e20, **changes: Any) -> Experiment:
    """The error grows by a factor of about 1e20 a step: the third step's loss is infinite."""
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
    with pytest.raises(Diverged, match=r"step [1-4] or shortly before: (loss|gradient_norm) is (inf|nan)"):
        train(made, tmp_path / "run")
    run = Run(tmp_path / "run", experiment=made)
    restored = run.restore()
    assert 1 <= int(restored.state.step) <= 3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(restored.state.params)))
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert not np.isfinite(float(last["gradient_norm"])) or not np.isfinite(float(last["loss"]))


def test_divergence_between_checkpoints_is_seen_at_the_end_of_a_period(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="step 10 or shortly before"):
        train(experiment(runtime=Runtime(log_every=10, save_every=40)), tmp_path / "run")


def test_its_exit_code_is_4_and_no_traceback_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_error(Diverged("step 3: loss is inf")) == ExitCode.DIVERGED == 4
    assert capsys.readouterr().err == "jaxtrain: step 3: loss is inf\n"


def test_a_period_in_which_no_row_weighs_anything_does_not_diverge(tmp_path: Path) -> None:
    columns = {"x": X, "target": X.sum(1), "w": np.zeros(32, np.float32)}
    task = replace(experiment().task, weights="w")
    run, _ = train(experiment(1e-3, task=task, data=Pipeline(Arrays(columns), batch_size=8), steps=2), tmp_path / "run")
    assert np.isnan(run.metrics()[-1]["loss"])
