"""The running account of a run: every step's metrics, and events, to its observers, without making the device wait.

Metrics stay on the device until the period after theirs has ended. Not here: when something is due, and who observes.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import optax

from jaxtrain.base.config import find
from jaxtrain.base.hardware import peak_memory, planned_memory
from jaxtrain.cluster import watchdog
from jaxtrain.experiment.observers import Scores
from jaxtrain.experiment.validate import data_facts, interval_facts, replicated_leaves
from jaxtrain.experiment.verified import is_verified, split_axes
from jaxtrain.optimizers import Schedule
from jaxtrain.program import Program
from jaxtrain.runs.clock import Clock
from jaxtrain.runs.metrics_log import intervals
from jaxtrain.runs.observers import Observers
from jaxtrain.runs.recorder import WAIT, WAIT_AT_END
from jaxtrain.runs.skipped import StepFaults, facts, read_skipped, without_skipped
from jaxtrain.runs.utilization import utilization
from jaxtrain.step import TrainState
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
    batches: list[Any]
    """The checksum of the batch of each."""
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
        self._batches: list[Any] = []
        self._recorded = 0
        """The last step in steps.bin."""
        self._before: Mapping[str, Any] = {}
        self._ended: _Period | None = None
        """The last period that has ended, until it is written."""
        self._trained_before = 0.0
        """Seconds of training before the current period."""
        self._steps = StepFaults(observers.folder, self._experiment)
        self._done, self._evaluated = 0, 0
        """The last step trained, and the last one evaluated."""
        self._mfu_at_one = 0.0
        """The model FLOPs utilization at one step a second; 0 where it is not known."""

    def log_begun(self, program: Program, start: int, checkpoints: Any) -> None:
        """Log what is known before the step is compiled, and from here on what happens to checkpoints."""
        experiment, run, sizes = self._experiment, self._observers, dict(program.mesh.shape)
        begun = {"step": start, "of": experiment.steps, "folder": str(run.folder), "mesh": sizes}
        self.log_event("begun", **begun, intervals=intervals(experiment), **run.session(self._clock.account()))
        if facts := interval_facts(experiment):
            self.log_event("intervals", note="; ".join(facts))
        if facts := data_facts(experiment):
            self.log_event("data", note="; ".join(facts))
        if rewinds := read_skipped(run.folder):
            self.log_event("left_out", steps=sorted({step for each in rewinds for step in each["left_out"]}))
        if replicated := replicated_leaves(experiment, program.state):
            self.log_event("replicated", leaves=list(replicated), bytes=sum(replicated.values()))
        if len(axes := split_axes(sizes)) > 1 and not is_verified(experiment, sizes):
            self.log_event("never_verified", axes=" × ".join(axes), command="jaxtrain verify, or train --verify")
        horizons = {each.steps or self._horizon for each in find(experiment.optimizer, Schedule)} or {self._horizon}
        for horizon in sorted(horizons - {experiment.steps}):
            ends = f"the learning rate stays at its end value after step {horizon}"
            note = ends if horizon < experiment.steps else "the run ends before its learning rate schedule"
            self.log_event("schedule", horizon=horizon, of=experiment.steps, note=note)
        checkpoints.report_to(self.log_event)
        self._steps.saved = lambda: max(checkpoints.steps(), default=0)

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
        self._done, self._recorded = start, start
        self._before, self._evaluated = record.get("period", {}), record.get("evaluated", start)
        self._steps.in_a_row = record.get("skipped_in_a_row", 0)
        self._observers.begun(start)

    def evaluation_due(self, step: int) -> bool:
        """Whether `step` is to be evaluated: that of the checkpoint too, where a signal came in its evaluation."""
        due = step % self._experiment.runtime.eval_every == 0 or step == self._experiment.steps
        return due and step > self._evaluated

    def trained(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Take the metrics of a step that was dispatched, and what it reports to the flight recorder beside them: the
        checksum `batch`, and `recorded`. Blocks only until the step `IN_FLIGHT` before it is done.
        """
        own = {name: metric for name, metric in metrics.items() if isinstance(metric, Metric)}
        self._current.append(own)
        self._batches.append(metrics.get("batch"))
        self._in_flight.append(own)
        if len(self._in_flight) > IN_FLIGHT:
            jax.block_until_ready(self._in_flight.popleft())
        self._done = step
        self._observers.stepped(step, metrics)
        if step % self._experiment.runtime.log_every == 0:
            self._end_period()

    def evaluated(self, step: int, scores: Scores) -> dict[str, float]:
        """Give the metrics of an evaluation to the observers; returns them named split/metric."""
        self._evaluated = step
        self._observers.evaluated(step, scores)
        return {f"{split}/{name}": value for split, values in scores.items() for name, value in values.items()}

    def save(
        self, program: Program, checkpoints: Any, step: int, state: TrainState, scores: Mapping[str, float] | None
    ) -> int:
        """Start to save a checkpoint with `Checkpoints`, once all that comes before it is on disk; returns the step.

        A run that resumes from it does not write the metrics up to it again.
        """
        self.check(program, state)
        self._observers.saving(step, self._clock.account())
        with self._clock("save"):
            durable = checkpoints.save(step, state, self.record(step), scores)
        self.saved(durable)
        return step

    def record(self, step: int) -> dict[str, Any]:
        """What a checkpoint of `step` keeps beside the arrays: the last step that was evaluated, and the sums of the
        period that has not ended. JSON.

        Call `check` first, which refuses what is not finite.
        """
        own = self._fetched(step, self._current, self._batches)
        sums = merge([*_restored(self._before, own), *map(without_skipped, own)]) if own else {}
        period = {name: _plain(metric) for name, metric in sums.items()}
        skipped = self._steps.after(own)
        return {"step": step, "evaluated": self._evaluated, "period": period, "skipped_in_a_row": skipped}

    def check(self, program: Program, state: TrainState) -> None:
        """`flush`; then raise the fault of a step of the period that has not ended, or Diverged where a parameter is
        not finite, so that no such state is evaluated or saved.
        """
        self.flush()
        with self._clock("step"):
            jax.block_until_ready(self._current)
        with self._clock("save"):
            own, found = jax.device_get(self._current), program.infinite(state)
        if self._steps.fault(self._done - len(own) + 1, own) is not None:
            self._end_period()  # so that its metrics are written
            self.flush()
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            why = f"the update made {found[0]}{more} infinite or NaN, though loss and gradient are finite"
            raise self._steps.diverged(self._done, f"{why}: try a lower learning rate, or Guarded(optimizer, Skip())")

    def saved(self, step: int) -> None:
        """The checkpoint of `step` is durable; 0: none."""
        if step:
            self._observers.saved(step)

    def ended(self, step: int) -> None:
        """Give all that is left to the observers: no more steps follow, and all checkpoints are durable."""
        if self._current and (step == self._experiment.steps or self._observers.finished):
            self._end_period()  # else the run will be resumed, and end the period then
        self.flush()
        if self._observers.interrupted and step < self._experiment.steps:
            self._write_flight("stopped by a signal")
        facts = self._observers.ended_by(self._clock.account())
        self.log_event("ended", step=step, of=self._experiment.steps, **facts, **peak_memory())
        self._observers.ended(step)

    def close(self) -> None:
        """Close the observers."""
        self._observers.close()

    def __enter__(self) -> Self:
        watchdog.write_at_end(lambda why: self._write_flight(why, WAIT_AT_END))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self._write_flight(f"{type(error).__name__}: {error}")
                self._observers.failed(self._done, error, self._clock.account())
        finally:
            watchdog.write_at_end(None)
            self.close()

    def _write_flight(self, why: str, wait: float = WAIT) -> None:
        self._observers.write_flight(self._done, why, self._clock.account(), wait)

    def _fetched(self, step: int, metrics: list[Metrics], batches: list[Any]) -> list[Metrics]:
        """The metrics of the steps until `step`, on the host; those that steps.bin lacks are appended to it."""
        own, sums = jax.device_get((metrics, batches))
        first = max(step - len(own), self._recorded) + 1
        if first <= step and sums[-1] is not None:
            each = [{**found, "batch": batch} for found, batch in zip(own, sums, strict=True)]
            self._observers.append(first, each[first - 1 - step :])
            self._recorded = step
        return own

    def _end_period(self) -> None:
        self.flush()
        account = self._clock.account()
        trained = account["data"] + account["step"]  # speeds leave out compiling, evaluating and saving
        self._ended = _Period(self._done, trained - self._trained_before, self._current, self._batches, self._before)
        self._current, self._batches, self._before, self._trained_before = [], [], {}, trained

    def flush(self) -> None:
        """Write the period that has ended, if any. Blocks until its last step is done.

        Raises, after they are written, Diverged where gradients or loss are not finite or too many updates in a row
        were skipped, and Retry where a guard goes back.
        """
        if self._ended is None:
            return
        period, self._ended = self._ended, None
        with self._clock("step"):
            own = self._fetched(period.last_step, period.metrics, period.batches)
            metrics = merge([*_restored(period.before, own), *map(without_skipped, own)])
        tokens = sum(float(each["loss"].weight) for each in own if isinstance(each["loss"], Mean))
        examples = self._experiment.data.batch_size * len(own)
        rates = {"examples_per_second": examples / period.seconds}
        rates |= {"tokens_per_second": tokens / period.seconds} if tokens > examples else {}
        rates |= {"mfu": self._mfu_at_one * len(own) / period.seconds} if self._mfu_at_one else {}
        rates |= {name: rate(period.last_step - 1) for name, rate in self._rates.items()}
        rates |= {f"seconds_{phase}": seconds for phase, seconds in self._clock.account().items()}
        self._observers.trained(period.last_step, values_by_name(metrics), rates)
        first = period.last_step - len(own) + 1
        if skipped := facts(first, own):
            self.log_event("skipped", steps=skipped)
        self._steps.raise_(self._steps.fault(first, own))
        self._steps.in_a_row = self._steps.after(own)


def _plain(metric: Metric) -> dict[str, Any]:
    return {each.name: np.asarray(getattr(metric, each.name)).tolist() for each in fields(metric)}


def _restored(sums: Mapping[str, Any], like: list[Metrics]) -> list[Metrics]:
    """What `_plain` saved, as metrics of the same classes as those of a step; [] where that step reports others."""
    kinds = {name: type(metric) for name, metric in like[0].items()}
    known = {name: {each.name for each in fields(kind)} for name, kind in kinds.items()}
    if known != {name: set(arrays) for name, arrays in sums.items()}:
        return []
    return [{name: kind(**{each: np.asarray(x) for each, x in sums[name].items()}) for name, kind in kinds.items()}]
