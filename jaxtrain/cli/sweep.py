"""`jaxtrain sweep`: many trainings of one experiment with other values. Not here: how they are run and recorded."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxtrain.base.config import flatten
from jaxtrain.base.errors import ExitCode
from jaxtrain.base.ranges import NonNegativeInt, PositiveInt
from jaxtrain.cli.launch import Flat, Rest, plain_experiment
from jaxtrain.cli.terminal import output_not_needed
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.experiment.files import load
from jaxtrain.experiment.override import flag_words, settings
from jaxtrain.launch.local import Processes
from jaxtrain.launch.sweep.begin import begin_sweep
from jaxtrain.launch.sweep.claims import Claims
from jaxtrain.launch.sweep.driver import Driver, to_stderr
from jaxtrain.launch.sweep.search import Adaptive, GridOrDraws
from jaxtrain.launch.sweep.slots import Slot, divide, visible_gpus
from jaxtrain.launch.sweep.wanted import Wanted, check_all
from jaxtrain.reports.sweep.read import Sweep, read_sweep
from jaxtrain.reports.sweep.text import sweep_text
from jaxtrain.runs.begin import new_folder

Place = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE[:FUNCTION]")]


def sweep(
    experiment: Place,
    wanted: Annotated[Wanted, Flat],
    rest: Rest,
    out: Path | None = None,
    workers: PositiveInt | None = None,
    restarts: NonNegativeInt = 5,
    wait: bool = True,
    program: str = f"{shlex.quote(sys.executable)} -m jaxtrain",
) -> int:
    """Train an experiment with many values, several at once, and show which were best; or resume such a sweep.

    The same command resumes it; run it again on the same --out, also on other hosts, and the drivers share the trials.
    Flags of all trials come after `--`.

    Args:
        out: The sweep's folder; a new one under sweeps/ by default.
        workers: How many trials run at once; by default as many as this host has devices for.
        restarts: How often a trial is run again after a preemption, or when it is killed.
        wait: Wait for the trials of other drivers, to take them over where a driver dies.
        program: The command that runs jaxtrain.
    """
    flags = list(rest.train_flags)
    base, read = plain_experiment(experiment, flags)
    plain, origin = load(experiment)
    slots = divide(workers, base.layout.mesh, visible_gpus(), _cores())
    space, (metric, mode, best) = check_all(wanted, base, read, slots)
    before = settings(plain)
    fixed = {path: value for path, value in settings(base).items() if path not in before or before[path] != value}
    place = f"{origin.file}:{origin.function}"
    name = origin.file.stem + ("" if origin.function == "main" else f"-{origin.function}")
    folder = out or new_folder(Path("sweeps") / name)
    config = {**flatten(base, identities=False), "steps": base.steps}
    made = begin_sweep(Sweep(folder, place, tuple(flags), fixed, space, metric, mode, best, config))
    output_not_needed()
    how = "highest" if mode == "max" else "lowest"
    to_stderr(
        f"{folder}: {len(space)} trials, {len(slots)} at once; the best has the {how} {metric} of its "
        f"{'best' if best else 'last'} evaluation"
    )
    code = _drive(made, slots, [*shlex.split(program), "train", experiment], base, flags, restarts, wait)
    found = read_sweep(folder)
    print(sweep_text(found))
    if code != ExitCode.FINISHED:
        again = shlex.join(["jaxtrain", *_with_out(sys.argv[1:], folder, out)])
        print(f"stopped; resume with:\n{again}", file=sys.stderr)
        return code
    failed = [trial for trial in found.trials if trial.state == "failed"]
    return ExitCode.FAILED if failed and len(failed) == len(found.trials) else ExitCode.FINISHED


def _drive(
    made: Sweep, slots: Sequence[Slot], start: list[str], base: Experiment, flags: list[str], restarts: int, wait: bool
) -> ExitCode:
    adaptive = made.space.method == "adaptive"
    search = Adaptive(made.folder, made.space, made.mode) if adaptive else GridOrDraws(made.space)

    def command(run: Path, values: Mapping[str, Any]) -> list[str]:
        words = [word for path, value in values.items() for word in flag_words(base, path, value)]
        return [*start, "--run", str(run), *flags, *words]

    with Processes() as processes, Claims(made.folder) as claims:
        return Driver(made, claims, processes, slots, search, command, restarts, wait, to_stderr).run()


def _cores() -> frozenset[int]:
    return frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def _with_out(words: list[str], folder: Path, out: Path | None) -> list[str]:
    """The words of this command with --out, before the flags of the trials."""
    end = words.index("--") if "--" in words else len(words)
    return [*words[:end], *([] if out else ["--out", str(folder)]), *words[end:]]
