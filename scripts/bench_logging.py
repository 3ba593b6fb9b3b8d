"""Measures what all that a run logs costs, in CPU time a step: `python scripts/bench_logging.py [digits] [char_lm]`.

The run is a real one, in a temporary folder, with its view on a pseudo-terminal that is read all the time. Counted are the
calls of the observers in the training loop (metrics.jsonl, events.jsonl, steps.bin, console, TensorBoard), by the CPU time of
their thread, and the whole thread that draws the view. It is set beside all CPU time of the process from a third of the steps on,
XLA's threads included: CPU times mean something on a machine that does other work too.
"""

import contextlib
import os
import pty
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench_step import ROOT

from jaxtrain.experiment.files import load
from jaxtrain.runs.observers import Observers
from jaxtrain.train import train

STEPS = {"digits": 600, "char_lm": 60}
LOGGED = ("stepped", "append", "trained", "evaluated", "saved", "log_event")


class Spent:
    """CPU seconds of the loop's thread in calls of the observers, and of the thread that draws, from step `warm` on: by
    then all libraries are imported.
    """

    def __init__(self, warm: int) -> None:
        self.warm, self.inside = warm, False
        self.by: dict[str, float] = {}
        """Seconds by the method of the observers."""
        self.first = self.drawn_first = self.drawn = 0.0

    def timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method, whose time is counted unless another one calls it."""

        def call(*arguments: Any, **named: Any) -> Any:
            if name == "stepped":
                self.drawn = drawing()
                if arguments[1] == self.warm:
                    self.first, self.by, self.drawn_first = time.process_time(), {}, self.drawn
            if self.inside:
                return method(*arguments, **named)
            self.inside, since = True, time.thread_time()
            try:
                return method(*arguments, **named)
            finally:
                passed, self.inside = time.thread_time() - since, False
                self.by[name] = self.by.get(name, 0.0) + passed

        return call


def drawing() -> float:
    """CPU seconds of the thread that draws the view; 0 if there is none."""
    found = [each.ident for each in threading.enumerate() if each.name == "console"]
    return time.clock_gettime(time.pthread_getcpuclockid(found[0])) if found and found[0] else 0.0


def drained(file: int) -> None:
    """Read what a terminal shows, until it is closed."""
    with contextlib.suppress(OSError):
        while os.read(file, 1 << 16):
            pass


def measure(name: str) -> str:
    """A line about an experiment."""
    experiment, _ = load(str(ROOT / "experiments" / f"{name}.py"))
    experiment = replace(experiment, steps=STEPS[name], observers=())
    spent = Spent(STEPS[name] // 3)
    main, other = pty.openpty()
    threading.Thread(target=drained, args=(main,), daemon=True).start()
    before, kept = sys.stderr, {method: getattr(Observers, method) for method in LOGGED}
    with tempfile.TemporaryDirectory() as made, open(other, "w", encoding="utf-8") as terminal:
        for method in LOGGED:
            setattr(Observers, method, spent.timed(method, kept[method]))
        sys.stderr, os.environ["TERM"] = terminal, "xterm"
        try:
            train(experiment, Path(made) / "run")
            total = time.process_time() - spent.first
        finally:
            sys.stderr = before
            for method in LOGGED:
                setattr(Observers, method, kept[method])
    steps = STEPS[name] - spent.warm
    parts = [f"{name}: {1e3 * total / steps:.2f} ms of CPU a step"]
    for what, seconds in (
        ("observers", sum(spent.by.values())),
        *spent.by.items(),
        ("view", spent.drawn - spent.drawn_first),
    ):
        parts.append(f"{what} {1e6 * seconds / steps:.0f} µs ({seconds / total:.2%})")
    return ", ".join(parts)


def main() -> None:
    for name in sys.argv[1:] or STEPS:
        print(measure(name), flush=True)


if __name__ == "__main__":
    main()
