"""Training batches of examples of similar length, which need less padding. Not here: the padding."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.ranges import PositiveInt
from jaxtrain.data.pipeline import Pipeline
from jaxtrain.data.sources.base import Example, Indexed


@dataclass(frozen=True, kw_only=True)
class Bucketed(Pipeline):
    """A pipeline whose training batches each take their rows from one bucket: the examples for which a width is the
    smallest one that they fit into. Examples longer than all widths are the last bucket.

    Every epoch has each example once, with rows within buckets and the order of batches shuffled. Only a batch at the
    boundary of two buckets or epochs has rows of two buckets. Batches keep the shape that the transforms give them; a
    step may cut a batch to the width of its bucket. Evaluation, and training with `shuffle=False`, follow the source's
    order.

    The whole source is read once before the first batch, for the lengths; wrap it in `Stored` or `InMemory` if that is
    slow. Raises ConfigError for an example without the field.

    by: the field of the source's examples whose length decides the bucket, [n, …] or text.
    widths: the greatest length in each bucket.
    """

    by: str
    widths: tuple[PositiveInt, ...]

    def _order(self, seed: int | None) -> Indexed[int]:
        from jaxtrain.data.reading import visiting_order

        return visiting_order(self._size(), seed, b"" if seed is None else self._buckets, self.batch_size)

    @cached_property
    def _buckets(self) -> bytes:
        """The index of each example's bucket, one byte each."""
        lengths = [self._length(self.source[index]) for index in range(self._size())]
        return np.searchsorted(sorted(self.widths), lengths).astype(np.uint8).tobytes()

    def _length(self, example: Example) -> int:
        if self.by not in example:
            raise ConfigError(f"Bucketed.by: no field {self.by!r} in the example{nearest(self.by, example)}")
        return len(example[self.by])
