"""A run is a folder that explains itself: this makes it, opens it, and gives back what it holds.

Not here: training. Everything after training needs only the folder.
"""

import functools
import importlib.metadata
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from jaxtrain.cluster import first, same_everywhere
from jaxtrain.errors import ConfigError
from jaxtrain.experiment import Experiment, Origin, difference, fingerprint, from_json, meaning, to_json
from jaxtrain.layout import Layout
from jaxtrain.runs.record import environment, read_json, read_metrics, write_json
from jaxtrain.step import Program, TrainState


@dataclass(frozen=True)
class Restored:
    """An experiment in the middle of its run."""

    experiment: Experiment
    program: Program
    state: TrainState
    batches: Iterator[Mapping[str, jax.Array]]
    """The batches of the steps that come next."""


class Run:
    """An existing run folder."""

    def __init__(self, folder: Path | str, code: ModuleType | None = None) -> None:
        """`code` is the experiment's file, loaded, if dataclasses of its own are in the experiment.

        Raises ConfigError if the folder holds no run.
        """
        self.folder, self._code = Path(folder), code
        if not (self.folder / "experiment.json").is_file():
            raise ConfigError(f"{self.folder} is not a run: it has no experiment.json{_runs_near(self.folder)}")
        self.saved: Mapping[str, Any] = read_json(self.folder / "experiment.json")

    @functools.cached_property
    def experiment(self) -> Experiment:
        """The experiment as it was last run, without running any code of the folder."""
        return from_json(self.saved["experiment"], self._code)

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl."""
        return read_metrics(self.folder / "metrics.jsonl")

    def restore(
        self,
        step: int | None = None,
        layout: Layout | None = None,
        devices: Sequence[jax.Device] | None = None,
    ) -> Restored:
        """Experiment, state and data after `step` updates (the latest saved by default), on these devices.

        `layout` replaces the run's own; any layout will do.
        """
        experiment = self.experiment if layout is None else replace(self.experiment, layout=layout)
        program = Program(experiment, devices)
        with self.checkpoints(read_only=True) as checkpoints:
            state, record = checkpoints.restore(program.state, step)
        batches = program.placed(experiment.data, functools.partial(experiment.data.batches, start=record["step"]))
        return Restored(experiment, program, state, batches)

    def checkpoints(self, read_only: bool = False) -> Any:
        """The run's `Checkpoints`."""
        from jaxtrain.runs.checkpoints import Checkpoints

        return Checkpoints(self.folder / "checkpoints", self.experiment.keep, read_only=read_only)


def begin(folder: Path | None, experiment: Experiment, origin: Origin | None) -> Run:
    """The run in `folder`, new or to be gone on with; without a folder, a new one under runs/.

    Raises ConfigError where the folder holds a run of another experiment, with the differences, or cannot be written.
    """
    name = (
        "run"
        if origin is None
        else origin.file.stem
        if origin.function == "main"
        else f"{origin.file.stem}-{origin.function}"
    )
    now = time.strftime("%Y%m%d-%H%M%S", time.localtime(same_everywhere(int(time.time()))))
    folder = folder or Path("runs") / name / now
    wanted = meaning(experiment)
    if (folder / "experiment.json").is_file():
        before = read_json(folder / "experiment.json")["meaning"]
        if before != to_json(wanted):
            raise ConfigError(
                f"{folder} is a run of another experiment; go on with the same one, or choose another --run folder. "
                f"What differs (run → now):\n{difference(before, wanted)}"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not a run: choose another --run folder")
    if first():
        _write(folder, experiment, origin, wanted)
    same_everywhere(0)  # no process reads the folder before it is there
    return Run(folder, _code_of(experiment))


def _write(folder: Path, experiment: Experiment, origin: Origin | None, wanted: Mapping[str, Any]) -> None:
    saved = {
        "version": importlib.metadata.version("jaxtrain"),
        "fingerprint": fingerprint(experiment),
        "origin": None if origin is None else f"{origin.file}:{origin.function}",
        "meaning": wanted,
        "experiment": to_json(experiment),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if origin is not None:
            shutil.copyfile(origin.file, folder / origin.file.name)
        write_json(folder / "environment.json", environment())
        write_json(folder / "experiment.json", saved)  # last: it is what makes the folder a run
    except OSError as error:
        raise ConfigError(f"the run folder {folder} cannot be written: {error.strerror or error}") from error


def _code_of(experiment: Experiment) -> ModuleType | None:
    kinds = {type(value).__module__ for value in _values(experiment)}
    own = [kind for kind in kinds if kind.partition(".")[0] != "jaxtrain"]
    return sys.modules[own[0]] if own else None


def _values(value: Any) -> Iterator[Any]:
    if hasattr(value, "__dataclass_fields__"):
        yield value
        value = [getattr(value, name) for name in value.__dataclass_fields__]
    for entry in value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ():
        yield from _values(entry)


def _runs_near(folder: Path) -> str:
    near = sorted(str(path.parent) for path in folder.glob("*/**/experiment.json"))
    return f"; runs below it: {', '.join(near[-5:])}" if near else ""
