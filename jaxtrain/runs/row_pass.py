"""The pass over a split that collects what `rows` keeps of each example: after the last evaluation of a run, or for the
verb `evaluate`.

It leaves the evaluation as it is, and what goes wrong in it never ends a run. Not here: what is computed of a batch,
and the format of the file.
"""

import contextlib
import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxtrain.base.errors import ConfigError, Damaged, cannot_write
from jaxtrain.cluster import watchdog
from jaxtrain.cluster.processes import broadcast_from_first, is_first_process, least_over_processes
from jaxtrain.cluster.stop import StopSignal
from jaxtrain.data.pipeline import Pipeline
from jaxtrain.data.sources.combine import Wrapper
from jaxtrain.experiment.fit import in_units_of_data
from jaxtrain.program import Program
from jaxtrain.runs.clock import Clock
from jaxtrain.runs.row_ids import record_ids
from jaxtrain.runs.row_sums import RowSums, error_text, is_sum
from jaxtrain.runs.rows import RowsOf, read_rows, write_rows
from jaxtrain.step import TrainState


class NotKept(Exception):
    """Why no rows are kept; raised in all processes at the same place."""


def keep_last_rows(
    program: Program, state: TrainState, folder: Path, clock: Clock, stop: StopSignal, log: Callable[..., None]
) -> None:
    """Keep the rows of a run that has ended, by itself or by an observer, with its last state; nothing of one that a
    signal ended before. Rows that are there already are not made again.

    What goes wrong is logged and does not end the run: `jaxtrain evaluate RUN --keep-rows` makes them later.
    """
    experiment, step = program.experiment, int(jax.device_get(state.step))
    most = experiment.runtime.keep_rows
    if not most or (step < experiment.steps and not stop.ended):
        return
    sums = RowSums(program)
    with clock("eval"):
        for split, pipeline in experiment.evals.items():
            if broadcast_from_first(is_first_process() and _is_kept(folder, split, step, most)):
                continue
            try:
                rows = collect_rows(program, sums, state, split, pipeline, most, lambda: bool(stop.code))
                if is_first_process():
                    write_rows(folder, rows)
            except Exception as error:  # of the user's classes too
                if jax.process_count() > 1 and not isinstance(error, NotKept | OSError):
                    raise  # others may be waiting for this process in a collective: all end, and the run is saved
                again = f"jaxtrain evaluate {folder} --keep-rows"
                log("rows_not_kept", split=split, step=step, why=error_text(error), command=again)


def keep_rows(program: Program, state: TrainState, folder: Path, evals: Mapping[str, Pipeline], most: int) -> None:
    """Keep the rows of these splits in a run folder. Raises ConfigError where they cannot be read or written."""
    sums = RowSums(program)
    for split, pipeline in evals.items():
        try:
            rows = collect_rows(program, sums, state, split, pipeline, most)
            if is_first_process():
                write_rows(folder, rows)
        except NotKept as error:
            raise ConfigError(f"--keep-rows: the rows of {split!r} are not kept: {error}") from error
        except OSError as error:
            raise cannot_write(f"the rows of {split!r} in {folder}", error) from error


def collect_rows(
    program: Program,
    sums: RowSums,
    state: TrainState,
    split: str,
    pipeline: Pipeline,
    most: int,
    stopped: Callable[[], bool] = lambda: False,
) -> RowsOf:
    """The rows of a split; of more than `most`, those with the smallest ids. Every process calls it and gets the same.

    Raises NotKept in all processes where one cannot read its rows, or where `stopped` says so in one.
    """
    ids = _all_ids(pipeline, stopped)
    positions = np.sort(np.argsort(ids, kind="stable")[:most])
    if len(positions) < len(ids):
        pipeline = replace(pipeline, source=_Chosen(pipeline.source, tuple(positions.tolist())))
    with _agreed():
        plan = sums.plan(pipeline, len(positions))
    parts: list[Any] = []
    wholes: list[Any] = []
    with contextlib.closing(program.epoch(pipeline)) as batches:
        for _ in range(pipeline.steps_per_epoch):
            with _agreed(stopped):
                batch = next(batches)
            watchdog.beat()
            part, whole = sums(plan, state, batch)
            parts.append(part)
            wholes.append(whole)
    rows = jax.tree.map(lambda *each: np.concatenate(each), *parts)
    labels = in_units_of_data(program.experiment, rows["labels"], labels=True)
    metrics = {name: each for name, each in rows["metrics"].items() if is_sum(each, [one[name] for one in wholes])}
    no_sum = "it is not a sum over rows: those of single rows do not add up to that of all"
    left_out = {**plan.left_out, **{f"metrics.{name}": no_sum for name in rows["metrics"].keys() - metrics.keys()}}
    step, kept = int(jax.device_get(state.step)), len(positions)
    return RowsOf(
        split, step, kept, len(ids), ids[positions], positions, rows["predictions"], labels, metrics, left_out
    )


def _is_kept(folder: Path, split: str, step: int, most: int) -> bool:
    try:
        rows = read_rows(folder, split)
    except (ConfigError, Damaged, OSError):  # they are made anew
        return False
    return rows.step == step and rows.kept == min(rows.of, most)


@contextlib.contextmanager
def _agreed(stopped: Callable[[], bool] = lambda: False) -> Generator[None]:
    """At the end of the block raises NotKept in all processes, if one of them raised an exception within or is stopped.

    So none waits in a collective for one that failed to read its rows.
    """
    found: Exception | None = None
    try:
        yield
    except Exception as error:  # of a user's source or transform
        found = error
    stop = stopped()
    if not least_over_processes(int(found is None and not stop)):
        if found is not None:
            raise NotKept(error_text(found)) from found
        raise NotKept("a signal came" if stop else "another process could not read its rows, or a signal came there")


def _all_ids(pipeline: Pipeline, stopped: Callable[[], bool]) -> np.ndarray:
    """The ids of all records, u64[records]; each process reads a part of them."""
    processes, own, bounds = jax.process_count(), np.zeros(0, np.uint64), [0]
    with _agreed(stopped):
        bounds = [each * len(pipeline.source) // processes for each in range(processes + 1)]
        first, end = bounds[jax.process_index() :][:2]
        own = record_ids(pipeline, first, end, watchdog.beat)
    if processes == 1:
        return own
    # Padded, since all give as many, and as halves of 32 bits, since arrays on devices have no more.
    halves = np.zeros((max(end - first for first, end in itertools.pairwise(bounds)), 2), np.uint32)
    halves[: len(own)] = own.view(np.uint32).reshape(-1, 2)
    gathered = np.asarray(multihost_utils.process_allgather(halves))
    parts = [part[: end - first] for part, (first, end) in zip(gathered, itertools.pairwise(bounds), strict=True)]
    return np.ascontiguousarray(np.concatenate(parts)).view(np.uint64).reshape(-1)


@dataclass(frozen=True)
class _Chosen(Wrapper):
    """Some examples of another source, by their indices there."""

    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def fetch(self, indices: Sequence[int]) -> list[Any]:
        return self.source.fetch([self.indices[index] for index in indices])

    def where(self, index: int) -> str:
        return self.source.where(self.indices[index])
