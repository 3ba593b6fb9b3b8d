"""The progress of a run for people to read: a view on a terminal, else lines. Not here: the files of the run."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from jaxtrain.base.text import cut, duration
from jaxtrain.experiment.observers import ObservedRun, Scores
from jaxtrain.runs.screen import Screen, Writer, draws, may_block
from jaxtrain.runs.view import PHASE_WORDS, RunView, event_text, metrics_text
from jaxtrain.runs.watcher import Watcher


class Console(Watcher):
    """Progress on `stream` (None: stderr): a view if that is a terminal that can show one, else one line per call of
    `metrics`. A terminal or pipe that takes nothing does not make the run wait.

    If the stream is closed or can no longer be written, nothing more is shown, and the run goes on.

    steps: the steps of the run. start: those that are done already.
    active: False prints nothing, for all processes but the first.
    now: the time in seconds, from any origin.
    name: of the run. batch: examples a step; 0 if unknown. phase: the phase of `runs/clock` that the run is in.
    """

    def __init__(
        self,
        steps: int,
        start: int,
        active: bool,
        stream: TextIO | None = None,
        now: Callable[[], float] = time.perf_counter,
        name: str = "run",
        batch: int = 0,
        phase: Callable[[], str] = lambda: "step",
    ) -> None:
        self._view, self._now, self._phase = RunView(name, steps, start, batch), now, phase
        self._speed_since: tuple[int, float] | None = None
        """The step and the time from which on the next speed is measured."""
        self._latest: tuple[int, float] | None = None
        """The last step, and when it was done."""
        self._writer: Writer | None = None
        self._screen: Screen | None = None
        self._live, self._fault = False, ""
        stream = sys.stderr if stream is None else stream
        if not active or stream is None:  # None where the shell closed it
            return
        self._live = _draws(stream)
        if self._live or may_block(stream):
            self._writer = Writer(stream, self._draw if self._live else None)
        else:
            self._screen = Screen(stream)

    def stepped(self, run: ObservedRun, step: int, metrics: Any) -> None:
        self.step(step)

    def trained(self, run: ObservedRun, step: int, metrics: Mapping[str, float], rates: Mapping[str, float]) -> None:
        self._view.trained(step, {**metrics, **rates})
        if not self._live:
            self.metrics(step, "train", metrics)

    def evaluated(self, run: ObservedRun, step: int, scores: Scores) -> None:
        for split, values in scores.items():
            self._view.evaluated(step, split, values)
            self.metrics(step, split, values)

    def saved(self, run: ObservedRun, step: int) -> None:
        self._view.saved(step)

    def event(self, kind: str, **fields: object) -> None:
        self._view.event(kind, fields)
        self.print(event_text(kind, fields))

    def step(self, done: int) -> None:
        """Show that `done` steps are done."""
        if self._speed_since is None:
            self._speed_since = (done, self._now())  # not from the first step, which takes longer
        self._view.done = done
        if self._live:
            self._latest = done, self._now()  # the thread that draws takes it from here

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Print the metrics of `step`, which may be earlier than the last step done."""
        line = f"step {step}/{self._view.steps}  {split} {metrics_text(values)}"
        self.print(line if self._live else line + self._speed())

    def print(self, text: str) -> None:
        """Print a line, above the view if there is one."""
        if self._writer is not None:
            self._writer.print(text)
        elif self._screen is not None:
            self._screen.write([text])

    def close(self) -> None:
        """Stop updating the view, which stays on the terminal."""
        if self._writer is not None:
            self._writer.close()
        self._writer = self._screen = None

    def _draw(self, width: int, height: int) -> Sequence[str]:
        if self._fault:
            return [cut(self._fault, width)]
        try:
            if self._latest is not None:
                self._view.stepped(*self._latest)
            self._view.note = PHASE_WORDS.get(self._phase(), "")
            return self._view.lines(width, height, color=True)
        except Exception as error:  # no fault of the run: it goes on with plain lines, as without a terminal
            self._fault, self._live = f"no view: {type(error).__name__}: {error}", False
            return [cut(self._fault, width)]

    def _speed(self) -> str:
        """Steps per second since the last line that showed it; "" if no step was done since."""
        now, done = self._now(), self._view.done
        if self._speed_since is None or done <= self._speed_since[0] or now <= self._speed_since[1]:
            return ""
        speed = (done - self._speed_since[0]) / (now - self._speed_since[1])
        self._speed_since = (done, now)
        return f"  {speed:.3g} steps/s  eta {duration((self._view.steps - done) / speed)}"


def _draws(stream: TextIO) -> bool:
    try:
        return draws(stream) and may_block(stream)
    except (OSError, ValueError):  # ValueError: a closed file
        return False
