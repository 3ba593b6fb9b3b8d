"""Measures what all that a run logs costs, in CPU time a step: `python scripts/bench_logging.py [digits] [char_lm]`.

The run is a real one, in a temporary folder, with its view on a pseudo-terminal that is read all the time. Counted are the
calls of the observers in the training loop (metrics.jsonl, events.jsonl, steps.bin, console, TensorBoard), by the CPU time of
their thread, and the whole threads that draw the view and write for TensorBoard. `record`, the checksum of the batch and the
sample of the parameters for the flight recorder, stands beside them. All is set beside the CPU time of the process, XLA's
threads included: CPU times mean something on a machine that does other work too. Counting begins once the first metrics were
logged, which imports libraries.
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
from jaxtrain.program import Program
from jaxtrain.runs.observers import Observers
from jaxtrain.train import train

STEPS = {"digits": 1001, "char_lm": 201}
LOGGED = ("stepped", "append", "trained", "evaluated", "saved", "log_event")
THREADS = {"console": "view", "tensorboard": "TensorBoard's thread"}


class Spent:
    """CPU seconds of the loop's thread in calls of the observers, and of the threads of `THREADS`, after step `warm`."""

    def __init__(self, warm: int) -> None:
        self.warm, self.inside = warm, False
        self.by: dict[str, float] = {}
        """Seconds by the method of the observers."""
        self.first = 0.0
        self.threads_first: dict[str, float] = {}
        self.threads: dict[str, float] = {}

    def timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method, whose time is counted unless another one calls it."""

        def call(*arguments: Any, **named: Any) -> Any:
            if name == "stepped":
                self.threads = threads()
                if arguments[1] == self.warm + 1:
                    self.first, self.by, self.threads_first = time.process_time(), {}, self.threads
            if self.inside:
                return method(*arguments, **named)
            self.inside, since = True, time.thread_time()
            try:
                return method(*arguments, **named)
            finally:
                passed, self.inside = time.thread_time() - since, False
                self.by[name] = self.by.get(name, 0.0) + passed

        return call


def threads() -> dict[str, float]:
    """CPU seconds of each thread of `THREADS`."""
    idents = {each.name: each.ident for each in threading.enumerate() if each.name in THREADS and each.ident}
    return {THREADS[name]: time.clock_gettime(time.pthread_getcpuclockid(ident)) for name, ident in idents.items()}


def drained(file: int) -> None:
    """Read what a terminal shows, until it is closed."""
    with contextlib.suppress(OSError):
        while os.read(file, 1 << 16):
            pass


def measure(name: str) -> str:
    """A line about an experiment."""
    experiment, _ = load(str(ROOT / "experiments" / f"{name}.py"))
    experiment = replace(experiment, steps=STEPS[name], observers=())
    spent = Spent(2 * experiment.runtime.log_every)  # metrics are logged a period late
    main, other = pty.openpty()
    threading.Thread(target=drained, args=(main,), daemon=True).start()
    before, kept, record = sys.stderr, {method: getattr(Observers, method) for method in LOGGED}, Program.record
    with tempfile.TemporaryDirectory() as made, open(other, "w", encoding="utf-8") as terminal:
        for method in LOGGED:
            setattr(Observers, method, spent.timed(method, kept[method]))
        setattr(Program, "record", spent.timed("record", record))  # noqa: B010
        sys.stderr, os.environ["TERM"] = terminal, "xterm"
        try:
            train(experiment, Path(made) / "run")
            total = time.process_time() - spent.first
        finally:
            sys.stderr = before
            Program.record = record
            for method in LOGGED:
                setattr(Observers, method, kept[method])
    steps, record_seconds = STEPS[name] - spent.warm, spent.by.pop("record")
    behind = {name: seconds - spent.threads_first[name] for name, seconds in spent.threads.items()}
    parts = {"observers and their threads": sum((*spent.by.values(), *behind.values())), **spent.by, **behind}
    shown = [f"{what} {1e6 * each / steps:.0f} µs ({each / total:.2%})" for what, each in parts.items()]
    beside = f"record {1e6 * record_seconds / steps:.0f} µs ({record_seconds / total:.2%})"
    return f"{name}: {1e3 * total / steps:.2f} ms of CPU a step, {', '.join(shown)}; beside them {beside}"


def main() -> None:
    for name in sys.argv[1:] or STEPS:
        print(measure(name), flush=True)


if __name__ == "__main__":
    main()
