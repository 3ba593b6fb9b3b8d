"""The pass that keeps rows: the metrics of all rows are those of the evaluation, for every kind of task and layout, each
row's part is what numpy says, and nothing that goes wrong ends a run.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import launch
import numpy as np
import pytest
import test_layouts
import tiny

from jaxtrain import EarlyStopping, Experiment, Layout, Observer, Program, Run, fit
from jaxtrain.base.errors import ConfigError, ExitCode
from jaxtrain.cluster.stop import StopSignal
from jaxtrain.data import Arrays, Bucketed, Pipeline, Source, Standardize, Transform
from jaxtrain.evaluate import evaluate, evaluate_run
from jaxtrain.experiment.experiment import fingerprint
from jaxtrain.models import NGrams
from jaxtrain.optimizers import AdamW
from jaxtrain.runs import row_sums
from jaxtrain.runs.json_lines import read_lines
from jaxtrain.runs.metrics_log import read_metrics
from jaxtrain.runs.row_ids import record_id
from jaxtrain.runs.row_pass import collect_rows
from jaxtrain.runs.row_sums import RowSums
from jaxtrain.runs.rows import RowsOf, read_rows, rows_kept
from jaxtrain.tasks import AUC, Classification, Confusion, Loss, Mean, Metric, Regression, Spearman, Task
from jaxtrain.train import train

COUNT, CLASSES = 21, ("a", "b", "c")
TEXT = np.random.default_rng(1).integers(97, 110, (COUNT, 8)).astype(np.uint8)
LABEL = np.arange(COUNT) % 3
WEIGHT = np.linspace(0, 2, COUNT).astype(np.float32)
TARGET = (np.arange(COUNT) * 10.0 - 30).astype(np.float32)
MODEL = NGrams(outputs=3, buckets=64, words=16, width=8)


@dataclass(frozen=True)
class Largest(Metric):
    """Not a sum over rows, though it pretends to be one."""

    most: Any

    def value(self) -> float:
        return float(self.most)


@dataclass(frozen=True, kw_only=True)
class Full(Classification):
    """With metrics of several classes."""

    def rows(self, outputs: Any, batch: Any) -> Any:
        losses_B, metrics = super().rows(outputs, batch)
        weight_B, chosen_B = self.weigh(batch), outputs.argmax(-1)
        one_B = jax.nn.softmax(outputs)[:, 1]
        more = {
            "confusion": Confusion.of(batch["label"], chosen_B, 3, weight_B),
            "auc": AUC.of(one_B, batch["label"] == 1, weight_B, bins=32),
            "largest": Largest((one_B * batch["mask"]).max()),
        }
        return losses_B, {**metrics, **more}


def classification(task: Task | None = None, **fields: Any) -> Experiment:
    arrays = {"text": TEXT, "label": LABEL, "weight": WEIGHT}
    task = task or Full(model=MODEL, inputs="text", classes=CLASSES, weights="weight")
    data = Pipeline(Arrays(arrays), batch_size=8, threads=0)
    return Experiment(task=task, data=data, optimizer=AdamW(), steps=3, evals={"test": data}, **fields)


def regression() -> Experiment:
    task = Regression(model=replace(MODEL, outputs=1), inputs="text")
    source = Arrays({"text": TEXT, "target": TARGET})
    data = Pipeline(source, (Standardize(("target",)),), batch_size=8, threads=0)
    evals, host = {"test": data}, {"order": Spearman()}
    return fit(Experiment(task=task, data=data, optimizer=AdamW(), steps=3, evals=evals, host_metrics=host))


def language() -> Experiment:
    """Rows of two documents and padding."""
    segments = np.repeat([[1] * 6 + [2] * 7 + [0] * 4], COUNT, 0).astype(np.int32)
    segments[::4] = 1
    segments[5, 3:] = 0
    rows = [each["tokens"] for each in map(tiny.Counting(COUNT).__getitem__, range(COUNT))]
    data = Pipeline(Arrays({"tokens": np.stack(rows), "segments": segments}), batch_size=8, threads=0)
    return replace(tiny.main(), data=data, evals={"test": data})


def rows_of(experiment: Experiment, most: int = 10_000, devices: int = 1) -> tuple[RowsOf, dict[str, float]]:
    """The rows of the first state, and the metrics that the evaluation finds."""
    program = Program(experiment, jax.devices()[:devices])
    state = program.init()
    ((split, pipeline),) = experiment.evals.items()
    rows = collect_rows(program, RowSums(program), state, split, pipeline, most)
    return rows, evaluate(program, state, pipeline)


@functools.cache
def of_all(make: Callable[[], Experiment]) -> tuple[RowsOf, dict[str, float]]:
    return rows_of(make())


@pytest.mark.parametrize("make", [classification, regression, language])
def test_the_metrics_of_all_rows_are_those_of_the_evaluation(make: Callable[[], Experiment]) -> None:
    experiment = make()
    rows, found = of_all(make)
    found = {name: value for name, value in found.items() if name != "largest"}
    assert (rows.kept, rows.of, rows.positions.tolist()) == (COUNT, COUNT, [*range(COUNT)])
    values = rows.values(None, experiment.host_metrics)
    assert values.keys() == found.keys()
    for name, value in found.items():
        assert values[name] == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True), name


def test_each_row_of_a_classifier_is_what_numpy_makes_of_its_prediction() -> None:
    rows, _ = of_all(classification)
    assert rows.labels.keys() == {"label"}
    np.testing.assert_array_equal(rows.labels["label"], LABEL)
    probabilities = rows.predictions["probabilities"]
    losses = -np.log(probabilities[np.arange(COUNT), LABEL].astype(float))
    right = probabilities.argmax(1) == LABEL
    loss, accuracy = rows.metrics["loss"], rows.metrics["accuracy"]
    assert isinstance(loss, Mean)
    assert isinstance(accuracy, Mean)
    np.testing.assert_allclose(loss.total, losses * WEIGHT, rtol=1e-5)
    np.testing.assert_array_equal(loss.weight, WEIGHT)
    np.testing.assert_array_equal(accuracy.total, right * WEIGHT)
    assert rows.values()["loss"] == pytest.approx(np.average(losses, weights=WEIGHT), rel=1e-5)
    assert rows.values()["accuracy"] == pytest.approx(np.average(right, weights=WEIGHT), rel=1e-5)


def test_each_row_of_a_regression_is_in_the_units_of_the_data_and_its_loss_in_those_of_the_batch() -> None:
    rows, _ = of_all(regression)
    np.testing.assert_allclose(rows.labels["target"].reshape(-1), TARGET, rtol=1e-5)
    error = (rows.predictions["values"].reshape(-1) - TARGET) / TARGET.std()
    loss = rows.metrics["loss"]
    assert isinstance(loss, Mean)
    np.testing.assert_allclose(loss.total, error**2, rtol=1e-3, atol=1e-5)


def test_each_row_of_a_language_model_counts_the_targets_within_its_documents() -> None:
    rows, _ = of_all(language)
    loss = rows.metrics["loss"]
    assert isinstance(loss, Mean)
    expected = np.full(COUNT, 5 + 6)
    expected[::4], expected[5] = 16, 2
    np.testing.assert_array_equal(loss.weight, expected)
    assert rows.labels == {}


def test_what_is_no_sum_over_rows_is_left_out_with_the_reason() -> None:
    rows, _ = of_all(classification)
    assert "largest" not in rows.metrics
    assert "not a sum over rows" in rows.left_out["metrics.largest"]


@dataclass(frozen=True, kw_only=True)
class Whole(Classification):
    """Says that its loss depends on the whole batch, and cannot predict."""

    whole_batch = True

    def predict(self, variables: Any, batch: Any) -> Any:
        raise NotImplementedError("nothing to predict")


def test_a_task_whose_rows_depend_on_each_other_and_that_predicts_nothing_keeps_what_there_is() -> None:
    rows, _ = rows_of(classification(Whole(model=MODEL, inputs="text", classes=CLASSES)))
    assert (rows.metrics, rows.predictions) == ({}, {})
    assert rows.left_out["predictions"] == "nothing to predict"
    assert "Whole.whole_batch" in rows.left_out["metrics.loss"]
    np.testing.assert_array_equal(rows.labels["label"], LABEL)


def test_arrays_that_are_too_large_are_left_out_and_the_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_sums, "LARGEST_ROWS", 4 * COUNT * 3 - 1)
    rows, found = rows_of(classification())
    assert rows.left_out["predictions.probabilities"] == "21 rows of it take 252 B, more than 251 B"
    assert {"metrics.confusion", "metrics.auc"} <= rows.left_out.keys()
    assert rows.values()["loss"] == pytest.approx(found["loss"], rel=1e-5)


def test_a_mask_that_the_model_reads_costs_no_more_than_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reading(Full):
        def loss(self, variables: Any, batch: Any, context: Any) -> Loss:
            masked = {**batch, "text": batch["text"] * batch["mask"][:, None]}
            return Classification.loss(self, variables, masked, context)

    task = Reading(model=MODEL, inputs="text", classes=CLASSES)
    assert {"loss", "accuracy"} <= rows_of(classification(task))[0].metrics.keys()
    monkeypatch.setattr(row_sums, "MOST_FLOPS", 0)
    monkeypatch.setattr(row_sums, "MOST_TIMES", 1)
    rows, _ = rows_of(classification(task))
    assert rows.metrics == {}
    assert "depends on batch['mask']" in rows.left_out["metrics.loss"]


def test_of_more_rows_than_are_kept_two_runs_keep_the_same_examples() -> None:
    everything, _ = of_all(classification)
    some, _ = rows_of(classification(), 5)
    order = np.random.default_rng(0).permutation(COUNT)
    arrays = {"text": TEXT[order], "label": LABEL[order], "weight": WEIGHT[order]}
    data = Pipeline(Arrays(arrays), batch_size=4, threads=0)
    other, _ = rows_of(replace(classification(), evals={"test": data}), 5)
    assert (some.kept, some.of) == (5, COUNT)
    assert sorted(some.ids) == sorted(other.ids) == sorted(everything.ids)[:5]
    assert (np.diff(some.positions) > 0).all()
    np.testing.assert_array_equal(everything.ids[some.positions], some.ids)
    np.testing.assert_array_equal(some.labels["label"], LABEL[some.positions])
    np.testing.assert_allclose(
        some.predictions["probabilities"], everything.predictions["probabilities"][some.positions], rtol=1e-5
    )


def test_a_copy_has_the_same_id_a_changed_record_another_and_transforms_change_none() -> None:
    text = TEXT.copy()
    text[3], text[7, 0] = text[2], 98
    label = LABEL.copy()
    label[3] = label[2]
    before, _ = of_all(classification)
    weight = WEIGHT.copy()
    weight[3] = weight[2]
    source = Arrays({"text": text, "label": label, "weight": weight})
    data = Pipeline(source, (Last(),), batch_size=8, threads=0)
    now, _ = rows_of(replace(classification(), evals={"test": data}))
    assert now.ids[3] == now.ids[2]
    assert np.flatnonzero(now.ids != before.ids).tolist() == [3, 7]


class Last(Transform):
    """The text without its first letter's case."""

    def __call__(self, example: Any, rng: Any) -> Any:
        return {**example, "text": example["text"] | 32}


