"""`Run`: reads a run folder, which is all that is needed after training.

Not here: creating the folder (`begin`), and training.
"""

import functools
import json
import logging
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtrain.base.config import difference, flatten, from_json, to_json
from jaxtrain.base.display import Displayed
from jaxtrain.base.errors import ConfigError
from jaxtrain.cluster.stop import StopSignal
from jaxtrain.data.pipeline import Pipeline
from jaxtrain.data.sources.contents import by_former_rule
from jaxtrain.data.sources.paths import moved_together, of_a_run_folder
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.experiment.files import load, load_code
from jaxtrain.experiment.fit import fitted_as
from jaxtrain.experiment.run_file import RUN_FILE, check_unedited, newer, read_saved
from jaxtrain.experiment.start import SavedStep
from jaxtrain.optimizers import with_horizon
from jaxtrain.program import Program
from jaxtrain.runs.frame import metrics_frame
from jaxtrain.runs.observers import Observers
from jaxtrain.runs.skipped import left_out
from jaxtrain.runs.steps_log import read_steps
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


class Run(Displayed):
    """An existing run folder."""

    def __init__(self, folder: Path | str, code: str | None = None, experiment: Experiment | None = None) -> None:
        """Open a run folder. No code in it is executed.

        code: `file.py[:function]`, needed if the experiment holds data in memory or classes that are not jaxtrain's.
            The file is imported; its function is called only for data in memory.
        experiment: the experiment, instead of loading the saved one.

        Raises ConfigError if the folder is not a run, or is a run of another experiment.
        """
        self.folder, self._code, self._experiment = Path(folder), code, experiment
        if not (self.folder / "experiment.json").is_file():
            raise ConfigError(f"{self.folder} is not a run: it has no experiment.json{_runs_near(self.folder)}")
        self.saved: Mapping[str, Any] = read_saved(self.folder)
        if experiment is not None:
            self._experiment = as_begun(fitted_as(experiment, self.saved), self.horizon)
            check_same(self.folder, self.saved["config"], self._experiment)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @functools.cached_property
    def experiment(self) -> Experiment:
        """The experiment, as it was last run."""
        if self._experiment is not None:
            return self._experiment
        return self._from_json(self.saved["experiment"])

    def _from_json(self, saved: Mapping[str, Any], but: tuple[str, ...] = ()) -> Experiment:
        """The experiment from this JSON, which must agree with the run's config in all fields except `but`."""
        made = None
        if self._code is not None and '"$array"' in json.dumps(saved):
            made = load(self._code)[0]
        elif self._code is not None:
            load_code(Path(self._code.partition(":")[0]))
        with moved_together(Path(self.saved.get("folder", self.folder)), self.folder.absolute()):
            try:
                with of_a_run_folder():
                    experiment = from_json(saved, made, Experiment, "experiment")
                check_unedited(self.saved, experiment, but)
            except ConfigError as error:
                raise ConfigError(f"{self.folder / RUN_FILE}: {error}{newer(self.saved)}") from error
        return experiment

    def without_data(self) -> "Run":
        """The run with the fields and shapes that it saved in place of its data, to predict from raw inputs where the
        data files are missing. A run that was opened with its experiment is returned unchanged.
        """
        inputs, saved = self.saved.get("inputs"), self.saved["experiment"]
        if self._experiment is not None or inputs is None or '"$array"' in json.dumps(inputs):
            return self
        run = Run(self.folder, self._code)
        run._experiment = self._from_json(
            {**saved, "data": inputs, "evals": dict.fromkeys(saved["evals"], inputs)}, ("data", "evals")
        )
        return run

    def on(self, other: Experiment) -> "Run":
        """The run with the evaluations of another experiment, with this run's values in their fitted transforms."""
        run = Run(self.folder, self._code)
        run._experiment = replace(self.without_data().experiment, evals=fitted_as(other, self.saved).evals)
        return run

    def difference(self, split: str, pipeline: Pipeline, data_alone: bool) -> str:
        """How the pipeline of a split differs from what the run recorded, in one line; "" if it does not.

        data_alone: compare only the identities, that is the content of data and tokenizers.
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
        """The horizon of the learning rate schedules: the number of steps with which the run began."""
        return self.saved.get("horizon", self.saved["experiment"]["steps"])

    @property
    def left_out(self) -> frozenset[int]:
        """The steps whose batches are left out; the same in every process."""
        return left_out(self.folder)

    def metrics(self) -> Any:
        """The lines of metrics.jsonl as a `pandas.DataFrame`: `step`, `split`, and every metric as a column of floats,
        with NaN where a line lacks it. As dicts, without pandas: `jaxtrain.runs.metrics_log.read_metrics(folder)`.
        """
        return metrics_frame(self.folder)

    def steps(self) -> dict[str, np.ndarray]:
        """Every step of the run by column: `step`, `loss`, `gradient_norm`, `batch` (the checksum of its batch, u64)
        and `skipped`. Raises Damaged for a record of steps.bin that has changed since it was written.
        """
        return read_steps(self.folder)

    def restore(
        self,
        step: SavedStep | None = None,
        layout: Layout | None = None,
        devices: Sequence[jax.Device] | None = None,
    ) -> Restored:
        """Experiment, state and the next batches after `step` updates (default: the latest checkpoint).

        layout: replaces the run's own; any layout can restore any run.
        devices: by default all of `jax.devices()`.
        """
        experiment = self.experiment if layout is None else replace(self.experiment, layout=layout)
        program = Program(experiment, devices, self.horizon)
        with self.checkpoints(read_only=True) as checkpoints:
            state, record = checkpoints.restore(program.state, step)
        batches = program.batches(experiment.data, record["step"], self.left_out)
        return Restored(experiment, program, state, batches)

    def observers(self, start: int, stop: StopSignal) -> Observers:
        """The observers of a run that is trained from step `start` on. They end it by `stop`."""
        return Observers(self.folder, self.experiment, start, stop)

    def checkpoints(self, read_only: bool = False) -> Any:
        """The run's `Checkpoints`."""
        from jaxtrain.runs.bucket import Bucket
        from jaxtrain.runs.checkpoints import Checkpoints
        from jaxtrain.runs.mirror import Mirror

        runtime = self.experiment.runtime
        checkpoints = Checkpoints(self.folder / "checkpoints", runtime.keep, read_only, runtime.verify_bytes)
        if runtime.checkpoints is not None and not read_only:
            checkpoints.mirror_to(Mirror(Bucket(runtime.checkpoints, self.saved["fingerprint"])))
        return checkpoints


