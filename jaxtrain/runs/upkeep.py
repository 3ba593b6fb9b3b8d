"""Maintenance of a run's checkpoints: list, verify, prune, restore to a step. Not here: flags."""

import time
from collections.abc import Iterator
from pathlib import Path

from jaxtrain.base.errors import ConfigError, Damaged, DamagedCheckpoint
from jaxtrain.base.text import duration, number
from jaxtrain.experiment.experiment import Retention
from jaxtrain.experiment.saved import faults, read_scores, saved_steps, scores_by_step
from jaxtrain.runs.retention import delete, kept, set_aside


def checkpoints_of(run: Path) -> Path:
    """The folder of a run's checkpoints. Raises ConfigError for a folder that is not a run."""
    if not (run / "experiment.json").is_file():
        raise ConfigError(f"{run} is not a run: it has no experiment.json")
    return run / "checkpoints"


def listed(run: Path) -> Iterator[str]:
    """A line for each checkpoint: step, size, age, metrics, and whether it is good, for which it is read."""
    folder = checkpoints_of(run)
    for step in saved_steps(folder):
        checkpoint = folder / str(step)
        size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
        age = duration(max(0.0, time.time() - checkpoint.stat().st_mtime))
        try:
            scores = "".join(f"  {name} {number(score)}" for name, score in read_scores(checkpoint).items())
        except Damaged:
            scores = ""
        fault = next(faults(checkpoint), None)
        health = "good" if fault is None else f"damaged: {fault}"
        yield f"step {step}  {size / 1e6:,.1f} MB  {age} old{scores}  {health}"


def damage(run: Path) -> list[DamagedCheckpoint]:
    """Every damaged file of every checkpoint of a run."""
    folder = checkpoints_of(run)
    return [fault for step in saved_steps(folder) for fault in faults(folder / str(step))]


def prune(run: Path, keep: Retention) -> Iterator[str]:
    """Delete the checkpoints that `keep` does not select, a line for each. The newest good one is always kept."""
    folder = checkpoints_of(run)
    steps = saved_steps(folder)
    stay = kept(steps, scores_by_step(folder, keep.best, steps), keep) if steps else set()
    if not any(is_good(folder, step) for step in stay):
        good = next((step for step in reversed(steps) if step not in stay and is_good(folder, step)), None)
        if good is not None:
            yield f"step {good} stays: it is the newest good one"
            stay.add(good)
    for step in steps:
        if step not in stay:
            delete(folder / str(step))
            yield f"step {step} deleted"


def restore_to(run: Path, step: int) -> Iterator[str]:
    """Set aside every checkpoint later than `step`, a line for each, so that the run resumes from `step`.

    Raises ConfigError where there is no such step, DamagedCheckpoint where it is damaged; then nothing is moved.
    """
    folder = checkpoints_of(run)
    steps = saved_steps(folder)
    if step not in steps:
        raise ConfigError(f"no checkpoint of step {step} in {folder}; there are {steps}")
    for fault in faults(folder / str(step)):
        raise fault
    for later in reversed([each for each in steps if each > step]):  # newest first: a kill leaves a run that resumes
        yield f"step {later} is set aside in {set_aside(folder / str(later), run / 'set_aside')}"


def is_good(checkpoints: Path, step: int) -> bool:
    """Whether a checkpoint is undamaged."""
    return next(faults(checkpoints / str(step)), None) is None
