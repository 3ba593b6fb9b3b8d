"""Checks, while tracing, of what the methods of a task return: a mistake in a user's task is named with its class,
method, what was returned and what is expected.
"""

import linecache
import traceback
from collections.abc import Mapping
from dataclasses import fields as fields_of
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.flops import differentiable, reached
from jaxtrain.base.packages import PACKAGE
from jaxtrain.models.checks import kind_of
from jaxtrain.models.params import merged
from jaxtrain.models.variables import Context, Variables
from jaxtrain.sharding.layout import AxisNamed, named_leaves, path_name
from jaxtrain.tasks.base import Batch, Loss, Task
from jaxtrain.tasks.metrics import Mean, Metric

RESERVED = (
    "loss",
    "gradient_norm",
    "recorded",
    "step",
    "split",
    "examples_per_second",
    "tokens_per_second",
    "mfu",
    "skipped",
    "rate_scale",
)
"""Names in a line of metrics, or in what a step reports, that are not the task's."""

RESERVED_BEGINNINGS = ("seconds_", "learning_rate")

_OURS = str(PACKAGE)

TRACED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.UnexpectedTracerError,
)
"""Errors of code that needs the numbers of an array while the step is traced."""

WANTED = "return Loss(Mean.of(losses_B, batch['mask']), metrics), where metrics is a dict of metrics such as Mean"


def abstract_variables(task: Task, batch: Batch) -> Variables:
    """`AxisNamed` shapes of the variables that `task.init` returns. Raises ConfigError for arrays without names."""
    named = jax.eval_shape(lambda: call(task, "init", batch, jax.random.key(0), batch))
    who = f"{type(task).__name__}.init"
    if not (isinstance(named, Variables) and isinstance(named.params, Mapping) and isinstance(named.state, Mapping)):
        raise ConfigError(f"{who} returned {kind_of(named)}: return Variables(nested dicts of AxisNamed arrays)")
    for path, leaf in [*named_leaves(named.params), *named_leaves(named.state)]:
        if not isinstance(leaf, AxisNamed):
            raise ConfigError(
                f"{who}: {path_name(path)} is a plain {kind_of(leaf)}: return AxisNamed(array, names of its dims); the "
                f"names {(None,) * leaf.ndim} replicate it"
            )
    return named


def loss_of(task: Task, variables: Variables, batch: Batch, context: Context) -> Loss:
    """`task.loss`. Raises ConfigError where it returns anything but a `Loss` of a `Mean` and a dict of metrics."""
    loss, who = call(task, "loss", batch, variables, batch, context), f"{type(task).__name__}.loss"
    if not isinstance(loss, Loss):
        raise ConfigError(f"{who} returned {kind_of(loss)}: {WANTED}")
    if not isinstance(loss.metrics, Mapping):
        raise ConfigError(f"{who}: the metrics are {kind_of(loss.metrics)}: {WANTED}")
    if not isinstance(loss.mean, Mean):
        raise ConfigError(f"{who}: the loss is {kind_of(loss.mean)}, not a Mean: {WANTED}")
    _check_metric(loss.mean, "the loss", who)
    for name, value in loss.metrics.items():
        check_name(name, who)
        _check_metric(value, f"the metric {name!r}", who)
    if not jnp.issubdtype(jnp.result_type(loss.mean.total), jnp.floating):
        raise ConfigError(f"{who}: the loss is {kind_of(loss.mean.total)}, which has no gradient: compute it in floats")
    return loss


def check_name(name: Any, who: str) -> None:
    """Raises ConfigError for a metric whose name is no string, or is that of something else in a line of metrics."""
    if not isinstance(name, str):
        raise ConfigError(f"{who}: a metric is named {name!r}, which is no string")
    if name in RESERVED or name.startswith(RESERVED_BEGINNINGS):
        raise ConfigError(f"{who}: {name!r} is logged already, as something else: give the metric another name")


def checked_rows(returned: Any, rows: int, who: str) -> tuple[jax.Array, Mapping[str, Any]]:
    """What `Supervised.rows` returned. Raises ConfigError for anything but losses f[B] and a dict of metrics, each a
    `Metric` or numbers [B].
    """
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], Mapping)):
        raise ConfigError(f"{who} returned {kind_of(returned)}: return the losses f[B], and a dict of metrics by name")
    losses_B, metrics = returned
    for name, value in {
        "the loss": losses_B,
        **{f"the metric {name!r}": each for name, each in metrics.items()},
    }.items():
        if not isinstance(value, Metric) and getattr(value, "shape", None) != (rows,):
            also = "" if value is losses_B else ", nor a metric such as Mean.of(values, weights)"
            raise ConfigError(f"{who}: {name} is {kind_of(value)}, not one number a row, [{rows}]{also}")
    if not jnp.issubdtype(losses_B.dtype, jnp.floating):
        raise ConfigError(f"{who}: the loss is {kind_of(losses_B)}, which has no gradient: compute it in floats")
    return losses_B, metrics


def outputs_of(outputs: Any, shape: str, rows: int, task: Task) -> jax.Array:
    """A model's outputs, in f32 at least. Raises ConfigError for anything but floats of this many dims and rows.

    shape: the dims in words, such as `[B, C]`.
    """
    found = getattr(outputs, "shape", ())
    if (
        not found
        or found[0] != rows
        or len(found) != shape.count(",") + 1
        or not jnp.issubdtype(outputs.dtype, jnp.floating)
    ):
        raise ConfigError(
            f"{type(task).__name__}: the outputs of {type(task.model).__name__} are {kind_of(outputs)}, not floats "
            f"{shape} for {rows} rows"
        )
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))


