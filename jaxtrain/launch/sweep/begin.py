"""Begins a sweep in a folder, or checks that a folder holds the same one. Not here: running its trials."""

import json
import os
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtrain.base.config import difference
from jaxtrain.base.errors import ConfigError, cannot_write
from jaxtrain.base.files import json_text, read_json, write_json
from jaxtrain.reports.sweep.read import SWEEP_FILE, Sweep, read_sweep
from jaxtrain.runs.lock import create_exclusively


def begin_sweep(wanted: Sweep) -> Sweep:
    """The sweep in `wanted.folder`, created if there is none.

    The number of draws may differ from that of the folder, whose file then holds the larger one. Raises ConfigError
    where the folder holds another sweep, naming what differs, or something else.
    """
    folder, file = wanted.folder, wanted.folder / SWEEP_FILE
    try:
        left = {path.name for path in folder.iterdir()} - {"logs"} if folder.is_dir() else set()  # a launcher's
        if not file.is_file() and any(not name.startswith(".") for name in left):
            raise ConfigError(f"{folder} exists and is not a sweep: choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
        made = create_exclusively(file, (json_text(as_saved(wanted)) + "\n").encode(), secrets.token_hex(16))
        if made is not None:
            os.close(made)
        else:
            found = read_sweep(folder)
            check_same_sweep(found, wanted)
            if wanted.space.draws > found.space.draws:
                saved = read_json(file)
                write_json(file, {**saved, "space": {**saved["space"], "draws": wanted.space.draws}})
    except OSError as error:
        raise cannot_write(f"the sweep's folder {folder}", error) from error
    return replace(read_sweep(folder), space=wanted.space)


def check_same_sweep(found: Sweep, wanted: Sweep) -> None:
    """Raises ConfigError, with one line for each difference, where two sweeps are not the same search."""
    if lines := difference(_facts(found), _facts(wanted)):
        raise ConfigError(
            f"{found.folder} is another sweep; resume it with the same command, or choose another --out. What differs "
            f"(folder → now):\n{lines}"
        )


def as_saved(sweep: Sweep) -> dict[str, Any]:
    """The content of sweep.json."""
    names = ("experiment", "flags", "fixed", "metric", "mode", "best", "config")
    return {"space": sweep.space.json(), **{name: getattr(sweep, name) for name in names}}


def _facts(sweep: Sweep) -> dict[str, Any]:
    file, _, function = sweep.experiment.rpartition(":")
    space = sweep.space
    axes = {axis.path: str(axis).removeprefix(axis.path).strip(" =") for axis in space.axes}
    judged = {"metric": sweep.metric, "mode": sweep.mode, "best": sweep.best}
    found = {"experiment": f"{Path(file).name}:{function}", "method": space.method, "seed of the draws": space.seed}
    fixed = {f"flag {path}": value for path, value in sweep.fixed.items()}
    config = {path: value for path, value in sweep.config.items() if path not in axes}
    return json.loads(json_text({**found, **judged, **fixed, **axes, **config}))  # as they come back from a file
