"""A run is a folder that explains itself: `begin` creates or resumes it, `Run` reads what it holds.

Everything after training needs only the folder. Not here: training.
"""

import functools
import importlib.metadata
import json
import logging
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from jaxtrain.base.config import difference, find, flatten, from_json, to_json
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.files import read_json, write_json
from jaxtrain.base.provenance import environment
from jaxtrain.cluster.processes import StopSignal, broadcast_from_first, is_first_process
from jaxtrain.data.pipeline import Pipeline
from jaxtrain.data.remembered import remember_inputs
from jaxtrain.data.sources.contents import by_former_rule
from jaxtrain.data.sources.images import ImageFolder
from jaxtrain.data.sources.paths import moved_together
from jaxtrain.datasets.source import Built
from jaxtrain.experiment.experiment import Experiment, fingerprint
from jaxtrain.experiment.files import Origin, load, load_code
from jaxtrain.experiment.fit import fitted_as
from jaxtrain.experiment.start import SavedStep
from jaxtrain.optimizers import with_horizon
from jaxtrain.program import Program
from jaxtrain.runs.metrics_log import read_metrics
from jaxtrain.runs.observers import Observers
from jaxtrain.sharding.layout import Layout
from jaxtrain.step import TrainState


@dataclass(frozen=True)
class Restored:
    """An experiment at a saved step of its run."""

    experiment: Experiment
    program: Program
    state: TrainState
    batches: Generator[dict[str, jax.Array], None, None]
    """The batches of the next steps, endless."""


class Run:
    """An existing run folder."""

    def __init__(self, folder: Path | str, code: str | None = None, experiment: Experiment | None = None) -> None:
        """Opens a run's folder. No code in it is executed.

        code: `file.py[:function]`, needed if the experiment holds classes that are not jaxtrain's, or data in memory.
            The file is imported; its function is called only for data in memory.
        experiment: the experiment itself, instead of the saved one.

        Raises ConfigError if the folder holds no run, or a run of another experiment.
        """
        self.folder, self._code, self._experiment = Path(folder), code, experiment
        if not (self.folder / "experiment.json").is_file():
            raise ConfigError(f"{self.folder} is not a run: it has no experiment.json{_runs_near(self.folder)}")
        self.saved: Mapping[str, Any] = read_json(self.folder / "experiment.json")
        if experiment is not None:
            self._experiment = _as_begun(fitted_as(experiment, self.saved), self.horizon)
            _check_same(self.folder, self.saved["config"], self._experiment)

    @functools.cached_property
    def experiment(self) -> Experiment:
        """The experiment as it was last run."""
        if self._experiment is not None:
            return self._experiment
        return self._from_json(self.saved["experiment"])

    def _from_json(self, saved: Mapping[str, Any]) -> Experiment:
        made = None
        if self._code is not None and '"$array"' in json.dumps(saved):
            made = load(self._code)[0]
        elif self._code is not None:
            load_code(Path(self._code.partition(":")[0]))
        with moved_together(Path(self.saved.get("folder", self.folder)), self.folder.absolute()):
            return from_json(saved, made)

    def without_data(self) -> "Run":
        """The same run, with the fields and shapes that it remembers in place of its data: to predict from raw inputs,
        though no data file is there. One that was opened with its experiment stays as it is.
        """
        inputs, saved = self.saved.get("inputs"), self.saved["experiment"]
        if self._experiment is not None or inputs is None or '"$array"' in json.dumps(inputs):
            return self
        run = Run(self.folder, self._code)
        run._experiment = self._from_json({**saved, "data": inputs, "evals": dict.fromkeys(saved["evals"], inputs)})
        return run

    def on(self, other: Experiment) -> "Run":
        """The same run with the evaluations of another experiment, whose fitted transforms get this run's values."""
        run = Run(self.folder, self._code)
        run._experiment = replace(self.without_data().experiment, evals=fitted_as(other, self.saved).evals)
        return run

    def difference(self, split: str, pipeline: Pipeline, data_alone: bool) -> str:
        """What is not as the run recorded it of a split, in a line; "" where nothing differs.

        data_alone: by the content of its data and tokenizers, whatever the values around them.
        """
        start, recorded = f"evals.{split}.", self.saved["config"]
        before = {path.removeprefix(start): value for path, value in recorded.items() if path.startswith(start)}
        if not before:
            return "the run has no such split"
        now = _known_as(before, pipeline, f"evals.{split}")
        if data_alone:
            kept = _outermost(path for path in before if path in now and path.endswith(".identity"))
            before, now = ({path: one[path] for path in kept} for one in (before, now))
        return "; ".join(line.strip() for line in difference(before, now).splitlines())

    @property
    def horizon(self) -> int:
        """The horizon of its learning rate schedules: the steps of the run when it began."""
        return self.saved.get("horizon", self.saved["experiment"]["steps"])

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: `step`, `split`, and every metric as a float, NaN and infinities too."""
        return read_metrics(self.folder)

    def restore(
        self,
        step: SavedStep | None = None,
        layout: Layout | None = None,
        devices: Sequence[jax.Device] | None = None,
    ) -> Restored:
        """Experiment, state and batches after `step` updates (default: the latest checkpoint), on these devices.

        layout: instead of the run's own; any layout can restore any run.
        """
        experiment = self.experiment if layout is None else replace(self.experiment, layout=layout)
        program = Program(experiment, devices, self.horizon)
        with self.checkpoints(read_only=True) as checkpoints:
            state, record = checkpoints.restore(program.state, step)
        batches = program.batches(experiment.data, record["step"])
        return Restored(experiment, program, state, batches)

    def observers(self, start: int, stop: StopSignal) -> Observers:
        """All that observes the run as it is trained on from step `start`; `stop` is how they end it."""
        return Observers(self.folder, self.experiment, start, stop)

    def checkpoints(self, read_only: bool = False) -> Any:
        """The run's `Checkpoints`."""
        from jaxtrain.runs.checkpoints import Checkpoints

        return Checkpoints(self.folder / "checkpoints", self.experiment.runtime.keep, read_only=read_only)


