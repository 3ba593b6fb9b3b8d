"""Maintenance of a run's checkpoints: list, verify, prune, restore to a step. Not here: flags."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from jaxtrain.base.errors import ConfigError, Damaged, DamagedCheckpoint
from jaxtrain.base.files import read_json
from jaxtrain.base.text import duration, number
from jaxtrain.experiment.experiment import Retention
from jaxtrain.experiment.run_file import RUN_FILE, read_saved
from jaxtrain.experiment.saved import faults, read_scores, saved_steps, scores_by_step
from jaxtrain.runs.bucket import Bucket
from jaxtrain.runs.mirror import attempt
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
    bucket, note = _mirror(run)
    if note:
        yield note
    if bucket is not None:
        for step in attempt(bucket, _not_kept, bucket, folder, keep):
            attempt(bucket, bucket.remove, step)
            yield f"step {step} deleted in {bucket.url}"


def restore_to(run: Path, step: int) -> Iterator[str]:
    """Set aside every checkpoint later than `step`, from which the run then resumes, a line for each; on its mirror
    too, from which a step is fetched that is not here.

    Raises ConfigError where there is no such step, DamagedCheckpoint where it is damaged; then nothing is moved.
    """
    folder, (bucket, note) = checkpoints_of(run), _mirror(run)
    steps = saved_steps(folder)
    if step not in steps and bucket is not None and attempt(bucket, bucket.fetch, step, folder):
        yield f"step {step} is fetched from {bucket.url}"
        steps = saved_steps(folder)
    if step not in steps:
        raise ConfigError(f"no checkpoint of step {step} in {folder}; there are {steps}")
    for fault in faults(folder / str(step)):
        raise fault
    for later in reversed([each for each in steps if each > step]):  # newest first: a kill leaves a run that resumes
        yield f"step {later} is set aside in {set_aside(folder / str(later), run / 'set_aside')}"
    if note:
        yield note
    if bucket is not None:
        for later in reversed([each for each in attempt(bucket, bucket.steps) if each > step]):
            yield f"step {later} is set aside in {attempt(bucket, bucket.set_aside, later, 'set_aside')}"


def _mirror(run: Path) -> tuple[Bucket | None, str]:
    """The bucket that mirrors the checkpoints of a run, and what to say where it is left as it is.

    A copy of a run's folder has the same mirror, which belongs to the run: only where that was trained is it touched.
    """
    saved = read_json(run / RUN_FILE)
    if not isinstance(saved, dict) or "experiment" not in saved:
        return None, ""
    saved = read_saved(run)
    runtime = saved["experiment"].get("runtime")
    url = runtime.get("checkpoints") if isinstance(runtime, dict) else None
    if not isinstance(url, str):
        return None, ""
    if os.path.realpath(saved.get("folder", "")) != os.path.realpath(run):
        return None, f"{url} stays as it is: this folder is not where the run was trained, {saved.get('folder')}"
    bucket = Bucket(url, saved["fingerprint"])
    return (bucket if attempt(bucket, bucket.check_owner, False) else None), ""


def _not_kept(bucket: Bucket, checkpoints: Path, keep: Retention) -> list[int]:
    """The steps on a bucket that `keep` does not want. Those that are here too stay, and the newest complete one."""
    there, here = bucket.steps(), saved_steps(checkpoints)
    scores = bucket.scores(there, keep.best) | scores_by_step(checkpoints, keep.best, here)
    stay = kept(sorted({*there, *here}), scores, keep) if there else set()
    newest = next((step for step in reversed(there) if bucket.is_complete(step)), -1)
    return [step for step in there if step not in {*stay, *here, newest}]


def is_good(checkpoints: Path, step: int) -> bool:
    """Whether a checkpoint is undamaged."""
    return next(faults(checkpoints / str(step)), None) is None
