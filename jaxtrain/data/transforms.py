"""Transforms: what happens to an example before it is stacked, and to a batch. The same serve training and serving.

A transform sees examples with a label and raw inputs without one, so it asks only for the field that it
changes.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from jaxtrain.data.sources import Batch, Example
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
        height, width, channels = image.shape
        down, right = rng.integers(0, 2 * self.pixels + 1, size=2)
        # Not np.pad, which takes longer than all the rest of reading a small image.
        padded = np.zeros((height + 2 * self.pixels, width + 2 * self.pixels, channels), image.dtype)
        padded[self.pixels : self.pixels + height, self.pixels : self.pixels + width] = image
        return {**example, self.field: padded[down : down + height, right : right + width]}


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


@dataclass(frozen=True)
class RandomCrop(Transform):
    """A window of `size` (height, width) of an image [height, width, channels], anywhere in it.

    While evaluating it is the central one, as `CentralCrop` takes it: a crop decides the shape, so it is not left out.
    """

    size: tuple[int, int]
    field: str = "image"

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with its image cut."""
        return _cropped(self, example, lambda room: int(rng.integers(0, room + 1)))

    def evaluating(self) -> Transform:
        """The central window."""
        return CentralCrop(self.size, self.field)


@dataclass(frozen=True)
class CentralCrop(Transform):
    """The central window of `size` (height, width) of an image [height, width, channels]."""

    size: tuple[int, int]
    field: str = "image"

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with its image cut."""
        return _cropped(self, example, lambda room: room // 2)


def _cropped(crop: RandomCrop | CentralCrop, example: Example, place: Callable[[int], int]) -> Example:
    image = crop.image_of(example, crop.field)
    tall, wide = image.shape[0] - crop.size[0], image.shape[1] - crop.size[1]
    if min(tall, wide) < 0:
        raise ConfigError(f"{type(crop).__name__}: an image of {image.shape[:2]} has no window of {crop.size}")
    down, right = place(tall), place(wide)
    return {**example, crop.field: image[down : down + crop.size[0], right : right + crop.size[1]]}


@dataclass(frozen=True)
class OneHot(Transform):
    """A value of `vocabulary` in `field` to float32[len(vocabulary)]. Raises ConfigError for any other value."""

    field: str
    vocabulary: tuple[str | int, ...]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with the value's place set to one."""
        value = self.field_of(example, self.field)
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        value = value if isinstance(value, str) else int(value)
        if value not in self.vocabulary:
            raise ConfigError(f"OneHot: {self.field!r} is {value!r}{nearest(str(value), map(str, self.vocabulary))}")
        return {**example, self.field: np.array([value == known for known in self.vocabulary], np.float32)}


@dataclass(frozen=True)
class Hash(Transform):
    """A text or integer in `field` to int32 below `buckets`, the same on every machine (Weinberger et al. 2009)."""

    field: str
    buckets: int

    def __post_init__(self) -> None:
        if not 0 < self.buckets < 1 << 31:
            raise ConfigError(f"Hash buckets must be 1 or more and fit int32, got {self.buckets}")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with the value's bucket."""
        value = self.field_of(example, self.field)
        raw = value if isinstance(value, bytes) else str(value).encode()
        place = int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little") % self.buckets
        return {**example, self.field: np.int32(place)}


@dataclass(frozen=True)
class Columns(Transform):
    """Numbers and vectors of several fields, in order, as one float32 vector in `to`; the fields are dropped."""

    fields: tuple[str, ...]
    to: str = "features"

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with one vector."""
        parts = [np.ravel(self.field_of(example, name)) for name in self.fields]
        rest = {name: value for name, value in example.items() if name not in self.fields}
        return {**rest, self.to: np.concatenate(parts).astype(np.float32)}


@dataclass(frozen=True)
class LogMel(Transform):
    """Sound in `field`, float32[samples] at `rate` Hz, to float32[frames, mels]: the log of its energies by pitch.

    Frames are Hann windows of `window` samples, `hop` apart, none of them padded. Filters are triangles whose corners
    are even on the mel scale 2595·log10(1 + f/700) (O'Shaughnessy 1987) from 0 Hz to half the rate.
    """

    rate: int
    mels: int = 80
    window: int = 400
    hop: int = 160
    field: str = "audio"

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with its sound as an image of frames by mels."""
        samples = np.asarray(self.field_of(example, self.field), np.float32)
        if samples.ndim != 1 or len(samples) < self.window:
            raise ConfigError(f"LogMel: {self.field!r} must be [samples], {self.window} or more; got {samples.shape}")
        frames = np.lib.stride_tricks.sliding_window_view(samples, self.window)[:: self.hop]
        power = np.abs(np.fft.rfft(frames * np.hanning(self.window + 1)[:-1])) ** 2
        return {**example, self.field: np.log(power @ _mel_filters(self) + 1e-10).astype(np.float32)}


@lru_cache(maxsize=16)
def _mel_filters(of: LogMel) -> np.ndarray:
    top = 2595 * np.log10(1 + of.rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, of.mels + 2) / 2595) - 1)
    hertz = np.fft.rfftfreq(of.window, 1 / of.rate)[:, None]
    rising = (hertz - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - hertz) / (corners[2:] - corners[1:-1])
    return np.maximum(0, np.minimum(rising, falling))


@dataclass(frozen=True)
class BatchTransform(ABC):
    """A whole global batch in, a new one out; the same for the same batch and generator state. Training only."""

    @abstractmethod
    def __call__(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """The changed batch, of the same rows. `batch` and its arrays are not written into."""


@dataclass(frozen=True)
class CutMix(BatchTransform):
    """Pastes a box of another image of the same label into each image (Yun et al. 2019, arXiv:1905.04899).

    The box covers `share` of the image's area. An image whose label no other in the batch has stays as it is.
    """

    share: float = 0.25
    field: str = "image"
    label: str = "label"

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"CutMix share must be between 0 and 1, got {self.share}")

    def __call__(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """The batch with its images mixed."""
        for name in (self.field, self.label):
            if name not in batch:
                raise ConfigError(f"CutMix: no field {name!r} in the batch{nearest(name, batch)}")
        images, labels = batch[self.field], batch[self.label]
        order = rng.permutation(len(images))
        by_label = order[np.argsort(labels[order], kind="stable")]
        partner = np.empty(len(images), int)
        for label in np.unique(labels):
            rows = by_label[labels[by_label] == label]
            partner[rows] = np.roll(rows, 1)
        high, wide = (max(1, round(size * self.share**0.5)) for size in images.shape[1:3])
        mixed = images.copy()
        down = rng.integers(0, images.shape[1] - high + 1, len(images))
        right = rng.integers(0, images.shape[2] - wide + 1, len(images))
        for row, (y, x) in enumerate(zip(down, right, strict=True)):
            mixed[row, y : y + high, x : x + wide] = images[partner[row], y : y + high, x : x + wide]
        return {**batch, self.field: mixed}