def horizon_of_run(folder: Path | None, experiment: Experiment) -> int:
    """The horizon of learning rate schedules: that of the run in `folder`, else the steps of the experiment."""
    exists = folder is not None and (folder / "experiment.json").is_file()
    return (
        read_json(folder / "experiment.json").get("horizon", experiment.steps)
        if folder and exists
        else experiment.steps
    )


def _as_begun(experiment: Experiment, horizon: int) -> Experiment:
    """With the horizon written in its schedules, so that it is in the fingerprint."""
    return replace(experiment, optimizer=with_horizon(experiment.optimizer, horizon))


def begin(folder: Path | None, experiment: Experiment, origin: Origin | None) -> Run:
    """The run in `folder`, created or about to be resumed; without a folder, a new one under runs/. It keeps the
    horizon of its schedules that it is created with.

    Raises ConfigError where the folder holds a run of another experiment, naming the differences, or cannot be written.
    """
    _check_classes(experiment)
    name = "run"
    if origin is not None:
        name = origin.file.stem + ("" if origin.function == "main" else f"-{origin.function}")
    folder = folder or _new_folder(Path("runs") / name)
    horizon = horizon_of_run(folder, experiment)
    experiment = _as_begun(experiment, horizon)
    try:
        if (folder / "experiment.json").is_file():
            _check_same(folder, read_json(folder / "experiment.json")["config"], experiment)
        elif folder.exists() and not _unfinished(folder, origin):
            raise ConfigError(f"{folder} exists and is not a run: choose another --run folder")
        if is_first_process():
            _write_files(folder, experiment, horizon, origin)
    except OSError as error:
        raise ConfigError(f"the run folder {folder} cannot be written: {error.strerror or error}") from error
    broadcast_from_first(0)  # a barrier: no process reads the folder before process 0 has written it
    return Run(folder, experiment=experiment)


