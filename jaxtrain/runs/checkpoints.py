"""Saves and restores the state of a run, sharded and asynchronously, with orbax. Not here: when to save."""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Self, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath  # the only paths that orbax takes

from jaxtrain.base.errors import ConfigError, DamagedCheckpoint, Retry, cannot_write
from jaxtrain.base.text import array_type
from jaxtrain.cluster.processes import broadcast_from_first, is_first_process, least_over_processes
from jaxtrain.experiment.experiment import Retention
from jaxtrain.experiment.saved import STATE, best_first, is_better, read_record, saved_steps, score_of
from jaxtrain.experiment.start import SavedStep
from jaxtrain.runs.health import Health, logged
from jaxtrain.runs.leaves import check_leaves, leaves_by_path, on_first_device, without_elements
from jaxtrain.runs.mirror import Mirror
from jaxtrain.runs.retention import remove_leftovers
from jaxtrain.runs.saving import SAVE_ERRORS, Save, add_metrics, finish, kept_by, lost, reason
from jaxtrain.runs.shards import READ_ERRORS, other_arrays

Tree = TypeVar("Tree")

# orbax logs dozens of lines per save, and a traceback of every error that is raised here anyway.
logging.getLogger("absl").addFilter(lambda line: "orbax" not in line.pathname)


