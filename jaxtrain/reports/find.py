"""Finds run folders below a folder, and reads what identifies them, whatever lies there. Imports no jax.

Links are not followed, so that loops of them end and no run is listed twice. Not here: the state of a run (`status`).
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxtrain.base.errors import ConfigError
from jaxtrain.reports.tail import read_bounded

LARGEST_RUN_FILE = 1 << 24
"""Bytes of an experiment.json that are read."""

DEEPEST = 8
"""Levels of folders that are searched."""

_OF_RUNS = {"experiment.json", "lock.json", "metrics.jsonl", "events.jsonl", "steps.bin"}

_OF_BUNDLES = {"manifest.json", "signature.json"}
"""Files of a bundle, which has an experiment.json too."""


def find_runs(place: Path, deepest: int = DEEPEST) -> Iterator[tuple[Path, str]]:
    """Each folder below `place`, or `place` itself, that is or was to be a run, and why it cannot be looked into, or
    "". In order of their names. Folders inside of runs, and hidden ones, are left out.
    """
    try:
        with os.scandir(place) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        yield place, error.strerror or str(error)
        return
    names = {entry.name for entry in entries}
    if names >= _OF_BUNDLES:
        return
    if not _OF_RUNS.isdisjoint(names):
        yield place, ""
        return
    for entry in entries:
        if entry.name.startswith(".") or not _is_folder(entry):
            continue
        if deepest > 0:
            yield from find_runs(place / entry.name, deepest - 1)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def read_run_file(folder: Path) -> dict[str, Any] | None:
    """The content of experiment.json, with only what a list of runs needs checked; None where there is none.

    Raises ConfigError where it is damaged; OSError where it cannot be read.
    """
    found = read_bounded(folder / "experiment.json", LARGEST_RUN_FILE + 1)
    if found is None:
        return None
    try:
        saved = json.loads(found[0])
    except (ValueError, RecursionError):
        saved = None
    experiment = saved.get("experiment") if isinstance(saved, dict) else None
    if not isinstance(experiment, dict) or not isinstance(saved, dict):
        raise ConfigError("experiment.json is not that of a run, or damaged")
    if type(experiment.get("steps")) is not int:
        raise ConfigError("experiment.json has no number of steps")
    return saved


def experiment_name(saved: Mapping[str, Any]) -> str:
    """The name of the experiment's file and, unless it is main, its function, as in digits or digits:wide; "" where
    the run was not begun from a file.
    """
    file, _, function = str(saved.get("origin") or "").rpartition(":")
    stem = file.replace("\\", "/").rpartition("/")[2].removesuffix(".py")
    return stem if function == "main" else f"{stem}:{function}" if stem else ""


def parent_of(saved: Mapping[str, Any]) -> str:
    """The run or file that the first parameters were taken from; "" for none."""
    start = saved["experiment"].get("start")
    return str(start.get("source", "")) if isinstance(start, dict) else ""


def sweep_of(folder: Path) -> str:
    """The folder of the sweep that a run is a trial of; "" for none."""
    above = folder.absolute().parent
    return next((str(each) for each in (above, above.parent) if (each / "sweep.json").is_file()), "")
