"""The folder of a run's checkpoints, a subfolder per step: which steps there are, their scores, which are good.

Only the folder is read. Not here: saving and restoring arrays, and moving what is damaged.
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
from jaxtrain.base.errors import Damaged, DamagedCheckpoint, cannot_write

RECORD, METRICS, STATE = "record/metadata", "metrics/metrics", "state"
"""What a step's folder holds: what a run needs to know besides its arrays, scores, arrays."""


def saved_steps(checkpoints: Path) -> list[int]:
    """The steps that a folder has checkpoints of, ascending, damaged ones too. Raises ConfigError for what it may not
    be asked, Retry where it does not answer.

    A checkpoint takes the name of its step when it is complete, so that all other names are of no checkpoint.
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
    """`record` (what a run keeps), `leaves` (dtype and shape by path) and `sealed` (whether there has to be a
    manifest) of a checkpoint. Raises DamagedCheckpoint.
    """
    found = _read(checkpoint / RECORD)
    record, leaves = found.get("record"), found.get("leaves")
    if not (isinstance(record, dict) and isinstance(leaves, dict) and all(isinstance(x, str) for x in leaves.values())):
        raise DamagedCheckpoint(str(checkpoint / RECORD), None, "it is no record of a checkpoint")
    return found


def read_scores(checkpoint: Path) -> dict[str, float]:
    """The finite scores of a checkpoint by name, {} without any. Raises DamagedCheckpoint."""
    file = checkpoint / METRICS
    try:
        if _mode(file) is None:
            return {}
    except OSError as error:
        raise checkpoint_fault(unreadable(file, error)) from error
    numbers = {name: score for name, score in _read(file).items() if isinstance(score, int | float)}
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
    """Steps by their scores, the best first, and of equals the later."""
    sign = -1 if mode == "min" else 1
    return sorted(scores, key=lambda step: (sign * scores[step], step), reverse=True)


def best_step(checkpoints: Path, metric: str | None, mode: str) -> int | None:
    """The saved step with the best value of a metric ("min" or "max"), the later of equals.

    None where no checkpoint has a value of this metric: a run may be resumed with another than its older ones have.
    """
    order = best_first(scores_by_step(checkpoints, metric, saved_steps(checkpoints)), mode)
    return order[0] if order else None


def faults(checkpoint: Path, most: int | None = None) -> Iterator[DamagedCheckpoint]:
    """All that is damaged in a checkpoint, file by file.

    A checkpoint of a version that wrote no manifest is good if its record and the indexes of its arrays can be read.
    most: files of more bytes are compared by size only.
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
    """Raises DamagedCheckpoint for a checkpoint without a manifest that lost it, or cannot be restored."""
    if read_record(checkpoint).get("sealed"):
        raise DamagedCheckpoint(str(checkpoint / MANIFEST), None, "it is missing")
    _read(checkpoint / STATE / "_METADATA")
    index = checkpoint / STATE / "manifest.ocdbt"
    try:
        empty = not read_regular(index)
    except OSError as error:
        raise checkpoint_fault(unreadable(index, error)) from error
    if empty:
        raise DamagedCheckpoint(str(index), None, "it is empty")


def checkpoint_fault(fault: Damaged) -> DamagedCheckpoint:
    """The damage of a file, said of a checkpoint."""
    return DamagedCheckpoint(fault.file, fault.record, fault.why)


def none_is_good(checkpoints: Path, found: list[DamagedCheckpoint]) -> DamagedCheckpoint:
    """The error for a folder in which every checkpoint that was looked at is damaged; the last fault found is first."""
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


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_regular(file))
    except OSError as error:
        raise checkpoint_fault(unreadable(file, error)) from error
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(str(file), None, f"it is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise DamagedCheckpoint(str(file), None, "it is no JSON object")
    return found
