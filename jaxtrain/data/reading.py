"""The order in which examples are visited, and reading batches ahead. The only module that imports grain.

Not here: worker processes (`workers`). Those of grain are not used: they hold named shared memory and semaphores, which
a killed trainer leaves behind, and one that hangs delays the exit of the trainer by 25 s.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import grain
import numpy as np

from jaxtrain.data.sources.base import HostBatch, Indexed
from jaxtrain.data.workers import read_in_workers

T = TypeVar("T")

_TABLE = 1 << 22  # the most examples whose order is kept in memory, 4 bytes each


def visiting_order(size: int, seed: int | None, buckets: bytes = b"", rows: int = 1) -> Indexed[int]:
    """The index of the example at each position of an endless stream over `size` examples.

    With a seed, every epoch of `size` positions is a permutation of its own; without one it is 0, 1, …, size - 1.

    buckets: the bucket of each example, if each batch of `rows` positions shall hold examples of one; b"" is none.
    """
    if size <= _TABLE or buckets:
        return _Order(size, seed, buckets, rows)
    order: Any = grain.MapDataset.range(size)  # endless: grain takes positions modulo the length
    if seed is not None:
        # grain shuffles epoch e with seed + e. The seed is hashed, else epoch 0 of seed 1 would be epoch 1 of seed 0.
        order = order.shuffle(seed=int(np.random.SeedSequence(seed).generate_state(1)[0]))
    return order


@dataclass(frozen=True)
class _Order:
    """An order from one table per epoch. A look-up takes a tenth of grain's time, which matters for small rows."""

    size: int
    seed: int | None
    buckets: bytes
    rows: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        epoch, place = divmod(index, self.size)
        return place if self.seed is None else int(_permutation(self, self.seed, epoch)[place])


@lru_cache(maxsize=4)
def _permutation(order: _Order, seed: int, epoch: int) -> np.ndarray:
    rng = np.random.default_rng((seed, epoch))
    found = rng.permutation(order.size).astype(np.int32)
    if order.buckets:
        found = found[np.argsort(np.frombuffer(order.buckets, np.uint8)[found], kind="stable")]
        # The first positions of an epoch may complete the last batch of the one before. The batches after that are
        # shuffled, in place since both are views.
        rest = found[-epoch * order.size % order.rows :]
        rng.shuffle(rest[: len(rest) // order.rows * order.rows].reshape(-1, order.rows))
    return found


def read(batches: Indexed[HostBatch], *, threads: int, workers: int, prefetch: int) -> Generator[HostBatch, None, None]:
    """Yield every item of `batches` in order, read `prefetch` items ahead in each process that reads.

    The items are the same for any number of threads and workers. With workers, `batches` is pickled. Exceptions keep
    their type. Closing the iterator stops threads and processes, and waits only a few seconds for one that hangs. A
    worker that is killed is replaced a few times; then `Retry` is raised.
    """
    depth = max(prefetch, threads)
    if workers:
        reading: Any = read_in_workers(batches, workers, threads, depth)
    else:
        # grain's defaults are 16 threads and 500 items, here batches, in memory.
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=depth)
        reading = iter(grain.MapDataset.source(batches).to_iter_dataset(options))
    with contextlib.closing(reading):
        yield from reading


def to_device(batches: Iterator[HostBatch], put: Callable[[HostBatch], T], depth: int = 2) -> Generator[T, None, None]:
    """Yield `put(batch)` for every batch, called `depth` - 1 batches ahead.

    `put` starts a transfer and returns at once, so that it overlaps with the step before. Closing the iterator closes
    `batches`.
    """
    waiting: deque[T] = deque()
    try:
        for batch in batches:
            waiting.append(put(batch))
            if len(waiting) >= depth:
                yield waiting.popleft()
        yield from waiting
    finally:
        if isinstance(batches, Generator):
            batches.close()