def horizon_of_run(folder: Path | None, experiment: Experiment) -> int:
    """The horizon of learning rate schedules: that of the run in `folder`, else the steps of the experiment."""
    exists = folder is not None and (folder / "experiment.json").is_file()
    return read_saved(folder).get("horizon", experiment.steps) if folder and exists else experiment.steps


def as_begun(experiment: Experiment, horizon: int) -> Experiment:
    """The experiment with the horizon in its schedules, so that it is part of the fingerprint."""
    return replace(experiment, optimizer=with_horizon(experiment.optimizer, horizon))


def check_same(folder: Path, before: Mapping[str, Any], experiment: Experiment) -> None:
    """Raises ConfigError where an experiment differs from the flattened values `before` that a run recorded."""
    if before != (now := _known_as(before, experiment, "the run")):
        raise ConfigError(
            f"{folder} is a run of another experiment; resume with the same one, or choose another --run folder. "
            f"What differs (run → now):\n{difference(before, now)}"
        )


def _known_as(before: Mapping[str, Any], value: Any, name: str) -> dict[str, Any]:
    """A value flattened, for comparison with `before`. Where an identity in `before` was computed by the rule of
    earlier versions and still agrees, it is kept, which is logged.
    """
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
    """Those of some paths of identities that are not inside of another's value."""
    paths = list(identities)
    return [
        path for path in paths if not any(path != one and path.startswith(one[: -len("identity")]) for one in paths)
    ]


def _runs_near(folder: Path) -> str:
    near = sorted(str(path.parent) for path in folder.glob("*/**/experiment.json"))
    return f"; runs below it: {', '.join(near[-5:])}" if near else ""