def check_loss(task: Task, params: Any, fixed: Variables, batch: Batch, step: Any, key: Any) -> None:
    """Raises ConfigError for a loss without gradient, and for sums that the mask has no part in although they are over
    rows: those that only fill up a batch would count. Traces, but computes nothing.

    Where it is not sure, as where the mask goes into a loop, it finds no fault.
    """
    fields = {name: x for name, x in batch.items() if name != "mask"}

    def sums(params: Any, mask: Any, fields: Any, fixed: Variables, step: Any, key: Any) -> Any:
        context = Context(step, jax.random.split(key, mask.shape[0]), mask)
        variables = Variables(merged(params, fixed.params), fixed.state)
        loss = loss_of(task, variables, {**fields, "mask": mask}, context)
        return loss.mean, dict(loss.metrics)

    arguments = (params, batch["mask"], fields, fixed, step, key)
    traced, shapes = jax.make_jaxpr(sums, return_shape=True)(*arguments)
    of_params, of_mask, of_fields = (
        jax.tree.unflatten(jax.tree.structure(shapes), depends(traced.jaxpr, marked))
        for depends, marked in (
            (differentiable, _marked(arguments, 0)),
            (reached, _marked(arguments, 1)),
            (reached, _marked(arguments, 2)),
        )
    )
    who = f"{type(task).__name__}.loss"
    if not of_params[0].total:
        raise ConfigError(
            f"{who}: the loss has no gradient: no parameter enters it other than by whole numbers, comparisons or "
            "stop_gradient"
        )
    names = {"the loss": (of_mask[0], of_fields[0])}
    names |= {f"the metric {name!r}": (of_mask[1][name], of_fields[1][name]) for name in of_mask[1]}
    for name, (masked, over_rows) in names.items():
        parts = {each.name: getattr(masked, each.name) for each in fields_of(masked)}
        rows = [getattr(over_rows, part) for part in parts]
        wrong = [part for part, row in zip(parts, rows, strict=True) if not parts[part] and (row or part == "weight")]
        if wrong and any(rows):
            raise ConfigError(
                f"{who}: the {wrong[0]} of {name} does not depend on batch['mask'], so that rows which only fill up "
                f"a batch count: build it with Mean.of(values, batch['mask'])"
            )


def _marked(arguments: tuple[Any, ...], chosen: int) -> list[bool]:
    return [number == chosen for number, each in enumerate(arguments) for _ in jax.tree.leaves(each)]


def _check_metric(value: Any, name: str, who: str) -> None:
    """Raises ConfigError for what is no `Metric` of arrays, and for a `Mean` of anything but two numbers."""
    if not isinstance(value, Metric):
        found = f"the class {value.__name__}" if isinstance(value, type) else kind_of(value)
        raise ConfigError(f"{who}: {name} is {found}, not a metric: {WANTED}")
    kind, parts = type(value).__name__, {each.name: getattr(value, each.name) for each in fields_of(value)}
    if not parts:
        raise ConfigError(f"{who}: {name} has no fields: write @dataclass(frozen=True) above class {kind}")
    for part, array in parts.items():
        if not isinstance(array, jax.Array | np.ndarray | np.generic | int | float):
            raise ConfigError(
                f"{who}: the {part} of {name} is {kind_of(array)}, not an array: the fields of a metric are summed"
            )
        if isinstance(value, Mean) and jnp.shape(array) != ():
            raise ConfigError(f"{who}: the {part} of {name} is {kind_of(array)}, not one number: build it with Mean.of")


def prediction_of(task: Task, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
    """`task.predict`. Raises ConfigError where it returns anything but a dict of arrays."""
    returned, who = call(task, "predict", batch, variables, batch), f"{type(task).__name__}.predict"
    if not isinstance(returned, Mapping):
        raise ConfigError(f"{who} returned {kind_of(returned)}: return a dict of arrays by name")
    for name, value in returned.items():
        if not hasattr(value, "dtype"):
            raise ConfigError(f"{who}: {name!r} is {kind_of(value)}, not an array")
    return dict(returned)


def call(task: Task, method: str, batch: Batch, *arguments: Any) -> Any:
    """A method of the task. A KeyError in code that reads the batch, for a name that is no field of it, becomes a
    ConfigError that shows the line and the fields.
    """
    try:
        return getattr(task, method)(*arguments)
    except TRACED as error:
        raise traced_error(error, f"{type(task).__name__}.{method}") from error
    except KeyError as error:
        name, (frame, line) = error.args[0], list(traceback.walk_tb(error.__traceback__))[-1]
        if not isinstance(name, str) or name in batch or all(local is not batch for local in frame.f_locals.values()):
            raise  # some other dict lacks it
        file = frame.f_code.co_filename
        raise ConfigError(
            f"{type(task).__name__}.{method}: KeyError {name!r} in {file}, line {line}: "
            f"{linecache.getline(file, line).strip()}; the batch has the fields {', '.join(sorted(batch))}"
            f"{nearest(name, batch, listed=False)}"
        ) from error


def traced_error(error: Exception, who: str) -> ConfigError:
    """For an error of `TRACED`: names the line of the user's code that needs the numbers of an array."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _of_library(frame.filename)]
    place = f" in {frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line}" if frames else ""
    return ConfigError(
        f"{who}: {type(error).__name__}{place}; while a step is traced, arrays have a shape and no numbers: use "
        "jax.numpy instead of numpy and float(), jnp.where instead of if, and keep no array for a later call"
    )


def _of_library(file: str) -> bool:
    return "site-packages" in file or file.startswith((_OURS, "<"))
