"""What is computed of a batch for each of its rows: predictions, labels, and the sums of every metric.

The model is applied to the batch as in its evaluation; only the loss is computed for each row, with a mask that marks
this row alone, so that layouts, padding and any `Metric` need nothing of their own. Shapes: B batch.

Not here: which batches, and what becomes of the arrays.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxtrain.base.flops import forward_flops, reached
from jaxtrain.base.text import size
from jaxtrain.data.pipeline import Pipeline
from jaxtrain.experiment.fit import in_units_of_data
from jaxtrain.models.variables import Context
from jaxtrain.program import Program, fetched
from jaxtrain.runs.rows import arrays_of
from jaxtrain.step import TrainState, predict_step
from jaxtrain.tasks.base import Batch
from jaxtrain.tasks.checks import loss_of
from jaxtrain.tasks.metrics import Metric

LARGEST_ROWS = 64 << 20
"""Bytes of an array of all kept rows: a larger one, such as the logits of a language model, is left out."""

MOST_FLOPS = 10**10
"""FLOPs that the sums of the rows of a batch may take, where they are more than `MOST_TIMES` those of the batch."""

MOST_TIMES = 8

SUMS_TOLERANCE = 1e-4
"""How far, relative to their size, sums of f32 of single rows may be from those of whole batches."""


@dataclass(frozen=True)
class RowPlan:
    """What is kept of the rows of a split, by name, and why the rest is not."""

    predictions: tuple[str, ...]
    labels: tuple[str, ...]
    """Fields of a batch."""
    metrics: tuple[str, ...]
    left_out: Mapping[str, str] = field(compare=False)
    """By names such as `predictions.log_probabilities`."""


class RowSums:
    """Predictions, labels and sums of single rows, computed by a program; compiled once for splits of like batches."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._compiled: dict[RowPlan, Callable[[TrainState, Batch], dict[str, Any]]] = {}
        self._known: dict[Any, _Traced] = {}

    def __call__(self, plan: RowPlan, state: TrainState, batch: Batch) -> tuple[dict[str, Any], dict[str, Metric]]:
        """Of a global batch, on the host: `predictions`, `labels` and `metrics` by name, with the rows that do not only
        fill it up on dim 0; and the metrics of the batch as a whole.
        """
        if plan not in self._compiled:
            self._compiled[plan] = self._program.compiled(functools.partial(self._of_batch, plan))
        with self._program.scope():
            found = jax.device_get(self._compiled[plan](state, batch))
        real, sums = found.pop("mask"), found.pop("metrics")
        found["metrics"] = jax.tree.map(lambda x: x[1:], sums)
        return jax.tree.map(lambda x: x[real], found), jax.tree.map(lambda x: x[0], sums)

    def _of_batch(self, plan: RowPlan, state: TrainState, batch: Batch) -> dict[str, Any]:
        predicted = _predictions(self._program, state, batch) if plan.predictions else {}
        sums = _sums_of_rows(self._program, state, batch) if plan.metrics else {}
        return {
            "predictions": {name: predicted[name] for name in plan.predictions},
            "labels": {name: batch[name] for name in plan.labels},
            "metrics": {name: sums[name] for name in plan.metrics},
            "mask": batch["mask"],
        }

    def plan(self, pipeline: Pipeline, rows: int) -> RowPlan:
        """What can be kept of `rows` rows of a pipeline. Traces, but computes nothing."""
        batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in pipeline.example().items()}
        key = tuple(sorted((name, x.shape, x.dtype.name) for name, x in batch.items()))
        if key not in self._known:
            with self._program.scope():
                self._known[key] = _traced(self._program, batch)
        found = self._known[key]
        left_out = dict(found.left_out)
        for part, arrays in (("predictions", found.predictions), ("labels", found.labels)):
            for name, x in arrays.items():
                if jnp.shape(x)[:1] != batch["mask"].shape:
                    left_out[f"{part}.{name}"] = f"it is an array of {list(jnp.shape(x))}, not one of rows"
                elif why := _too_large(rows, [jnp.shape(x)[1:]]):
                    left_out[f"{part}.{name}"] = why
        for name, metric in found.metrics.items():
            if why := _too_large(rows, map(jnp.shape, jax.tree.leaves(metric))):
                left_out.setdefault(f"metrics.{name}", why)

        def kept(part: str, names: Iterable[str]) -> tuple[str, ...]:
            return tuple(name for name in names if f"{part}.{name}" not in left_out)

        arrays = (kept(part, getattr(found, part)) for part in ("predictions", "labels", "metrics"))
        return RowPlan(*arrays, left_out=left_out)


