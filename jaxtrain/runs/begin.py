"""Creates the folder of a run, or checks that of a run that resumes. Not here: reading it."""

import importlib.metadata
import logging
import re
import time
from pathlib import Path

from jaxtrain.base.config import find, flatten, to_json
from jaxtrain.base.errors import ConfigError, cannot_write
from jaxtrain.base.files import atomic_write, remove_unfinished_in, write_json
from jaxtrain.base.provenance import environment
from jaxtrain.base.tracebacks import keep_tracebacks_in
from jaxtrain.cluster import watchdog
from jaxtrain.cluster.processes import broadcast_from_first, is_first_process
from jaxtrain.data.remembered import remember_inputs
from jaxtrain.data.sources.images import ImageFolder
from jaxtrain.datasets.source import Built
from jaxtrain.experiment.experiment import Experiment, fingerprint
from jaxtrain.experiment.files import Origin
from jaxtrain.experiment.origins import FILE, PYTHON, kept_origins, origins
from jaxtrain.experiment.run_file import RUN_FILE, read_saved
from jaxtrain.runs.bucket import file_system
from jaxtrain.runs.folder import Run, as_begun, check_same, horizon_of_run
from jaxtrain.runs.lock import Lock
from jaxtrain.runs.retention import set_aside_no_file
from jaxtrain.runs.skipped import read_skipped


def begin(folder: Path | None, experiment: Experiment, origin: Origin | None, lock: Lock | None = None) -> Run:
    """The run in `folder`, created if it does not exist; without a folder, a new one below runs/. The horizon of its
    schedules is set when it is created and stays.

    lock: locks the folder before anything is written, until it is released; None locks it during this call.

    Raises ConfigError where the folder holds a run of another experiment, naming the differences, or cannot be written;
    Retry where another process is writing it.
    """
    if lock is None:
        with Lock(experiment.runtime.deadlines.lock) as lock:
            return begin(folder, experiment, origin, lock)
    _check_classes(experiment)
    if (url := experiment.runtime.checkpoints) is not None:
        file_system(url)
    name = "run"
    if origin is not None:
        name = origin.file.stem + ("" if origin.function == "main" else f"-{origin.function}")
    folder = folder or new_folder(Path("runs") / name)
    try:
        was_run = (folder / "experiment.json").is_file()
        found = _check_folder(folder, experiment, origin)  # before locking, so that no lock is left in other folders
        lock.take(folder)
        watchdog.stacks_into(folder, lock.check)
        keep_tracebacks_in(folder)
        # Another process may have created the run meanwhile.
        given, (horizon, experiment) = experiment, found if was_run else _check_folder(folder, experiment, origin)
        if is_first_process():
            remove_unfinished_in(folder)
            remove_unfinished_in(folder / "data")
            _write_files(folder, experiment, horizon, origin, given)
    except OSError as error:
        raise cannot_write(f"the run folder {folder}", error) from error
    broadcast_from_first(0)  # a barrier: no process reads the folder before process 0 has written it
    return Run(folder, experiment=experiment)


def _check_folder(folder: Path, experiment: Experiment, origin: Origin | None) -> tuple[int, Experiment]:
    """The horizon of the run, and the experiment with that horizon. Raises ConfigError where the folder holds something
    else than a run of this experiment.
    """
    horizon = horizon_of_run(folder, experiment)
    experiment = as_begun(experiment, horizon)
    if (folder / "experiment.json").is_file():
        check_same(folder, read_saved(folder)["config"], experiment)
        read_skipped(folder)  # raises ConfigError for one that is damaged
    elif folder.exists() and not _unfinished(folder, origin):
        raise ConfigError(f"{folder} exists and is not a run: choose another --run folder")
    return horizon, experiment


def _check_classes(experiment: Experiment) -> None:
    """Raises ConfigError where the image folders of the splits, or the task, differ in their classes."""
    pipelines = {"data": experiment.data, **{f"evals.{split}": data for split, data in experiment.evals.items()}}
    found = [(name, one.classes) for name, data in pipelines.items() for one in find(data, ImageFolder) if one.classes]
    named = getattr(experiment.task, "classes", None)
    for name, classes in [*found, *([("task.classes", named)] if found and named is not None else [])]:
        if classes != found[0][1]:
            raise ConfigError(
                f"{name}: the classes {classes} are not those of {found[0][0]}, {found[0][1]}: labels would mean "
                "other classes; write the tuple once and give it to all"
            )


def new_folder(parent: Path) -> Path:
    """A new folder named by the time; of runs that begin in the same second, all but the first get a number too."""
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
            raise cannot_write(f"a run folder in {parent}", error) from error
    return _numbered(parent / now, broadcast_from_first(number))


def _numbered(folder: Path, number: int) -> Path:
    return folder if number == 1 else folder.with_name(f"{folder.name}-{number}")


def _unfinished(folder: Path, origin: Origin | None) -> bool:
    """Whether a folder holds at most a launcher's logs and what `_write_files` leaves when it is killed."""
    left = {"environment.json", "data", "damaged", "logs", *([origin.file.name] if origin else [])}
    beside = r"\.?lock\.json.*|(stacks|traceback)(-\d+)?\.txt|.*\.tmp"
    return folder.is_dir() and all(path.name in left or re.fullmatch(beside, path.name) for path in folder.iterdir())


def _write_files(folder: Path, experiment: Experiment, horizon: int, origin: Origin | None, given: Experiment) -> None:
    config, flags, other = to_json(experiment), origin.flags if origin else (), FILE if origin else PYTHON
    found = origins(experiment, config, to_json(given), flags, other)
    if (folder / RUN_FILE).is_file():
        found = kept_origins(found, config, read_saved(folder))
    saved = {
        "version": importlib.metadata.version("jaxtrain"),
        "fingerprint": fingerprint(experiment),
        "horizon": horizon,
        "origin": None if origin is None else f"{origin.file}:{origin.function}",
        "origins": found,
        "config": flatten(experiment),
        "experiment": config,
        "inputs": to_json(remember_inputs(experiment.data, experiment.evals, experiment.task.inputs)),
        "folder": str(folder.absolute()),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for path in [folder / "environment.json", *([folder / origin.file.name] if origin is not None else [])]:
        for note in set_aside_no_file(path):
            logging.getLogger("jaxtrain.runs").warning("%s", note)
    if origin is not None:
        with atomic_write(folder / origin.file.name) as temporary:  # a link is replaced, and not followed
            temporary.write_bytes(origin.file.read_bytes())
    for data in find(experiment, Built):
        (folder / "data").mkdir(exist_ok=True)
        data.card.write(folder / "data", f"{data.name}-{data.version}.json")
    write_json(folder / "environment.json", environment())
    write_json(folder / "experiment.json", saved)  # last, since it makes the folder a run
