"""A single save, from creating its temporary folder to renaming it. Not here: writing arrays, and when to save."""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxtrain.base.checksums import MANIFEST, Manifest, checksums
from jaxtrain.base.files import replace_text
from jaxtrain.cluster.processes import is_first_process
from jaxtrain.experiment.experiment import Retention
from jaxtrain.experiment.saved import METRICS, RECORD, STATE, saved_steps
from jaxtrain.runs.retention import delete, kept, saving
from jaxtrain.runs.shards import own_shards, shard_checksums

SAVE_ERRORS = (OSError, ValueError, RuntimeError)
"""What is raised where storage cannot be written, also by orbax and tensorstore."""

BARRIER_SECONDS = 3600
"""The longest that a process waits for the others to have written their shards."""


@dataclass(frozen=True)
class Save:
    """A checkpoint that is being written to a temporary folder."""

    checkpoint: Path
    """The final folder, whose name is the step."""
    record: str
    metrics: str | None

    @property
    def step(self) -> int:
        """The step of the checkpoint."""
        return int(self.checkpoint.name)

    @property
    def folder(self) -> Path:
        """The temporary folder."""
        return saving(self.checkpoint)

    def make(self) -> None:
        """Create the folder: called in process 0, before any process writes into it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if not self.folder.parent.exists():  # not its parents: a run folder that was deleted is not created again
            self.folder.parent.mkdir()
        self.folder.mkdir()
        (self.folder / STATE).mkdir()

    def begin(
        self, made: Future[None], write: Callable[[Path], Sequence[Any]], arrays: Mapping[str, jax.Array]
    ) -> tuple[Any, Any]:
        """Start to write this process's shards, which are in host memory when this returns. Returns the shards, for
        their checksums, and the futures of `write(folder)`.
        """
        made.result()
        shards = own_shards(arrays)
        return shards, write(self.folder / STATE)

    def write_own(self, shards: Any, written: Sequence[Any]) -> None:
        """Wait for the files of this process, and write their checksums to a file."""
        sums = shard_checksums(shards)
        for each in written:
            each.result()
        process = jax.process_index()
        own = self.folder / STATE / f"ocdbt.process_{process}"
        start = own.relative_to(self.folder).as_posix()
        files = {f"{start}/{name}": each for name, each in (checksums(own) if own.is_dir() else {}).items()}
        replace_text(self._part(process), json.dumps({"files": files, "arrays": sums}))

    def complete(self, finalize: Callable[[Any], None]) -> None:
        """Write the manifest and rename the folder: called in process 0, after all processes have written. Raises
        OSError for a process that has not.
        """
        parts = []
        for process in range(jax.process_count()):
            if not self._part(process).exists():
                raise OSError(f"process {process} could not write its shards")
            parts.append(json.loads(self._part(process).read_text()))
            self._part(process).unlink()
        finalize(self.folder / STATE)
        for name, text in ((RECORD, self.record), (METRICS, self.metrics)):
            if text is not None:
                (self.folder / name).parent.mkdir()
                replace_text(self.folder / name, text)
        known = {name: (size, crc) for part in parts for name, (size, crc) in part["files"].items()}
        arrays: dict[str, list[Any]] = {}
        for part in parts:
            for name, shards in part["arrays"].items():
                arrays.setdefault(name, []).extend(shards)
        Manifest(checksums(self.folder, known), arrays).write(self.folder)
        os.rename(self.folder, self.checkpoint)
        sync_folder(self.checkpoint.parent)

    def remove(self) -> None:
        """Remove the folder of a save that failed."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _part(self, process: int) -> Path:
        return self.folder / f"process_{process}.json"


def finish(
    save: Save,
    begun: Future[tuple[Any, Any]],
    finalize: Callable[[Any], None],
    barrier: Callable[..., None],
    stay: Callable[[Sequence[int]], set[int]],
    mirror: Any = None,
) -> None:
    """Complete a save, in a background thread of every process; then delete the checkpoints that `stay` does not keep.

    A save that fails leaves nothing behind and deletes no checkpoint. Raises the error of this process.
    mirror: a `Mirror`, which then copies the checkpoint to a bucket.
    """
    try:
        try:
            save.write_own(*begun.result())
        finally:  # after a failure too, since the others wait here; process 0 then finds that a part is missing
            barrier(key=f"jaxtrain_saved_{save.step}", timeout_ms=BARRIER_SECONDS * 1000)
        if is_first_process():
            save.complete(finalize)
    except BaseException:
        if is_first_process():
            save.remove()
        raise
    if is_first_process():
        steps = saved_steps(save.checkpoint.parent)
        for step in set(steps) - stay(steps):
            delete(save.checkpoint.with_name(str(step)))
        if mirror is not None:
            mirror.send(save.checkpoint.parent, stay)


def lost(step: int, folder: Path, why: str, last: int) -> str:
    """The message for a state that could not be saved. last: the last saved step, below 0 for none."""
    before = f"it resumes from step {last}" if last >= 0 else "it begins anew, since none is saved"
    return (
        f"the state of step {step} could not be saved in {folder}: {why}. Once it can be written, run the "
        f"same command again: {before}"
    )


def add_metrics(checkpoint: Path, metrics: str) -> None:
    """Write scores into a complete checkpoint that has none, and update its manifest. After a kill in between they have
    no checksum.
    """
    (checkpoint / METRICS).parent.mkdir(exist_ok=True)
    replace_text(checkpoint / METRICS, metrics)
    if (manifest := Manifest.read(checkpoint)) is not None:
        files = checksums(checkpoint, manifest.files)
        Manifest({name: files[name] for name in files if name != MANIFEST}, manifest.arrays).write(checkpoint)


def kept_by(keep: Retention, scores: Mapping[int, float]) -> Callable[[Sequence[int]], set[int]]:
    """`kept` for these scores of `keep.best`, as a function of the steps."""
    return lambda steps: kept(steps, scores, keep)


def sync_folder(folder: Path) -> None:
    """Wait until the entries of a folder are on disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def reason(error: BaseException | None) -> str:
    """The message of an error in one line; of an error of tensorstore, the operating system's reason in it."""
    text = " ".join(str(error).split()) or type(error).__name__
    if found := re.search(r": ([^:]+) \[os_error_code=", text):
        return found[1]
    return text if len(text) <= 300 else f"{text[:140]} … {text[-140:]}"