def _check_classes(experiment: Experiment) -> None:
    """Raises ConfigError where the folders of images of one split have other classes than another's, or the task."""
    pipelines = {"data": experiment.data, **{f"evals.{split}": data for split, data in experiment.evals.items()}}
    found = [(name, one.classes) for name, data in pipelines.items() for one in find(data, ImageFolder) if one.classes]
    named = getattr(experiment.task, "classes", None)
    for name, classes in [*found, *([("task.classes", named)] if found and named is not None else [])]:
        if classes != found[0][1]:
            raise ConfigError(
                f"{name}: the classes {classes} are not those of {found[0][0]}, {found[0][1]}: labels would mean "
                "other classes; write the tuple once and give it to all"
            )


def _new_folder(parent: Path) -> Path:
    """A folder of this run alone, named by the time: runs that begin in the same second get a number behind it."""
    now = time.strftime("%Y%m%d-%H%M%S", time.localtime(broadcast_from_first(int(time.time()))))
    number = 0
    while is_first_process():
        number += 1
        try:
            _numbered(parent / now, number).mkdir(parents=True)
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"a run folder in {parent} cannot be made: {error.strerror or error}") from error
    return _numbered(parent / now, broadcast_from_first(number))


def _numbered(folder: Path, number: int) -> Path:
    return folder if number == 1 else folder.with_name(f"{folder.name}-{number}")


def _check_same(folder: Path, before: Mapping[str, Any], experiment: Experiment) -> None:
    if before != (now := _known_as(before, experiment, "the run")):
        raise ConfigError(
            f"{folder} is a run of another experiment; resume with the same one, or choose another --run folder. "
            f"What differs (run → now):\n{difference(before, now)}"
        )


def _known_as(before: Mapping[str, Any], value: Any, name: str) -> dict[str, Any]:
    """A value flattened. An identity recorded by the former rule is by that rule if it is equal, and that is logged."""
    now = to_json(flatten(value))
    if before == now:
        return now
    with by_former_rule():
        former = to_json(flatten(value))
    known = {path: former[path] for path in now if now[path] != before.get(path) == former[path]}
    if known:
        logging.getLogger("jaxtrain.data").warning(
            "%s: %s was recorded by the sizes and ends of files (of images, names and sizes), and those are equal: an "
            "edit between them would not be seen. Resuming the run records all that the files hold",
            name,
            ", ".join(_outermost(known)),
        )
    return now | known


def _outermost(identities: Iterable[str]) -> list[str]:
    """Of paths of identities, those that are not inside of another one's value."""
    paths = list(identities)
    return [
        path for path in paths if not any(path != one and path.startswith(one[: -len("identity")]) for one in paths)
    ]


def _unfinished(folder: Path, origin: Origin | None) -> bool:
    """Whether a folder holds at most a launcher's logs and what `_write_files` leaves when it is killed."""
    left = {"environment.json", "data", "logs", *([origin.file.name] if origin else [])}
    return folder.is_dir() and all(path.name in left or path.suffix == ".tmp" for path in folder.iterdir())


def _write_files(folder: Path, experiment: Experiment, horizon: int, origin: Origin | None) -> None:
    saved = {
        "version": importlib.metadata.version("jaxtrain"),
        "fingerprint": fingerprint(experiment),
        "horizon": horizon,
        "origin": None if origin is None else f"{origin.file}:{origin.function}",
        "config": flatten(experiment),
        "experiment": to_json(experiment),
        "inputs": to_json(remember_inputs(experiment.data, experiment.evals, experiment.task.inputs)),
        "folder": str(folder.absolute()),
    }
    folder.mkdir(parents=True, exist_ok=True)
    if origin is not None:
        (folder / origin.file.name).write_bytes(origin.file.read_bytes())
    for data in find(experiment, Built):
        (folder / "data").mkdir(exist_ok=True)
        data.card.write(folder / "data", f"{data.name}-{data.version}.json")
    write_json(folder / "environment.json", environment())
    write_json(folder / "experiment.json", saved)  # last, since it makes the folder a run


def _runs_near(folder: Path) -> str:
    near = sorted(str(path.parent) for path in folder.glob("*/**/experiment.json"))
    return f"; runs below it: {', '.join(near[-5:])}" if near else ""
