"""Reads the folder of a run's checkpoints, a subfolder per step: the steps, their scores, and which are damaged.

The rules for scores are here too: which value counts, and which is better. Not here: saving and restoring arrays, and
setting damaged checkpoints aside.
"""

import errno
import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxtrain.base.checksums import MANIFEST, Manifest, read_regular, unreadable
from jaxtrain.base.errors import ConfigError, Damaged, DamagedCheckpoint, cannot_write, nearest

RECORD, METRICS, STATE = "record/metadata", "metrics/metrics", "state"
"""Paths in a checkpoint: the record (what a run saves besides arrays), the scores, the arrays."""


def saved_steps(checkpoints: Path) -> list[int]:
    """The steps that a folder has checkpoints of, ascending, damaged ones too. Raises ConfigError for what it may not
    be asked, Retry where it does not answer.

    A checkpoint is renamed to its step when it is complete, so any other name is not a checkpoint.
    """
    try:
        paths = [path for path in checkpoints.iterdir() if path.name.isdecimal()]
        names = [path.name for path in paths if stat.S_ISDIR(_mode(path) or 0)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise cannot_write(f"the checkpoints in {checkpoints}", error, "read") from error
    return sorted(int(name) for name in names if name == str(int(name)))


def read_record(checkpoint: Path) -> dict[str, Any]:
    """The record file of a checkpoint: `record` (saved besides the arrays), `leaves` (dtype and shape of each array by
    path) and `sealed` (whether the checkpoint must have a manifest). Raises DamagedCheckpoint.
    """
    found = _read_object(checkpoint / RECORD)
    record, leaves = found.get("record"), found.get("leaves")
    if not (isinstance(record, dict) and isinstance(leaves, dict) and all(isinstance(x, str) for x in leaves.values())):
        raise DamagedCheckpoint(str(checkpoint / RECORD), None, "it is not a record of a checkpoint")
    return found


def read_scores(checkpoint: Path) -> dict[str, float]:
    """The finite scores of a checkpoint by name, {} without any. Raises DamagedCheckpoint."""
    file = checkpoint / METRICS
    try:
        if _mode(file) is None:
            return {}
    except OSError as error:
        raise checkpoint_fault(unreadable(file, error)) from error
    numbers = {name: score for name, score in _read_object(file).items() if isinstance(score, int | float)}
    return {name: float(score) for name, score in numbers.items() if math.isfinite(score)}


def scores_by_step(
    checkpoints: Path,
    metric: str | None,
    steps: list[int],
    damaged: Callable[[int, DamagedCheckpoint], None] = lambda step, fault: None,
) -> dict[int, float]:
    """The value of a metric at each of these steps that has one; `damaged` is called where it cannot be read."""
    found = {}
    for step in steps if metric is not None else []:
        try:
            found[step] = read_scores(checkpoints / str(step)).get(metric)
        except DamagedCheckpoint as fault:
            damaged(step, fault)
    return {step: score for step, score in found.items() if score is not None}


def best_first(scores: Mapping[int, float], mode: str) -> list[int]:
    """Steps in the order of their scores, the best first; of equal ones the later first."""
    sign = -1 if mode == "min" else 1
    return sorted(scores, key=lambda step: (sign * scores[step], step), reverse=True)


def is_better(score: float, scores: Mapping[int, float], mode: str) -> bool:
    """Whether a score is better than the scores of all steps."""
    best, sign = best_first(scores, mode)[:1], -1 if mode == "min" else 1
    return not best or sign * score > sign * scores[best[0]]


def score_of(metric: str | None, metrics: Mapping[str, float] | None) -> float | None:
    """The value of `keep.best` in the metrics of an evaluation; None without metrics or if it is not finite. Raises
    ConfigError where they lack it.
    """
    if metric is None or not metrics:
        return None
    if metric not in metrics:
        raise ConfigError(f"Retention(best={metric!r}) names none of the metrics{nearest(metric, metrics)}")
    # All comparisons with NaN are False, so it might be kept as the best.
    return float(metrics[metric]) if math.isfinite(metrics[metric]) else None


def ranked(checkpoints: Path, metric: str | None, mode: str, steps: list[int]) -> list[int]:
    """Those of the saved `steps` that have a value of a metric, the best first ("min" or "max").

    A run may be resumed with another metric than its older checkpoints have.
    """
    return best_first(scores_by_step(checkpoints, metric, steps), mode)


def faults(checkpoint: Path, most: int | None = None) -> Iterator[DamagedCheckpoint]:
    """The damaged files of a checkpoint.

    A checkpoint of a version that wrote no manifest is good if its record and the indexes of its arrays can be read.
    most: larger files, in bytes, are compared by size only.
    """
    try:
        manifest = Manifest.read(checkpoint)
        if manifest is not None:
            yield from (checkpoint_fault(fault) for _, fault in manifest.faults(checkpoint, most))
        else:
            check_unsealed(checkpoint)
    except Damaged as fault:
        yield checkpoint_fault(fault)


def check_unsealed(checkpoint: Path) -> None:
    """Raises DamagedCheckpoint for a checkpoint without a manifest if it once had one, or cannot be restored."""
    if read_record(checkpoint).get("sealed"):
        raise DamagedCheckpoint(str(checkpoint / MANIFEST), None, "it is missing")
    _read_object(checkpoint / STATE / "_METADATA")
    index = checkpoint / STATE / "manifest.ocdbt"
    try:
        empty = not read_regular(index)
    except OSError as error:
        raise checkpoint_fault(unreadable(index, error)) from error
    if empty:
        raise DamagedCheckpoint(str(index), None, "it is empty")


def checkpoint_fault(fault: Damaged) -> DamagedCheckpoint:
    """A Damaged as a DamagedCheckpoint."""
    return DamagedCheckpoint(fault.file, fault.record, fault.why)


def none_is_good(checkpoints: Path, found: list[DamagedCheckpoint]) -> DamagedCheckpoint:
    """The error for a folder without any good checkpoint. found: the first fault of each checkpoint, newest first."""
    others = "".join(f"\n  {fault}" for fault in found[1:4])
    why = f"{found[0].why}{others}\nno checkpoint in {checkpoints} is good, and none was moved"
    return DamagedCheckpoint(found[0].file, None, why)


def _mode(path: Path) -> int | None:
    """The kind of a file or folder; None where there is none. Raises OSError where that is not known: of a stale file
    handle `is_dir` of Python 3.14 is false, which would be a checkpoint less.
    """
    try:
        return os.stat(path).st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def _read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises DamagedCheckpoint for anything else."""
    try:
        found = json.loads(read_regular(file))
    except OSError as error:
        raise checkpoint_fault(unreadable(file, error)) from error
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(str(file), None, f"it is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise DamagedCheckpoint(str(file), None, "it is not a JSON object")
    return found
