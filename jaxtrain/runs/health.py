"""Finds undamaged checkpoints, with the same answer in every process, and sets damaged ones aside.

Not here: finding damage in one checkpoint, and restoring.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax

from jaxtrain.base.checksums import Manifest
from jaxtrain.base.errors import Damaged, DamagedCheckpoint, Retry
from jaxtrain.cluster.processes import broadcast_from_first, is_first_process, least_over_processes
from jaxtrain.experiment.saved import check_unsealed, checkpoint_fault, none_is_good, read_record, scores_by_step
from jaxtrain.runs.retention import set_aside

NO_FILE = 2**31 - 1  # above the number of any file, and within the 32 bits of a collective


def logged(kind: str, **facts: Any) -> None:
    """Log an event as a warning, where there is no run to log it."""
    logging.getLogger("jaxtrain.runs").warning("  ".join([kind, *(f"{name} {value}" for name, value in facts.items())]))


def _lost(fault: DamagedCheckpoint) -> Retry:
    return Retry(f"{fault}, though it was good a moment ago; run the same command again")


class Health:
    """Verifies each checkpoint once.

    read_only: move nothing.
    most: larger files, in bytes, are compared by size only; None reads all.
    log: called with an event for damaged files, and for files that were not read.
    """

    def __init__(self, folder: Path, read_only: bool, most: int | None, log: Callable[..., None]) -> None:
        self._folder, self._read_only, self._most, self._log = folder, read_only, most, log
        self._good: dict[int, Manifest | None] = {}
        self.ignored: set[int] = set()
        """Damaged steps that could not be moved."""

    def first_good(self, steps: Sequence[int]) -> int:
        """The first of these steps (those of process 0) that is good. Damaged ones before it are set aside.

        Raises DamagedCheckpoint if none is good; then nothing is moved.
        """
        damaged: list[tuple[int, DamagedCheckpoint]] = []
        rest = iter(steps)
        while (step := broadcast_from_first(next(rest, -1))) >= 0:
            if (fault := self.fault(step)) is None:
                break
            damaged.append((step, fault))
        else:
            raise none_is_good(self._folder, [fault for _, fault in damaged])
        for bad, fault in damaged:
            self.leave(bad, fault)
        return step

    def fault(self, step: int) -> DamagedCheckpoint | None:
        """The first damage of a step; None if it is good. Every process reads a part of the files, and all return the
        same.
        """
        if step in self._good:
            return None
        checkpoint, manifest, found = self._folder / str(step), None, []
        try:
            manifest = Manifest.read(checkpoint)
            if manifest is None:
                check_unsealed(checkpoint)
            else:
                shares = jax.process_index(), jax.process_count()
                found = [next(manifest.faults(checkpoint, self._most, *shares), (NO_FILE, None))]
        except Damaged as fault:
            found = [(-1, fault)]
        own, fault = found[0] if found else (NO_FILE, None)
        first = least_over_processes(own)
        if first == NO_FILE:
            self._good[step] = manifest
            self._say_unread(step, manifest)
            return None
        if fault is None or first != own:
            name = sorted(manifest.files)[first] if manifest is not None and first >= 0 else ""
            fault = Damaged(str(checkpoint / name), None, "another process found it damaged, and names it")
        return checkpoint_fault(fault)

    def record(self, step: int) -> dict[str, Any]:
        """What `read_record` finds of a good step. Raises Retry where that cannot be read any more."""
        try:
            return read_record(self._folder / str(step))
        except DamagedCheckpoint as fault:
            raise _lost(fault) from fault

    def scores(self, metric: str | None, steps: list[int]) -> dict[int, float]:
        """The value of a metric at each of these steps that has one. A step whose scores are damaged is left, for it
        would be deleted in time as one that has none. Raises Retry where those of a good one cannot be read any more.
        """

        def damaged(step: int, fault: DamagedCheckpoint) -> None:
            if step in self._good:  # a run may be about to restore it
                raise _lost(fault) from fault
            self.leave(step, fault)

        return scores_by_step(self._folder, metric, steps, damaged)

    def raise_unread(self, step: int, error: Exception) -> NoReturn:
        """Raises an error of reading a good step; Retry where it says that some of its files are not there."""
        if isinstance(error, FileNotFoundError) or "does not exist" in str(error):
            where = f"{self._folder / str(step)} cannot be read at the moment, though it was good"
            raise Retry(f"{where} ({' '.join(str(error).split())}); run the same command again") from error
        raise error

    def manifest(self, step: int) -> Manifest | None:
        """The manifest of a good step; None if it was saved by a version that wrote none."""
        return self._good[step]

    def leave(self, step: int, fault: DamagedCheckpoint) -> None:
        """Set a damaged checkpoint aside and log it; with `read_only`, only log it."""
        self._good.pop(step, None)
        if self._read_only:
            self._log("damaged", step=step, file=fault.file, why=fault.why, note="it is not used")
            return
        self.ignored.add(step)
        if is_first_process():
            try:
                moved = f"it is set aside in {set_aside(self._folder / str(step), self._folder.parent / 'damaged')}"
            except OSError as error:
                moved = f"it is not used, and cannot be set aside: {error.strerror or error}"
            self._log("damaged", step=step, file=fault.file, why=fault.why, note=moved)

    def _say_unread(self, step: int, manifest: Manifest | None) -> None:
        if manifest is None:
            self._log("unverified", step=step, note="it was saved by a version that wrote no checksums")
        elif self._most is not None:
            sizes = [size for size, _ in manifest.files.values() if size > self._most]
            if sizes:
                self._log("unverified", step=step, files=len(sizes), bytes=sum(sizes), note="larger than verify_bytes")
