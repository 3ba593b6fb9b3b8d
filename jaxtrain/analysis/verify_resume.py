"""`jaxtrain verify-resume`: trains a shrunk experiment, kills and resumes it, and compares it with a run left alone.

Every run is a process of its own, which trains by `train` as always.
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

import numpy as np

from jaxtrain.analysis.outcome import Ended, ended, same_bits, ulps, unlike
from jaxtrain.base.errors import ConfigError, ExitCode
from jaxtrain.data import Pipeline, Source, Take, Transform
from jaxtrain.data.sources.base import Example
from jaxtrain.experiment.experiment import Experiment, Retention, Runtime
from jaxtrain.experiment.files import Origin
from jaxtrain.models.sizes import smaller
from jaxtrain.runs.clock import Clock
from jaxtrain.train import train

PLAN = "JAXTRAIN_VERIFY_RESUME"
"""The environment variable that tells a process what to do: a `_Plan` as JSON."""

STEPS, SAVE_EVERY, ROWS, PATIENCE = 12, 3, 8, 600
"""Updates of a run; updates between two saves; the most rows of a batch; seconds after which a process counts as hung.
"""


@dataclass(frozen=True)
class _Plan:
    """What one process does: train in `folder`, and kill itself `after` seconds from the nth beginning of a phase."""

    folder: str
    by: int = 0
    """The signal; 0 is none."""
    phase: str = ""
    times: int = 1
    """The n of the nth beginning."""
    after: float = 0.0
    mesh: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Shortened(Transform):
    """Crops rows of token ids, and other fields of the same length, to `kept`, and takes the ids modulo `vocab`."""

    field: str
    kept: int
    vocab: int

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        tokens = np.asarray(example[self.field])
        short = {name: x[: self.kept] if np.shape(x)[:1] == tokens.shape[:1] else x for name, x in example.items()}
        return {**short, self.field: (short[self.field].astype(np.int64) % self.vocab).astype(tokens.dtype)}


def small(experiment: Experiment) -> Experiment:
    """The experiment with a small model and small batches, with the same data and transforms, so that state which these
    keep between examples is noticed.
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
        runtime=Runtime(log_every=2, eval_every=4, save_every=SAVE_EVERY, keep=keep),
    )


def follow_plan(experiment: Experiment, origin: Origin) -> int | None:
    """Train by the plan in the environment; returns the exit code. None in a process without a plan."""
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
        setattr(kind, "__enter__", entered)  # noqa: B010, since assigning to a method fails the type check
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
    """Print whether runs that are killed and resumed end with the same bits as a run left alone; True if they do.

    command: starts a process that calls `follow_plan` with the same experiment.
    kills: the number of kills, at random moments in all phases; one in four is a SIGTERM, the others are SIGKILL.
    seed: of the moments.
    mesh: a mesh of simulated devices on which a run is resumed too, and compared in ulps; {} is none.
    """
    begun, made, draw = time.monotonic(), small(experiment), random.Random(seed)
    if impure := changed_batches(made.data):
        print(impure)
        return False
    with tempfile.TemporaryDirectory(prefix="jaxtrain-verify-resume-") as place:
        whole, rows, differences, left, chains = Path(place) / "whole", list[str](), list[str](), kills, 0
        if code := _run_plan(command, _Plan(str(whole))):
            raise ConfigError(f"the run that is not killed ended with exit code {code}; its output is above")
        expected = ended(whole, STEPS)
        print(
            f"{STEPS} steps, {len(expected[0])} leaves, {len(expected[1])} lines of metrics; {kills} kills, seed {seed}"
        )
        while left or not chains:
            chains += 1
            folder = Path(place) / f"run-{chains}"
            killed = _kill_and_resume(command, folder, draw, min(left, STEPS))
            left -= len(killed)
            rows += [f"  run {chains}  {signal.Signals(plan.by).name:7}  {plan.phase}" for plan in killed]
            differences += [f"run {chains}: {each}" for each in unlike(expected, ended(folder, STEPS))]
        print("\n".join(sorted(set(f"{row}  × {rows.count(row)}" for row in rows))))
        if mesh:
            differences += _on_another_mesh(command, whole, mesh, expected)
    if differences:
        print(*differences[:20], sep="\n")
        print(
            f"\nThis experiment is not resumable: {len(differences)} differences after {kills} kills. "
            "Its batches are resumable, so some state that affects the result is neither in the train state nor a "
            "field of the experiment, such as a Python counter in the task, the model or the optimizer."
        )
        return False
    seconds = time.monotonic() - begun
    print(f"\nAll {chains} runs, killed {kills} times, end bitwise as the one that was not killed ({seconds:.0f} s).")
    return True


