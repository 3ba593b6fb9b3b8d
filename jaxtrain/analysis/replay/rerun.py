"""A step of a run once more: from the nearest checkpoint before it, by the program that the run itself had.

Not here: whether it came out the same, and why it came out so.
"""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

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
from jaxtrain.tasks.metrics import Metric

ONE_DEVICE = Layout()


@dataclass(frozen=True)
class Before:
    """What goes into a step."""

    state: TrainState
    batch: Batch

    def on_one_device(self) -> "Before":
        """The same, on one device."""
        return Before(*jax.device_put((self.state, dict(self.batch)), jax.local_devices()[0]))


@dataclass(frozen=True)
class Moment:
    """A step of a run, with what goes into it and what comes out."""

    run: Run
    program: Program
    step: int
    """Its number, from 1 on: the updates that are done after it."""
    before: Before
    """Its state and its batch, on the program's mesh."""
    earlier: Before | None
    """Those of the step before, if that was run too."""
    start: int
    """The checkpoint that it was run from; 0 is the initial state."""
    metrics: Mapping[int, Mapping[str, Metric]]
    """What each step on the way came to, on the host."""
    measured: Mapping[int, Measured]
    """Norms of the last steps on the way, and of this one."""
    notes: tuple[str, ...]
    """What the user should know about how it was run."""

    @property
    def index(self) -> int:
        """The number of its batch, from 0 on."""
        return self.step - 1


def rerun(run: Run, step: int, layout: Layout | None = None) -> Moment:
    """Run a step again. Raises ConfigError for a step that the run does not have, and for missing devices.

    layout: instead of the one that the step was trained with.
    """
    experiment = run.experiment
    if not 1 <= step <= experiment.steps:
        raise ConfigError(f"--step {step}: {run.folder} has steps 1 to {experiment.steps}")
    trained = layout_of(run, step)
    experiment = replace(experiment, layout=trained if layout is None else layout)
    program = Program(experiment, devices_for(run, experiment.layout), run.horizon)
    lowered, first = program.lower(), FirstState(program)
    compiled = lowered.compile(dict(experiment.runtime.compiler_options) or None)
    state, start, notes = restored(run, program, first, step)
    measure, earlier, now = measuring(program, run.horizon), None, None
    metrics, measured = {}, {}
    with contextlib.closing(program.batches(experiment.data, start)) as batches:
        for done in range(start + 1, step + 1):
            batch = next(batches)
            if done > step - HISTORY:
                measured[done] = measure(state, batch)
            if done >= step - 1:
                earlier, now = now, Before(jax.tree.map(jnp.copy, state), batch)
            state, found = compiled(state, batch)
            metrics[done] = jax.device_get(found)
    assert now is not None
    return Moment(run, program, step, now, earlier, start, metrics, measured, tuple(notes))


def restored(run: Run, program: Program, first: FirstState, step: int) -> tuple[TrainState, int, list[str]]:
    """The state of the nearest good checkpoint before a step, its step, and what to say of those that are not good."""
    notes = []
    if (run.folder / "checkpoints").is_dir():
        with run.checkpoints(read_only=True) as checkpoints:
            saved = [each for each in checkpoints.steps() if each < step]
            for found in sorted(saved, key=lambda each: preference(each, step), reverse=True):
                try:
                    return checkpoints.restore(program.state, found)[0], found, notes
                except Damaged as error:
                    notes.append(f"the checkpoint of step {found} is damaged, so an older one was used: {error}")
    return first.make(), 0, notes


def preference(saved: int, step: int) -> tuple[bool, int]:
    """Checkpoints a few steps before come first: steps on the way are what the step is compared with."""
    return step - 4 * HISTORY <= saved <= step - HISTORY, saved


def layout_of(run: Run, step: int) -> Layout:
    """The layout that a step was trained with. A run may be resumed with another, and only the last one is saved as the
    run's; its log has the mesh of each.
    """
    layout, begun = run.experiment.layout, [each for each in read_lines(run.folder / "events.jsonl") if each]
    begun = [each for each in begun if each.get("kind") == "begun" and each.get("step", step) < step]
    sizes = begun[-1].get("mesh") if begun else None
    if not isinstance(sizes, Mapping) or math.prod(sizes.values()) == 1:
        return layout if sizes is None or layout.one_device else Layout()
    return replace(layout, mesh=dict(sizes))


def devices_for(run: Run, layout: Layout) -> list[jax.Device] | None:
    """The devices for a layout; None is those that are here. Raises ConfigError where there are too few."""
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