def is_sum(rows: Metric, wholes: Sequence[Metric]) -> bool:
    """Whether the sums of single rows, on dim 0, add up to those of the batches that they are of."""

    def near(rows: np.ndarray, whole: np.ndarray) -> bool:
        rows, whole = rows.astype(np.float64), whole.astype(np.float64)
        total, scale = rows.sum(0), np.abs(rows).sum(0) + np.abs(whole)
        return bool(
            (
                np.isclose(total, whole, SUMS_TOLERANCE, 0, equal_nan=True)
                | (abs(total - whole) < SUMS_TOLERANCE * scale)
            ).all()
        )

    of_batches = {name: sum(arrays_of(each)[name].astype(np.float64) for each in wholes) for name in arrays_of(rows)}
    with np.errstate(invalid="ignore", over="ignore"):
        return all(near(x, np.asarray(of_batches[name])) for name, x in arrays_of(rows).items())


def _predictions(program: Program, state: TrainState, batch: Batch) -> dict[str, jax.Array]:
    """As `Program.predict`, with narrow floats as f32."""
    found = predict_step(program.experiment.task, _here(program, state), batch)
    found = in_units_of_data(program.experiment, found)
    return {
        name: x.astype(jnp.promote_types(x.dtype, jnp.float32)) if jnp.issubdtype(x.dtype, jnp.floating) else x
        for name, x in found.items()
    }


def _sums(program: Program, state: TrainState, batch: Batch, mask_B: jax.Array | None = None) -> dict[str, Metric]:
    """As `step.eval_step`, of the rows that `mask_B` marks, by default all. The model knows the mask of the batch."""
    state, counted = _here(program, state), batch if mask_B is None else {**batch, "mask": mask_B}
    loss = loss_of(program.experiment.task, state.evaluated, counted, Context(state.step, None, batch["mask"]))
    return {"loss": loss.mean, **loss.metrics}


def _sums_of_rows(program: Program, state: TrainState, batch: Batch) -> dict[str, Metric]:
    """The metrics of the batch, and then of each of its rows, on dim 0 of their arrays: [1 + B, …]."""
    mask_B = batch["mask"]
    masks = jnp.concatenate([mask_B[None], jnp.eye(mask_B.shape[0], dtype=bool) & mask_B])
    return _for_each(functools.partial(_sums, program, state, batch), masks)


def _for_each(function: Callable[[jax.Array], dict[str, Metric]], masks: jax.Array) -> dict[str, Metric]:
    """`jax.vmap(function)(masks)`, but what does not depend on the mask, such as all that the model computes, is kept
    out of the vmap: not every primitive, and not every collective, can be in one.
    """
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(masks[0])
    known: dict[Any, Any] = dict(zip(traced.jaxpr.constvars, traced.consts, strict=True))
    dependent, later = set(traced.jaxpr.invars), []
    for equation in traced.jaxpr.eqns:
        if any(not isinstance(each, Literal) and each in dependent for each in equation.invars):
            dependent.update(equation.outvars)
            later.append(equation)
        else:
            _evaluate(equation, known)

    def rest(mask_B: jax.Array) -> list[Any]:
        values = {**known, traced.jaxpr.invars[0]: mask_B}
        for equation in later:
            _evaluate(equation, values)
        return [each.val if isinstance(each, Literal) else values[each] for each in traced.jaxpr.outvars]

    return jax.tree.unflatten(jax.tree.structure(shapes), jax.vmap(rest)(masks))


