"""Mistakes in a user's model or task are named in words, while tracing."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtrain import (
    ConfigError,
    Experiment,
    Layout,
    Mean,
    Metric,
    Program,
    eval_step,
    init_state,
    predict_step,
    train_step,
)
from jaxtrain.data import Arrays, Pipeline
from jaxtrain.models import Model
from jaxtrain.models.base import Shaped
from jaxtrain.optimizers import SGD, ConstantRate
from jaxtrain.sharding.layout import AxisNamed, plain
from jaxtrain.tasks import Classification, Context, Loss, Regression, Sum, Task, Variables
from jaxtrain.tasks.metrics import flat

X = np.ones((8, 4), np.float32)
BATCH = {"x": X, "target": np.ones(8, np.float32), "mask": np.ones(8, bool)}


class Affine(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, function: Any):
        self.linear = nnx.Linear(4, 1, rngs=rngs)
        self.function = function


class Returning(Affine):
    def __call__(self, x_BF: jax.Array, context: Context) -> Any:
        return self.function(self.linear(x_BF))


class Single(Affine):
    def __call__(self, x_BF: jax.Array) -> Any:
        return self.linear(x_BF)


@dataclass(frozen=True, kw_only=True)
class Toy(Model):
    function: Any = jnp.asarray
    kind: type = Returning

    def build(self, rngs: nnx.Rngs, inputs: Shaped) -> nnx.Module:
        return self.kind(rngs, self.function)


def raised(function: Any, *arguments: Any) -> str:
    with pytest.raises(ConfigError) as error:
        jax.eval_shape(function, *arguments)
    return str(error.value)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            lambda y: (y, {}, 1),
            "Toy: Returning.__call__ returned (float32[8, 1], an empty dict, 1): return outputs, or (outputs, dict of "
            "auxiliary losses)",
        ),
        (
            lambda y: (y, y.sum()),
            "Toy: Returning.__call__ returned (float32[8, 1], float32[]): return outputs, or (outputs, dict of "
            "auxiliary losses)",
        ),
        (
            lambda y: (y, {"router": y.sum()}),
            "Toy: Returning.__call__: auxiliary loss 'router' is float32[], not one number a row, [8]",
        ),
        (
            lambda y: (y, {"router": 0.1}),
            "Toy: Returning.__call__: auxiliary loss 'router' is 0.1, not one number a row, [8]",
        ),
    ],
)
def test_what_a_model_returns_by_mistake_is_named(function, words):
    task = Regression(model=Toy(function=function), inputs="x")
    state = init_state(task, SGD().build(1), jax.random.key(0), BATCH)
    assert raised(lambda state: train_step(task, SGD().build(1), state, BATCH), state) == words


def test_a_call_that_does_not_take_its_arguments_is_named():
    model, x = Toy(kind=Single), jnp.asarray(X)
    variables = plain(model.init(jax.random.key(0), x))
    said = raised(lambda: model.apply(variables, x))
    assert said == "Toy: Single.__call__ is called as module(inputs, context): too many positional arguments"
    said = raised(lambda: Toy().apply(variables, x, segments_BL=x))
    assert said.startswith(
        "Toy: Returning.__call__ is called as module(inputs, context, segments_BL): got an unexpected"
    )


@dataclass(frozen=True, kw_only=True)
class Given(Task):
    """A task whose methods return what these functions do."""

    model: Model = Toy()
    inputs: str = "x"
    first: Any = None
    returned: Any = None
    predicted: Any = None

    def init(self, key: jax.Array, batch: Any) -> Any:
        return self.first(batch) if self.first else super().init(key, batch)

    def loss(self, variables: Variables, batch: Any, context: Context) -> Any:
        values = self.model.apply(variables, batch["x"], context)[0][:, 0]
        return self.returned(batch, values)

    def predict(self, variables: Variables, batch: Any) -> Any:
        return self.predicted(self.model.apply(variables, batch["x"])[0])


class Bare(Metric):
    """A metric whose author forgot the decorator."""

    @classmethod
    def of(cls, values: Any) -> "Bare":
        return cls()

    def value(self) -> float:
        return 0.0


def lost(mean: Any, metrics: Any = None) -> Loss:
    """A loss of what need not be means."""
    return Loss(mean, metrics or {})


WANTED = "return Loss(Mean.of(losses_B, batch['mask']), metrics), where metrics is a dict of metrics such as Mean"


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda b, y: y.mean(), f"Given.loss returned float32[]: {WANTED}"),
        (lambda b, y: None, f"Given.loss returned None: {WANTED}"),
        (lambda b, y: Mean.of(y, b["mask"]), f"Given.loss returned a Mean: {WANTED}"),
        (lambda b, y: (Mean.of(y), {}), f"Given.loss returned (a Mean, an empty dict): {WANTED}"),
        (lambda b, y: lost(y.mean()), f"Given.loss: the loss is float32[], not a Mean: {WANTED}"),
        (lambda b, y: lost(Mean.of(y), [Mean.of(y)]), f"Given.loss: the metrics are (a Mean): {WANTED}"),
        (
            lambda b, y: lost(Mean.of(y), {"mae": y.mean()}),
            f"Given.loss: the metric 'mae' is float32[], not a metric: {WANTED}",
        ),
        (lambda b, y: lost(Bare.of(y), {}), f"Given.loss: the loss is a Bare, not a Mean: {WANTED}"),
        (
            lambda b, y: lost(Mean.of(y), {"mae": Bare()}),
            "Given.loss: the metric 'mae' has no fields: write @dataclass(frozen=True) above class Bare",
        ),
        (
            lambda b, y: lost(Mean.of(y), {"mae": Sum("y")}),
            "Given.loss: the total of the metric 'mae' is 'y', not an array: the fields of a metric are summed",
        ),
        (
            lambda b, y: lost(Mean.of(y), {"mae": Mean}),
            f"Given.loss: the metric 'mae' is the class Mean, not a metric: {WANTED}",
        ),
        (lambda b, y: lost(Mean.of(y), {"mae": 0.5}), f"Given.loss: the metric 'mae' is 0.5, not a metric: {WANTED}"),
        (
            lambda b, y: lost(Mean(y, b["mask"])),
            "Given.loss: the total of the loss is float32[8], not one number: build it with Mean.of",
        ),
        (
            lambda b, y: lost(Mean.of(y), {"mae": Mean(y.sum(), b["mask"])}),
            "Given.loss: the weight of the metric 'mae' is bool[8], not one number: build it with Mean.of",
        ),
        (
            lambda b, y: lost(Mean((y > 0).sum(), b["mask"].sum())),
            "Given.loss: the loss is int32[], which has no gradient: compute it in floats",
        ),
    ],
)
def test_what_a_loss_returns_by_mistake_is_named(returned, words):
    task = Given(returned=returned)
    state = init_state(task, SGD().build(1), jax.random.key(0), BATCH)
    assert raised(lambda state: train_step(task, SGD().build(1), state, BATCH), state) == words
    assert raised(lambda state: eval_step(task, state, BATCH), state) == words


@pytest.mark.parametrize(
    ("predicted", "words"),
    [
        (lambda y: y, "Given.predict returned float32[8, 1]: return a dict of arrays by name"),
        (lambda y: {"values": [1.0]}, "Given.predict: 'values' is (1.0), not an array"),
    ],
)
def test_what_a_prediction_returns_by_mistake_is_named(predicted, words):
    task = Given(predicted=predicted)
    state = init_state(task, SGD().build(1), jax.random.key(0), BATCH)
    assert raised(lambda state: predict_step(task, state, {"x": X}), state) == words


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (
            lambda b: Variables({"w": jnp.zeros((4, 1)), "b": AxisNamed(jnp.zeros(1), (None,))}),
            "Given.init: w is a plain float32[4, 1]: return AxisNamed(array, names of its dims); the names (None, None) "
            "replicate it",
        ),
        (
            lambda b: Variables({"norm": {"scale": jnp.ones(4)}}, {"norm": {"mean": AxisNamed(jnp.zeros(4), (None,))}}),
            "Given.init: norm/scale is a plain float32[4]: return AxisNamed(array, names of its dims); the names "
            "(None,) replicate it",
        ),
        (
            lambda b: Variables({}, {"norm": {"mean": jnp.zeros(4)}}),
            "Given.init: norm/mean is a plain float32[4]: return AxisNamed(array, names of its dims); the names "
            "(None,) replicate it",
        ),
        (
            lambda b: [jnp.zeros(4)],
            "Given.init returned (float32[4]): return Variables(nested dicts of AxisNamed arrays)",
        ),
        (
            lambda b: {"w": AxisNamed(jnp.zeros(4), (None,))},
            "Given.init returned a dict of w: return Variables(nested dicts of AxisNamed arrays)",
        ),
    ],
)
def test_initial_variables_without_names_are_named(first, words):
    experiment = Experiment(
        task=Given(first=first),
        data=Pipeline(Arrays({"x": X, "target": BATCH["target"]}), batch_size=8),
        optimizer=SGD(schedule=ConstantRate()),
        steps=1,
        layout=Layout({"data": 8}),
    )
    with pytest.raises(ConfigError) as error:
        Program(experiment)
    assert str(error.value) == words


def test_a_field_that_the_batch_lacks_is_named_with_the_line_that_reads_it():
    task = Given(returned=lambda batch, values: Loss(Mean.of(values - batch["targets"], batch["mask"])))
    state = init_state(task, SGD().build(1), jax.random.key(0), BATCH)
    said = raised(lambda state: eval_step(task, state, BATCH), state)
    assert said.startswith("Given.loss: KeyError 'targets' in ")
    assert "test_checks.py, line " in said
    assert 'batch["targets"]' in said
    assert said.endswith("the batch has the fields mask, target, x; did you mean 'target'?")


def test_a_key_error_of_code_that_does_not_hold_the_batch_stays_one():
    def elsewhere() -> Any:
        return {}["targets"]

    state = init_state(Given(), SGD().build(1), jax.random.key(0), BATCH)
    with pytest.raises(KeyError):
        eval_step(Given(returned=lambda batch, values: elsewhere()), state, BATCH)


def means(batch: Any, values: Any, **metrics: Any) -> Loss:
    return Loss(Mean.of(values, batch["mask"]), metrics)


def said_before_training(task: Task, evals: Any = None, columns: Any = None) -> str:
    """What stops a program from being lowered."""
    data = Pipeline(Arrays(columns or {"x": X, "target": BATCH["target"]}), batch_size=8)
    evals = {"test": Pipeline(Arrays(evals), batch_size=8)} if evals else {}
    program = Program(Experiment(task=task, data=data, optimizer=SGD(), steps=1, evals=evals), jax.devices()[:1])
    with pytest.raises(ConfigError) as error:
        program.lower()
    return str(error.value)


NO_GRADIENT = (
    "Given.loss: the loss has no gradient: no parameter enters it other than by whole numbers, comparisons or "
    "stop_gradient"
)


@pytest.mark.parametrize(
    "values",
    [
        lambda y: y.astype(jnp.int32),
        lambda y: (y > 0).astype(jnp.float32),
        jnp.round,
        jnp.floor,
        jax.lax.stop_gradient,
        lambda y: jnp.ones(8),
    ],
    ids=["int", "comparison", "round", "floor", "stop_gradient", "constant"],
)
def test_a_loss_without_gradient_is_refused_before_training(values):
    assert said_before_training(Given(returned=lambda b, y: means(b, values(y)))) == NO_GRADIENT


@pytest.mark.parametrize(
    ("returned", "part"),
    [
        (lambda b, y: Loss(Mean.of(y)), "the total of the loss"),
        (lambda b, y: Loss(Mean((y * b["mask"]).sum(), jnp.float32(8))), "the weight of the loss"),
        (lambda b, y: means(b, y, mae=Mean.of(y)), "the total of the metric 'mae'"),
        (lambda b, y: means(b, y, mae=Mean((y * b["mask"]).sum(), 8)), "the weight of the metric 'mae'"),
        (lambda b, y: means(b, y, count=Sum.of(y > 0)), "the total of the metric 'count'"),
    ],
)
def test_sums_over_rows_that_the_mask_leaves_out_are_refused_before_training(returned, part):
    assert said_before_training(Given(returned=returned)) == (
        f"Given.loss: {part} does not depend on batch['mask'], so that rows which only fill up a batch count: build it "
        "with Mean.of(values, batch['mask'])"
    )


@pytest.mark.parametrize(
    "returned",
    [
        lambda b, y: means(b, y + jax.lax.stop_gradient(jnp.round(y) - y)),  # a straight-through estimator
        lambda b, y: means(b, y, constant=Mean.of(jnp.ones(()))),
        lambda b, y: means(b, y, half=Mean.of(y, b["mask"] * 0.5)),
        lambda b, y: Loss(Mean.of(jnp.stack([y, y], 1), jnp.stack([b["mask"], b["mask"]], 1))),
    ],
)
def test_a_right_loss_is_not_refused(returned):
    data = Pipeline(Arrays({"x": X, "target": BATCH["target"]}), batch_size=8)
    experiment = Experiment(task=Given(returned=returned), data=data, optimizer=SGD(), steps=1)
    Program(experiment, jax.devices()[:1]).lower()


@pytest.mark.parametrize(
    "name",
    [
        "loss",
        "gradient_norm",
        "skipped",
        "rate_scale",
        "step",
        "split",
        "mfu",
        "examples_per_second",
        "seconds_step",
        "learning_rate",
    ],
)
def test_a_metric_with_the_name_of_another_number_is_refused(name):
    task = Given(returned=lambda b, y: means(b, y, **{name: Mean.of(y, b["mask"])}))
    said = said_before_training(task)
    assert said == f"Given.loss: {name!r} is logged already, as something else: give the metric another name"


def test_a_metric_with_the_name_of_an_auxiliary_loss_is_refused():
    @dataclass(frozen=True, kw_only=True)
    class Named(Regression):
        def rows(self, outputs, batch):
            losses_B, _ = super().rows(outputs, batch)
            return losses_B, {"balance": losses_B}

    task = Named(model=Toy(function=lambda y: (y, {"balance": y[:, 0]})), inputs="x")
    assert said_before_training(task) == "the metric 'balance' has the name of an auxiliary loss: choose another"


@dataclass(frozen=True, kw_only=True)
class Rows(Regression):
    """Rows that this function returns."""

    returned: Any = None

    def rows(self, outputs: Any, batch: Any) -> Any:
        return self.returned(jnp.square(outputs[:, 0] - batch["target"]))


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda e: e, " returned float32[8]: return the losses f[B], and a dict of metrics by name"),
        (lambda e: (e, None), " returned (float32[8], None): return the losses f[B], and a dict of metrics by name"),
        (lambda e: (e.mean(), {}), ": the loss is float32[], not one number a row, [8]"),
        (lambda e: (e[:, None], {}), ": the loss is float32[8, 1], not one number a row, [8]"),
        (lambda e: (e[:, None] - e, {}), ": the loss is float32[8, 8], not one number a row, [8]"),
        (lambda e: (e > 0, {}), ": the loss is bool[8], which has no gradient: compute it in floats"),
        (
            lambda e: (e, {"mae": 1.0}),
            ": the metric 'mae' is 1.0, not one number a row, [8], nor a metric such as Mean.of(values, weights)",
        ),
        (
            lambda e: (e, {"mae": e.mean()}),
            ": the metric 'mae' is float32[], not one number a row, [8], nor a metric such as Mean.of(values, weights)",
        ),
    ],
)
def test_what_rows_return_by_mistake_is_named(returned, words):
    said = said_before_training(Rows(model=Toy(), inputs="x", returned=returned))
    assert said == f"Rows.rows{words}"


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda y: y[:, 0], "float32[8]"),
        (lambda y: y.mean(0), "float32[1]"),
        (lambda y: y.mean(0, keepdims=True), "float32[1, 1]"),
        (lambda y: y[:, None], "float32[8, 1, 1]"),
        (lambda y: y.astype(jnp.int32), "int32[8, 1]"),
        (lambda y: {"logits": y}, "a dict of logits"),
        (lambda y: None, "None"),
    ],
)
def test_outputs_that_would_be_broadcast_or_have_no_gradient_are_refused(function, found):
    said = said_before_training(Regression(model=Toy(function=function), inputs="x"))
    assert said == f"Regression: the outputs of Toy are {found}, not floats [B, O] for 8 rows"
    task = Classification(model=Toy(function=function), inputs="x", classes=("a", "b"))
    said = said_before_training(task, columns={"x": X, "label": np.zeros(8, np.int32)})
    assert said == f"Classification: the outputs of Toy are {found}, not floats [B, C] for 8 rows"


def test_outputs_of_half_precision_are_squared_in_float32():
    task = Regression(model=Toy(function=lambda y: (y * 0 + 300).astype(jnp.float16)), inputs="x")
    batch = {**BATCH, "target": np.ones(8, np.float16)}
    state = init_state(task, SGD().build(1), jax.random.key(0), batch)
    assert float(eval_step(task, state, batch)["loss"]) == 299.0**2  # infinite in float16


@pytest.mark.parametrize(
    ("returned", "kind"),
    [
        (lambda b, y: means(b, jnp.asarray(np.square(y))), "TracerArrayConversionError"),
        (lambda b, y: means(b, y * float(y.sum())), "ConcretizationTypeError"),
        (lambda b, y: means(b, y if y.sum() > 0 else -y), "TracerBoolConversionError"),
        (lambda b, y: means(b, y[y > 0]), "NonConcreteBooleanIndexError"),
    ],
)
def test_code_that_needs_numbers_while_it_is_traced_is_named_with_its_line(returned, kind):
    task = Given(returned=returned)
    state = init_state(task, SGD().build(1), jax.random.key(0), BATCH)
    said = raised(lambda state: train_step(task, SGD().build(1), state, BATCH), state)
    assert said.startswith(f"Given.loss: {kind} in ")
    assert "test_checks.py, line " in said
    assert "means(b, y" in said or "np.square(y)" in said
    assert "use jax.numpy instead of numpy and float()" in said


def test_an_evaluation_of_another_shape_that_the_model_does_not_take_is_named_before_training():
    task = Regression(model=Toy(), inputs="x")
    said = said_before_training(task, evals={"x": X[:, :3], "target": BATCH["target"]})
    assert said.startswith("evals.test: its examples have x [3], those trained on x [4]: dot_general requires")


def test_no_inputs_and_weights_of_another_shape_are_named():
    none = Regression(model=Toy(), inputs=())
    with pytest.raises(
        ConfigError, match=r"^Regression.inputs: name a field of the batch for the model to read; known"
    ):
        none.read(BATCH)
    columns = {"x": X, "target": BATCH["target"], "w": np.ones((8, 1), np.float32)}
    said = said_before_training(Regression(model=Toy(), inputs="x", weights="w"), columns=columns)
    assert said == "Regression.weights: 'w' is float32[8, 1], not one number a row, [8]"


def test_a_model_without_parameters_and_one_that_is_all_frozen_are_refused():
    task = Regression(model=Toy(), inputs="x")
    with pytest.raises(ConfigError, match=r"^nothing is left to train: all parameters are frozen$"):
        init_state(task, SGD().build(1), jax.random.key(0), BATCH, frozen=["*"])

    @dataclass(frozen=True)
    class Fixed(Model):
        def build(self, rngs: nnx.Rngs, inputs: Shaped) -> nnx.Module:
            return nnx.Sequential(jnp.tanh)

    with pytest.raises(ConfigError, match=r"^nothing is left to train: Fixed has no parameters$"):
        init_state(Regression(model=Fixed(), inputs="x"), SGD().build(1), jax.random.key(0), BATCH)


@pytest.mark.parametrize("value", [None, "high", np.ones(2)])
def test_a_value_of_a_metric_that_is_no_number_is_named(value):
    with pytest.raises(ConfigError, match=r"^the metric 'bleu/test' has as its value .*, not a number$"):
        flat("bleu", {"test": value})
