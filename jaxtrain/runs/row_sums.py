"""What is computed of a batch for each of its rows: predictions, labels, and the sums of every metric.

The model is applied to the batch as in its evaluation; only the loss is computed for each row, with a mask that marks
this row alone, so that layouts, padding and any `Metric` need nothing of their own. Shapes: B batch.

Not here: which batches, and what becomes of the arrays.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtrain.base.flops import gradient_flops, reached
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

ROUNDING = 1e-4
"""How far, relative to their size, sums of f32 of single rows may be from those of whole batches."""


@dataclass(frozen=True)
class RowSums:
    """What is kept of the batches of a pipeline, compiled for a program's mesh."""

    predictions: tuple[str, ...]
    labels: tuple[str, ...]
    """Fields of a batch."""
    metrics: tuple[str, ...]
    left_out: Mapping[str, str]
    """Why others are not kept, by their names such as `predictions.log_probabilities`."""
    _program: Program

    @functools.cached_property
    def _run(self) -> Callable[[TrainState, Batch], dict[str, Any]]:
        return jax.jit(self._of_batch, out_shardings=NamedSharding(self._program.mesh, P()))

    def __call__(self, state: TrainState, batch: Batch) -> tuple[dict[str, Any], dict[str, Metric]]:
        """Of a global batch, on the host: `predictions`, `labels` and `metrics` by name, with the rows that do not only
        fill it up on dim 0; and the metrics of the batch as a whole.
        """
        with self._program.scope():
            found = jax.device_get(self._run(state, batch))
        real, sums = found.pop("mask"), found.pop("metrics")
        found["metrics"] = jax.tree.map(lambda x: x[1:], sums)
        return jax.tree.map(lambda x: x[real], found), jax.tree.map(lambda x: x[0], sums)

    def _of_batch(self, state: TrainState, batch: Batch) -> dict[str, Any]:
        predicted = _predictions(self._program, state, batch) if self.predictions else {}
        sums = _sums_of_rows(self._program, state, batch) if self.metrics else {}
        return {
            "predictions": {name: predicted[name] for name in self.predictions},
            "labels": {name: batch[name] for name in self.labels},
            "metrics": {name: sums[name] for name in self.metrics},
            "mask": batch["mask"],
        }


def row_sums(program: Program, pipeline: Pipeline, rows: int) -> RowSums:
    """What can be kept of `rows` rows of a pipeline. Traces, but computes nothing."""
    task, state = program.experiment.task, program.state
    batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in pipeline.example().items()}
    left_out: dict[str, str] = {}
    with program.scope():
        try:
            predicted, made_of = _traced(functools.partial(_predictions, program), state, batch)
        except Exception as error:  # a task need not predict anything
            inputs = (task.inputs,) if isinstance(task.inputs, str) else task.inputs
            predicted, made_of = {}, {*inputs}
            left_out["predictions"] = " ".join(str(error).split()) or type(error).__name__
        metrics, read = _traced(functools.partial(_sums, program), state, batch)
        if why := _why_no_sums(program, state, batch):
            left_out |= {f"metrics.{name}": why for name in metrics}
    by_host = {name for metric in program.experiment.host_metrics.values() for name in metric.fields}
    targets = (read - made_of - {"mask", getattr(task, "weights", None)}) | by_host
    labels = {name: x for name, x in batch.items() if name in targets}
    for part, arrays in (("predictions", predicted), ("labels", labels)):
        for name, x in arrays.items():
            if jnp.shape(x)[:1] != batch["mask"].shape:
                left_out[f"{part}.{name}"] = f"it is an array of {list(jnp.shape(x))}, not one of rows"
            elif why := _too_large(rows, [jnp.shape(x)[1:]]):
                left_out[f"{part}.{name}"] = why
    for name, metric in metrics.items():
        if why := _too_large(rows, [jnp.shape(x) for x in jax.tree.leaves(metric)]):
            left_out.setdefault(f"metrics.{name}", why)

    def kept(part: str, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(name for name in names if f"{part}.{name}" not in left_out)

    return RowSums(kept("predictions", predicted), kept("labels", labels), kept("metrics", metrics), left_out, program)


def is_sum(rows: Metric, wholes: Sequence[Metric]) -> bool:
    """Whether the sums of single rows, on dim 0, add up to those of the batches that they are of."""

    def near(rows: np.ndarray, whole: np.ndarray) -> bool:
        rows, whole = rows.astype(np.float64), whole.astype(np.float64)
        total, scale = rows.sum(0), np.abs(rows).sum(0) + np.abs(whole)
        return bool(
            (np.isclose(total, whole, ROUNDING, 0, equal_nan=True) | (abs(total - whole) < ROUNDING * scale)).all()
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
    return jax.vmap(functools.partial(_sums, program, state, batch))(masks)


def _here(program: Program, state: TrainState) -> TrainState:
    return fetched(state) if program.experiment.layout.offload else state


def _traced(function: Callable[[Any, Batch], dict[str, Any]], state: Any, batch: Batch) -> tuple[Any, set[str]]:
    """The abstract results of a function, and the fields of the batch that they depend on."""
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(state, batch)
    others, names = len(jax.tree.leaves(state)), sorted(batch)
    marks = {
        name: [number == others + place for number in range(others + len(names))] for place, name in enumerate(names)
    }
    return shapes, {name for name, marked in marks.items() if any(reached(traced.jaxpr, marked))}


def _why_no_sums(program: Program, state: Any, batch: Batch) -> str:
    """Why the sums of single rows are not computed; "" if they are."""
    if program.experiment.task.whole_batch:
        return f"the loss of a row depends on the other rows ({type(program.experiment.task).__name__}.whole_batch)"
    once, each = (
        gradient_flops(lambda _, state, batch, of=of: of(program, state, batch), (), state, batch)
        for of in (_sums, _sums_of_rows)
    )
    if each > max(MOST_TIMES * once, MOST_FLOPS):
        more = f"of single rows it takes {each:.1e} FLOPs a batch, as a whole {once:.1e}"
        return f"{more}: what the model computes depends on batch['mask']"
    return ""


def _too_large(rows: int, shapes: Iterable[tuple[int, ...]]) -> str:
    needed = 4 * rows * sum(int(np.prod(shape)) for shape in shapes)
    return f"{rows:,} rows of it take {size(needed)}, more than {size(LARGEST_ROWS)}" if needed > LARGEST_ROWS else ""
