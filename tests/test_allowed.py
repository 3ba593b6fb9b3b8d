"""Labels, targets and tokens that the loss cannot mean are refused, by field, value and record, before they train."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain import ConfigError, Experiment, Program
from jaxtrain.base.allowed import Allowed, check_values
from jaxtrain.base.errors import Damaged
from jaxtrain.data import Arrays, Pipeline
from jaxtrain.models import Blocks, NGrams, Transformer
from jaxtrain.models.variables import Context
from jaxtrain.optimizers import SGD
from jaxtrain.tasks import Classification, LanguageModel, MultiLabel, Regression, Task

TEXT = np.full((12, 8), ord("a"), np.uint8)
MODEL = NGrams(outputs=3, buckets=16, words=4, width=4)
CLASSIFY = Classification(model=MODEL, inputs="text", classes=("a", "b", "c"))
REGRESS = Regression(model=replace(MODEL, outputs=1), inputs="text")
SPEAK = LanguageModel(model=Transformer(vocab=32, blocks=Blocks(width=8, layers=1, heads=2, mlp=8)))


def experiment(task: Task, columns: dict[str, Any], shuffle: bool = False) -> Experiment:
    data = Pipeline(Arrays(columns), batch_size=4, shuffle=shuffle, threads=0)
    return Experiment(task=task, data=data, optimizer=SGD(), steps=3, evals={"test": replace(data, shuffle=False)})


def first_wrong(task: Task, columns: dict[str, Any], shuffle: bool = False, evaluates: bool = False) -> str:
    """What stops a pass over the batches."""
    one = experiment(task, columns, shuffle)
    program = Program(one, jax.devices()[:1])
    batches = program.epoch(one.evals["test"]) if evaluates else program.batches(one.data)
    with pytest.raises(Damaged) as error:
        for _, _ in zip(range(3), batches, strict=False):
            pass
    batches.close()
    return str(error.value)


def labels(**changed: int) -> np.ndarray:
    values = np.arange(12, dtype=np.int32) % 3
    for row, value in changed.items():
        values[int(row[1:])] = value
    return values


@pytest.mark.parametrize("evaluates", [False, True])
@pytest.mark.parametrize("value", [3, -1, -100, 255])
def test_a_label_that_is_no_class_stops_the_run_and_is_named_with_its_record(value: int, evaluates: bool) -> None:
    said = first_wrong(CLASSIFY, {"text": TEXT, "label": labels(r6=value)}, evaluates=evaluates)
    assert said == (
        f"example 6 of Arrays: field 'label' is {value}, not one of the numbers from 0 to 2: there are 3 classes; "
        "`ignore` leaves out one number more"
    )


def test_the_record_is_that_of_the_source_also_where_it_is_shuffled() -> None:
    said = first_wrong(CLASSIFY, {"text": TEXT, "label": labels(r7=9)}, shuffle=True)
    assert said.startswith("example 7 of Arrays: field 'label' is 9,")


@pytest.mark.parametrize(
    ("task", "label", "says"),
    [
        (CLASSIFY, np.zeros((12, 1), np.int32), "'label' is int32[4, 1], but labels are class numbers, int[4]"),
        (CLASSIFY, np.zeros(12, np.float32), "'label' is float32[4], but labels are class numbers"),
        (CLASSIFY, np.eye(3, dtype=np.int32)[labels()], "take the argmax of one-hot labels, or cast them to float32"),
        (CLASSIFY, np.zeros(12, bool), "'label' is bool[4], but labels are class numbers"),
        (replace(CLASSIFY, soft=True), labels(), "leave out soft=True for class numbers"),
        (replace(CLASSIFY, soft=True), np.zeros((12, 2), np.float32), "float[4, 3]"),
    ],
)
def test_labels_of_another_shape_or_dtype_are_refused_before_training(task: Task, label: np.ndarray, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        Program(experiment(task, {"text": TEXT, "label": label}), jax.devices()[:1]).lower()
    assert says in str(error.value)


@pytest.mark.parametrize("shape", [(12, 3), (12, 1, 1), (12, 0)])
def test_targets_of_another_width_than_the_outputs_are_refused_before_training(shape: tuple[int, ...]) -> None:
    columns = {"text": TEXT, "target": np.zeros(shape, np.float32)}
    with pytest.raises(ConfigError, match="the model's outputs are float32"):
        Program(experiment(REGRESS, columns), jax.devices()[:1]).lower()
    wide = replace(REGRESS, model=replace(MODEL, outputs=3))
    with pytest.raises(ConfigError, match=r"give targets \[B, 3\]"):
        Program(experiment(wide, {"text": TEXT, "target": np.zeros(12, np.float32)}), jax.devices()[:1]).lower()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_targets_that_are_not_finite_stop_the_run(value: float) -> None:
    target = np.zeros(12, np.float32)
    target[9] = value
    said = first_wrong(REGRESS, {"text": TEXT, "target": target})
    assert said.startswith(f"example 9 of Arrays: field 'target' is {value}, not one of the finite numbers")


@pytest.mark.parametrize("value", [32, -1])
def test_tokens_outside_of_the_vocabulary_stop_the_run(value: int) -> None:
    tokens = np.ones((12, 9), np.int32)
    tokens[5, 4] = value
    said = first_wrong(SPEAK, {"tokens": tokens})
    assert said == (
        f"example 5 of Arrays: field 'tokens' is {value} at [4], not one of the numbers from 0 to 31: "
        "the model has a vocabulary of 32"
    )


def test_rows_that_the_mask_leaves_out_may_hold_anything() -> None:
    batch = {"label": np.array([1, 99]), "mask": np.array([True, False])}
    check_values(batch, {"label": Allowed(0, 2)}, str)
    with pytest.raises(Damaged):
        check_values(batch | {"mask": np.array([True, True])}, {"label": Allowed(0, 2)}, str)


# What is offered instead.


def loss_of(task: Task, batch: dict[str, Any]) -> tuple[float, float, np.ndarray]:
    variables = jax.tree.map(lambda x: x, _plain(task, batch))
    found = task.loss(variables, batch, Context(jnp.int32(0)))
    logits = np.asarray(task.model.apply(variables, batch["text"])[0], np.float64)
    return float(found.mean), float(found.mean.weight), logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _plain(task: Task, batch: dict[str, Any]) -> Any:
    from jaxtrain.sharding.layout import plain

    return plain(task.init(jax.random.key(0), batch))


BATCH = {
    "text": jnp.asarray(np.random.default_rng(0).integers(97, 123, (4, 8), np.uint8)),
    "label": jnp.array([2, 0, 1, 1]),
    "mask": jnp.ones(4, bool),
}


def test_a_label_to_ignore_counts_for_nothing() -> None:
    batch = {**BATCH, "label": jnp.array([2, -100, 1, -100])}
    found, weight, logs = loss_of(replace(CLASSIFY, ignore=-100), batch)
    assert weight == 2
    assert found == pytest.approx(-(logs[0, 2] + logs[2, 1]) / 2, rel=1e-5)


def test_smoothing_spreads_its_share_over_all_classes() -> None:
    found, _, logs = loss_of(replace(CLASSIFY, smoothing=0.3), BATCH)
    target = 0.7 * np.eye(3)[[2, 0, 1, 1]] + 0.1
    assert found == pytest.approx(-(target * logs).sum(-1).mean(), rel=1e-5)


def test_class_weights_and_row_weights_multiply() -> None:
    batch = {**BATCH, "importance": jnp.array([1.0, 2.0, 0.5, 0.0])}
    task = replace(CLASSIFY, class_weights=(1.0, 3.0, 2.0), weights="importance")
    found, weight, logs = loss_of(task, batch)
    by_row = np.array([2 * 1, 1 * 2, 3 * 0.5, 0.0])
    assert weight == pytest.approx(by_row.sum())
    assert found == pytest.approx((by_row * -logs[range(4), [2, 0, 1, 1]]).sum() / by_row.sum(), rel=1e-5)
    with pytest.raises(ConfigError, match="2 weights for 3 classes"):
        replace(CLASSIFY, class_weights=(1.0, 2.0))


def test_soft_labels_are_a_cross_entropy_with_probabilities() -> None:
    soft = np.array([[0.2, 0.3, 0.5], [1, 0, 0], [0, 1, 0], [0.5, 0.25, 0.25]], np.float32)
    found, _, logs = loss_of(replace(CLASSIFY, soft=True), {**BATCH, "label": jnp.asarray(soft)})
    assert found == pytest.approx(-(soft * logs).sum(-1).mean(), rel=1e-5)


def test_several_labels_a_row_are_a_sum_of_binary_cross_entropies() -> None:
    label = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], np.int32)
    task, batch = (
        MultiLabel(model=MODEL, inputs="text", classes=("a", "b", "c")),
        {**BATCH, "label": jnp.asarray(label)},
    )
    variables = _plain(task, batch)
    logits = np.asarray(task.model.apply(variables, batch["text"])[0], np.float64)
    probability = 1 / (1 + np.exp(-logits))
    expected = -(label * np.log(probability) + (1 - label) * np.log(1 - probability)).sum(-1).mean()
    assert float(task.loss(variables, batch, Context()).mean) == pytest.approx(expected, rel=1e-5)
    assert float(task.loss(variables, batch, Context()).metrics["accuracy"]) == pytest.approx(
        ((logits > 0) == label).mean()
    )
