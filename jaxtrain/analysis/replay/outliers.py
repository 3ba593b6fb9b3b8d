"""Outliers in a step: learning rates, and norms of gradients, updates and parameters by layer, compared with the steps
before it.

Shapes: N stacked layers.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtrain.base.text import number
from jaxtrain.models.params import STACKED
from jaxtrain.models.variables import Context
from jaxtrain.program import Program
from jaxtrain.sharding.layout import named_leaves, path_name
from jaxtrain.step import Gradients, TrainState, full_batch, microbatched
from jaxtrain.tasks.base import Batch
from jaxtrain.tasks.checks import abstract_variables

HISTORY = 16
"""The number of steps whose norms are measured, the replayed one included."""

OUT_OF_LINE = 4.0
"""A norm is an outlier if it is more than this many times its median over the steps before."""

JUMP = 3.0
"""A learning rate is an outlier if it is more than this many times that of the step before. A warm-up from 0 at most
doubles it.
"""


@dataclass(frozen=True)
class Measured:
    """The numbers of a step by name, such as `gradient of blocks/up/kernel[3]`, and its learning rates."""

    values: Mapping[str, float]
    rates: Mapping[str, float]


@dataclass(frozen=True)
class Outlier:
    """A number of a step that is far larger than in the steps before."""

    what: str
    value: float
    usual: float
    step: int

    @property
    def times(self) -> float:
        """How many times as large as usual."""
        return self.value / self.usual if self.usual else np.inf

    @property
    def of_layer(self) -> bool:
        """Whether it is the norm of a parameter, its gradient or its update."""
        return " of " in self.what

    def __str__(self) -> str:
        times = f"{number(self.times)} times"
        if self.what.startswith("learning"):
            return f"{self.what} of step {self.step} is {times} that of the step before: {number(self.value)}"
        return f"{self.what} is {times} its median over the steps before: {number(self.value)}"


def gradients_of(program: Program, mesh: bool = True) -> Gradients:
    """The function that computes gradients in a program's step, on its mesh or on one device."""
    experiment, sizes = program.experiment, program.mesh.shape
    if experiment.microbatches == 1 or experiment.layout.stages(sizes)[0] > 1:
        return full_batch
    return microbatched(experiment.microbatches, experiment.layout.row_axes(sizes) if mesh else ())


def measuring(program: Program, horizon: int) -> Callable[[TrainState, Batch], Measured]:
    """A function that measures the norms of a step."""
    experiment = program.experiment
    task, gradients = experiment.task, gradients_of(program)
    optimizer = experiment.optimizer.transformation(horizon, program.state.params)
    rates = experiment.optimizer.rates(horizon)
    named = abstract_variables(task, experiment.data.example()).params
    axes = {path_name(path): leaf.axes for path, leaf in named_leaves(named)}

    @jax.jit
    def norms(state: TrainState, batch: Batch) -> dict[str, Any]:
        keys_B = jax.random.split(jax.random.fold_in(state.key, state.step), batch["mask"].shape[0])
        context = Context(state.step, keys_B, batch["mask"])
        summed, loss = gradients(task, state.params, state.fixed, batch, context)
        grads = jax.tree.map(lambda grad: grad / loss.mean.weight, summed)
        updates, _ = optimizer.update(grads, state.opt_state, state.params)
        whole = {"loss": loss.mean.total / loss.mean.weight, "gradient norm": optax.tree.norm(grads)}
        trees = {"gradient": grads, "update": updates, "parameter": state.params}
        return whole | {name: _norms(tree, axes) for name, tree in trees.items()}

    def measured(state: TrainState, batch: Batch) -> Measured:
        with program.scope():
            found = jax.device_get(norms(state, batch))
        values = {name: float(found.pop(name)) for name in ("loss", "gradient norm")}
        for kind, of_leaves in found.items():
            for path, norm in of_leaves.items():
                if np.ndim(norm) == 0:
                    values[f"{kind} of {path}"] = float(norm)
                else:
                    values |= {f"{kind} of {path}[{n}]": float(x) for n, x in enumerate(np.ravel(norm))}
        step = int(state.step)
        return Measured(values, {name: float(np.asarray(rate(step))) for name, rate in rates.items()})

    return measured


def _norms(tree: Any, axes: Mapping[str, tuple[str | None, ...]]) -> dict[str, Any]:
    """The norm of each leaf by its path; for stacked parameters, of each layer."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        stacked = sum(1 for name in axes.get(path_name(path), ()) if name in STACKED)
        wide = leaf.astype(jnp.float32)
        found[path_name(path)] = jnp.sqrt(jnp.square(wide).sum(tuple(range(stacked, leaf.ndim))))
    return found


def outliers(measured: Mapping[int, Measured], step: int) -> list[Outlier]:
    """The outliers of a step: learning rates first, then the numbers that grew most. Learning rates of the steps before
    are included, since a rate that is too large shows in the loss of the next step.
    """
    return [*_of_rates(measured), *_of_values(measured, step)]


def _of_rates(measured: Mapping[int, Measured]) -> list[Outlier]:
    found = []
    for done in sorted(measured):
        if (before := measured.get(done - 1)) is not None:
            for name, rate in measured[done].rates.items():
                usual = before.rates[name]
                if usual and rate > JUMP * usual:
                    found.append(Outlier(name.replace("_", " "), rate, usual, done))
    return found


def _of_values(measured: Mapping[int, Measured], step: int) -> list[Outlier]:
    earlier = [each for done, each in measured.items() if done < step]
    if not earlier:
        return []
    found = []
    for what, value in measured[step].values.items():
        usual = [abs(each.values[what]) for each in earlier]
        if not np.isfinite([value, *usual]).all():
            continue
        median = statistics.median(usual)
        if abs(value) > OUT_OF_LINE * median and _robust(value, usual) > 5:
            found.append(Outlier(what, value, median, step))
    return sorted(found, key=lambda each: -each.times)


def _robust(value: float, usual: list[float]) -> float:
    """The distance of a number's logarithm from the median, in robust standard deviations (1.4826 × the median absolute
    deviation, at least 0.1).
    """
    logs = [float(np.log(max(abs(each), 1e-30))) for each in (value, *usual)]
    median = statistics.median(logs[1:])
    deviation = 1.4826 * statistics.median(abs(each - median) for each in logs[1:])
    return (logs[0] - median) / max(deviation, 0.1)
