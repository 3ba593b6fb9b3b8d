"""Intervals that do not meet as a user may expect are said at the start, once, in one line."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jaxtrain import ConfigError, Experiment
from jaxtrain.data import Arrays, Pipeline
from jaxtrain.experiment import EarlyStopping, Retention, Runtime
from jaxtrain.experiment.validate import check_evals, data_facts, interval_facts
from jaxtrain.models import Blocks, Transformer
from jaxtrain.optimizers import AdamW, ConstantRate
from jaxtrain.runs.metrics_log import read_metrics
from jaxtrain.tasks import LanguageModel
from jaxtrain.train import train

DATA = Pipeline(Arrays({"tokens": np.arange(36).reshape(4, 9).astype(np.int32) % 8}), batch_size=4)


def experiment(steps: int, runtime: Runtime, evals: bool = True, patience: int | None = None) -> Experiment:
    return Experiment(
        task=LanguageModel(model=Transformer(vocab=8, blocks=Blocks(width=8, layers=1, heads=2))),
        data=DATA,
        optimizer=AdamW(schedule=ConstantRate(peak=1e-3)),
        steps=steps,
        evals={"test": DATA} if evals else {},
        observers=() if patience is None else (EarlyStopping(metric="test/loss", patience=patience),),
        runtime=runtime,
    )


def of(log: int = 5, evaluate: int = 10, save: int = 10, **keep: Any) -> Runtime:
    return Runtime(log_every=log, eval_every=evaluate, save_every=save, keep=Retention(**keep))


@pytest.mark.parametrize(
    ("steps", "runtime", "wanted"),
    [
        (20, of(), []),
        (20, of(best="test/loss"), []),
        (20, of(every=10), []),
        (20, of(every=20), []),
        (3, of(3, 3, 3), []),
        (
            3,
            of(),
            [
                "the run has 3 steps, fewer than log_every 5, eval_every 10, save_every 10: that happens once, at the last step"
            ],
        ),
        (7, of(7, 7), ["the run has 7 steps, fewer than save_every 10: that happens once, at the last step"]),
        (
            21,
            of(),
            ["the last step, 21, counts too though it is not a multiple of log_every 5, eval_every 10, save_every 10"],
        ),
        (20, of(3), ["the last step, 20, counts too though it is not a multiple of log_every 3"]),
        (
            20,
            of(5, 2, 10, best="test/loss", save_best=False),
            [
                "keep.best is the best of the evaluations whose step is saved, one in 5: for the best of all, set "
                "keep.save_best, or save_every to 2"
            ],
        ),
        (20, of(5, 2, 10, best="test/loss"), []),  # the best evaluation is saved at its step
        (20, of(5, 10, 5, best="test/loss"), []),  # every evaluation is of a step that is saved
        (40, of(save=4, every=10), ["keep.every 10 keeps the saved steps (every 4) that it divides, every 20"]),
        (
            40,
            of(save=20, every=50),
            ["keep.every 50 keeps the saved steps (every 20) that it divides, none: the first would be 100"],
        ),
    ],
)
def test_what_intervals_come_to(steps, runtime, wanted):
    assert interval_facts(experiment(steps, runtime)) == wanted


def test_nothing_is_said_of_evaluations_where_there_are_none():
    assert interval_facts(experiment(20, of(evaluate=500), evals=False)) == []
    assert interval_facts(experiment(20, of(evaluate=3), evals=False)) == []


def test_early_stopping_that_can_end_nothing_is_said():
    """With 3 evaluations and a patience of 2, the second and third may be no better than the first; of 3, never."""
    assert interval_facts(experiment(30, of(), patience=2)) == []
    assert interval_facts(experiment(30, of(), patience=3)) == [
        "observers.0 ends nothing: its patience is 3, of 3 evaluations"
    ]
    assert interval_facts(experiment(10, of(), patience=1)) == [
        "observers.0 ends nothing: its patience is 1, of 1 evaluation"
    ]


@pytest.mark.parametrize(("evaluate", "save"), [(2, 5), (4, 6), (2, 20)])
def test_intervals_by_which_the_best_would_never_be_saved_are_refused(evaluate, save):
    with pytest.raises(ConfigError, match=f"keep.best: .* set keep.save_best, or save_every to {evaluate}"):
        check_evals(experiment(18, of(evaluate=evaluate, save=save, best="test/loss", save_best=False)))
    check_evals(experiment(18, of(evaluate=evaluate, save=save, best="test/loss")))


@pytest.mark.slow
@pytest.mark.parametrize("cut", [None, 7])
def test_the_best_checkpoint_is_the_best_of_all_evaluations_though_their_steps_are_not_saved_else(tmp_path, cut):
    """The seed's own data: an evaluation every 2 steps, a checkpoint every 5, and a rate that makes the loss rise."""
    runtime = of(18, 2, 5, best="test/loss", last=1)
    one = replace(experiment(18, runtime), optimizer=AdamW(schedule=ConstantRate(peak=0.5)))
    if cut is not None:
        train(replace(one, steps=cut), tmp_path / "run")
    run, _ = train(one, tmp_path / "run")
    losses = {
        line["step"]: line["loss"]
        for line in read_metrics(run.folder)
        if line["split"] == "test" and line["step"] % 2 == 0
    }
    lowest = min(losses, key=lambda step: (losses[step], -step))
    assert lowest % 5
    with run.checkpoints(read_only=True) as checkpoints:
        assert (checkpoints.best(), checkpoints.steps()) == (lowest, sorted({lowest, 18}))


@pytest.mark.slow
def test_the_start_says_it_in_one_line(tmp_path, capsys):
    one = experiment(3, Runtime(log_every=2, eval_every=2, save_every=4, keep=Retention(best=None)))
    train(one, tmp_path / "run")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("intervals")]
    assert said == [
        "intervals  note the run has 3 steps, fewer than save_every 4: that happens once, at the last step; the last "
        "step, 3, counts too though it is not a multiple of log_every 2, eval_every 2"
    ]
    train(replace(one, steps=4), tmp_path / "run")
    assert "intervals" not in capsys.readouterr().err


def test_an_evaluation_of_the_training_data_and_their_order_are_said():
    other = replace(DATA, source=Arrays({"tokens": np.ones((4, 9), np.int32)}), shuffle=False)
    made = replace(experiment(20, of()), evals={"test": replace(DATA, shuffle=False), "other": other})
    assert data_facts(made) == ["evals.test reads the examples that are trained on, so it says nothing of others"]
    assert data_facts(replace(made, data=other, evals={})) == [
        "data.shuffle is False: every epoch has the order of the source"
    ]
    assert data_facts(replace(made, evals={"other": other})) == []
