"""What a run says while it goes on: metrics to file and console, one period late, so that the device never waits.

Not here: when something is due, and how it is written.
"""

from collections import deque
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from jaxtrain.cluster.processes import first
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.runs.clock import Clock
from jaxtrain.runs.console import Console
from jaxtrain.runs.metrics_log import Recorder
from jaxtrain.tasks.metrics import Mean, merge

IN_FLIGHT = 2
"""Steps given to the device and not finished: enough that it never idles, few enough that batches do not pile up."""

Metrics = Mapping[str, Mean]


class Journal:
    """Collects every step's metrics on the device and writes the means of each period of `runtime.log_every` steps."""

    def __init__(self, folder: Path, experiment: Experiment, start: int, clock: Clock) -> None:
        """What an earlier process wrote after step `start` is dropped: those steps are taken again."""
        self._recorder = Recorder(folder, first())
        self._recorder.rewind(start)
        self._console = Console(experiment.steps, start, first())
        self._experiment, self._clock, self._done = experiment, clock, start
        rates, steps = experiment.optimizer.rates(experiment.steps), np.arange(experiment.steps)
        self._rates = {name: np.asarray(jax.vmap(rate)(steps)) for name, rate in rates.items()}
        self._flight: deque[Metrics] = deque()
        self._period: list[Metrics] = []
        self._late: tuple[int, float, list[Metrics]] | None = None
        self._spent = 0.0

    def say(self, event: str, **fields: object) -> None:
        """Something happened: to events.jsonl and the console."""
        self._recorder.event(event, **fields)
        self._console.say("  ".join([event, *(f"{name} {value}" for name, value in fields.items())]))

    def trained(self, step: int, metrics: Metrics) -> None:
        """One more step is on its way. Waits only for the step `IN_FLIGHT` before it."""
        self._period.append(metrics)
        self._flight.append(metrics)
        if len(self._flight) > IN_FLIGHT:
            jax.block_until_ready(self._flight.popleft())
        self._done = step
        self._console.step(step)
        if step % self._experiment.runtime.log_every == 0:
            self._turn()

    def evaluated(self, step: int, scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """The metrics of an evaluation by split, to files and console; returns them named split/metric."""
        for split, values in scores.items():
            self._write(step, split, values, {})
        return {f"{split}/{name}": value for split, values in scores.items() for name, value in values.items()}

    def ended(self, step: int) -> None:
        """No more steps follow: write all that is left."""
        if self._period:
            self._turn()
        self.flush()
        self.say("ended", step=step, of=self._experiment.steps)

    def close(self) -> None:
        """Leave the console in order."""
        self._console.close()

    def _turn(self) -> None:
        self.flush()
        # Only what training took: no compiling, evaluating or saving.
        account = self._clock.account()
        spent = account["data"] + account["step"]
        self._late, self._period, self._spent = (self._done, spent - self._spent, self._period), [], spent

    def flush(self) -> None:
        """Write the metrics that are late."""
        if self._late is None:
            return
        (step, seconds, period), self._late = self._late, None
        means = merge(jax.device_get(period))
        examples, tokens = self._experiment.data.batch_size * len(period), float(means["loss"].weight)
        rates = {"examples_per_second": examples / seconds}
        rates |= {"tokens_per_second": tokens / seconds} if tokens > examples else {}
        rates |= {name: float(by_step[step - 1]) for name, by_step in self._rates.items()}
        rates |= {f"seconds_{name}": spent for name, spent in self._clock.account().items()}
        self._write(step, "train", {name: float(mean) for name, mean in means.items()}, rates)

    def _write(self, step: int, split: str, values: Mapping[str, float], more: Mapping[str, float]) -> None:
        self._recorder.metrics(step, split, {**values, **more})
        self._console.metrics(step, split, values)
