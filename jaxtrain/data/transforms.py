"""Transforms: what happens to one example before it is stacked. The same objects serve training and serving.

A transform sees examples with a label and raw inputs without one, so it asks only for the field that it
changes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtrain.data.sources import Example
from jaxtrain.errors import ConfigError, nearest


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
class Utf8(Transform):
    """Text in `field` (str or bytes) to its UTF-8 bytes in `to`: uint8[length], cut or filled up with zeros.

    The text itself is dropped. Padding is byte 0, which text does not hold.
    """

    length: int
    field: str = "text"
    to: str = "bytes"

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"Utf8 length must be at least 1 byte, got {self.length}")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with `to` in place of `field`."""
        text = self.field_of(example, self.field)
        if not isinstance(text, str | bytes):
            raise ConfigError(f"Utf8: {self.field!r} must be str or bytes, got {type(text).__name__}")
        raw = (text.encode() if isinstance(text, str) else text)[: self.length]
        rest = {name: value for name, value in example.items() if name != self.field}
        return {**rest, self.to: np.frombuffer(raw.ljust(self.length, b"\0"), np.uint8)}


@dataclass(frozen=True)
class Shift(Transform):
    """Move an image [height, width, channels] by up to `pixels` each way; zeros come in. Training only."""

    pixels: int
    field: str = "image"

    def __post_init__(self) -> None:
        if self.pixels < 0:
            raise ConfigError(f"Shift pixels must not be negative, got {self.pixels}")

    @property
    def training_only(self) -> bool:
        """True."""
        return True

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with its image moved; same shape and dtype."""
        image = self.image_of(example, self.field)
        height, width, _ = image.shape
        down, right = rng.integers(0, 2 * self.pixels + 1, size=2)
        edges = ((self.pixels, self.pixels), (self.pixels, self.pixels), (0, 0))
        return {**example, self.field: np.pad(image, edges)[down : down + height, right : right + width]}


@dataclass(frozen=True)
class Flip(Transform):
    """Mirror an image [height, width, channels] left to right, half of the time. Training only."""

    field: str = "image"

    @property
    def training_only(self) -> bool:
        """True."""
        return True

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with its image mirrored or not; same shape and dtype."""
        image = self.image_of(example, self.field)
        return {**example, self.field: image[:, ::-1] if rng.random() < 0.5 else image}


@dataclass(frozen=True)
class Normalize(Transform):
    """(value - mean) / std as float32. `mean` and `std` are one number, or one per channel (last
    dimension).
    """

    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]
    field: str = "image"

    def __post_init__(self) -> None:
        if np.any(np.asarray(self.std) <= 0):
            raise ConfigError(f"Normalize std must be positive, got {self.std}")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with `field` normalised; same shape."""
        value = np.asarray(self.field_of(example, self.field), np.float32)
        for name, given in (("mean", self.mean), ("std", self.std)):
            if isinstance(given, tuple) and value.shape[-1:] != (len(given),):
                raise ConfigError(
                    f"Normalize: {name} has {len(given)} values but {self.field!r} has shape {value.shape}"
                )
        return {
            **example,
            self.field: (value - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32),
        }


@dataclass(frozen=True)
class Keep(Transform):
    """Only the named fields. One that is absent is skipped: inputs for prediction have no label."""

    fields: tuple[str, ...]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with only these fields; ConfigError when it has none of them."""
        kept = {name: example[name] for name in self.fields if name in example}
        if not kept:
            raise ConfigError(f"Keep: none of {self.fields} in the example, which has {sorted(example)}")
        return kept
