"""Training batches of examples of like length, so that less of them is padding. Not here: the padding."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.ranges import PositiveInt
from jaxtrain.data.pipeline import Pipeline
from jaxtrain.data.sources.base import Example, Indexed


@dataclass(frozen=True, kw_only=True)
class Bucketed(Pipeline):
    """A pipeline whose training batches each have rows of one bucket: of examples that fit into one of some widths and
    into no narrower one. Those longer than all widths are a bucket too.

    Every epoch has each example once. Which rows of a bucket come together, and which bucket follows which, is drawn
    anew. Rows of two buckets meet only in the batch where one bucket ends and the next begins, and in the batch where
    an epoch does. Batches keep the shape that transforms give them: a step may cut one to the width of its bucket.
    Evaluation, and training with `shuffle=False`, is in the source's order.

    The whole source is read once before the first batch, for its lengths; `Stored` or `InMemory` around it make that
    cheap. Raises ConfigError for an example without the field.

    by: the field of the source's examples whose length counts, [n, …] or text.
    widths: the greatest length in each bucket.
    """

    by: str
    widths: tuple[PositiveInt, ...]

    def _order(self, seed: int | None) -> Indexed[int]:
        from jaxtrain.data.reading import visiting_order

        return visiting_order(self._size(), seed, b"" if seed is None else self._buckets, self.batch_size)

    @cached_property
    def _buckets(self) -> bytes:
        """The number of each example's bucket."""
        lengths = [self._length(self.source[index]) for index in range(self._size())]
        return np.searchsorted(sorted(self.widths), lengths).astype(np.uint8).tobytes()

    def _length(self, example: Example) -> int:
        if self.by not in example:
            raise ConfigError(f"Bucketed.by: no field {self.by!r} in the example{nearest(self.by, example)}")
        return len(example[self.by])
