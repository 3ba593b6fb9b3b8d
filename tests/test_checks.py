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
from jaxtrain.tasks import Context, Loss, Regression, Sum, Task, Variables

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
