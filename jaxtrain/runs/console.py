"""What a run shows while it trains: a bar on a terminal, lines in a log file. Not what it keeps on disk."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from jaxtrain.base.text import duration, number


class Console:
    """Progress on `stream` (None: stderr), a tqdm bar if that is a terminal, else one line per `metrics`.

    A stream that is closed, or can no longer be written, is no reason to stop a run: nothing more is shown then.

    steps: how many steps the run has. start: how many of them are done already.
    active: False shows nothing, for all processes but the first.
    """

    def __init__(self, steps: int, start: int, active: bool, stream: TextIO | None = None) -> None:
        self._steps = steps
        self._done = start
        self._stream = sys.stderr if stream is None else stream
        self._active = active and self._stream is not None  # Python has none where the shell closed it
        self._mark: tuple[int, float] | None = None
        self._bar: Any = None
        if self._active:
            self._try(self._start_bar)

    def _start_bar(self) -> None:
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._steps, initial=self._done, file=self._stream, unit=" steps", dynamic_ncols=True
            )

    def step(self, n: int) -> None:
        """Says that n steps are done."""
        if self._mark is None:
            # Speed counts from the end of the first step, which compiles.
            self._mark = (n, time.perf_counter())
        if self._bar is not None:
            self._try(lambda: self._bar.update(n - self._done))
        self._done = n

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Shows the metrics that belong to `step`, which may lie behind the steps done."""
        numbers = "  ".join(f"{name} {number(value)}" for name, value in values.items())
        line = f"step {step}/{self._steps}  {split} {numbers}"
        if self._bar is None:
            line += self._speed()
        elif "loss" in values:
            self._bar.set_postfix_str(f"{split} loss {number(values['loss'])}", refresh=False)
        self.say(line)

    def say(self, text: str) -> None:
        """Shows a line, above the bar if there is one."""
        if self._bar is not None:
            self._try(lambda: self._bar.write(text, file=self._stream))
        elif self._active:
            self._try(lambda: print(text, file=self._stream, flush=True))

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._try(self._bar.close)

    def _try(self, show: Callable[[], object]) -> None:
        try:
            show()
        except (OSError, ValueError):  # a closed file raises ValueError, and so does a letter that its encoding lacks
            if self._bar is not None:
                self._bar.disable = True  # it would try again when it is collected
            self._active, self._bar = False, None

    def _speed(self) -> str:
        """Steps per second since the last line that had it; nothing when no step was taken since."""
        now = time.perf_counter()
        if self._mark is None or self._done <= self._mark[0] or now <= self._mark[1]:
            return ""
        speed = (self._done - self._mark[0]) / (now - self._mark[1])
        self._mark = (self._done, now)
        return f"  {speed:.3g} steps/s  eta {duration((self._steps - self._done) / speed)}"