def test_bucketed_rows_stand_in_the_order_of_the_source() -> None:
    experiment = classification()
    data = Bucketed(experiment.data.source, batch_size=8, threads=0, by="text", widths=(4, 8))
    rows, found = rows_of(replace(experiment, evals={"test": data}))
    np.testing.assert_array_equal(rows.labels["label"], LABEL)
    assert rows.values()["loss"] == pytest.approx(found["loss"], rel=1e-5)


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


def full(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.full)


@pytest.mark.parametrize(
    ("name", "layout", "microbatches"),
    [
        ("ngrams", Layout({"data": 2, "fsdp": 2, "tensor": 2}), 1),
        full("lm", Layout({"fsdp": 4, "tensor": 2}), 1),
        slow("deep", Layout({"data": 2, "stage": 2}), 2),
        slow("lm", Layout({"data": 2, "context": 4}), 1),
        full("experts", Layout({"data": 2, "expert": 2, "stage": 2}), 2),
        full("capacity", Layout({"expert": 8}), 1),
        slow("vit", Layout({"data": 4, "fsdp": 2}, offload=True), 2),
    ],
)
def test_on_every_layout_the_rows_are_those_of_one_device(name: str, layout: Layout, microbatches: int) -> None:
    task, arrays = test_layouts.family(name)
    data = Pipeline(Arrays({key: x[:41] for key, x in arrays.items()}), batch_size=16, threads=0)
    one = Experiment(task=task, data=data, optimizer=test_layouts.ADAM, steps=3, evals={"test": data})
    expected, found = rows_of(one)
    rows, _ = rows_of(replace(one, layout=layout, microbatches=microbatches), devices=math.prod(layout.mesh.values()))
    np.testing.assert_array_equal(rows.ids, expected.ids)
    assert rows.metrics.keys() == expected.metrics.keys() == {key.partition("/")[0] for key in found}
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-4), rows.metrics, expected.metrics)
    for key, value in rows.predictions.items():
        np.testing.assert_allclose(value, expected.predictions[key], rtol=2e-3, atol=2e-4)


