"""Metrics of a whole split, what `keep.best` may name, and which evaluations are refused before a run starts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from scipy.stats import spearmanr
from sklearn.metrics import f1_score

from jaxtrain import ConfigError, Experiment, Layout, Metric, Program, Run
from jaxtrain.data import Arrays, Pipeline
from jaxtrain.evaluate import check_metrics, evaluate
from jaxtrain.experiment import Retention, Runtime
from jaxtrain.models import NGrams
from jaxtrain.optimizers import AdamW
from jaxtrain.runs.metrics_log import read_metrics
from jaxtrain.tasks import Classification, Confusion, Context, HostMetric, Loss, Regression, Spearman, Variables
from jaxtrain.train import train


def spearman(one: Any, two: Any) -> float:
    return Spearman(prediction="p", label="l").value({"p": np.array(one)}, {"l": np.array(two)})


def test_spearman_of_ranks_by_hand():
    assert spearman([1.0, 2, 3, 4, 5], [5, 6, 7, 8, 7]) == pytest.approx(0.8207826816681233)  # Wikipedia's and scipy's
    assert spearman([1, 2, 3], [10, 100, 1000]) == pytest.approx(1)
    assert spearman([[1.0], [2.0], [3.0]], [3, 2, 1]) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: covariance 4.5 over the root of 4.5 times 5.
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))
    assert math.isnan(spearman([1, math.nan, 2], [1, 2, 3]))


def test_spearman_names_what_it_cannot_compare():
    with pytest.raises(ConfigError, match="no prediction 'valuse'; did you mean 'values'"):
        Spearman(prediction="valuse").value({"values": np.zeros(2)}, {"target": np.zeros(2)})
    with pytest.raises(ConfigError, match=r"one number a row, not arrays of shape \[2, 3\]"):
        spearman(np.zeros((2, 3)), [1, 2])


@dataclass(frozen=True)
class Order(HostMetric):
    """The rows that it was given."""

    @property
    def fields(self) -> tuple[str, ...]:
        return ("target",)

    def value(self, predictions: Mapping[str, Any], labels: Mapping[str, Any]) -> dict[str, float]:
        assert predictions["values"].shape == (11, 1)
        assert labels.keys() == {"target"}
        return {f"row_{row}": float(target) for row, target in enumerate(labels["target"])}


ROWS = np.random.default_rng(0)
WORDS = ROWS.integers(97, 123, (11, 12)).astype(np.uint8)
TARGETS = ROWS.normal(size=11).astype(np.float32)


def regression(**changes: Any) -> Experiment:
    data = Pipeline(Arrays({"text": WORDS, "target": TARGETS}), batch_size=4)
    fields: dict[str, Any] = dict(
        task=Regression(model=NGrams(outputs=1, buckets=64, words=4, width=4), inputs="text"),
        data=data,
        optimizer=AdamW(),
        steps=4,
        evals={"test": data},
        host_metrics={"spearman": Spearman(), "order": Order()},
    )
    return Experiment(**(fields | changes))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_a_host_metric_sees_every_row_once_in_the_order_of_the_source(devices: int):
    experiment = regression(layout=Layout({"data": devices}))
    program = Program(experiment, jax.devices()[:devices])
    state = program.init()
    found = evaluate(program, state, experiment.evals["test"])
    assert [found[f"order/row_{row}"] for row in range(11)] == TARGETS.tolist()
    whole = {"text": WORDS, "target": TARGETS, "mask": np.ones(11, bool)}
    alone = experiment.task.predict(jax.device_get(state.evaluated), whole)["values"][:, 0]
    assert found["spearman"] == pytest.approx(spearmanr(alone, TARGETS).statistic)


@dataclass(frozen=True)
class Misspelled(HostMetric):
    def value(self, predictions: Any, labels: Any) -> float:
        return float(predictions["value"].mean())


def test_a_host_metric_that_reads_what_is_not_there_is_named():
    made = regression(host_metrics={"mean": Misspelled()})
    program = Program(made, jax.devices()[:1])
    with pytest.raises(
        ConfigError, match=r"host_metrics.mean: 'value' is neither a prediction .*did you mean 'values'"
    ):
        evaluate(program, program.init(), made.evals["test"])


@dataclass(frozen=True, kw_only=True)
class Counted(Classification):
    """Classification with a confusion matrix."""

    def rows(self, outputs: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        losses_B, metrics = super().rows(outputs, batch)
        confusion = Confusion.of(batch["label"], outputs.argmax(-1), 2, batch["mask"])
        return losses_B, {**metrics, "confusion": confusion}


def classification(**changes: Any) -> Experiment:
    labels = (WORDS[:, 0] > 109).astype(np.int32)
    data = Pipeline(Arrays({"text": WORDS, "label": labels}), batch_size=4)
    task = Counted(model=NGrams(outputs=2, buckets=64, words=4, width=4), inputs="text", classes=("a", "b"))
    fields: dict[str, Any] = dict(task=task, data=data, optimizer=AdamW(), steps=4, evals={"test": data})
    return Experiment(**(fields | changes))


@pytest.mark.slow
def test_a_confusion_matrix_passes_through_microbatches_evaluation_files_and_keep_best(tmp_path: Path):
    runtime = Runtime(
        log_every=2, eval_every=2, save_every=2, keep=Retention(best="test/confusion/f1_macro", mode="max")
    )
    experiment = classification(runtime=runtime, microbatches=2)
    run, state = train(experiment, tmp_path / "run")
    lines = {(line["step"], line["split"]): line for line in read_metrics(run.folder)}
    probabilities = experiment.task.predict(jax.device_get(state.evaluated), {"text": WORDS})["probabilities"]
    labels = (WORDS[:, 0] > 109).astype(int)
    last = lines[4, "test"]
    assert last["confusion/f1_macro"] == pytest.approx(f1_score(labels, np.argmax(probabilities, -1), average="macro"))
    assert last["confusion/accuracy"] == pytest.approx(last["accuracy"])
    assert "confusion/recall/class_1" in last
    assert lines[2, "train"]["confusion/accuracy"] == pytest.approx(lines[2, "train"]["accuracy"])
    with Run(run.folder, experiment=experiment).checkpoints(read_only=True) as checkpoints:
        scores = {step: lines[step, "test"]["confusion/f1_macro"] for step in (2, 4)}
        assert checkpoints.best() == max(scores, key=lambda step: (scores[step], step))


@dataclass(frozen=True)
class Odds(Metric):
    """A metric that sums of ones do not fit."""

    hits: Any
    rows: Any

    def value(self) -> float:
        return math.log(self.rows - self.hits)


@dataclass(frozen=True, kw_only=True)
class WithOdds(Regression):
    """Regression that reports them."""

    def loss(self, variables: Variables, batch: Any, context: Context) -> Loss:
        loss = super().loss(variables, batch, context)
        return replace(loss, metrics={**loss.metrics, "odds": Odds(0 * loss.mean.weight, loss.mean.weight)})


def kept(best: str, save_best: bool = True, **intervals: int) -> Runtime:
    return replace(Runtime(keep=Retention(best=best, save_best=save_best), eval_every=2, save_every=2), **intervals)


@pytest.mark.parametrize(
    ("experiment", "words"),
    [
        (
            classification(runtime=kept("test/acuracy")),
            "keep.best: no evaluation reports 'test/acuracy'; did you mean 'test/accuracy'?",
        ),
        (classification(runtime=kept("test/confusion")), "keep.best: no evaluation reports 'test/confusion'"),
        (classification(runtime=kept("test/gradient_norm")), "keep.best: no evaluation reports 'test/gradient_norm'"),
        (
            regression(runtime=kept("test/ods"), task=WithOdds(model=regression().task.model, inputs="text")),
            "keep.best: no evaluation reports 'test/ods'; did you mean 'test/odds'?",
        ),
        (regression(runtime=kept("test/spearmen")), "did you mean 'test/spearman'?"),
        (
            regression(host_metrics={"spearman": Spearman(label="targte")}),
            "host_metrics.spearman: the batch has no field 'targte'; did you mean 'target'?",
        ),
        (
            regression(host_metrics={"absolute_error": Spearman()}),
            "host_metrics: 'absolute_error' is the name of a metric of the task",
        ),
        (
            classification(evals={"train": classification().data}),
            "evals: 'train' is the name of the metrics of training",
        ),
        (
            classification(steps=18, runtime=kept("test/loss", False, save_every=5)),
            "both evaluated (every 2, eval_every) and saved (every 5, save_every) up to step 18: set keep.save_best, or",
        ),
        (classification(steps=18, runtime=kept("test/loss", False, save_every=20)), "or save_every to 2"),
    ],
    ids=str,
)
@pytest.mark.slow
def test_evaluations_that_would_disappoint_are_refused_before_anything_is_written(
    experiment: Experiment, words: str, tmp_path: Path
):
    with pytest.raises(ConfigError) as error:
        train(experiment, tmp_path / "run")
    assert words in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "experiment",
    [
        classification(runtime=kept("test/confusion/recall/class_1", save_every=1)),
        classification(runtime=kept("test/loss", eval_every=2, save_every=4), steps=8),
        classification(runtime=kept("test/loss", eval_every=500, save_every=300)),
        regression(runtime=kept("test/spearman")),
        regression(runtime=kept("test/order/row_3")),
        classification(runtime=Runtime(eval_every=2, save_every=3)),
        regression(runtime=kept("test/odds"), task=WithOdds(model=regression().task.model, inputs="text")),
        tiny.main(),
    ],
    ids=str,
)
def test_evaluations_that_fit_are_not_refused(experiment: Experiment):
    check_metrics(Program(replace(experiment), jax.devices()[:1]))
