"""The progress of a run for people to read: a bar on a terminal, lines in a log. Not here: the files of the run."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from jaxtrain.base.text import duration, number
from jaxtrain.experiment.observers import ObservedRun, Scores
from jaxtrain.runs.watcher import Watcher

NOT_PRINTED = {"intervals", "code", "signal"}
"""Fields of events that are for programs which read events.jsonl."""


class Console(Watcher):
    """Progress on `stream` (None: stderr): a tqdm bar if that is a terminal, else one line per call of `metrics`.

    If the stream is closed or can no longer be written, nothing more is shown, and the run goes on.

    steps: the steps of the run. start: those that are done already.
    active: False prints nothing, for all processes but the first.
    now: the time in seconds, from any origin.
    """

    def __init__(
        self,
        steps: int,
        start: int,
        active: bool,
        stream: TextIO | None = None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._steps = steps
        self._done = start
        self._stream = sys.stderr if stream is None else stream
        self._active = active and self._stream is not None  # None where the shell closed it
        self._now = now
        self._speed_since: tuple[int, float] | None = None
        """The step and the time from which on the next speed is measured."""
        self._bar: Any = None
        if self._active:
            self._try(self._start_bar)

    def _start_bar(self) -> None:
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._steps, initial=self._done, file=self._stream, unit=" steps", dynamic_ncols=True
            )

    def stepped(self, run: ObservedRun, step: int, metrics: Any) -> None:
        self.step(step)

    def trained(self, run: ObservedRun, step: int, metrics: Mapping[str, float], rates: Mapping[str, float]) -> None:
        self.metrics(step, "train", metrics)

    def evaluated(self, run: ObservedRun, step: int, scores: Scores) -> None:
        for split, values in scores.items():
            self.metrics(step, split, values)

    def event(self, kind: str, **fields: object) -> None:
        shown = {name: value for name, value in fields.items() if name not in NOT_PRINTED}
        self.print("  ".join([kind, *(f"{name} {value}" for name, value in shown.items())]))

    def step(self, done: int) -> None:
        """Show that `done` steps are done."""
        if self._speed_since is None:
            self._speed_since = (done, self._now())  # not from the first step, which takes longer
        if self._bar is not None:
            self._try(lambda: self._bar.update(done - self._done))
        self._done = done

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Print the metrics of `step`, which may be earlier than the last step done. Those of single classes or bins,
        such as `confusion/f1/class_3`, are left out, since they are too many for a line.
        """
        numbers = "  ".join(f"{name} {number(value)}" for name, value in values.items() if name.count("/") < 2)
        line = f"step {step}/{self._steps}  {split} {numbers}"
        if self._bar is None:
            line += self._speed()
        elif "loss" in values:
            self._bar.set_postfix_str(f"{split} loss {number(values['loss'])}", refresh=False)
        self.print(line)

    def print(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar is not None:
            self._try(lambda: self._bar.write(text, file=self._stream))
        elif self._active:
            self._try(lambda: print(text, file=self._stream, flush=True))

    def close(self) -> None:
        """Stop updating the bar, which stays on the terminal."""
        if self._bar is not None:
            self._try(self._bar.close)

    def _try(self, show: Callable[[], object]) -> None:
        try:
            show()
        except (OSError, ValueError):  # ValueError: a closed file, or a character that its encoding lacks
            if self._bar is not None:
                self._bar.disable = True  # else it would write again when it is garbage-collected
            self._active, self._bar = False, None

    def _speed(self) -> str:
        """Steps per second since the last line that showed it; "" if no step was done since."""
        now = self._now()
        if self._speed_since is None or self._done <= self._speed_since[0] or now <= self._speed_since[1]:
            return ""
        speed = (self._done - self._speed_since[0]) / (now - self._speed_since[1])
        self._speed_since = (self._done, now)
        return f"  {speed:.3g} steps/s  eta {duration((self._steps - self._done) / speed)}"
