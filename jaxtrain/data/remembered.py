"""What a run remembers of its data, so that `predict` opens no data file: transforms, fields, shapes and dtypes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from jaxtrain.data.pipeline import Pipeline
from jaxtrain.data.sources.base import HostBatch


@dataclass(frozen=True)
class RememberedPipeline(Pipeline):
    """A pipeline's transforms, for raw inputs, and the dtype and shape of every field of a row of its batches.

    Its batches are zeros: they are for shapes alone.
    """

    row: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)

    @cached_property
    def _first(self) -> HostBatch:
        return {name: np.zeros((1, *shape), dtype) for name, (dtype, shape) in self.row.items()}


def remember(pipeline: Pipeline) -> RememberedPipeline:
    """What is saved of a pipeline with a run. Reads one example."""
    row = {name: (x.dtype.name, x.shape[1:]) for name, x in pipeline.example().items()}
    source, size = pipeline.source.remembered(), pipeline.batch_size
    return RememberedPipeline(source, pipeline.transforms, size, seed=pipeline.seed, row=row)
