"""Runs a step of a run again, from the nearest checkpoint before it, by the same program as the run.

Not here: comparing it with the run (`reproduced`), and explaining it (`explain`).
"""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxtrain.analysis.replay.outliers import HISTORY, Measured, measuring
from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.program import Program
from jaxtrain.runs.folder import Run
from jaxtrain.runs.json_lines import read_lines
from jaxtrain.runs.start import FirstState
from jaxtrain.sharding.layout import Layout
from jaxtrain.step import TrainState
from jaxtrain.tasks.base import Batch

ONE_DEVICE = Layout()


@dataclass(frozen=True)
class Before:
    """The inputs of a step."""

    state: TrainState
    batch: Batch

    def on_one_device(self) -> "Before":
        """A copy on one device."""
        return Before(*jax.device_put((self.state, dict(self.batch)), jax.local_devices()[0]))


@dataclass(frozen=True)
class Moment:
    """A step of a run, with its inputs and outputs."""

    run: Run
    program: Program
    step: int
    """Its number, from 1 on: the number of updates after it."""
    before: Before
    """Its state and its batch, on the program's mesh."""
    earlier: Before | None
    """Those of the previous step, if that was run too."""
    start: int
    """The step of the checkpoint that it was run from; 0 is the initial state."""
    metrics: Mapping[int, Mapping[str, Any]]
    """The metrics of each step that was run, on the host, and the other outputs of the program."""
    measured: Mapping[int, Measured]
    """The norms of the last steps that were run, this one included."""
    notes: tuple[str, ...]
    """Notes for the user on how it was run."""

    @property
    def index(self) -> int:
        """The number of its batch, from 0 on."""
        return self.step - 1


def rerun(run: Run, step: int, layout: Layout | None = None) -> Moment:
    """Run a step again. Raises ConfigError for a step that the run does not have, and where devices are missing.

    layout: replaces the layout that the step was trained with.
    """
    experiment = run.experiment
    if not 1 <= step <= experiment.steps:
        raise ConfigError(f"--step {step}: {run.folder} has steps 1 to {experiment.steps}")
    trained, since = layout_of(run, step)
    experiment = replace(experiment, layout=trained if layout is None else layout)
    program = Program(experiment, devices_for(run, experiment.layout), run.horizon)
    compiled = program.lower().compile(dict(experiment.runtime.compiler_options) or None)
    state, start, notes = restored(run, program, step, since)
    measure, earlier, now = measuring(program, run.horizon), None, None
    metrics, measured = {}, {}
    if step in run.left_out:
        notes.append(f"the run went back and left the batch of step {step} out; here it is trained on it")
    with contextlib.closing(program.batches(experiment.data, start, run.left_out - {step})) as batches:
        for done in range(start + 1, step + 1):
            batch = next(batches)
            if done > step - HISTORY:
                measured[done] = measure(state, batch)
            if done >= step - 1:
                earlier, now = now, Before(jax.tree.map(jnp.copy, state), batch)
            state, found = compiled(state, batch)
            metrics[done] = jax.device_get({**found, "batch": program.record(state, batch)["batch"]})
    assert now is not None
    return Moment(run, program, step, now, earlier, start, metrics, measured, tuple(notes))


def restored(run: Run, program: Program, step: int, since: int) -> tuple[TrainState, int, list[str]]:
    """The state to run a step from, the number of its step, and notes on checkpoints that are damaged.

    since: from this step on, the run used the mesh of `program`; steps before it had another mesh.
    """
    notes, saved = [], [0] if run.experiment.start is None else []
    with contextlib.ExitStack() as stack:
        if (run.folder / "checkpoints").is_dir():
            checkpoints = stack.enter_context(run.checkpoints(read_only=True))
            saved += [each for each in checkpoints.steps() if each < step]
        for found in sorted(saved, key=lambda each: preference(each, step, since), reverse=True):
            try:
                if found:
                    return checkpoints.restore(program.state, found)[0], found, notes
                break
            except Damaged as error:
                notes.append(f"the checkpoint of step {found} is damaged, so another was used: {error}")
    return FirstState(program).make(), 0, notes


def preference(saved: int, step: int, since: int) -> tuple[bool, bool, int]:
    """A sort key for checkpoints to start from. Best is one a few steps before `step`, so that some steps before it are
    run too, for comparison; else the nearest one.
    """
    return saved >= since, step - 2 * HISTORY <= saved <= max(step - 1 - HISTORY // 2, 0), saved


def layout_of(run: Run, step: int) -> tuple[Layout, int]:
    """The layout that a step was trained with, and the step from which on the run used it. A run may be resumed with
    another layout: experiment.json has only the last one, and events.jsonl the mesh of each.
    """
    layout = run.experiment.layout
    lines = [each for each in read_lines(run.folder / "events.jsonl") if each.get("kind") == "begun"]
    begun = [(each["step"], each["mesh"]) for each in lines if each["step"] < step]
    if not begun:
        return layout, 0
    sizes = begun[-1][1]
    since = min(start for start, mesh in begun if mesh == sizes)
    others = [start for start, mesh in begun if mesh != sizes]
    since = begun[-1][0] if any(start >= since for start in others) else since
    if math.prod(sizes.values()) == 1:
        return layout if layout.one_device else Layout(), since
    return replace(layout, mesh=dict(sizes)), since


def devices_for(run: Run, layout: Layout) -> list[jax.Device] | None:
    """The devices for a layout, as many as its mesh needs; None for a mesh that takes all. Raises ConfigError where
    there are too few.
    """
    sizes = [size for size in layout.mesh.values() if size > 0]
    needed, here = math.prod(sizes), jax.device_count()
    if needed > here:
        mesh = " ".join(f"{axis} {size}" for axis, size in layout.mesh.items())
        raise ConfigError(
            f"{run.folder} was trained on {needed} devices (mesh {mesh}), and {here} are here: simulate them with "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={needed} and JAX_PLATFORMS=cpu, or say --layout "
            "one-device: the numbers are then the same within rounding, not bitwise"
        )
    return jax.devices()[:needed] if -1 not in layout.mesh.values() else None
