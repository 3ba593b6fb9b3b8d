"""What the observers do at every step: counted in calls, not in seconds, so that it cannot grow unnoticed."""

import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny

from jaxtrain.cluster.stop import StopSignal
from jaxtrain.experiment.observers import Observer
from jaxtrain.optimizers.recorded import norms_by_group, update_squares
from jaxtrain.program import Program
from jaxtrain.runs.observers import Observers
from jaxtrain.runs.recorder import TOGETHER, Recorder

MOST_CALLS = 20
"""Of Python and C functions, for one step."""

SYSTEM = {"posix", "io", "_io", "select", "_socket", "_thread", "_queue"}
"""Modules whose functions enter the kernel or wait."""

READS = {
    "_value",
    "__array__",
    "device_get",
    "block_until_ready",
    "copy_to_host_async",
    "__float__",
    "item",
    "asarray",
    "array",
}
"""Functions that wait for a device, or read from it."""


class Calls:
    """The functions that this thread calls meanwhile, as module and name."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    def __enter__(self) -> "Calls":
        sys.setprofile(self._note)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)
        self.found = self.found[:-2]  # without those that end the count

    def _note(self, frame: Any, kind: str, argument: Any) -> None:
        if kind == "call":
            self.found.append((frame.f_globals.get("__name__", ""), frame.f_code.co_name))
        elif kind == "c_call":
            owner = type(getattr(argument, "__self__", None)).__module__
            self.found.append((argument.__module__ or owner, argument.__name__))


@pytest.fixture(scope="module")
def steps() -> list[dict[str, Any]]:
    """What the loop gives the observers at each of some steps."""
    program = Program(replace(tiny.main(), evals={}))
    state, found = program.init(), []
    with closing(program.batches(program.experiment.data)) as batches:
        for _ in range(3 * TOGETHER + 3):
            batch = next(batches)
            state, metrics = program.step(state, batch)
            found.append({**metrics, **program.record(state, batch)})
    return found


def test_a_step_costs_few_calls_and_neither_enters_the_kernel_nor_reads_the_device(
    steps: list[dict[str, Any]], tmp_path: Path
) -> None:
    class Silent(Observer):
        """Of a user."""

    experiment = replace(tiny.main(), observers=(Silent(),))
    observers, warm = Observers(tmp_path, experiment, 0, StopSignal()), TOGETHER + 1
    with closing(observers):
        for step, metrics in enumerate(steps[:warm], 1):
            observers.stepped(step, metrics)
        with Calls() as calls:
            for step, metrics in enumerate(steps[warm : warm + 2 * TOGETHER], warm + 1):
                observers.stepped(step, metrics)
    names = {f"{module}.{name}" for module, name in calls.found}
    assert ("jaxtrain.runs.recorder", "_measure") in calls.found, "what is rare was not counted"
    assert len(calls.found) <= 2 * TOGETHER * MOST_CALLS, f"{len(calls.found) / 2 / TOGETHER} calls a step: {names}"
    assert not {name for module, name in calls.found if module.split(".")[0] in SYSTEM or name in READS}


def test_norms_of_updates_are_the_same_whether_measured_together_or_when_they_are_written(
    steps: list[dict[str, Any]], tmp_path: Path
) -> None:
    recorder, run = Recorder(tmp_path, len(steps)), Observers(tmp_path, tiny.main(), 0, StopSignal())
    with closing(run):
        for step, metrics in enumerate(steps, 1):
            recorder.stepped(run, step, metrics)
        found = [recorder._read(each.numbers)["update_norms"] for each in recorder._last]
    assert found[0] is None  # nothing is known before the first step
    assert ["samples" in each.numbers for each in recorder._last] == [False] * (3 * TOGETHER + 1) + [True] * 2
    for place in range(1, len(steps)):
        before, after = (steps[at]["recorded"] for at in (place - 1, place))
        expected = norms_by_group(jax.device_get(update_squares(before, after)), after.groups)
        norms = found[place]
        assert list(norms) == list(expected)
        np.testing.assert_allclose([*norms.values()], [*expected.values()], rtol=1e-5)
        kernel = next(group for group in after.groups if not group.stacked and group.share == 1)
        offset = 0
        for group in after.groups:
            if group is kernel:
                break
            offset += int(np.prod(group.stacked, dtype=int)) * group.sampled
        one, other = (np.asarray(each.sample, np.float64)[offset : offset + kernel.sampled] for each in (before, after))
        np.testing.assert_allclose(norms[kernel.path], np.linalg.norm(other - one), rtol=1e-5)
