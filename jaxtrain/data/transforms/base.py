"""Transforms of one example, or of a whole batch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.data.sources.base import Batch, Example


@dataclass(frozen=True)
class Transform(ABC):
    """One example in, a new one out; the same for the same example and generator state. Picklable."""

    @abstractmethod
    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The changed example. `example` and its arrays are not written into."""

    @property
    def training_only(self) -> bool:
        """True for augmentation: evaluation and prediction leave it out."""
        return False

    def evaluating(self) -> "Transform":
        """What takes its place in evaluation and prediction, where it is not left out."""
        return self

    def field_of(self, example: Mapping[str, Any], name: str) -> Any:
        """Field `name` of `example`; ConfigError with the nearest right name when there is none."""
        if name not in example:
            raise ConfigError(f"{type(self).__name__}: no field {name!r} in the example{nearest(name, example)}")
        return example[name]

    def image_of(self, example: Mapping[str, Any], name: str) -> np.ndarray:
        """Field `name` as an array [height, width, channels]; ConfigError for another rank."""
        image = np.asarray(self.field_of(example, name))
        if image.ndim != 3:
            raise ConfigError(
                f"{type(self).__name__}: {name!r} must be [height, width, channels], got shape {image.shape}"
            )
        return image


@dataclass(frozen=True)
class BatchTransform(ABC):
    """A whole global batch in, a new one out; the same for the same batch and generator state. Training only."""

    @abstractmethod
    def __call__(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """The changed batch, of the same rows. `batch` and its arrays are not written into."""
