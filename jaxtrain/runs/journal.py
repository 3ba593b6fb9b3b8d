"""The running account of a run: metrics and events, to files and console, without making the device wait.

Metrics stay on the device until the period after theirs has ended. Not here: when something is due, and file formats.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import optax

from jaxtrain.cluster.processes import is_first_process
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.runs.clock import Clock
from jaxtrain.runs.console import Console
from jaxtrain.runs.metrics_log import MetricsLog
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
    """One for each step."""


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
    """Collects every step's metrics on the device, and writes their values over each `runtime.log_every` steps.

    One line of metrics for each period and each evaluation. Lines up to a step are on disk after `flush`, so a
    checkpoint of this step that is saved next never stands without them.
    """

    def __init__(self, folder: Path, experiment: Experiment, start: int, clock: Clock) -> None:
        """`start`: the steps done. Metrics of later ones, written by a process that died since, are dropped."""
        self._log = MetricsLog(folder, is_first_process())
        self._log.rewind(start)
        self._console = Console(experiment.steps, start, is_first_process())
        self._experiment, self._clock, self._done = experiment, clock, start
        self._rates = {name: _Rate(rate) for name, rate in experiment.optimizer.rates(experiment.steps).items()}
        self._in_flight: deque[Metrics] = deque()
        self._current: list[Metrics] = []
        self._ended: _Period | None = None
        """The last period that has ended, until it is written."""
        self._trained_before = 0.0
        """Seconds of training before the current period."""

    def log_event(self, kind: str, **fields: object) -> None:
        """Write an event to events.jsonl and the console."""
        self._log.event(kind, **fields)
        self._console.print("  ".join([kind, *(f"{name} {value}" for name, value in fields.items())]))

    def trained(self, step: int, metrics: Metrics) -> None:
        """Take the metrics of a step that was dispatched. Blocks only until the step `IN_FLIGHT` before it is done."""
        self._current.append(metrics)
        self._in_flight.append(metrics)
        if len(self._in_flight) > IN_FLIGHT:
            jax.block_until_ready(self._in_flight.popleft())
        self._done = step
        self._console.step(step)
        if step % self._experiment.runtime.log_every == 0:
            self._end_period()

    def evaluated(self, step: int, scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Write the metrics of an evaluation by split; returns them named split/metric."""
        for split, values in scores.items():
            self._write(step, split, values, {})
        return {f"{split}/{name}": value for split, values in scores.items() for name, value in values.items()}

    def ended(self, step: int) -> None:
        """Write all that is left: no more steps follow."""
        if self._current:
            self._end_period()
        self.flush()
        self.log_event("ended", step=step, of=self._experiment.steps)

    def close(self) -> None:
        """Close the console."""
        self._console.close()

    def _end_period(self) -> None:
        self.flush()
        account = self._clock.account()
        trained = account["data"] + account["step"]  # speeds leave out compiling, evaluating and saving
        self._ended = _Period(self._done, trained - self._trained_before, self._current)
        self._current, self._trained_before = [], trained

    def flush(self) -> None:
        """Write the period that has ended, if any. Blocks until its last step is done."""
        if self._ended is None:
            return
        period, self._ended = self._ended, None
        with self._clock("step"):
            metrics = merge(jax.device_get(period.metrics))
        loss = metrics["loss"]
        assert isinstance(loss, Mean)
        examples, tokens = self._experiment.data.batch_size * len(period.metrics), float(loss.weight)
        rates = {"examples_per_second": examples / period.seconds}
        rates |= {"tokens_per_second": tokens / period.seconds} if tokens > examples else {}
        rates |= {name: rate(period.last_step - 1) for name, rate in self._rates.items()}
        rates |= {f"seconds_{phase}": seconds for phase, seconds in self._clock.account().items()}
        self._write(period.last_step, "train", values_by_name(metrics), rates)

    def _write(self, step: int, split: str, values: Mapping[str, float], more: Mapping[str, float]) -> None:
        """`more` goes to the files only."""
        self._log.metrics(step, split, {**values, **more})
        self._console.metrics(step, split, values)
