"""`jaxtrain verify-resume`: what cannot be resumed is found and named, what can be passes."""

import random
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import launch
import numpy as np
import pytest
import tiny

from jaxtrain.analysis.verify_resume import changed_batches, first_kill, small
from jaxtrain.data import Pipeline, Transform

PURE = Pipeline(tiny.Counting(100), batch_size=4)


@dataclass(frozen=True)
class Drawn(Transform):
    """Draws from numpy's own generator, and not from the one that it is given."""

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**example, "noise": np.float32(np.random.rand())}


@dataclass(frozen=True)
class Counted(Transform):
    """Counts its calls."""

    calls: ClassVar[list[int]] = []

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        self.calls.append(1)
        return {**example, "tokens": example["tokens"] + np.int32(len(self.calls) % 2)}


@dataclass(frozen=True)
class Noised(Transform):
    """Draws from the generator that it is given, as it should."""

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**example, "kept": np.float32(rng.random())}


@pytest.mark.parametrize(
    ("transform", "field"), [(Drawn(), "noise"), (Counted(), "tokens")], ids=["numpy.random", "a counter"]
)
def test_a_transform_that_keeps_something_in_mind_is_named_with_its_field(transform: Transform, field: str) -> None:
    found = changed_batches(replace(PURE, batch_size=5, transforms=(Noised(), transform, Noised())))
    assert f"field {field!r} of the batch of step 3 is another one when reading begins there" in found
    assert f"its transform {type(transform).__name__} keeps something in mind" in found


def test_batches_that_depend_on_their_step_alone_pass() -> None:
    assert changed_batches(replace(PURE, transforms=(Noised(),))) == ""


@pytest.mark.slow
def test_the_small_experiment_keeps_data_and_transforms_and_is_cut_to_a_small_vocabulary() -> None:
    made = small(replace(tiny.main(), data=replace(PURE, batch_size=100, transforms=(Noised(),), workers=2)))
    assert made.data.transforms[0] == Noised()
    assert (made.data.batch_size, made.data.workers, made.steps) == (8, 2, 12)
    batch = next(made.data.batches())
    assert batch["tokens"].max() < getattr(made.task.model, "vocab", 0)
    assert sum(len(list(data.epoch())) for data in made.evals.values()) == 2


@pytest.mark.parametrize("seed", range(20))
def test_the_first_kill_of_a_run_comes_when_a_checkpoint_is_durable(seed: int) -> None:
    plan = first_kill(random.Random(seed), Path("run"))
    assert plan.phase == "step"
    # Two entries a step; step 7 begins once step 6 is being saved, for which step 3 had to be durable.
    assert 13 <= plan.times <= 24
    assert plan.by in (signal.SIGKILL, signal.SIGTERM)


STATE_OUTSIDE = """
import itertools
from dataclasses import dataclass, replace
import jax, numpy as np
import tiny
from jaxtrain.experiment import Experiment
from jaxtrain.tasks import LanguageModel

CALLS = itertools.count()

@dataclass(frozen=True)
class Annealed(LanguageModel):
    def loss(self, variables, batch, context):
        found = super().loss(variables, batch, context)
        calls = jax.pure_callback(lambda step: np.float32(next(CALLS)), jax.ShapeDtypeStruct((), np.float32), context.step)
        return replace(found, mean=replace(found.mean, total=found.mean.total * (1 + calls)))

def main() -> Experiment:
    return replace(tiny.main(), task=Annealed(model=tiny.main().task.model))
"""


def run(file: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jaxtrain", "verify-resume", str(file), *flags],
        env={**launch.environment(), "PYTHONPATH": f"{launch.HERE}:{launch.HERE.parent}"},
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.mark.slow
def test_an_experiment_that_resumes_passes_and_is_compared_in_ulps_on_another_mesh() -> None:
    done = run(launch.HERE / "tiny.py", "--kills", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed 2 times, end bitwise as the one that was not killed" in done.stdout
    assert "resumed on data 2: " in done.stdout


@pytest.mark.slow
def test_a_counter_of_python_in_the_task_is_found(tmp_path: Path) -> None:
    (tmp_path / "outside.py").write_text(STATE_OUTSIDE)
    done = run(tmp_path / "outside.py", "--kills", "2", "--kill-seed", "1", "--mesh", "")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "This experiment is not resumable" in done.stdout
    assert "metrics of step" in done.stdout
    assert "neither in the train state nor a field of the experiment" in done.stdout
