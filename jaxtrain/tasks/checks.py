"""Checks, while tracing, of what the methods of a task return: a mistake in a user's task is named with its class,
method, what was returned and what is expected.
"""

import linecache
import traceback
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.models.checks import kind_of
from jaxtrain.models.variables import Context, Variables
from jaxtrain.sharding.layout import AxisNamed, named_leaves, path_name
from jaxtrain.tasks.base import Batch, Loss, Task
from jaxtrain.tasks.metrics import Mean

WANTED = "return Loss(Mean.of(losses_B, batch['mask']), metrics), where metrics is a dict of Means"


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
    """`task.loss`. Raises ConfigError where it returns anything but a `Loss` of a `Mean` and a dict of them."""
    loss, who = call(task, "loss", batch, variables, batch, context), f"{type(task).__name__}.loss"
    if not isinstance(loss, Loss):
        raise ConfigError(f"{who} returned {kind_of(loss)}: {WANTED}")
    if not isinstance(loss.metrics, Mapping):
        raise ConfigError(f"{who}: the metrics are {kind_of(loss.metrics)}: {WANTED}")
    named = {f"the metric {name!r}": value for name, value in loss.metrics.items()}
    for name, value in {"the loss": loss.mean, **named}.items():
        if not isinstance(value, Mean):
            raise ConfigError(f"{who}: {name} is {kind_of(value)}, not a Mean: {WANTED}")
        for part in ("total", "weight"):
            if jnp.shape(getattr(value, part)) != ():
                shape = kind_of(getattr(value, part))
                raise ConfigError(f"{who}: the {part} of {name} is {shape}, not one number: build it with Mean.of")
    if not jnp.issubdtype(jnp.result_type(loss.mean.total), jnp.floating):
        raise ConfigError(f"{who}: the loss is {kind_of(loss.mean.total)}, which has no gradient: compute it in floats")
    return loss


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
