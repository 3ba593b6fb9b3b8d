"""The pipeline: the global batch at step k is a pure function of the pipeline and k.

Shuffling is by index, and the random numbers of a transform depend only on the seed and the position in the stream.
Processes, workers and threads only divide the rows and the work, so they cannot change a batch, and there is no
iterator state to save.
"""

import functools
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from jaxtrain.base.config import NOT_IN_FINGERPRINT
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import Checked, NonNegativeInt, PositiveInt, Seed
from jaxtrain.data.sources.base import Example, HostBatch, Indexed, Source
from jaxtrain.data.stack import check_alike, stack
from jaxtrain.data.transforms.base import BatchTransform, Transform, with_place

_ENDLESS = 1 << 40


@dataclass(frozen=True)
class Pipeline(Checked):
    """Batches of a source's examples.

    Args:
        source: the examples.
        transforms: applied to each example, in order.
        batch_transforms: applied to the whole global batch in training, in order. Then every process reads all rows of
            a batch, not only those of its own devices.
        batch_size: rows of the global batch, over all processes.
        shuffle: visit the examples in a new random order in every epoch.
        seed: for the order and for random transforms; 0 <= seed < 2**32.
        workers: worker processes that read, for transforms that hold the GIL; each takes about a second to start.
        threads: reading threads in each process that reads; with 0, a batch is read when it is needed.
        prefetch: batches read ahead in each process that reads.

    Raises ConfigError for values out of range. The source is opened when it is first read.
    """

    source: Source
    transforms: tuple[Transform, ...] = ()
    batch_size: PositiveInt = 64
    shuffle: bool = True
    seed: Seed = 0
    batch_transforms: tuple[BatchTransform, ...] = ()
    workers: NonNegativeInt = field(default=0, metadata=NOT_IN_FINGERPRINT)
    threads: NonNegativeInt = field(default=2, metadata=NOT_IN_FINGERPRINT)
    prefetch: PositiveInt = field(default=2, metadata=NOT_IN_FINGERPRINT)

    def __post_init__(self) -> None:
        if not isinstance(self.source, Source):
            raise ConfigError(
                f"Pipeline source must be a jaxtrain.data.Source, got a {type(self.source).__name__}; "
                "put arrays in memory in Arrays({'field': array})"
            )
        for name, kind in (("transforms", Transform), ("batch_transforms", BatchTransform)):
            for transform in getattr(self, name):
                if not isinstance(transform, kind):
                    raise ConfigError(f"Pipeline {name} must be jaxtrain.data.{kind.__name__}s, got {transform!r}")

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches that `epoch` yields, including a last one that is not full."""
        return -(-self._size() // self.batch_size)

    def batches(self, rows: Sequence[int] | None = None, start: int = 0) -> Generator[HostBatch, None, None]:
        """The batches of `steps` as an endless iterator from step `start` on, read ahead.

        Close the iterator to stop the readers. Raises ConfigError as `steps` does, and for examples that do not stack.
        """
        return self._read(self.steps(rows, start))

    def steps(self, rows: Sequence[int] | None = None, start: int = 0) -> Indexed[HostBatch]:
        """The training batches by index: item i is the batch of step `start` + i, read when it is indexed.

        `rows` are the rows of the global batch to return, in this order; None is all. The stream of examples continues
        across epochs, so a batch may hold the end of one epoch and the start of the next. The mask is all True. The
        result is picklable. Raises ConfigError for rows outside of the batch and for an empty source.
        """
        if start < 0:
            raise ConfigError(f"start must be a step, 0 or more, got {start}")
        order = self._order(self.seed if self.shuffle else None)
        if self.shuffle:
            self.source.warn_shuffled()
        return _Steps(self, order, self._rows(rows), start, _ENDLESS, training=True)

    def epoch(self, rows: Sequence[int] | None = None) -> Generator[HostBatch, None, None]:
        """Evaluation batches: every example once, in the source's order, without training-only transforms.

        All batches have the same shapes: after the last example, the first ones are repeated with a mask of False.
        `rows` as in `steps`.
        """
        steps = self.steps_per_epoch
        return self._read(_Steps(self, self._order(None), self._rows(rows), 0, steps, training=False))

    def examples(self) -> Generator[Example, None, None]:
        """Every example once, in the source's order, transformed as in `epoch` but not stacked."""
        draws, size = _Draws(self.seed), self._size()
        for start in range(0, size, self.batch_size):
            indices = range(start, min(start + self.batch_size, size))
            for index, stored in zip(indices, self.source.fetch(indices), strict=True):
                with with_place(functools.partial(self.source.where, index)):
                    example = self._transformed(self.source.decode(stored), draws.at(0), training=False)
                yield example

    def undo(self, name: str, values: Any) -> Any:
        """Values of field `name` of a batch, f[rows, …], with the invertible transforms of that field inverted."""
        for transform in reversed(self.transforms):
            values = transform.evaluating().undo(name, values)
        return values

    def record(self, step: int, row: int, training: bool) -> int | None:
        """The index in the source of a row of a global batch; None where `batch_transforms` may combine examples."""
        if training and self.batch_transforms:
            return None
        order = self._order(self.seed if training and self.shuffle else None)
        return int(order[step * self.batch_size + row])

    def prepare(self, examples: Sequence[Mapping[str, Any]]) -> HostBatch:
        """A batch of raw inputs, transformed as in `epoch`, for serving. They need no label."""
        if not examples:
            raise ConfigError("nothing to prepare: give at least one example")
        draws = _Draws(self.seed)
        return stack([self._transformed(dict(example), draws.at(0), training=False) for example in examples])

    def example(self) -> HostBatch:
        """A batch with the shapes and dtypes of every global batch: the first example, read once, repeated in all rows.

        The arrays are read-only.
        """
        return {name: np.broadcast_to(x, (self.batch_size, *x.shape[1:])) for name, x in self._first.items()}

    @cached_property
    def _first(self) -> HostBatch:
        self._size()
        with with_place(lambda: self.source.where(0)):
            row = self._transformed(self.source[0], _Draws(self.seed).at(0), training=True)
        return stack([row], self.source.where)

    def _size(self) -> int:
        size = len(self.source)
        if size == 0:
            raise ConfigError(f"{self.source!r} has no examples")
        return size

    def _rows(self, rows: Sequence[int] | None) -> tuple[int, ...]:
        chosen = tuple(range(self.batch_size) if rows is None else map(int, rows))
        outside = [row for row in chosen if not 0 <= row < self.batch_size]
        if outside or not chosen:
            raise ConfigError(f"rows must be one or more of 0..{self.batch_size - 1}, got {outside or 'none'}")
        return chosen

    def _order(self, seed: int | None) -> Indexed[int]:
        from jaxtrain.data.reading import visiting_order

        return visiting_order(self._size(), seed)

    def _read(self, steps: Indexed[HostBatch]) -> Generator[HostBatch, None, None]:
        from jaxtrain.data.reading import read

        return read(steps, threads=self.threads, workers=self.workers, prefetch=self.prefetch)

    def _transformed(self, example: Example, rng: np.random.Generator, training: bool) -> Example:
        for transform in self.transforms:
            if training or not transform.training_only:
                example = self._changed(transform if training else transform.evaluating(), example, rng)
        return example

    def _changed(self, transform: Transform, example: Example, rng: np.random.Generator) -> Example:
        return transform(example, rng)


