"""Explains the result of a step: the first equation that is not finite, outliers among the norms, and the examples.

The step is evaluated again, one equation at a time on one device. That is without XLA's fusion, so the last bits may
differ from the run's. Not here: running the step as the run did (`rerun`), and printing (`report`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxtrain.analysis.replay.content import content_of, where, wrong_numbers
from jaxtrain.analysis.replay.equations import Evaluation, Place, first_fault
from jaxtrain.analysis.replay.loops import FIELD, Evaluated, Flow
from jaxtrain.analysis.replay.outliers import OUT_OF_LINE, Outlier, gradients_of, outliers
from jaxtrain.analysis.replay.places import Frame, best_frame, finite, largest, modules_of, range_of
from jaxtrain.analysis.replay.reproduced import Reproduced, reproduced
from jaxtrain.analysis.replay.rerun import Before, Moment
from jaxtrain.analysis.replay.shares import Share, shares
from jaxtrain.base.text import number
from jaxtrain.models.variables import Context
from jaxtrain.sharding.layout import path_name
from jaxtrain.step import train_step, with_params, without_gaps
from jaxtrain.tasks.checks import loss_of

EQUATIONS = 20_000
"""Activations are compared with the previous step only in programs of at most this many equations, loops unrolled."""


@dataclass(frozen=True)
class Fault:
    """Where a step first becomes not finite."""

    phase: str
    """`forward pass`, `backward pass`, `update`, or `input` if the state or the batch is not finite to begin with."""
    primitive: str
    frames: tuple[Frame, ...]
    parts: tuple[str, ...]
    parameter: str | None
    reads: bool
    """Whether the equation reads this parameter; else it is the last parameter that was read before."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def frame(self) -> Frame | None:
        """The line of source to look at."""
        return best_frame(self.frames)

    @property
    def modules(self) -> str:
        """The modules that were being called."""
        return modules_of(self.frames)

    def __str__(self) -> str:
        if self.phase == "input":
            return f"{self.parameter} is not finite before the step"
        at = f" at {self.frame}" if self.frame else ""
        return ", ".join([f"{self.primitive}{at} in the {self.phase}", *reversed(self.parts)])


@dataclass(frozen=True)
class ExplainedRow:
    """A row of the batch, and the example in it."""

    share: Share
    where: str
    wrong: tuple[str, ...]
    """The numbers in it that are not finite."""
    fields: Mapping[str, str]


@dataclass(frozen=True)
class Explanation:
    """The result of replaying a step."""

    moment: Moment
    reproduced: Reproduced
    loss: float
    gradient_norm: float
    first_wrong: int | None
    """The first of the steps that were run whose loss or gradient is not finite."""
    fault: Fault | None
    outliers: tuple[Outlier, ...]
    activations: tuple[str, ...]
    """Lines on the first activation that is an outlier."""
    examples: tuple[ExplainedRow, ...]
    poisoned: int
    """The number of rows whose own loss or gradient is not finite."""
    note: str
    """A caveat on the examples' shares, or empty."""


def explain_step(moment: Moment, top: int = 3) -> Explanation:
    """Evaluate a step equation by equation; with its `top` examples."""
    program, now = moment.program, moment.before.on_one_device()
    norms = {step: [float(found[name]) for name in ("loss", "gradient_norm")] for step, found in moment.metrics.items()}
    first_wrong = next((step for step in sorted(norms) if not np.isfinite(norms[step]).all()), None)
    loss, gradient_norm = norms[moment.step]
    fault = fault_of(moment, now) if first_wrong == moment.step else None
    activations = () if fault or moment.earlier is None else compared(moment, moment.earlier.on_one_device(), now)
    found = shares(program.experiment.task, now.state, now.batch)
    wrong = wrong_numbers(now.batch)
    left_out = moment.run.left_out & {moment.step}
    return Explanation(
        moment,
        reproduced(moment.run.folder, {step: each for step, each in moment.metrics.items() if step not in left_out}),
        loss,
        gradient_norm,
        first_wrong,
        fault,
        tuple(outliers(moment.measured, moment.step)),
        activations,
        tuple(_explained_row(moment, now, share, wrong) for share in found.rows[:top]),
        sum(not share.finite for share in found.rows),
        found.note,
    )


def _explained_row(moment: Moment, now: Before, share: Share, wrong: list[tuple[int, str]]) -> ExplainedRow:
    task, pipeline = moment.program.experiment.task, moment.program.experiment.data
    fields = content_of(pipeline, task, now.batch, moment.index, share.row)
    own = tuple(words for row, words in wrong if row == share.row)
    return ExplainedRow(share, where(pipeline, moment.index, share.row), own, fields)


