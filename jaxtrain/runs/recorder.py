"""The flight recorder of a run: writes every step to steps.bin and, if the run fails, its last steps to flight.json.

The numbers of a step stay on the device until they are written. Not here: when a run fails.
"""

import datetime
import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.base.files import write_json
from jaxtrain.data.pipeline import Pipeline
from jaxtrain.experiment.observers import ObservedRun
from jaxtrain.optimizers.recorded import Sampled, norms_by_group, squares_between, squares_by_group
from jaxtrain.runs.steps_log import StepsLog
from jaxtrain.runs.watcher import Watcher
from jaxtrain.sharding.checksum import as_number

EXAMPLES = 64
"""The most rows of a batch whose examples are listed."""

TOGETHER = 8
"""Steps whose updates are measured by one call, which costs about twice as much CPU time as for a single step. Until
then their samples of the parameters stay on the device.
"""

WAIT, WAIT_AT_END = 10.0, 1.0
"""Seconds in all to wait for steps that are still being computed: when a run has failed, and when a thread ends it."""


class _Step(NamedTuple):
    step: int
    numbers: dict[str, Any]
    """On the device: metrics by name, `batch`, and `update_norms`: the squared norms by group of several steps, and
    this step's row; or until they are computed `samples`, those of the parameters before and after the step.
    """


class Recorder(Watcher):
    """Keeps the last `size` steps in memory, and writes steps.bin and flight.json in `folder`.

    active: False keeps and writes nothing, for all processes but the first.
    """

    def __init__(self, folder: Path, size: int, active: bool = True) -> None:
        self.steps = StepsLog(folder, active)
        self._path, self._active = folder / "flight.json", active
        self._last: deque[_Step] = deque(maxlen=size if active else 0)
        self._before: jax.Array | None = None
        self._groups: tuple[Any, ...] = ()
        self._squares = squares_between(())
        self._sampled: list[dict[str, Any]] = []
        """The numbers of the last steps, whose updates are not yet measured."""
        self._rates: Mapping[str, float] = {}
        self._writing, self._written, self._until = threading.Lock(), False, math.inf

    def stepped(self, run: ObservedRun, step: int, metrics: Mapping[str, Any]) -> None:
        if not self._last.maxlen:
            return
        numbers = {name: metrics[name] for name in ("loss", "gradient_norm", "skipped", "batch") if name in metrics}
        found: Sampled | None = metrics.get("recorded")
        if found is not None:
            if self._before is not None:
                numbers["samples"] = self._before, found.sample
                self._sampled.append(numbers)
            else:
                self._groups, self._squares = found.groups, squares_between(found.groups)
            self._before = found.sample
            if len(self._sampled) == TOGETHER:
                self._measure()
        self._last.append(_Step(step, numbers))

    def _measure(self) -> None:
        samples = [self._sampled[0]["samples"][0], *(numbers["samples"][1] for numbers in self._sampled)]
        squares = self._squares(samples)  # one array: each costs microseconds
        for row, numbers in enumerate(self._sampled):
            numbers["update_norms"] = squares, row
            del numbers["samples"]  # last: another thread may be writing
        self._sampled = []

    def trained(self, run: ObservedRun, step: int, metrics: Mapping[str, float], rates: Mapping[str, float]) -> None:
        self._rates = {name: value for name, value in rates.items() if not name.startswith("seconds_")}

    def append(self, first: int, fetched: Sequence[Mapping[str, Any]]) -> None:
        """Append the metrics of steps from `first` on, which are on the host, to steps.bin."""
        found = [_scalars(metrics) for metrics in fetched]
        columns = {name: [each[name] for each in found] for name in ("loss", "gradient_norm", "batch", "skipped")}
        self.steps.append({"step": range(first, first + len(found)), **columns})

    def write(self, run: ObservedRun, step: int, why: str, seconds: Mapping[str, float], wait: float = WAIT) -> None:
        """Write flight.json, whole or not at all: the run has done `step` steps and fails by this error or signal. The
        first reason stays.

        seconds: the account by phase. Numbers that the device does not give any more are None, and why is said.
        wait: seconds to wait for these numbers. Another thread that is writing then waits no longer, either.
        """
        if not self._active:
            return
        self._until = min(self._until, time.monotonic() + wait)
        with self._writing:
            if not self._written:
                self._write(run, step, why, seconds)
                self._written = True

    def _write(self, run: ObservedRun, step: int, why: str, seconds: Mapping[str, float]) -> None:
        steps, unread = [], []
        for each in [*self._last]:
            facts: dict[str, Any] = {"step": each.step, "examples": examples_of(run.experiment.data, each.step)}
            try:
                facts |= self._read(each.numbers)
            except (RuntimeError, TimeoutError) as error:  # of the device, or of a step before this one
                unread.append(f"step {each.step}: {str(error).splitlines()[0]}")
            steps.append(facts)
        estimated = [group.path for group in self._groups if group.share < 1]
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        facts = {"step": step, "why": why, "time": now, "unread": unread, "steps": steps, "rates": self._rates}
        write_json(self._path, {**facts, "seconds": seconds, "estimated_updates": estimated})

    def _read(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        numbers = dict(numbers)  # the thread that trains may change it
        squares, row = numbers.pop("update_norms", (None, 0))
        if squares is not None:
            numbers |= {"update_norms": squares}
            numbers.pop("samples", None)
        leaves = jax.tree.leaves(numbers)
        if any(leaf.is_deleted() for leaf in leaves):  # on which `is_ready` crashes jax 0.10.2
            raise RuntimeError("an array has been deleted")
        while not all(leaf.is_ready() for leaf in leaves):
            if time.monotonic() > self._until:
                raise TimeoutError("it was not computed in time")
            time.sleep(0.01)
        found = jax.device_get(numbers)
        squares = found.get("update_norms")
        if "samples" in found:
            squares = squares_by_group(np.stack(found["samples"]), self._groups)
        norms = None if squares is None else norms_by_group(squares[row], self._groups)
        return {**_scalars(found), "update_norms": norms}


def _scalars(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of steps.bin for a step, from its metrics on the host."""
    skipped = metrics["skipped"].value() if "skipped" in metrics else 0
    found = {name: float(metrics[name]) if name in metrics else np.nan for name in ("loss", "gradient_norm")}
    return {**found, "batch": as_number(metrics["batch"]), "skipped": int(skipped > 0)}


def examples_of(data: Pipeline, step: int) -> list[int | None] | None:
    """The index in the source of the example in each of the first `EXAMPLES` rows of a step's batch.

    None where the source can no longer be read, and for a row that combines several examples.
    """
    try:
        return [data.record(step - 1, row, training=True) for row in range(min(data.batch_size, EXAMPLES))]
    except (OSError, Damaged, ConfigError):
        return None
