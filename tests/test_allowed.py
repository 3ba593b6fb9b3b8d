"""Labels, targets and tokens that the loss cannot mean are refused, by field, value and record, before they train."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtrain import ConfigError, Experiment, Program
from jaxtrain.base.allowed import Allowed, check_values
from jaxtrain.base.errors import Damaged
from jaxtrain.data import Arrays, Pipeline
from jaxtrain.models import Blocks, LoRA, Model, NGrams, Transformer
from jaxtrain.models.variables import Context
from jaxtrain.optimizers import SGD
from jaxtrain.sharding.layout import plain
from jaxtrain.tasks import Classification, LanguageModel, MultiLabel, Regression, Task

TEXT = np.full((12, 8), ord("a"), np.uint8)
MODEL = NGrams(outputs=3, buckets=16, words=4, width=4)
CLASSIFY = Classification(model=MODEL, inputs="text", classes=("a", "b", "c"))
REGRESS = Regression(model=replace(MODEL, outputs=1), inputs="text")
SPEAK = LanguageModel(model=Transformer(vocab=32, blocks=Blocks(width=8, layers=1, heads=2, mlp=8)))


@dataclass(frozen=True)
class Line(Model):
    def build(self, rngs: nnx.Rngs, inputs: Any) -> nnx.Module:
        return nnx.Linear(inputs.shape[-1], 1, rngs=rngs)


@dataclass(frozen=True)
class Gaps(Line):
    def allowed(self) -> None:
        return None


class Sum(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, inputs: dict[str, jax.Array], context: Context) -> jax.Array:
        return self.linear(inputs["x"] + inputs["y"])


@dataclass(frozen=True)
class Affine(Model):
    """A linear function of the sum of two fields."""

    def build(self, rngs: nnx.Rngs, inputs: Any) -> nnx.Module:
        return Sum(rngs)


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


def test_a_model_may_read_nan() -> None:
    task, batch = Regression(model=Gaps(), inputs="x"), {"x": np.full((4, 2), np.nan), "mask": np.ones(4, bool)}
    check_values(batch, task.allowed(), str)


def test_large_inputs_whose_sum_overflows_are_finite() -> None:
    batch = {"x": np.full((4, 8), 3e38, np.float32), "mask": np.ones(4, bool)}
    check_values(batch, {"x": Allowed()}, str)
    check_values({**batch, "x": np.full((4, 8), 6e4, np.float16)}, {"x": Allowed()}, str)


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


@pytest.mark.slow
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


SOFT = replace(CLASSIFY, soft=True)
WEIGHED = replace(REGRESS, weights="w")
TARGET = np.zeros(12, np.float32)


@pytest.mark.parametrize("value", [2.7, 0.0])
def test_soft_labels_that_do_not_sum_to_1_stop_the_run(value: float) -> None:
    soft = np.full((12, 3), 1 / 3, np.float32)
    soft[6] = value / 3
    said = first_wrong(SOFT, {"text": TEXT, "label": soft})
    assert said == (
        f"example 6 of Arrays: field 'label' sums to {value:g}, not to 1: soft labels are probabilities of all classes"
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
def test_soft_labels_may_be_rounded_and_masked_rows_may_hold_anything(dtype: Any) -> None:
    soft = np.full((4, 3), 1 / 3, dtype)
    soft[3] = 0
    check_values({"label": soft, "mask": np.arange(4) < 3}, SOFT.allowed(), str)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_weights_of_rows_are_finite_and_not_negative(value: float) -> None:
    weights = np.ones(12, np.float32)
    weights[5] = value
    said = first_wrong(WEIGHED, {"text": TEXT, "target": TARGET, "w": weights})
    assert said.startswith(f"example 5 of Arrays: field 'w' is {value}, not one of the finite numbers from 0: ")


@pytest.mark.parametrize("evaluates", [False, True])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_inputs_that_are_not_finite_stop_the_run(value: float, evaluates: bool) -> None:
    x = np.zeros((12, 4), np.float32)
    x[7, 2] = value
    task = Regression(model=Affine(), inputs=("x", "y"))
    columns = {"x": x, "y": np.zeros((12, 4), np.float32), "target": TARGET}
    said = first_wrong(task, columns, evaluates=evaluates)
    assert said.startswith(
        f"example 7 of Arrays: field 'x' is {value} at [2], not one of the finite numbers: NaN would"
    )


@pytest.mark.parametrize("value", [-1, 256])
def test_n_grams_are_those_of_bytes(value: int) -> None:
    text = TEXT.astype(np.int32)
    text[4, 3] = value
    said = first_wrong(CLASSIFY, {"text": text, "label": labels()})
    assert said.startswith(f"example 4 of Arrays: field 'text' is {value} at [3], not one of the numbers from 0 to 255")
    with pytest.raises(ConfigError, match=r"^n-grams are those of bytes u8\[B, L\], not of float32\[12, 8\]"):
        MODEL.apply(plain(MODEL.init(jax.random.key(0), TEXT)), jnp.zeros((12, 8)))


def test_a_number_to_ignore_does_not_wrap_around_in_a_narrow_dtype() -> None:
    task = replace(CLASSIFY, ignore=-255)  # as u8 it would be 1, which is a class
    batch = {"label": np.array([0, 1, 2, 1], np.uint8), "mask": np.ones(4, bool)}
    assert jax.jit(task.weigh)(batch).tolist() == [1, 1, 1, 1]
    with pytest.raises(ConfigError, match=r"^Classification.ignore: 1099511627776 is not from -2,147,483,648 to"):
        replace(CLASSIFY, ignore=2**40)


@pytest.mark.parametrize(
    ("label", "advice"),
    [
        (np.zeros((12, 1), np.int32), "drop the last dim"),
        (np.zeros(12, bool), "cast them to int32"),
        (np.zeros(12, np.float32), "cast numbers to int32"),
        (np.eye(3, dtype=np.float32)[labels()], "set soft=True for one-hot labels"),
    ],
)
def test_the_advice_for_wrong_labels_would_work(label: np.ndarray, advice: str) -> None:
    with pytest.raises(ConfigError) as error:
        Program(experiment(CLASSIFY, {"text": TEXT, "label": label}), jax.devices()[:1]).lower()
    assert str(error.value).endswith(f": {advice}")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"classes": ()}, "Classification.classes: 0 given: name the classes"),
        ({"classes": ("a",)}, "Classification.classes: 1 given: with one class every loss is 0"),
        ({"classes": ("a", "b", "a")}, "Classification.classes: 'a' is there twice"),
        ({"class_weights": (0.0, 0.0, 0.0)}, "Classification.class_weights: all are 0"),
        ({"inputs": "label"}, "Classification.inputs: 'label' is the label"),
    ],
)
def test_classes_that_cannot_be_learned_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        replace(CLASSIFY, **changes)
    assert str(error.value).startswith(says)


@pytest.mark.parametrize(
    "tokens",
    [
        np.ones((12, 9), np.float32),
        np.ones((12, 9), bool),
        np.ones(12, np.int32),
        np.ones((12, 1), np.int32),
        np.ones((12, 9, 1), np.int32),
    ],
)
def test_tokens_are_ints_of_two_dims(tokens: np.ndarray) -> None:
    with pytest.raises(ConfigError, match=r"^LanguageModel.inputs: 'tokens' is .*, but tokens are ints \[B, L \+ 1\]"):
        Program(experiment(SPEAK, {"tokens": tokens}), jax.devices()[:1]).lower()


def test_segments_are_ints_of_the_shape_of_the_tokens_and_not_negative() -> None:
    tokens = np.ones((12, 9), np.int32)
    for segments in (np.ones((12, 9), np.float32), np.ones((12, 8), np.int32)):
        with pytest.raises(ConfigError, match=r"^LanguageModel: 'segments' is .*, but segments are ints \[4, 9\]"):
            Program(experiment(SPEAK, {"tokens": tokens, "segments": segments}), jax.devices()[:1]).lower()
    said = first_wrong(SPEAK, {"tokens": tokens, "segments": -tokens})
    assert said.startswith("example 0 of Arrays: field 'segments' is -1 at [0], not one of the finite numbers from 0")


@pytest.mark.parametrize("changes", [{"causal": False}, {"pooled": True}])
def test_a_language_model_that_sees_the_next_token_is_refused(changes: dict[str, Any]) -> None:
    model = replace(SPEAK.model, **changes)
    for each in (model, LoRA(model=model, layers=("*",))):
        with pytest.raises(
            ConfigError, match=r"^LanguageModel.model: Transformer has to be causal=True and pooled=False"
        ):
            LanguageModel(model=each)


def test_a_language_model_with_fewer_outputs_than_tokens_is_refused() -> None:
    task = LanguageModel(model=replace(SPEAK.model, outputs=16, tied=False))
    with pytest.raises(ConfigError, match=r"^LanguageModel: the model has 16 outputs, but 32 tokens"):
        Program(experiment(task, {"tokens": np.ones((12, 9), np.int32)}), jax.devices()[:1]).lower()
