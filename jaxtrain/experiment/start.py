"""Where the first parameters come from, if they are not drawn. Not here: reading them."""

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
from jaxtrain.experiment.saved import best_first, faults, none_is_good, saved_steps, scores_by_step

SavedStep = NonNegativeInt | Literal["best", "latest"]


@dataclass(frozen=True)
class Start(Checked):
    """The parameters of another run, or of a file, in place of initial ones:

        start=Start("runs/first", step="best", only=("blocks/*", "embedding/*"))

    Optimizer state, step and random keys begin anew. The content of what is read is part of the fingerprint, the path
    is not.
    """

    source: str = field(metadata=NOT_IN_FINGERPRINT)
    """A run folder, whose averaged parameters are taken where it kept them; a file .npz or .safetensors; or a folder of
    Hugging Face's `transformers`, with `config.json` and `model.safetensors`."""
    step: SavedStep = field(default="latest", metadata=NOT_IN_FINGERPRINT)
    """Of a run: a saved step, the latest, or the best by its `keep.best`."""
    only: tuple[str, ...] = ("*",)
    """Path patterns of the parameters and the model state to set; the source must have each array that they match."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """Beginnings of paths in the source, and what stands here in place of each: `{"encoder": "blocks"}`; the beginning
    `""` is that of all paths.
    """
    cast: bool = False
    """Whether arrays of another dtype are cast; else they are refused."""

    def __post_init__(self) -> None:
        """Raises ConfigError where nothing is to be set, and for a step of a file."""
        if not self.only:
            raise ConfigError('start.only: it is empty, so that nothing would be set: ("*",) sets all')
        path = Path(self.source)
        kind = "a file" if path.suffix in (".npz", ".safetensors") else is_hugging_face(path) and "a folder of weights"
        if self.step != "latest" and kind:
            raise ConfigError(f"start.step: {path} is {kind}, which has no steps: leave out step={self.step!r}")

    def identity(self) -> str:
        """A hash of the arrays that are read. Raises ConfigError where the source does not exist."""
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
    """The number of a saved step of a run, of the latest and the best the newest and best that is good.

    Raises ConfigError where there is none, DamagedCheckpoint for a damaged step that was asked for by its number.
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
        order = best_first(scores_by_step(folder, metric, steps), mode)
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
        if (fault := _fault(str(folder / str(each)), _stats(folder / str(each)))) is None:
            return each
        damaged.append(fault)
    raise none_is_good(folder, damaged) if step in ("latest", "best") else damaged[0]


@functools.cache
def _fault(folder: str, files: tuple[tuple[str, int, int], ...]) -> DamagedCheckpoint | None:
    """The first damage of a checkpoint, said once; files that have not changed since are not read again."""
    fault = next(faults(Path(folder)), None)
    if fault is not None:
        logging.getLogger("jaxtrain.runs").warning("start: a damaged checkpoint is not used: %s", fault)
    return fault


def _stats(folder: Path, patterns: tuple[str, ...] = ("**/*",)) -> tuple[tuple[str, int, int], ...]:
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    files = sorted(found) if folder.is_dir() else [folder]
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
