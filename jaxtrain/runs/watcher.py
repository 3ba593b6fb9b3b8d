"""The base class of a run's own observers, which hear of more than those of an experiment. Not here: any of them."""

from typing import Any

from jaxtrain.experiment.observers import ObservedRun, Observer


class Watcher(Observer):
    """An observer that is called in the loop itself, so it must be quick."""

    def stepped(self, run: ObservedRun, step: int, metrics: Any) -> None:
        """A step was dispatched; `metrics` are still being computed on the device."""

    def event(self, kind: str, **fields: object) -> None:
        """Something happened: fields are JSON."""

    def close(self) -> None:
        """The run is over, by an error too."""
