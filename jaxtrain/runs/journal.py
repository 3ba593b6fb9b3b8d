"""The running account of a run: every step's metrics, and what happened, to its observers, without making the device
wait.

Metrics stay on the device until the period after theirs has ended. Not here: when something is due, and who observes.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax
import numpy as np
import optax

from jaxtrain.base.config import find
from jaxtrain.base.errors import Diverged
from jaxtrain.base.hardware import peak_memory, planned_memory
from jaxtrain.experiment.observers import Scores
from jaxtrain.experiment.validate import data_facts, interval_facts, replicated_leaves
from jaxtrain.experiment.verified import is_verified, split_axes
from jaxtrain.optimizers import Schedule
from jaxtrain.program import Program
from jaxtrain.runs.clock import Clock
from jaxtrain.runs.observers import Observers
from jaxtrain.runs.utilization import utilization
from jaxtrain.tasks.metrics import Mean, Metric, merge, values_by_name

IN_FLIGHT = 2
"""Steps dispatched and not finished: enough that the device never idles, few enough that batches do not pile up."""

RATES_AT_ONCE = 1024
"""Steps whose learning rates are in memory at once, however long the run is."""

Metrics = Mapping[str, Metric]


@dataclass(frozen=True)
class _Period:
    """The steps since the period before, whose metrics are still on the device."""

    last_step: int
    seconds: float
    metrics: list[Metrics]
    """One for each step that this process trained."""
    before: Mapping[str, Any]
    """The sums of the period's steps before the run was resumed, as in a checkpoint."""


class _Rate:
    """A learning rate by step, computed for `RATES_AT_ONCE` steps together: one alone takes as many milliseconds."""

    def __init__(self, rate: optax.Schedule) -> None:
        self._many, self._block, self._values = jax.vmap(rate), -1, np.zeros(RATES_AT_ONCE)

    def __call__(self, step: int) -> float:
        block, place = divmod(step, RATES_AT_ONCE)
        if block != self._block:
            self._block, self._values = block, np.asarray(self._many(block * RATES_AT_ONCE + np.arange(RATES_AT_ONCE)))
        return float(self._values[place])


