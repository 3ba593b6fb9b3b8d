"""`jaxtrain verify-resume`: an experiment, made small, is killed and resumed, and has to end as one that was not.

Not here: how it is trained, which is as ever, in processes of its own.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtrain.base.errors import ConfigError, ExitCode
from jaxtrain.data import Pipeline, Source, Take, Transform
from jaxtrain.data.sources.base import Example
from jaxtrain.experiment.experiment import Experiment, Retention, Runtime
from jaxtrain.experiment.files import Origin
from jaxtrain.models.sizes import smaller
from jaxtrain.runs.checkpoints import Checkpoints
from jaxtrain.runs.clock import Clock
from jaxtrain.runs.metrics_log import read_metrics
from jaxtrain.train import train

PLAN = "JAXTRAIN_VERIFY_RESUME"
"""The environment variable by which a process knows that it is one of those that are killed, as JSON of `_Plan`."""

STEPS, ROWS, PATIENCE = 12, 8, 600
"""Updates of a run, rows of its batches at most, and seconds after which a process hangs."""

_OF_THE_CLOCK = ("examples_per_second", "tokens_per_second", "mfu")


@dataclass(frozen=True)
class _Plan:
    """What one process does: train in `folder`, and get `by` some milliseconds after a phase began for the nth time."""

    folder: str
    by: int = 0
    phase: str = ""
    times: int = 1
    after: float = 0.0
    mesh: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Shortened(Transform):
    """Token ids below `vocab`, in rows of `kept`; other fields of the same length are cut alike."""

    field: str
    kept: int
    vocab: int

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        tokens = np.asarray(example[self.field])
        short = {name: x[: self.kept] if np.shape(x)[:1] == tokens.shape[:1] else x for name, x in example.items()}
        return {**short, self.field: (short[self.field].astype(np.int64) % self.vocab).astype(tokens.dtype)}


def small(experiment: Experiment) -> Experiment:
    """The same experiment with a small model and small batches, of the same data by the same transforms, so that what
    these keep in mind is seen.
    """
    task, rows = experiment.task, min(ROWS, experiment.data.batch_size)
    model, inputs = task.model.shrunk(rows), task.read(experiment.data.example())
    sizes, cut = model.describe(inputs), ()
    if sizes and sizes.vocab and isinstance(task.inputs, str):
        whole = experiment.data.example()[task.inputs].shape[1]
        kept = whole - inputs.shape[1] + smaller(inputs.shape[1], 32, 2 * rows)
        cut = (Shortened(task.inputs, kept, sizes.vocab),)

    def pipeline(data: Pipeline, source: Source) -> Pipeline:
        transforms = (*data.transforms, *cut)
        return replace(data, source=source, batch_size=min(rows, data.batch_size), transforms=transforms)

    evals = {
        split: pipeline(data, Take(data.source, min(2 * rows, len(data.source))))
        for split, data in experiment.evals.items()
    }
    keep = Retention(last=2)
    return replace(
        experiment,
        task=replace(task, model=model),
        data=pipeline(experiment.data, experiment.data.source),
        evals=evals,
        layout=replace(experiment.layout, mesh={}),
        microbatches=1,
        steps=STEPS,
        runtime=Runtime(log_every=2, eval_every=4, save_every=3, keep=keep),
    )


def follow_plan(experiment: Experiment, origin: Origin) -> int | None:
    """What a process does that is to be killed; None in any other process."""
    if PLAN not in os.environ:
        return None
    plan, seen = _Plan(**json.loads(os.environ[PLAN])), [0]
    kind = type(Clock()("step"))
    enter = kind.__enter__

    def entered(self: Any) -> None:
        enter(self)
        seen[0] += self._phase == plan.phase
        if self._phase == plan.phase and seen[0] == plan.times:
            threading.Timer(plan.after, os.kill, (os.getpid(), plan.by)).start()

    if plan.by:
        setattr(kind, "__enter__", entered)  # noqa: B010, since a method is no field
    made = small(experiment)
    if plan.mesh:
        made = replace(made, layout=replace(made.layout, mesh=plan.mesh))
    from jaxtrain.cluster.processes import StopSignal

    stop = StopSignal()
    _, state = train(made, Path(plan.folder), origin, stop)
    return ExitCode.FINISHED if int(state.step) == made.steps else stop.code


def verify_resume(
    experiment: Experiment, command: Sequence[str], kills: int, seed: int, mesh: Mapping[str, int]
) -> bool:
    """Print whether runs of an experiment that are killed and resumed end bitwise as one that is not; True if they do.

    command: starts a process that calls `follow_plan` with the same experiment.
    kills: how many, at random moments (of `seed`) in all phases; one in four is a SIGTERM, the others are SIGKILL.
    mesh: on which a run is resumed too, on simulated devices, and compared in ulps; {} is none.
    """
    begun, made, draw = time.monotonic(), small(experiment), random.Random(seed)
    impure = changed_batches(made.data)
    if impure:
        print(impure)
        return False
    with tempfile.TemporaryDirectory(prefix="jaxtrain-verify-resume-") as place:
        whole, rows, differences, chains = Path(place) / "whole", list[str](), list[str](), 0
        if code := _start(command, _Plan(str(whole))):
            raise ConfigError(f"the run that is not killed ended with exit code {code}; its output is above")
        expected = ended(whole)
        print(
            f"{STEPS} steps, {len(expected[0])} leaves, {len(expected[1])} lines of metrics; {kills} kills, seed {seed}"
        )
        left = kills
        while left or not chains:
            folder, chains, own = Path(place) / f"run-{chains + 1}", chains + 1, 0
            while True:
                plan = _drawn(draw, folder) if left and own < STEPS else _Plan(str(folder))
                code = _start(command, plan)
                killed = bool(plan.by) and code in (-plan.by, ExitCode.RETRY)
                left, own = left - killed, own + killed
                if not killed and code == ExitCode.FINISHED:
                    break
                if not killed:
                    raise ConfigError(f"a process ended with exit code {code}; its output is above")
                rows.append(f"  run {chains}  {signal.Signals(plan.by).name:7}  {plan.phase}")
            differences += [f"run {chains}: {each}" for each in unlike(expected, ended(folder))]
        print("\n".join(sorted(set(f"{row}  × {rows.count(row)}" for row in rows))))
        if mesh:
            differences += _on_another_mesh(command, whole, mesh, expected)
    seconds = time.monotonic() - begun
    if differences:
        print(*differences[:20], sep="\n")
        print(
            f"\nThis experiment is not resumable: {len(differences)} differences after {kills} kills. "
            "Its batches are: something that is computed with is neither in the state nor a value of the experiment, "
            "such as a counter of Python in the task, the model or the optimizer."
        )
        return False
    print(f"\nAll {chains} runs, killed {kills} times, end bitwise as the one that was not killed ({seconds:.0f} s).")
    return True


def changed_batches(data: Pipeline) -> str:
    """Which batch is not the same when reading begins at it, of which field, and by which transform; "" if none."""
    found = _changed(data)
    if not found:
        return ""
    step, name = found
    by = "its source"
    for number in range(1, len(data.transforms) + 1):
        if _changed(replace(data, transforms=data.transforms[:number], batch_transforms=())):
            by = f"its transform {type(data.transforms[number - 1]).__name__}"
            break
    else:
        if data.batch_transforms and not _changed(replace(data, batch_transforms=())):
            by = f"one of its batch transforms ({', '.join(type(each).__name__ for each in data.batch_transforms)})"
    return (
        f"This experiment is not resumable: field {name!r} of the batch of step {step} is another one when reading "
        f"begins there: {by} keeps something in mind, or draws random numbers of its own. Let it depend on "
        "the example and on the generator that it is given alone"
    )


def _changed(data: Pipeline) -> tuple[int, str] | None:
    data = replace(data, threads=0, workers=0)
    steps = data.steps()
    in_order = [steps[step] for step in range(4)]
    for step in (3, 1, 2):
        again = data.steps(start=step)[0]
        for name, x in in_order[step].items():
            if not _equal(np.asarray(x), np.asarray(again[name])):
                return step, name
    return None


def _drawn(draw: random.Random, folder: Path) -> _Plan:
    by = signal.SIGTERM if draw.random() < 0.25 else signal.SIGKILL
    phase = draw.choice([phase for phase in Clock.PHASES if phase != "other"])
    most = {"data": 4, "step": 8}.get(phase, 2)
    return _Plan(str(folder), int(by), phase, draw.randint(1, most), draw.choice((0.0, draw.random() / 20)))


def _start(command: Sequence[str], plan: _Plan, devices: int = 1) -> int:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip()
    environment = {**os.environ, PLAN: json.dumps(vars(plan)), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode not in (0, -plan.by, ExitCode.RETRY):
        print(done.stdout[-2000:], done.stderr[-4000:], sep="\n", file=sys.stderr)
    return done.returncode


Ended = tuple[dict[str, np.ndarray], list[dict[str, Any]]]
"""The leaves of the last state, and the lines of metrics without what depends on the clock."""


def ended(folder: Path, steps: int = STEPS) -> Ended:
    """What a run came to in `folder`. Raises ConfigError where it has no checkpoint of its last step."""
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        kinds = {name: kind for name, kind in checkpoints.leaves(steps).items() if "[0" not in kind}
        keys = {name for name, kind in kinds.items() if kind.startswith("key<")}
        arrays = checkpoints.arrays(steps, {name: _shape(kind) for name, kind in kinds.items() if name not in keys})
    lines = [
        {name: value for name, value in line.items() if name not in _OF_THE_CLOCK and not name.startswith("seconds_")}
        for line in read_metrics(folder)
    ]
    return {name: np.asarray(x) for name, x in arrays.items()}, lines


def _shape(kind: str) -> jax.ShapeDtypeStruct:
    dtype, _, shape = kind.rstrip("]").partition("[")
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(tuple(int(n) for n in shape.split(",") if n), np.dtype(dtype), sharding=place)


def unlike(expected: Ended, found: Ended) -> list[str]:
    """What is not bitwise the same: the first line of metrics, their number, and leaves."""
    lines = []
    for before, after in zip(expected[1], found[1], strict=False):
        names = [name for name in before if before[name] != after.get(name) and before[name] == before[name]]
        if names:
            lines.append(f"metrics of step {before['step']} ({before['split']}): {', '.join(names)}")
            break  # those after it follow from it
    if len(expected[1]) != len(found[1]):
        lines.append(f"{len(found[1])} lines of metrics, not {len(expected[1])}")
    leaves = [name for name, x in expected[0].items() if not _equal(x, found[0][name])]
    return lines + ([f"{len(leaves)} leaves, first {leaves[0]}"] if leaves else [])


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    same = one.dtype == other.dtype and one.shape == other.shape
    return same and (one.tolist() == other.tolist() if one.dtype.hasobject else one.tobytes() == other.tobytes())


def _on_another_mesh(command: Sequence[str], whole: Path, mesh: Mapping[str, int], expected: Ended) -> list[str]:
    """Resume a copy that was killed on another mesh; print the difference."""
    folder = whole.with_name("mesh")
    _start(command, _Plan(str(folder), int(signal.SIGKILL), "step", 14))
    code = _start(command, _Plan(str(folder), mesh=mesh), devices=int(np.prod(list(mesh.values()))))
    shown = " ".join(f"{axis} {size}" for axis, size in mesh.items())
    if code:
        return [f"resumed on {shown}: exit code {code}"]
    found = ended(folder)[0]
    apart = {name: ulps(x, found[name]) for name, x in expected[0].items() if x.dtype == np.float32}
    most = max(apart, key=lambda name: apart[name])
    count = sum(bool(each) for each in apart.values())
    print(f"resumed on {shown}: {count} of {len(apart)} leaves differ; {most} by {apart[most]:,} ulps of its largest")
    return []


def ulps(one: np.ndarray, other: np.ndarray) -> int:
    """The largest difference of two f32 arrays, in units in the last place of the largest element."""
    if not one.size:
        return 0
    unit = np.spacing(np.abs(one).max().astype(np.float32))
    return int(np.abs(one.astype(np.float64) - other.astype(np.float64)).max() / unit)
