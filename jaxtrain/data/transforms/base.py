"""Transforms of one example, or of a whole batch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.ranges import Checked
from jaxtrain.data.sources.base import Example, HostBatch


@dataclass(frozen=True)
class Transform(Checked, ABC):
    """A function from an example to a new one, deterministic given the generator's state. Picklable."""

    @abstractmethod
    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The new example. `example` and its arrays are not written into."""

    @property
    def training_only(self) -> bool:
        """Whether evaluation and prediction leave it out, as for augmentation."""
        return False

    def evaluating(self) -> "Transform":
        """The transform to use instead in evaluation and prediction."""
        return self

    def undo(self, name: str, values: Any) -> Any:
        """Values of field `name` as they were before this transform, f[rows, …], of numpy or traced by jax.

        By default unchanged: what cannot be undone is given as it is.
        """
        return values

    def field_of(self, example: Mapping[str, Any], name: str) -> Any:
        """Field `name` of an example. Raises ConfigError with the nearest right name when there is none."""
        if name not in example:
            raise ConfigError(f"{type(self).__name__}: no field {name!r} in the example{nearest(name, example)}")
        return example[name]

    def image_of(self, example: Mapping[str, Any], name: str) -> np.ndarray:
        """Field `name` as an array [height, width, channels]. Raises ConfigError for another rank."""
        image = np.asarray(self.field_of(example, name))
        if image.ndim != 3:
            raise ConfigError(
                f"{type(self).__name__}: {name!r} must be [height, width, channels], got shape {image.shape}"
            )
        return image


@dataclass(frozen=True)
class BatchTransform(Checked, ABC):
    """A function from a global batch to a new one, deterministic given the generator's state. Training only."""

    @abstractmethod
    def __call__(self, batch: HostBatch, rng: np.random.Generator) -> HostBatch:
        """The new batch, with as many rows. `batch` and its arrays are not written into."""