class _Draws:
    """Random numbers for the example at each position of the stream: a function of seed and position alone.

    Sets the counter of a counter-based generator (Philox: Salmon et al. 2011), which takes a tenth of the time of
    creating a generator.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Philox(key=seed)
        self._generator = np.random.Generator(self._bits)
        self._state = self._bits.state

    def at(self, position: int) -> np.random.Generator:
        """The generator for `position`; valid until the next call."""
        self._state["state"]["counter"][3] = position  # which leaves 2^192 numbers for each position
        self._bits.state = self._state
        return self._generator


@dataclass(frozen=True)
class _Steps:
    """Item i holds rows `rows` of global batch `start` + i. Pickled to worker processes."""

    pipeline: Pipeline
    order: Indexed[int]
    rows: tuple[int, ...]
    start: int
    count: int
    training: bool

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> HostBatch:
        step = self.start + index
        changes = self.pipeline.batch_transforms if self.training else ()
        rows = range(self.pipeline.batch_size) if changes else self.rows
        batch = self._read([step * self.pipeline.batch_size + row for row in rows])
        for number, change in enumerate(changes):
            batch = change(batch, np.random.default_rng((self.pipeline.seed, step, number)))
        return {name: x[list(self.rows)] for name, x in batch.items()} if changes else batch

    def _read(self, positions: list[int]) -> HostBatch:
        source = self.pipeline.source
        size = len(source)
        mask = np.array([self.training or position < size for position in positions])
        # In one call: some sources read several examples together much faster than one by one.
        indices = [int(self.order[position]) for position in positions]
        rows = [source.decode(one) for one in source.fetch(indices)]
        if self.pipeline.transforms:
            draws, training, done = _Draws(self.pipeline.seed), self.training, 0
            with with_place(lambda: source.where(indices[done])):
                for done, position in enumerate(positions):
                    # In evaluation always position 0, so that a row has the same bits as in `prepare`.
                    random = draws.at(position if training else 0)
                    rows[done] = self.pipeline._transformed(rows[done], random, training)
        batch = {**stack(rows, lambda row: source.where(indices[row])), "mask": mask}
        if self.training:  # the step is compiled for the shapes of the first example
            check_alike(batch, self.pipeline._first, lambda: source.where(indices[0]), lambda: source.where(0))
        return batch