# Runs.


def events(folder: Path, kind: str = "rows_not_kept") -> list[Mapping[str, Any]]:
    return [each for each in read_lines(folder / "events.jsonl") if each["kind"] == kind]


def last_evaluation(folder: Path) -> Mapping[str, Any]:
    return [each for each in read_metrics(folder) if each["split"] == "test"][-1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(classification(), tmp_path_factory.mktemp("rows") / "run")[0]


def test_a_run_keeps_the_rows_of_its_last_step_with_the_metrics_of_its_last_evaluation(run: Run) -> None:
    rows, line = read_rows(run.folder, "test"), last_evaluation(run.folder)
    assert (rows_kept(run.folder), rows.step) == (["test"], 3)
    for name, value in rows.values().items():
        assert value == pytest.approx(line[name], rel=1e-5, abs=1e-6, nan_ok=True), name
    assert fingerprint(run.experiment) == fingerprint(
        replace(run.experiment, runtime=replace(run.experiment.runtime, keep_rows=0))
    )


def test_a_run_that_has_ended_makes_only_the_rows_that_it_lacks(run: Run) -> None:
    file = run.folder / "rows" / "test.npz"
    before = file.stat().st_mtime_ns
    train(classification(), run.folder)
    assert file.stat().st_mtime_ns == before
    file.write_bytes(b"damaged")
    train(classification(), run.folder)
    assert read_rows(run.folder, "test").kept == COUNT


def test_no_rows_are_kept_where_none_are_wanted_nor_of_a_run_that_a_signal_stops(tmp_path: Path) -> None:
    none, stop = classification(), StopSignal()
    train(replace(none, runtime=replace(none.runtime, keep_rows=0)), tmp_path / "none")
    stop.code, stop.requested = ExitCode.RETRY, lambda: True
    train(none, tmp_path / "stopped", stop=stop)
    assert (rows_kept(tmp_path / "none"), rows_kept(tmp_path / "stopped")) == ([], [])
    assert events(tmp_path / "stopped") == []


def test_a_run_that_an_observer_ends_keeps_the_rows_of_that_evaluation(tmp_path: Path) -> None:
    experiment = classification(observers=(EarlyStopping(metric="test/loss", patience=1, least=100.0),))
    experiment = replace(experiment, steps=9, runtime=replace(experiment.runtime, eval_every=2))
    run, _ = train(experiment, tmp_path / "run")
    last = last_evaluation(run.folder)
    assert last["step"] < 9
    rows = read_rows(run.folder, "test")
    assert rows.step == last["step"]
    assert rows.values()["loss"] == pytest.approx(last["loss"], rel=1e-5)


@dataclass(frozen=True)
class Unreadable(Source):
    """Cannot be read once the run was evaluated."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        if EVALUATED:
            raise OSError("the disk is gone")
        return {"text": TEXT[index], "label": LABEL[index], "weight": WEIGHT[index]}

    def identity(self) -> str:
        return "unreadable"


EVALUATED: list[int] = []


@dataclass(frozen=True)
class Noting(Observer):
    """Notes evaluations."""

    def evaluated(self, run: Any, step: int, scores: Any) -> None:
        EVALUATED.append(step)


@pytest.mark.parametrize("fault", ["rows is a file", "a row cannot be read", "the task fails"])
def test_what_goes_wrong_with_the_rows_is_an_event_and_does_not_end_the_run(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, EVALUATED[:] = classification(observers=(Noting(),)), []
    if fault == "a row cannot be read":
        experiment = replace(experiment, evals={"test": Pipeline(Unreadable(), batch_size=8, threads=0)})
    if fault == "rows is a file":
        train(replace(experiment, steps=1), tmp_path / "run")
        for path in (tmp_path / "run" / "rows").iterdir():
            path.unlink()
        (tmp_path / "run" / "rows").rmdir()
        (tmp_path / "run" / "rows").write_text("")
    if fault == "the task fails":
        monkeypatch.setattr(RowSums, "__call__", lambda *rest: 1 / 0)
    run, state = train(experiment, tmp_path / "run")
    assert int(state.step) == 3
    assert rows_kept(run.folder) == []
    (event,) = events(run.folder)
    words = {"rows is a file": "File exists", "a row cannot be read": "the disk is gone", "the task fails": "division"}
    assert words[fault] in event["why"]
    assert (event["split"], event["command"]) == ("test", f"jaxtrain evaluate {run.folder} --keep-rows")
    assert read_lines(run.folder / "events.jsonl")[-1]["kind"] == "ended"


def test_evaluate_keeps_rows_of_a_saved_step_and_refuses_other_data(run: Run, tmp_path: Path) -> None:
    (run.folder / "rows" / "test.npz").unlink()
    opened = Run(run.folder, experiment=classification())
    found = evaluate_run(opened, split="test", rows=True)
    assert read_rows(run.folder, "test").values()["loss"] == pytest.approx(found["test"]["loss"], rel=1e-5)
    with pytest.raises(ConfigError, match="leave out --data"):
        evaluate_run(opened, data=classification(), rows=True)
    (run.folder / "rows").rename(tmp_path / "away")
    (run.folder / "rows").symlink_to(tmp_path / "away")
    with pytest.raises(ConfigError, match=r"the rows of 'test' in .* cannot be written: it is a link"):
        evaluate_run(opened, rows=True)


@pytest.mark.slow
def test_two_processes_keep_all_rows_and_neither_waits_for_one_that_cannot_read(tmp_path: Path) -> None:
    launch.train("data", tmp_path / "run", processes=2)
    rows, last = read_rows(tmp_path / "run", "validation"), read_metrics(tmp_path / "run")[-1]
    source = tiny.main().evals["validation"].source
    assert rows.ids.tolist() == [record_id(source[index]) for index in range(20)]
    assert (last["split"], rows.step) == ("validation", 12)
    assert rows.values() == pytest.approx({name: last[name] for name in ("loss", "accuracy")}, rel=1e-5)
    port, run = launch.free_port(), tmp_path / "broken"
    started = [
        launch.start("data", run, program=program, process=number, processes=2, port=port)
        for number, program in enumerate([None, CANNOT_READ])
    ]
    said = [each.communicate(timeout=120)[0] for each in started]
    assert [each.returncode for each in started] == [0, 0], said
    assert rows_kept(run) == []
    assert "another process could not read its rows" in events(run)[0]["why"]


CANNOT_READ = """
import sys
from jaxtrain.runs import row_pass
def record_ids(*rest):
    raise OSError("the disk is gone")
row_pass.record_ids = record_ids
from jaxtrain.cli.main import main
main()
"""
