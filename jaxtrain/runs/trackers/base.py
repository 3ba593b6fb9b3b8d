"""The base class of trackers. A tracker's calls are made in a thread of its own, from a queue of bounded length, so
that a tool that is slow, hangs or fails costs the run nothing but its copy.

Not here: the tools, and the thread (`mirror`).
"""

import math
import weakref
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from jaxtrain.base.config import flatten
from jaxtrain.base.ranges import Checked, NonNegativeInt, PositiveInt, Range
from jaxtrain.experiment.observers import ObservedRun, Observer, Scores
from jaxtrain.runs.trackers.mirror import Courier, Sink

Seconds = Annotated[float, Range(at_least=0, at_most=600, on_host=True)]


@dataclass(frozen=True)
class TrackedRun(Checked):
    """What a tracker is told of a run when it begins."""

    folder: Path
    name: str
    """The name of the folder."""
    step: NonNegativeInt
    """Updates done: more than 0 for a run that resumes."""
    config: Mapping[str, Any]
    """Every field of the experiment by its dotted path, as JSON."""


@dataclass(frozen=True, kw_only=True)
class Tracker(Observer):
    """Copies a run to another tool: its config and folder, the metrics as `split/name` by step, and its events.

    Yours is a frozen dataclass with the method `connect`. The tool is called in a thread of its own. What the queue
    cannot hold is dropped, and the event `tracker` says how much that was, and why. An error ends the tracker, not the
    run, as the event `observer_failed`. The end of a run waits for the rest, for `wait` seconds at most.
    """

    queue: PositiveInt = 10_000
    """Lines of metrics and events that wait for a tool that is slower than the run; those beyond are dropped."""
    wait: Seconds = 5.0
    """Seconds for which the end of the run waits for the tool."""

    @abstractmethod
    def connect(self, run: TrackedRun) -> Sink:
        """The run in the tool; `Sink.open` opens it. Called in the thread."""

    def begun(self, run: ObservedRun, step: int) -> None:
        name = run.folder.resolve().name
        tracked = TrackedRun(run.folder, name, step, tracked_config(run.experiment))
        mirror = Courier(lambda: self.connect(tracked), run.folder, self.queue, self.wait, type(self).__name__)
        _mirrors.setdefault(run, {})[id(self)] = mirror

    def trained(self, run: ObservedRun, step: int, metrics: Mapping[str, float], rates: Mapping[str, float]) -> None:
        self._mirror(run).add(step, {f"train/{name}": float(value) for name, value in {**metrics, **rates}.items()})

    def evaluated(self, run: ObservedRun, step: int, scores: Scores) -> None:
        for split, values in scores.items():
            self._mirror(run).add(step, {f"{split}/{name}": float(value) for name, value in values.items()})

    def saved(self, run: ObservedRun, step: int) -> None:
        self._mirror(run).add(step, {})

    def ended(self, run: ObservedRun, step: int) -> None:
        if lost := self._mirror(run).end(failed=False):
            run.log_event("tracker", tracker=type(self).__name__, step=step, note=lost)
        self._mirror(run).check()

    def _mirror(self, run: ObservedRun) -> Courier:
        return _mirrors[run][id(self)]


_mirrors: "weakref.WeakKeyDictionary[Any, dict[int, Courier]]" = weakref.WeakKeyDictionary()
"""The mirrors of each run that is being trained, by its trackers, which are values and hold nothing themselves."""


def tracked_config(experiment: Any) -> dict[str, Any]:
    """Every field of an experiment but its observers by dotted path, without hashes of its data."""
    whole = {each.name: getattr(experiment, each.name) for each in fields(experiment) if each.name != "observers"}
    found = flatten(whole, identities=False)
    return {path.lstrip("."): _finite(value) for path, value in found.items()}


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
