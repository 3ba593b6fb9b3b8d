"""A source that skips damaged records up to a limit."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from jaxtrain.base.errors import Damaged
from jaxtrain.base.ranges import NonNegativeInt
from jaxtrain.data.sources.base import Example
from jaxtrain.data.sources.combine import Wrapper


@dataclass(frozen=True)
class Tolerant(Wrapper):
    """Replaces a damaged example by the next undamaged one, for up to `limit` damaged examples in each process.

    Each is logged once. Without this wrapper, training stops at the first one. Raises Damaged beyond the limit.
    """

    limit: NonNegativeInt

    def fetch(self, indices: Sequence[int]) -> list[Example]:
        """The examples, already decoded, since some damage shows only then; one by one if any is damaged."""
        try:
            return [self.source.decode(stored) for stored in self.source.fetch(indices)]
        except Damaged:
            return [self._next(index) for index in indices]

    def decode(self, stored: Example) -> Example:
        return stored

    def _next(self, index: int) -> Example:
        for step in range(len(self)):
            try:
                return self.source[(index + step) % len(self)]
            except Damaged as error:
                self._count((index + step) % len(self), error)
        raise Damaged(repr(self.source), None, "every record is damaged")

    def _count(self, index: int, error: Damaged) -> None:
        met = _damaged(self)
        with _LOCK:
            if index not in met:
                met.add(index)
                logging.getLogger("jaxtrain.data").warning("skipped %d of at most %d: %s", len(met), self.limit, error)
        if len(met) > self.limit:
            raise Damaged(
                error.file, error.record, f"{error.why}; that is more than the limit of {self.limit}"
            ) from error


_LOCK = threading.Lock()


@lru_cache(maxsize=64)
def _damaged(source: Tolerant) -> set[int]:
    """The damaged examples that this process has read."""
    return set()
