"""Which checkpoints are kept, and deleting others or setting them aside, atomically. Not here: saving them."""

import itertools
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxtrain.experiment.experiment import Retention
from jaxtrain.experiment.saved import best_first

LEFTOVERS = ("*.saving.tmp", "*.deleting.tmp", "*.orbax-checkpoint-tmp*")
"""Patterns of what a killed process leaves in the folder of checkpoints; the last one was used by earlier versions."""


def saving(checkpoint: Path) -> Path:
    """The temporary folder that is renamed to this checkpoint once it is complete."""
    return checkpoint.with_name(f"{checkpoint.name}.saving.tmp")


def kept(steps: Sequence[int], scores: Mapping[int, float], keep: Retention) -> set[int]:
    """The steps, of `steps` (ascending), that are kept. scores: the values of `keep.best` by step, all finite."""
    known = {step: scores[step] for step in steps if step in scores}
    best = best_first(known, keep.mode)[:1] if keep.best is not None else []
    every = [step for step in steps if keep.every is not None and step % keep.every == 0]
    return {*steps[-keep.last :], *every, *best}


def delete(checkpoint: Path) -> None:
    """Delete a checkpoint. It is renamed first, so that a partly deleted one is not taken for a checkpoint."""
    doomed = checkpoint.with_name(f"{checkpoint.name}.deleting.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(checkpoint, doomed)
    shutil.rmtree(doomed)


def set_aside(checkpoint: Path, folder: Path) -> Path:
    """Move a checkpoint, or a file, into a folder; a number is appended if the name is taken. Returns the new path."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        target = folder / (checkpoint.name if number == 1 else f"{checkpoint.name}-{number}")
        if not os.path.lexists(target):
            os.rename(checkpoint, target)
            return target
    raise AssertionError("unreachable")


def set_aside_no_file(path: Path) -> list[str]:
    """If the path of a run's file is something else, such as a folder or a dangling link, move that to damaged/.

    Returns a message about it, if so.
    """
    if path.is_file() or not os.path.lexists(path):
        return []
    kind = "a link to nothing" if path.is_symlink() else "no file"
    return [f"{path} is {kind}: it is set aside in {set_aside(path, path.parent / 'damaged')}"]


def remove_leftovers(checkpoints: Path) -> None:
    """Remove `LEFTOVERS`. No other process may be writing the folder."""
    for pattern in LEFTOVERS:
        for path in checkpoints.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)
