"""What watches a run: the base class of observers, and early stopping. Not here: who calls them, and when.

An observer is a value of an experiment, saved as all others are. It changes no number of a run: at most it ends it.
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
    """What an observer sees of the run."""

    folder: Path
    experiment: Any
    """The `Experiment`."""

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics until now: `step`, `split`, and every metric as a float. Those before a resume too."""
        ...

    def log_event(self, kind: str, **fields: object) -> None:
        """Write an event (JSON) to events.jsonl and the console."""
        ...


@dataclass(frozen=True)
class Observer(Checked):
    """Watches a run. One of your own is a frozen dataclass with the methods it needs, in `Experiment.observers`:

        @dataclass(frozen=True)
        class Announce(Observer):
            address: str

            def evaluated(self, run: ObservedRun, step: int, scores: Scores) -> None:
                urllib.request.urlopen(self.address, json.dumps({"step": step, **scores}).encode())

    Its methods are called on process 0 only, in a thread of their own, one after another in the order of the run:
    neither the device nor the loop waits for `trained` and `saved` unless they take longer than until the next call.
    An error in one is an event, `observer_failed`, and the observer hears of nothing more; the run goes on. The run
    waits for `begun`, `evaluated` and `ended`, so a call that goes over a network needs a timeout.
    """

    @property
    def reads(self) -> tuple[str, ...]:
        """The metrics of evaluations that it needs, as split/metric. A run that reports none such does not begin."""
        return ()

    def check(self, experiment: Any) -> None:
        """Raise ConfigError to refuse an experiment before anything is written; called in every process."""

    def begun(self, run: ObservedRun, step: int) -> str | None:
        """The first step after `step` follows. A reason that is returned ends the run here."""

    def trained(self, run: ObservedRun, step: int, metrics: Mapping[str, float], rates: Mapping[str, float]) -> None:
        """A period ended with `step`. Called when the next one ends, so that the device need not wait.

        metrics: the values over the steps of the period. rates: learning rates, speeds, seconds by phase.
        """

    def evaluated(self, run: ObservedRun, step: int, scores: Scores) -> str | None:
        """What was evaluated after `step`. A reason that is returned ends the run here, with a checkpoint and exit
        code 0.
        """

    def saved(self, run: ObservedRun, step: int) -> None:
        """The checkpoint of `step` is durable. Called when the next one begins, and at the end."""

    def ended(self, run: ObservedRun, step: int) -> None:
        """The run ends here, not by an error."""


@dataclass(frozen=True, kw_only=True)
class EarlyStopping(Observer):
    """Ends a run whose evaluations improve no more (Prechelt 1998, doi:10.1007/3-540-49430-8_3).

    It counts in the metrics that the run has written, so that a resumed run counts on. Raises `ConfigError` for numbers
    that cannot be.
    """

    metric: str = "validation/loss"
    """Of an evaluation, as split/metric."""
    patience: PositiveInt = 5
    """How many evaluations in a row may pass without an improvement; the last of them ends the run."""
    mode: Literal["min", "max"] = "min"
    """Whether lower or higher is better. NaN is never better."""
    least: NonNegative = 0.0
    """An improvement is by more than this."""

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
