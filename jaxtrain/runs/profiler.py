"""Traces a range of steps with jax's profiler, for XProf and Perfetto."""

from pathlib import Path
from typing import Any

import jax

from jaxtrain.experiment.observers import ObservedRun
from jaxtrain.runs.watcher import Watcher


class Profiler(Watcher):
    """Traces `steps` into `folder`, and logs how to open the trace. At the first and last step it waits for the device,
    so that the trace holds these steps and no others.
    """

    def __init__(self, folder: Path, steps: range) -> None:
        self._folder, self._steps = folder, steps
        self._since: int | None = None
        """The first step of the trace in progress."""

    def begun(self, run: ObservedRun, step: int) -> None:
        if step + 1 in self._steps:
            self._start(step + 1)

    def stepped(self, run: ObservedRun, step: int, metrics: Any) -> None:
        if self._since is None and step + 1 == self._steps.start:
            jax.block_until_ready(metrics)
            self._start(step + 1)
        elif self._since is not None and step == self._steps[-1]:
            jax.block_until_ready(metrics)
            self._stop(run, step)

    def ended(self, run: ObservedRun, step: int) -> None:
        if self._since is not None:
            self._stop(run, step)

    def close(self) -> None:
        if self._since is not None:
            self._since = None
            jax.profiler.stop_trace()

    def _start(self, step: int) -> None:
        jax.profiler.start_trace(str(self._folder))
        self._since = step

    def _stop(self, run: ObservedRun, step: int) -> None:
        first, self._since = self._since, None
        jax.profiler.stop_trace()
        traces = sorted(self._folder.rglob("*.trace.json.gz"))
        run.log_event(
            "profiled",
            steps=f"{first}:{step}",
            open=f"xprof --logdir {self._folder}",
            perfetto=str(traces[-1]) if traces else None,
        )