def _evaluate(equation: Any, values: dict[Any, Any]) -> None:
    """Adds the results of an equation of a jaxpr to the values of its variables."""
    given = [each.val if isinstance(each, Literal) else values[each] for each in equation.invars]
    with equation.ctx.manager:
        made = equation.primitive.bind(*given, **equation.primitive.get_bind_params(equation.params))
    values.update(zip(equation.outvars, made if equation.primitive.multiple_results else [made], strict=True))


def _here(program: Program, state: TrainState) -> TrainState:
    return fetched(state) if program.experiment.layout.offload else state


@dataclass(frozen=True)
class _Traced:
    """What there is to keep of a batch, abstract arrays by name."""

    predictions: Mapping[str, Any]
    labels: Mapping[str, Any]
    metrics: Mapping[str, Metric]
    left_out: Mapping[str, str]


def _traced(program: Program, batch: Batch) -> _Traced:
    task, left_out = program.experiment.task, dict[str, str]()
    try:
        _, predicted, made_of = _results(_predictions, program, batch)
    except Exception as error:  # a task need not predict anything
        inputs = (task.inputs,) if isinstance(task.inputs, str) else task.inputs
        predicted, made_of = {}, {*inputs}
        left_out["predictions"] = error_text(error)
    jaxpr, metrics, read = _results(_sums, program, batch)
    if why := _why_no_sums(program, batch, forward_flops(jaxpr)):
        left_out |= {f"metrics.{name}": why for name in metrics}
    by_host = {name for metric in program.experiment.host_metrics.values() for name in metric.fields}
    targets = (read - made_of - {"mask", getattr(task, "weights", None)}) | by_host
    return _Traced(predicted, {name: x for name, x in batch.items() if name in targets}, metrics, left_out)


def _why_no_sums(program: Program, batch: Batch, once: int) -> str:
    """Why there are no sums of single rows; "" where there are. once: the FLOPs of those of a whole batch."""
    task = program.experiment.task
    if task.whole_batch:
        return f"the loss of a row depends on the other rows ({type(task).__name__}.whole_batch)"
    try:
        each = forward_flops(_results(_sums_of_rows, program, batch)[0])
    except Exception as error:  # an operation of a user's model that cannot be in a vmap
        return f"{error_text(error)}: what the model computes depends on batch['mask']"
    if each > max(MOST_TIMES * once, MOST_FLOPS):
        more = f"of single rows it takes {each:.1e} FLOPs a batch, as a whole {once:.1e}"
        return f"{more}: what the model computes depends on batch['mask']"
    return ""


def error_text(error: Exception) -> str:
    """The message of an exception in one line, or the name of its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _results(
    function: Callable[[Program, Any, Batch], dict[str, Any]], program: Program, batch: Batch
) -> tuple[Any, Any, set[str]]:
    """The jaxpr of a function, its abstract results, and the fields of the batch that they depend on."""
    traced, shapes = jax.make_jaxpr(functools.partial(function, program), return_shape=True)(program.state, batch)
    others, names = len(traced.jaxpr.invars) - len(batch), sorted(batch)
    marks = {
        name: [others + place == number for number in range(others + len(names))] for place, name in enumerate(names)
    }
    return traced.jaxpr, shapes, {name for name, marked in marks.items() if any(reached(traced.jaxpr, marked))}


def _too_large(rows: int, shapes: Iterable[tuple[int, ...]]) -> str:
    needed = 4 * rows * sum(int(np.prod(shape)) for shape in shapes)
    return f"{rows:,} rows of it take {size(needed)}, more than {size(LARGEST_ROWS)}" if needed > LARGEST_ROWS else ""
