"""Why a step came out as it did: the first equation that is not finite, what is out of line, and the examples.

The step is evaluated once more, one equation at a time on one device: without XLA's fusion, so that the last bits of
numbers may differ from the run's. Not here: running it as the run did, and the words of the report.
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
"""Equations, passes of loops counted, up to which the activations of two steps are compared one by one."""


@dataclass(frozen=True)
class Fault:
    """Where a step first is not finite."""

    phase: str
    """`forward pass`, `backward pass`, `update`, or `input` where the state or the batch is not finite already."""
    primitive: str
    frames: tuple[Frame, ...]
    parts: tuple[str, ...]
    parameter: str | None
    reads: bool
    """Whether it reads this parameter itself; else it is the last one that was read before."""
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
    """A row of the batch, and what it is made of."""

    share: Share
    where: str
    wrong: tuple[str, ...]
    """The numbers in it that are not finite."""
    fields: Mapping[str, str]


@dataclass(frozen=True)
class Explanation:
    """What replaying a step came to."""

    moment: Moment
    reproduced: Reproduced
    loss: float
    gradient_norm: float
    first_wrong: int | None
    """The first step on the way whose loss or gradient is not finite."""
    fault: Fault | None
    outliers: tuple[Outlier, ...]
    activations: tuple[str, ...]
    """The first activation that is out of line, in lines."""
    examples: tuple[ExplainedRow, ...]
    poisoned: int
    """How many rows alone have a loss or a gradient that is not finite."""
    note: str
    """What to know of the examples' shares."""


def explain_step(moment: Moment, top: int = 3) -> Explanation:
    """Evaluate a step with instruments; `top` examples are shown."""
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
        tuple(_example(moment, now, share, wrong) for share in found.rows[:top]),
        sum(not share.finite for share in found.rows),
        found.note,
    )


def _example(moment: Moment, now: Before, share: Share, wrong: list[tuple[int, str]]) -> ExplainedRow:
    task, pipeline = moment.program.experiment.task, moment.program.experiment.data
    fields = content_of(pipeline, task, now.batch, moment.index, share.row)
    own = tuple(words for row, words in wrong if row == share.row)
    return ExplainedRow(share, where(pipeline, moment.index, share.row), own, fields)


def fault_of(moment: Moment, now: Before) -> Fault | None:
    """Where the step first is not finite: in the forward pass if its loss is not, else in the backward pass or the
    update. None where, without fusion, all of it is finite.
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
    return None if found is None else _fault(found, of_loss is not None)


def _fault(record: Evaluated, forward: bool) -> Fault:
    phase = "forward pass" if forward else "backward pass" if "jvp" in record.stack else "update"
    if record.primitive == "input":
        phase = "input"
    r = record
    return Fault(phase, r.primitive, r.frames, r.parts, r.parameter, r.reads, r.inputs, r.outputs)


def inputs_of(before: Before) -> list[Flow]:
    """The leaves of state and batch with their names; one that is not finite is a fault of its own."""
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
    """The first activation of the forward pass whose largest number is many times that of the step before, in words."""
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
    """The largest number of every result in the forward pass, and where it is computed; [] where there are too many."""
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
    """The equations that evaluating a jaxpr takes, those of loops once a pass."""
    total = 0
    for equation in jaxpr.eqns:
        inner = [getattr(each, "jaxpr", each) for each in equation.params.values()]
        inside = sum(count(each) for each in inner if hasattr(each, "eqns"))
        total += 1 + inside * equation.params.get("length", 1) if equation.primitive.name == "scan" else 1 + inside
    return total


def is_finite(explanation: Explanation) -> bool:
    """Whether loss and gradient of the step are."""
    return math.isfinite(explanation.loss) and math.isfinite(explanation.gradient_norm)
