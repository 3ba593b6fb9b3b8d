"""The base class of observers, which watch a run, and early stopping. Not here: when they are called.

An observer is a value of the experiment, saved like any other. It can end a run but not change its numbers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from jaxtrain.base.config import check_types
from jaxtrain.base.ranges import Checked, NonNegative, PositiveInt

Scores = Mapping[str, Mapping[str, float]]
"""The metrics of evaluations: by split, then by name."""


class ObservedRun(Protocol):
    """The run as an observer sees it."""

    folder: Path
    experiment: Any
    """The `Experiment`."""

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics so far, also from before a resume: `step`, `split`, and every metric as a float."""
        ...

    def log_event(self, kind: str, **fields: object) -> None:
        """Write an event (JSON) to events.jsonl and the console."""
        ...


@dataclass(frozen=True)
class Observer(Checked):
    """Watches a run. Yours is a frozen dataclass with the methods that it needs, in `Experiment.observers`:

        @dataclass(frozen=True)
        class Announce(Observer):
            address: str

            def evaluated(self, run: ObservedRun, step: int, scores: Scores) -> None:
                urllib.request.urlopen(self.address, json.dumps({"step": step, **scores}).encode())

    Its methods are called on process 0 only, in a separate thread, in the order of the run. Device and loop do not wait
    for `trained` and `saved`, unless a call lasts until the next one. An exception is logged as the event
    `observer_failed`: the observer is not called again, and the run goes on. The run does wait for `begun`,
    `evaluated` and `ended`, so a call over a network needs a timeout.
    """

    @property
    def reads(self) -> tuple[str, ...]:
        """The evaluation metrics that it needs, as split/metric. A run that lacks one is refused."""
        return ()

    def check(self, experiment: Any) -> None:
        """Raise ConfigError to refuse an experiment before anything is written; called in every process."""

    def begun(self, run: ObservedRun, step: int) -> str | None:
        """Called before the first step; `step` steps are done. To end the run, return a reason."""

    def trained(self, run: ObservedRun, step: int, metrics: Mapping[str, float], rates: Mapping[str, float]) -> None:
        """Called with the values over a period that ended with `step`, one period late, so that the device need not
        wait.

        metrics: over the steps of the period. rates: learning rates, speeds, seconds by phase.
        """

    def evaluated(self, run: ObservedRun, step: int, scores: Scores) -> str | None:
        """Called after an evaluation. To end the run, with a checkpoint and exit code 0, return a reason."""

    def saved(self, run: ObservedRun, step: int) -> None:
        """Called once the checkpoint of `step` is durable: when the next save begins, and at the end."""

    def ended(self, run: ObservedRun, step: int) -> None:
        """Called at the end of the run, but not after an error."""


@dataclass(frozen=True, kw_only=True)
class EarlyStopping(Observer):
    """Ends a run whose evaluations no longer improve (Prechelt 1998, doi:10.1007/3-540-49430-8_3).

    It counts from the metrics that the run has written, so the count survives a resume. Raises `ConfigError` for
    numbers out of range.
    """

    metric: str = "validation/loss"
    """The evaluation metric, as split/metric."""
    patience: PositiveInt = 5
    """The number of evaluations in a row without an improvement that ends the run."""
    mode: Literal["min", "max"] = "min"
    """Whether lower or higher is better. NaN is never better."""
    least: NonNegative = 0.0
    """By how much a value has to be better to count as an improvement."""

    def __post_init__(self) -> None:
        check_types(self)

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.metric,)

    def begun(self, run: ObservedRun, step: int) -> str | None:
        return self._reason(run)

    def evaluated(self, run: ObservedRun, step: int, scores: Scores) -> str | None:
        return self._reason(run)

    def _reason(self, run: ObservedRun) -> str | None:
        split, _, name = self.metric.partition("/")
        sign, best, best_step, waited = 1.0 if self.mode == "min" else -1.0, math.inf, None, 0
        for line in run.metrics():
            if line["split"] == split and name in line:
                better = sign * line[name] < best - self.least
                best, best_step = (sign * line[name], line["step"]) if better else (best, best_step)
                waited = 0 if better else waited + 1
        if waited < self.patience:
            return None
        since = "never" if best_step is None else f"last at step {best_step}, to {sign * best:.6g}"
        return f"{self.metric} did not improve in {waited} evaluations: {since}"
