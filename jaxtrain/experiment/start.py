"""Where the first parameters come from, if they are not drawn. Not here: reading them."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jaxtrain.base.config import NOT_IN_FINGERPRINT
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.files import digest, file_sha256, read_json
from jaxtrain.base.ranges import Checked, NonNegativeInt

SavedStep = NonNegativeInt | Literal["best", "latest"]


@dataclass(frozen=True)
class Start(Checked):
    """The parameters of another run, or of a file, in place of initial ones:

        start=Start("runs/first", step="best", only=("blocks/*", "embedding/*"))

    Optimizer state, step and random keys begin anew. The content of what is read is part of the fingerprint, the path
    is not.
    """

    source: str = field(metadata=NOT_IN_FINGERPRINT)
    """A run folder, whose averaged parameters are taken where it kept them; or a file .npz or .safetensors."""
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
        if self.step != "latest" and Path(self.source).suffix in (".npz", ".safetensors"):
            raise ConfigError(f"start.step: {self.source} is a file, which has no steps: leave out step={self.step!r}")

    def identity(self) -> str:
        """A hash of the arrays that are read. Raises ConfigError where the source does not exist."""
        folder = Path(self.source)
        if folder.is_dir():
            folder = folder / "checkpoints" / str(saved_step(folder, self.step))
        if not folder.exists():
            raise ConfigError(f"start: {folder} does not exist")
        files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else [folder]
        stats = tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
        return _digest(stats, str(folder))


@functools.cache
def _digest(files: tuple[tuple[str, int, int], ...], folder: str) -> str:
    parts = (f"{Path(name).relative_to(Path(folder).parent)}:{file_sha256(Path(name))}" for name, _, _ in files)
    return digest("\n".join(parts), length=16)


def saved_step(run: Path, step: SavedStep) -> int:
    """The number of a saved step of a run. Raises ConfigError where there is none."""
    if not (run / "experiment.json").is_file():
        raise ConfigError(f"start: {run} is not a run: it has no experiment.json")
    steps = saved_steps(run / "checkpoints")
    if step == "best":
        try:
            keep = read_json(run / "experiment.json")["experiment"]["runtime"]["keep"]
            metric, mode = keep["best"], keep["mode"]
        except (LookupError, TypeError):
            raise ConfigError(
                f"start: {run / 'experiment.json'} has no experiment.runtime.keep of best and mode"
            ) from None
        if (best := best_step(run / "checkpoints", metric, mode)) is None:
            raise ConfigError(
                f"start: {run} has no best checkpoint: it was not trained with --keep.best, or saved none"
            )
        return best
    if not steps or (step != "latest" and step not in steps):
        which = "" if step == "latest" else f" of step {step}"
        raise ConfigError(f"start: {run} has no checkpoint{which}: there are {steps}")
    return steps[-1] if step == "latest" else step


def saved_steps(checkpoints: Path) -> list[int]:
    """The steps of the durable checkpoints in a folder, ascending."""
    return sorted(int(path.name) for path in checkpoints.glob("*") if re.fullmatch(r"[0-9]{1,18}", path.name))


def best_step(checkpoints: Path, metric: str | None, mode: str) -> int | None:
    """The saved step with the best value of a metric ("min" or "max"), the later of equals.

    None where no checkpoint has a value of this metric: a run may be resumed with another than its older ones have.
    """
    scores = {
        step: _score(checkpoints / str(step) / "metrics" / "metrics", metric) for step in saved_steps(checkpoints)
    }
    sign = -1 if mode == "min" else 1
    known = {step: (sign * score, step) for step, score in scores.items() if score is not None}
    return max(known, key=lambda step: known[step], default=None)


def _score(file: Path, metric: str | None) -> float | None:
    """The value of a metric in the file of a checkpoint; None without one, and where the file is damaged."""
    try:
        saved = read_json(file) if file.is_file() else {}
    except ConfigError:
        return None
    score = saved.get(metric) if isinstance(saved, dict) and isinstance(metric, str) else None
    return score if isinstance(score, int | float) and not isinstance(score, bool) else None
