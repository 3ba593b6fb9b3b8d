"""Makes a pipeline's batches carry the times at which they were read, decoded, transformed and stacked.

The pipeline itself is unchanged: a source around its source and a transform after its transforms note the times, which
takes about 1 µs per row.
"""

import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxtrain.data.pipeline import Pipeline
from jaxtrain.data.reading import read
from jaxtrain.data.sources.base import Example, HostBatch, Indexed
from jaxtrain.data.sources.combine import Wrapper
from jaxtrain.data.transforms.base import Transform

TIMES = "$times"
"""A field of the batch: float64[5, 2], wall-clock and CPU seconds at the beginning of the first of the four stages and
at the end of each.
"""


class _Marks(threading.local):
    """The times of the batch that this thread reads, and the number of its rows left in the current stage."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []
        self.rows = self.left = 0

    def begin(self, rows: int) -> None:
        self.times, self.rows, self.left = [], rows, rows
        self.mark()

    def mark(self) -> None:
        self.times.append((time.perf_counter(), time.thread_time()))

    def row_done(self) -> None:
        """Mark the end of a stage after the last row."""
        self.left -= 1
        if not self.left:
            self.mark()
            self.left = self.rows


_MARKS = _Marks()


@dataclass(frozen=True)
class _TimedSource(Wrapper):
    def fetch(self, indices: Sequence[int]) -> list[Any]:
        _MARKS.begin(len(indices))
        stored = self.source.fetch(indices)
        _MARKS.mark()
        return stored

    def decode(self, stored: Any) -> Example:
        example = self.source.decode(stored)
        _MARKS.row_done()
        return example


@dataclass(frozen=True)
class _Transformed(Transform):
    """The last transform: notes when all rows are transformed."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        _MARKS.row_done()
        return example


@dataclass(frozen=True)
class _TimedSteps:
    steps: Indexed[HostBatch]

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> HostBatch:
        batch = self.steps[index]
        _MARKS.mark()
        times = _MARKS.times
        if len(times) == 4:  # without transforms, that stage takes no time
            times.insert(2, times[2])
        return {**batch, TIMES: np.array(times)}


def timed_batches(
    data: Pipeline, rows: Sequence[int] | None = None, start: int = 0
) -> Generator[HostBatch, None, None]:
    """The batches of `data.batches(rows, start)`, each with its times in the field `TIMES`."""
    last = (_Transformed(),) if data.transforms else ()
    timed = replace(data, source=_TimedSource(data.source), transforms=(*data.transforms, *last))
    timed.example()  # read here, so that the first batch is not charged for it
    steps = _TimedSteps(timed.steps(rows, start))
    return read(steps, threads=data.threads, workers=data.workers, prefetch=data.prefetch)