def _kill_and_resume(command: Sequence[str], folder: Path, draw: random.Random, most: int) -> list[_Plan]:
    """Start a run again and again until it ends by itself, killed at most `most` times. Returns the plans by which it
    was killed.
    """
    killed: list[_Plan] = []
    while True:
        kill = _any_kill if killed else first_kill
        plan = kill(draw, folder) if len(killed) < most else _Plan(str(folder))
        code = _run_plan(command, plan)
        if plan.by and code in (-plan.by, ExitCode.RETRY):
            killed.append(plan)
        elif code == ExitCode.FINISHED:
            return killed
        else:
            raise ConfigError(f"a process ended with exit code {code}; its output is above")


def changed_batches(data: Pipeline) -> str:
    """A message naming the first batch that differs when reading begins there, its field and the transform that causes
    it; "" if all batches are pure functions of the step.
    """
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
            if not same_bits(np.asarray(x), np.asarray(again[name])):
                return step, name
    return None


def first_kill(draw: random.Random, folder: Path) -> _Plan:
    """A plan with a random moment after the first checkpoint is durable, so that one is restored."""
    # Each step enters the phase twice; the first checkpoint is durable once the second save begins.
    return _Plan(str(folder), _signal(draw), "step", draw.randint(4 * SAVE_EVERY + 1, 2 * STEPS), _after(draw))


def _any_kill(draw: random.Random, folder: Path) -> _Plan:
    phase = draw.choice([phase for phase in Clock.PHASES if phase != "other"])
    most = {"data": 4, "step": 8}.get(phase, 2)
    return _Plan(str(folder), _signal(draw), phase, draw.randint(1, most), _after(draw))


def _signal(draw: random.Random) -> int:
    return int(signal.SIGTERM if draw.random() < 0.25 else signal.SIGKILL)


def _after(draw: random.Random) -> float:
    return draw.choice((0.0, draw.random() / 20))


def _run_plan(command: Sequence[str], plan: _Plan, devices: int = 1) -> int:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip()
    environment = {**os.environ, PLAN: json.dumps(vars(plan)), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode not in (0, -plan.by, ExitCode.RETRY):
        print(done.stdout[-2000:], done.stderr[-4000:], sep="\n", file=sys.stderr)
    return done.returncode


def _on_another_mesh(command: Sequence[str], whole: Path, mesh: Mapping[str, int], expected: Ended) -> list[str]:
    """Kill a run, resume it on another mesh, and print the difference; returns failures."""
    folder = whole.with_name("mesh")
    _run_plan(command, _Plan(str(folder), int(signal.SIGKILL), "step", 14))
    code = _run_plan(command, _Plan(str(folder), mesh=mesh), devices=int(np.prod(list(mesh.values()))))
    shown = " ".join(f"{axis} {size}" for axis, size in mesh.items())
    if code:
        return [f"resumed on {shown}: exit code {code}"]
    found = ended(folder, STEPS)[0]
    apart = {name: ulps(x, found[name]) for name, x in expected[0].items() if x.dtype == np.float32}
    most = max(apart, key=lambda name: apart[name])
    count = sum(bool(each) for each in apart.values())
    print(f"resumed on {shown}: {count} of {len(apart)} leaves differ; {most} by {apart[most]:,} ulps of its largest")
    return []