class Checkpoints:
    """The checkpoints in one folder, a subfolder per step. Every process of a run calls every method.

    A checkpoint is renamed to its step when it is complete, with a manifest of checksums. An interrupted save is thus
    never seen, and the next save removes it. Methods that read wait for the save in progress. A save that fails is
    logged as an event, and training goes on; only `wait` raises, if the last one failed. A checkpoint is verified
    before it is restored, and instead of a damaged one the newest good one is used.

    folder: created if missing; shared by all processes.
    keep: which checkpoints are kept; None is `Retention()`.
    read_only: for a run that another job may be writing: creates, deletes, moves and saves nothing.
    verify_bytes: the checksums of larger files and arrays are not verified; None verifies all.
    """

    def __init__(
        self, folder: Path, keep: Retention | None = None, read_only: bool = False, verify_bytes: int | None = None
    ) -> None:
        self.folder, self.keep = Path(folder).absolute(), keep or Retention()
        self._read_only, self._most = read_only, verify_bytes
        self._handler, self._some = ocp.StandardCheckpointHandler(), ocp.PyTreeCheckpointHandler()
        self._background, self._barrier = ThreadPoolExecutor(1, "save"), ocp.multihost.get_barrier_sync_fn()
        self._log: Callable[..., None] | None = logged if read_only else None
        self._events: list[tuple[str, dict[str, Any]]] = []
        self._health = Health(self.folder, read_only, verify_bytes, self._event)
        self._in_progress: tuple[int, Future[None]] | None = None
        self._mirror: Mirror | None = None
        self._failed, self._cleaned = "", False
        if not read_only:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise cannot_write(str(self.folder), error, "made") from error
        steps = saved_steps(self.folder)
        self._last = broadcast_from_first(max(steps, default=-1))
        self._scores = self._health.scores(self.keep.best, steps)

    def report_to(self, log: Callable[..., None]) -> None:
        """Call `log(kind, **facts)` for events of checkpoints: for the past ones now, then for new ones."""
        self._log = log
        for kind, facts in self._events:
            log(kind, **facts)
        self._events = []

    def mirror_to(self, mirror: Mirror) -> None:
        """From now on copy checkpoints to a bucket, and let `latest` fetch one if none here is good."""
        self._mirror, mirror.log = mirror, self._event

    def save(
        self,
        step: int,
        state: object,
        record: Mapping[str, object],
        metrics: Mapping[str, float] | None = None,
    ) -> int:
        """Start a save, after waiting for the previous one to end; returns as soon as `state` may be donated.

        step: later than every saved one.
        state: a tree of `jax.Array`s of any dtype, typed PRNG keys included; each process writes its own shards.
        record: what else to save; JSON.
        metrics: scores for `Retention.best`, by name; None or {} if this step was not evaluated.

        Returns the step of the previous save, which is durable now; 0 if there was none or it failed. Raises
        ConfigError for metrics that lack `Retention.best`, ValueError for an earlier step and if `read_only`.
        """
        if self._read_only:
            raise ValueError(f"the checkpoints in {self.folder} were opened for reading only")
        durable = self._settle()
        if step <= self._last:
            raise ValueError(
                f"step {step} is not later than step {self._last}, which is saved in {self.folder} already"
            )
        arrays = leaves_by_path(state)
        types = {name: array_type(leaf) for name, leaf in arrays.items()}
        # A flat dictionary, so that the files do not depend on the containers of the arrays.
        # orbax refuses empty arrays; to restore those, the list of leaves is enough.
        full = {name: leaf for name, leaf in arrays.items() if leaf.size}
        record_text = json.dumps({"record": dict(record), "leaves": types, "sealed": True})
        score = score_of(self.keep.best, metrics)
        metrics_text = None if score is None else json.dumps({str(self.keep.best): score})
        self._scores |= {} if score is None else {step: score}
        save = Save(self.folder / str(step), record_text, metrics_text)
        made = self._background.submit(self._make, save)
        wait([made])
        broadcast_from_first(0)  # a barrier: no process writes before process 0 has created the folder
        begun = self._background.submit(save.begin, made, lambda folder: self._write(folder, full), full)
        wait([begun])
        stay = kept_by(self.keep, dict(self._scores))
        future = self._background.submit(finish, save, begun, self._handler.finalize, self._barrier, stay, self._mirror)
        self._in_progress = step, future
        return durable

    def improves(self, step: int, scores: Mapping[str, float] | None) -> bool:
        """Whether to save `step` because these scores are better than those of every saved step.

        If `step` is saved already, the scores are added to it: it was saved when a signal interrupted its evaluation.
        """
        if (score := score_of(self.keep.best, scores)) is None:
            return False
        self._settle()
        if step == self._last:
            self._scores[step] = score
            if is_first_process():
                add_metrics(self.folder / str(step), json.dumps({str(self.keep.best): score}))
            return False
        return self.keep.save_best and bool(broadcast_from_first(is_better(score, self._scores, self.keep.mode)))

    def restore(self, abstract: Tree, step: SavedStep | None = None) -> tuple[Tree, dict[str, Any]]:
        """The state and the record of `step` (None: the latest), the state with the shardings of `abstract`.

        abstract: a tree of `jax.ShapeDtypeStruct`; the result has its structure. Its mesh may differ from that of the
            save; a leaf without a sharding goes to the first device.

        "latest" and "best" mean the newest and the best undamaged checkpoint. Raises ConfigError where there is no such
        step, and where leaves are missing, extra or of another shape or dtype, naming each; DamagedCheckpoint for a
        damaged step that was given by its number; Retry where damage shows only while arrays are read, after setting
        the checkpoint aside.
        """
        chosen = self._existing(step)
        record = self._health.record(chosen)
        wanted = leaves_by_path(abstract)
        check_leaves(
            self.folder / str(chosen), record["leaves"], {name: array_type(leaf) for name, leaf in wanted.items()}
        )
        placed = {name: on_first_device(leaf) for name, leaf in wanted.items()}
        full, empty = {name: leaf for name, leaf in placed.items() if leaf.size}, without_elements(placed)
        read = lambda folder: self._handler.restore(folder, args=ocp.args.StandardRestore(full))  # noqa: E731
        arrays = self._verified(chosen, read, step) | empty
        return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in wanted]), record["record"]

    def leaves(self, step: int) -> dict[str, str]:
        """Dtype and shape of each array of a step, by its path."""
        return read_record(self.folder / str(step))["leaves"]

    def arrays(self, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Some arrays of a step by path, with the shapes and shardings of `wanted` and the dtypes of the checkpoint."""
        step, saved = self._existing(step), self.leaves(step)
        kept = {name: leaf.update(dtype=saved[name].partition("[")[0]) for name, leaf in wanted.items()}
        how = ocp.checkpoint_utils.construct_restore_args(kept)
        items = ocp.args.PyTreeRestore(kept, restore_args=how, partial_restore=True)
        return self._verified(step, lambda folder: self._some.restore(folder, args=items), step)

    def steps(self) -> list[int]:
        """The steps of the durable checkpoints, ascending, including damaged ones."""
        self._settle()
        return [step for step in saved_steps(self.folder) if step not in self._health.ignored]

    def latest(self) -> int | None:
        """The step of the newest good checkpoint; None without any. Raises DamagedCheckpoint where none is good."""
        if self._mirror is not None:
            self._mirror.fetch(self.folder, self._health, self.keep, self._barrier)
        steps = self.steps()
        if broadcast_from_first(int(not steps)):
            return None
        self._last = self._health.first_good(steps[::-1])
        self._scores = self._health.scores(self.keep.best, [step for step in steps if step <= self._last])
        return self._last

    def best(self) -> int | None:
        """The step with the best value of the metric `Retention.best`, the later one of equals; None without any."""
        return next(iter(self._best_first(self.steps())), None)

    def wait(self) -> int:
        """Block until every save is durable, and return the step of the last one; 0 without any. Raises Retry if the
        last one failed.
        """
        durable = self._settle()
        if self._failed:
            raise Retry(self._failed)
        if self._mirror is not None:
            self._mirror.finish(self.folder, kept_by(self.keep, dict(self._scores)))
        return durable

    def close(self) -> None:
        """Wait for the save in progress, whose failure is only logged, and stop the thread."""
        if self._in_progress is not None:
            wait([self._in_progress[1]])
            if self._in_progress[1].exception() is not None and is_first_process():
                self._event("save_failed", step=self._in_progress[0], why=reason(self._in_progress[1].exception()))
            self._in_progress = None
        self._background.shutdown()
        if self._mirror is not None:
            self._mirror.close()
        if not self._read_only:
            self.report_to(self._log or logged)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _event(self, kind: str, **facts: Any) -> None:
        if self._log is None:
            self._events.append((kind, facts))
        else:
            self._log(kind, **facts)

    def _make(self, save: Save) -> None:
        if is_first_process():
            if not self._cleaned:
                remove_leftovers(self.folder)
                self._cleaned = True
            save.make()

    def _write(self, folder: Path, arrays: Mapping[str, jax.Array]) -> Sequence[Any]:
        return asyncio.run(self._handler.async_save(epath.Path(folder), args=ocp.args.StandardSave(dict(arrays)))) or ()

    def _settle(self) -> int:
        """Wait for the save in progress, if any; returns its step if it is durable in every process, else 0."""
        if self._in_progress is None:
            return 0
        step, future = self._in_progress
        wait([future])
        if self._mirror is not None:
            self._mirror.report()
        self._in_progress, error = None, future.exception()
        if error is not None and not isinstance(error, SAVE_ERRORS):
            raise error
        if least_over_processes(int(error is None)):
            self._last, self._failed = step, ""
            self._health.ignored.discard(step)
            return step
        self._scores.pop(step, None)
        why = "another process could not write" if error is None else reason(error)
        self._failed = lost(step, self.folder, why, self._last)
        note = "training goes on, and the next save is tried; what was saved before stays"
        self._event("save_failed", step=step, why=why, note=note)
        return 0

    def _best_first(self, steps: list[int]) -> list[int]:
        return best_first(self._health.scores(self.keep.best, steps), self.keep.mode)

    def _existing(self, step: SavedStep | None) -> int:
        steps = self.steps()
        if not steps:
            raise ConfigError(f"there are no checkpoints in {self.folder}")
        if step is None or step == "latest":
            return self._health.first_good(steps[::-1])
        if step == "best":
            if not (order := self._best_first(steps)):
                raise ConfigError(f"no checkpoint in {self.folder} is the best: train with --keep.best SPLIT/METRIC")
            return self._health.first_good(order)
        if step not in steps:
            raise ConfigError(f"no checkpoint of step {step} in {self.folder}; there are {steps}")
        if (fault := self._health.fault(step)) is not None:
            raise fault
        return step

    def _verified(self, step: int, read: Callable[[Any], Any], asked: SavedStep | None) -> dict[str, jax.Array]:
        """The arrays of a step, verified by their checksums."""
        folder, manifest = self.folder / str(step) / STATE, self._health.manifest(step)
        try:
            arrays = read(epath.Path(folder))
            saved = manifest.arrays if manifest is not None else {}
            if (name := next(other_arrays(arrays, saved, self._most), None)) is None:
                return arrays
            why = f"{name} is not what was saved: its checksum differs"
        except READ_ERRORS as error:
            if manifest is not None and self._most is None:  # every file is as it was written, so this is no damage
                self._health.raise_unread(step, error)
            why = f"its arrays cannot be read: {reason(error)}"
        fault = DamagedCheckpoint(str(folder), None, why)
        if self._read_only or isinstance(asked, int):
            raise fault
        self._health.leave(step, fault)
        raise Retry(f"{fault}\nThis checkpoint is set aside: run the same command again, it uses the one before")