def fault_of(moment: Moment, now: Before) -> Fault | None:
    """Where the step first becomes not finite: in the forward pass if its loss is not finite, else in the backward pass
    or the update. None if all of it is finite when evaluated without fusion.
    """
    experiment = moment.program.experiment
    optimizer = experiment.optimizer.transformation(moment.run.horizon, moment.program.state.params)
    gradients = gradients_of(moment.program, mesh=False)

    def step(state: Any, batch: Any) -> Any:
        return train_step(experiment.task, optimizer, state, batch, gradients)

    traced, (after, metrics) = jax.make_jaxpr(step, return_shape=True)(now.state, now.batch)
    values = Evaluation().run(traced.jaxpr, traced.consts, inputs_of(now), Place())
    after, metrics = jax.tree.unflatten(jax.tree.structure((after, metrics)), values)
    of_loss = first_fault(jax.tree.leaves(metrics["loss"]))
    found = of_loss or first_fault(jax.tree.leaves((metrics["gradient_norm"], after)))
    return None if found is None else _fault_at(found, of_loss is not None)


def _fault_at(record: Evaluated, forward: bool) -> Fault:
    phase = "forward pass" if forward else "backward pass" if "jvp" in record.stack else "update"
    if record.primitive == "input":
        phase = "input"
    r = record
    return Fault(phase, r.primitive, r.frames, r.parts, r.parameter, r.reads, r.inputs, r.outputs)


def inputs_of(before: Before) -> list[Flow]:
    """The leaves of state and batch with their names; a leaf that is not finite is marked as a fault."""
    named = [*jax.tree_util.tree_leaves_with_path(before.state), *jax.tree_util.tree_leaves_with_path(before.batch)]
    count, found = len(jax.tree.leaves(before.state)), []
    for place, (path, x) in enumerate(named):
        name = path_name(path) if place < count else FIELD + path_name(path)
        value = Flow(x, name.removeprefix("params/") if name.startswith(("params/", "frozen/", FIELD)) else None)
        if not finite(x):
            order = -1 if name.startswith(FIELD) else 0
            value.bad = (Evaluated(order, "input", (), "", (), name, outputs=(range_of(x),)), 0)
        found.append(value)
    return found


def compared(moment: Moment, earlier: Before, now: Before) -> tuple[str, ...]:
    """Lines on the first activation of the forward pass that is many times as large as in the previous step."""
    before, here = (activations(moment, each) for each in (earlier, now))
    if len(before) != len(here):
        return ()
    for (was, _, _), (is_, place, parameter) in zip(before, here, strict=True):
        if was and is_ > 2 * OUT_OF_LINE * was:
            frame, times = best_frame(place.frames), number(is_ / was)
            at = ", ".join([str(frame), *reversed(place.parts)])
            after = f", after {parameter}" if parameter else ""
            words = f"{at}: up to {number(is_)}, {times} times as large as in the step before"
            return (f"{words}; {modules_of(place.frames)}{after}", frame.source if frame else "")
    return ()


def activations(moment: Moment, before: Before) -> list[tuple[float, Place, str | None]]:
    """The largest number in every result of the forward pass, and where it is computed; [] if there are too many."""
    task, state = moment.program.experiment.task, before.state

    def loss(params: Any, batch: Any, keys_B: Any) -> jax.Array:
        context = Context(state.step, keys_B, batch["mask"])
        return loss_of(task, with_params(params, state.fixed), without_gaps(batch), context).mean.total

    keys_B = jax.random.split(jax.random.fold_in(state.key, state.step), before.batch["mask"].shape[0])
    traced = jax.make_jaxpr(loss)(state.params, before.batch, keys_B)
    if count(traced.jaxpr) > EQUATIONS:
        return []
    found = list[tuple[float, Place, str | None]]()

    def seen(place: Place, primitive: str, arrays: tuple[Any, ...], parameter: str | None, results: list[Any]) -> None:
        floats = [largest(x) for x in results if jax.numpy.issubdtype(x.dtype, jax.numpy.floating)]
        found.append((max(floats, default=0.0), place, parameter))

    values = inputs_of(replace(before, state=state.params))
    Evaluation(seen).run(traced.jaxpr, traced.consts, [*values, Flow(keys_B)], Place())
    return found


def count(jaxpr: Any) -> int:
    """The number of equations that are evaluated for a jaxpr, with loops unrolled."""
    total = 0
    for equation in jaxpr.eqns:
        inner = [getattr(each, "jaxpr", each) for each in equation.params.values()]
        inside = sum(count(each) for each in inner if hasattr(each, "eqns"))
        total += 1 + inside * equation.params.get("length", 1) if equation.primitive.name == "scan" else 1 + inside
    return total


def is_finite(explanation: Explanation) -> bool:
    """Whether loss and gradient norm of the step are finite."""
    return math.isfinite(explanation.loss) and math.isfinite(explanation.gradient_norm)