class Journal:
    """Collects each step's metrics on the device, and gives observers their values over `runtime.log_every` steps.

    Lines up to a step are on disk after `flush`, so a checkpoint of this step that is saved next never stands without
    them. The sums of a period that has not ended are saved with the checkpoint: a resumed run writes the same values.

    horizon: the steps that learning rates are made for.
    """

    def __init__(self, observers: Observers, clock: Clock, horizon: int | None = None) -> None:
        self._observers, self._clock, self._experiment = observers, clock, observers.experiment
        self.log_event = observers.log_event
        self._horizon = horizon or self._experiment.steps
        self._rates = {name: _Rate(rate) for name, rate in self._experiment.optimizer.rates(self._horizon).items()}
        self._in_flight: deque[Metrics] = deque()
        self._current: list[Metrics] = []
        self._before: Mapping[str, Any] = {}
        self._ended: _Period | None = None
        """The last period that has ended, until it is written."""
        self._trained_before = 0.0
        """Seconds of training before the current period."""
        self._done = 0
        """The last step trained."""
        self._mfu_at_one = 0.0
        """The model FLOPs utilization at one step a second; 0 where it is not known."""

    def log_begun(self, program: Program, start: int) -> None:
        """Log what is known before the step is compiled: the mesh, and what the user may not expect."""
        experiment, run = self._experiment, self._observers
        sizes = dict(program.mesh.shape)
        self.log_event("begun", step=start, of=experiment.steps, folder=str(run.folder), mesh=sizes)
        if facts := interval_facts(experiment):
            self.log_event("intervals", note="; ".join(facts))
        if facts := data_facts(experiment):
            self.log_event("data", note="; ".join(facts))
        if replicated := replicated_leaves(experiment, program.state):
            self.log_event("replicated", leaves=list(replicated), bytes=sum(replicated.values()))
        if len(axes := split_axes(sizes)) > 1 and not is_verified(experiment, sizes):
            self.log_event("never_verified", axes=" × ".join(axes), command="jaxtrain verify, or train --verify")
        horizons = {each.steps or self._horizon for each in find(experiment.optimizer, Schedule)} or {self._horizon}
        for horizon in sorted(horizons - {experiment.steps}):
            ends = f"the learning rate stays at its end value after step {horizon}"
            note = ends if horizon < experiment.steps else "the run ends before its learning rate schedule"
            self.log_event("schedule", horizon=horizon, of=experiment.steps, note=note)

    def log_compiled(self, program: Program, lowered: jax.stages.Lowered, compiled: jax.stages.Compiled) -> None:
        """Log how long compiling took, what the model chose, its FLOPs, and the memory that the compiler plans."""
        with self._clock("compile"):
            used = utilization(program)
        seconds = round(self._clock.account()["compile"], 2)
        self.log_event("compiled", seconds=seconds, **program.notes(lowered), **used, **planned_memory(compiled))
        if "peak_flops" in used:
            self._mfu_at_one = used["flops"] / used["peak_flops"]

    def begun(self, start: int, record: Mapping[str, Any]) -> None:
        """Training begins after `start` steps; `record` is that of their checkpoint, {} without one."""
        self._done, self._before = start, record.get("period", {})
        self._observers.begun(start)

    def trained(self, step: int, metrics: Metrics) -> None:
        """Take the metrics of a step that was dispatched. Blocks only until the step `IN_FLIGHT` before it is done."""
        self._current.append(metrics)
        self._in_flight.append(metrics)
        if len(self._in_flight) > IN_FLIGHT:
            jax.block_until_ready(self._in_flight.popleft())
        self._done = step
        self._observers.stepped(step, metrics)
        if step % self._experiment.runtime.log_every == 0:
            self._end_period()

    def evaluated(self, step: int, scores: Scores) -> dict[str, float]:
        """Give the metrics of an evaluation to the observers; returns them named split/metric."""
        self._observers.evaluated(step, scores)
        return {f"{split}/{name}": value for split, values in scores.items() for name, value in values.items()}

    def record(self, step: int) -> dict[str, Any]:
        """What a checkpoint of `step` keeps beside the arrays: the sums of the period that has not ended. JSON.

        Raises Diverged where that period's gradients are not finite, so that such a state is not saved.
        """
        sums = merge([*_restored(self._before, self._current), *jax.device_get(self._current)]) if self._current else {}
        try:
            check_finite(step, sums)
        except Diverged:
            self._end_period()  # so that its metrics are written
            self.flush()
            raise
        return {"step": step, "period": {name: _plain(metric) for name, metric in sums.items()}}

    def saved(self, step: int) -> None:
        """The checkpoint of `step` is durable; 0: none."""
        if step:
            self._observers.saved(step)

    def ended(self, step: int) -> None:
        """Give all that is left to the observers: no more steps follow, and all checkpoints are durable."""
        if self._current and (step == self._experiment.steps or self._observers.finished):
            self._end_period()  # else the run will be resumed, and end the period then
        self.flush()
        self.log_event("ended", step=step, of=self._experiment.steps, **peak_memory())
        self._observers.ended(step)

    def close(self) -> None:
        """Close the observers."""
        self._observers.close()

    def _end_period(self) -> None:
        self.flush()
        account = self._clock.account()
        trained = account["data"] + account["step"]  # speeds leave out compiling, evaluating and saving
        self._ended = _Period(self._done, trained - self._trained_before, self._current, self._before)
        self._current, self._before, self._trained_before = [], {}, trained

    def flush(self) -> None:
        """Write the period that has ended, if any. Blocks until its last step is done.

        Raises Diverged, after they are written, where gradients or loss are not finite.
        """
        if self._ended is None:
            return
        period, self._ended = self._ended, None
        with self._clock("step"):
            own = jax.device_get(period.metrics)
            metrics = merge([*_restored(period.before, own), *own])
        losses = [metrics["loss"] for metrics in own]
        tokens = sum(float(loss.weight) for loss in losses if isinstance(loss, Mean))
        examples = self._experiment.data.batch_size * len(own)
        rates = {"examples_per_second": examples / period.seconds}
        rates |= {"tokens_per_second": tokens / period.seconds} if tokens > examples else {}
        rates |= {"mfu": self._mfu_at_one * len(own) / period.seconds} if self._mfu_at_one else {}
        rates |= {name: rate(period.last_step - 1) for name, rate in self._rates.items()}
        rates |= {f"seconds_{phase}": seconds for phase, seconds in self._clock.account().items()}
        self._observers.trained(period.last_step, values_by_name(metrics), rates)
        check_finite(period.last_step, metrics)


def check_finite(step: int, sums: Metrics) -> None:
    """Raises Diverged where the loss or the gradients of a period that ends with `step` are not finite.

    A period without weight has sums of 0, whose means are NaN: it changed nothing.
    """
    for name in ("gradient_norm", "loss"):
        found = sums.get(name)
        if isinstance(found, Mean) and not np.isfinite(found.total).all():
            raise Diverged(
                f"step {step} or shortly before: {name} is {found.value():g}, so this run has diverged and stops, and "
                "this state is not saved. Try a lower peak of the learning rate, a longer warm-up or clip in a new run"
            )


def _plain(metric: Metric) -> dict[str, Any]:
    return {each.name: np.asarray(getattr(metric, each.name)).tolist() for each in fields(metric)}


def _restored(sums: Mapping[str, Any], like: list[Metrics]) -> list[Metrics]:
    """What `_plain` saved, as metrics of the same classes as those of a step; [] where that step reports others."""
    kinds = {name: type(metric) for name, metric in like[0].items()}
    known = {name: {each.name for each in fields(kind)} for name, kind in kinds.items()}
    if known != {name: set(arrays) for name, arrays in sums.items()}:
        return []
    return [{name: kind(**{each: np.asarray(x) for each, x in sums[name].items()}) for name, kind in kinds.items()}]
