"""The base class of the library's own observers, which have more methods than those of an experiment."""

from typing import Any

from jaxtrain.experiment.observers import ObservedRun, Observer


class Watcher(Observer):
    """An observer that is called in the training loop, so it must be quick."""

    def stepped(self, run: ObservedRun, step: int, metrics: Any) -> None:
        """Called when a step was dispatched; `metrics` are still being computed on the device."""

    def event(self, kind: str, **fields: object) -> None:
        """Called with an event; fields are JSON."""

    def close(self) -> None:
        """Called at the end of the run, also after an error."""
