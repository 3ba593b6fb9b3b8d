"""Starting from the parameters of another run or a file. Not here: reading the arrays."""

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jaxtrain.base.config import NOT_IN_FINGERPRINT
from jaxtrain.base.errors import ConfigError, DamagedCheckpoint
from jaxtrain.base.files import digest, file_sha256, read_json
from jaxtrain.base.ranges import Checked, NonNegativeInt
from jaxtrain.experiment.saved import faults, none_is_good, ranked, saved_steps

SavedStep = NonNegativeInt | Literal["best", "latest"]


@dataclass(frozen=True)
class Start(Checked):
    """Begin with the parameters of another run, or of a file, instead of random ones:

        start=Start("runs/first", step="best", only=("blocks/*", "embedding/*"))

    Optimizer state, step and random keys are new. The content of the source is part of the fingerprint, its path is
    not.
    """

    source: str = field(metadata=NOT_IN_FINGERPRINT)
    """A run folder, whose averaged parameters are taken where it kept them; a file .npz or .safetensors; or a folder of
    Hugging Face's `transformers`, with `config.json` and `model.safetensors`."""
    step: SavedStep = field(default="latest", metadata=NOT_IN_FINGERPRINT)
    """For a run folder: a saved step, "latest", or "best" by the run's `keep.best`."""
    only: tuple[str, ...] = ("*",)
    """Path patterns of the parameters and model state to set; the source must have every array that they match."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """Prefixes of paths in the source, each with its replacement here: `{"encoder": "blocks"}`; the prefix `""` is that
    of all paths.
    """
    cast: bool = False
    """Whether arrays of another float dtype are cast; else they are refused."""

    def __post_init__(self) -> None:
        """Raises ConfigError where `only` is empty, and for a step of a file."""
        if not self.only:
            raise ConfigError('start.only: it is empty, so that nothing would be set: ("*",) sets all')
        path = Path(self.source)
        kind = "a file" if path.suffix in (".npz", ".safetensors") else is_hugging_face(path) and "a folder of weights"
        if self.step != "latest" and kind:
            raise ConfigError(f"start.step: {path} is {kind}, which has no steps: leave out step={self.step!r}")

    def identity(self) -> str:
        """A hash of the source's files. Raises ConfigError where they do not exist."""
        folder = Path(self.source)
        if is_hugging_face(folder):
            return _digest(
                _stats(folder, ("config.json", "*.safetensors", "*.index.json")), str(folder / "config.json")
            )
        if folder.is_dir():
            folder = folder / "checkpoints" / str(saved_step(folder, self.step))
        if not folder.exists():
            raise ConfigError(f"start: {folder} does not exist")
        return _digest(_stats(folder), str(folder))


def is_hugging_face(folder: Path) -> bool:
    """Whether a folder is in the format of Hugging Face's `transformers`."""
    return (folder / "config.json").is_file()


@functools.cache
def _digest(files: tuple[tuple[str, int, int], ...], folder: str) -> str:
    parts = (f"{Path(name).relative_to(Path(folder).parent)}:{file_sha256(Path(name))}" for name, _, _ in files)
    return digest("\n".join(parts), length=16)


def saved_step(run: Path, step: SavedStep) -> int:
    """The number of a saved step of a run; "latest" and "best" mean the newest and the best undamaged checkpoint.

    Raises ConfigError where there is none, DamagedCheckpoint for a damaged step that was given by its number.
    """
    if not (run / "experiment.json").is_file():
        raise ConfigError(f"start: {run} is not a run: it has no experiment.json")
    folder = run / "checkpoints"
    steps = saved_steps(folder)
    if step == "best":
        try:
            keep = read_json(run / "experiment.json")["experiment"]["runtime"]["keep"]
            metric, mode = keep["best"], keep["mode"]
        except (LookupError, TypeError):
            raise ConfigError(
                f"start: {run / 'experiment.json'} has no experiment.runtime.keep of best and mode"
            ) from None
        order = ranked(folder, metric, mode, steps)
        if not order:
            raise ConfigError(
                f"start: {run} has no best checkpoint: it was not trained with --keep.best, or saved none"
            )
    elif not steps or (step != "latest" and step not in steps):
        which = "" if step == "latest" else f" of step {step}"
        raise ConfigError(f"start: {run} has no checkpoint{which}: there are {steps}")
    else:
        order = steps[::-1] if step == "latest" else [step]
    damaged = []
    for each in order:
        if (fault := _first_damage(str(folder / str(each)), _stats(folder / str(each)))) is None:
            return each
        damaged.append(fault)
    raise none_is_good(folder, damaged) if step in ("latest", "best") else damaged[0]


@functools.cache
def _first_damage(folder: str, files: tuple[tuple[str, int, int], ...]) -> DamagedCheckpoint | None:
    """The first damage of a checkpoint, which is logged. files: `_stats`, so that unchanged files are read once."""
    fault = next(faults(Path(folder)), None)
    if fault is not None:
        logging.getLogger("jaxtrain.runs").warning("start: a damaged checkpoint is not used: %s", fault)
    return fault


def _stats(folder: Path, patterns: tuple[str, ...] = ("**/*",)) -> tuple[tuple[str, int, int], ...]:
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    files = sorted(found) if folder.is_dir() else [folder]
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
