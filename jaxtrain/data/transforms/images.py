"""Transforms of images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.ranges import FractionBelow1, InnerFraction, NonNegative, NonNegativeInt, PositiveInt
from jaxtrain.data.sources.base import Example, HostBatch
from jaxtrain.data.transforms.base import BatchTransform, Transform


@dataclass(frozen=True)
class Shift(Transform):
    """Shift an image [height, width, channels] by up to `pixels` each way, filled with zeros. Training only."""

    pixels: NonNegativeInt
    field: str = "image"

    @property
    def training_only(self) -> bool:
        return True

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        image = self.image_of(example, self.field)
        height, width, channels = image.shape
        down, right = rng.integers(0, 2 * self.pixels + 1, size=2)
        # Not np.pad, which takes longer than everything else in reading a small image.
        padded = np.zeros((height + 2 * self.pixels, width + 2 * self.pixels, channels), image.dtype)
        padded[self.pixels : self.pixels + height, self.pixels : self.pixels + width] = image
        return {**example, self.field: padded[down : down + height, right : right + width]}


@dataclass(frozen=True)
class RandomAffine(Transform):
    """Rotate, scale and shift an image [height, width, channels] about its center, filled with zeros. Training only.

    Each of the four amounts is uniform between its bounds; values between pixels are interpolated linearly.
    """

    degrees: NonNegative = 0.0
    """The largest rotation in either direction."""
    scale: FractionBelow1 = 0.0
    """The scale is from 1 - `scale` to 1 + `scale`."""
    pixels: NonNegative = 0.0
    """The largest shift along height and along width, in either direction."""
    field: str = "image"

    @property
    def training_only(self) -> bool:
        return True

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        angle, size, down, right = rng.uniform(-1, 1, 4) * (np.deg2rad(self.degrees), self.scale, *2 * (self.pixels,))
        return {**example, self.field: affine(self.image_of(example, self.field), angle, 1 + size, down, right)}


def affine(image: np.ndarray, angle: float, size: float, down: float, right: float) -> np.ndarray:
    """An image [height, width, channels] rotated counterclockwise by `angle` (radians), scaled by `size`, and then
    moved by `down` and `right` pixels. Shape and dtype are kept; integers are rounded.
    """
    height, width, _ = image.shape
    # The inverse map, about the center: the place in the image that each new pixel comes from.
    y, x = np.arange(height)[:, None] - (height - 1) / 2 - down, np.arange(width) - (width - 1) / 2 - right
    cos, sin = np.cos(angle) / size, np.sin(angle) / size
    top, below = _between(cos * y + sin * x + (height - 1) / 2, height)
    left, beside = _between(cos * x - sin * y + (width - 1) / 2, width)
    padded = np.zeros((height + 2, width + 2, image.shape[2]), np.result_type(image.dtype, np.float32))
    padded[1:-1, 1:-1] = image
    upper = padded[top, left] * (1 - beside) + padded[top, left + 1] * beside
    lower = padded[top + 1, left] * (1 - beside) + padded[top + 1, left + 1] * beside
    moved = upper * (1 - below) + lower * below
    return (np.rint(moved) if image.dtype.kind in "iu" else moved).astype(image.dtype)


def _between(place: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The index below each coordinate, in an image padded by one pixel, and the fraction above it, 0 to 1."""
    padded = np.clip(place + 1, 0, size + 1)
    before = np.minimum(padded.astype(int), size)
    return before, (padded - before)[..., None]


@dataclass(frozen=True)
class Flip(Transform):
    """Flip an image [height, width, channels] left to right with probability 1/2. Training only."""

    field: str = "image"

    @property
    def training_only(self) -> bool:
        return True

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        image = self.image_of(example, self.field)
        return {**example, self.field: image[:, ::-1] if rng.random() < 0.5 else image}


@dataclass(frozen=True)
class RandomCrop(Transform):
    """A random window of `size` (height, width) of an image [height, width, channels].

    In evaluation it is the central window (`CentralCrop`), since the model needs the same shape there.
    """

    size: tuple[PositiveInt, PositiveInt]
    field: str = "image"

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return _crop(self, example, lambda room: int(rng.integers(0, room + 1)))

    def evaluating(self) -> Transform:
        return CentralCrop(self.size, self.field)

    def traced(self, fields: Example) -> Example:
        return self.evaluating().traced(fields)


@dataclass(frozen=True)
class CentralCrop(Transform):
    """The central window of `size` (height, width) of an image [height, width, channels]."""

    size: tuple[PositiveInt, PositiveInt]
    field: str = "image"

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return _crop(self, example, lambda room: room // 2)

    def traced(self, fields: Example) -> Example:
        images_BYXC = self.field_of(fields, self.field)
        if images_BYXC.ndim != 4:
            raise ConfigError(f"CentralCrop: {self.field!r} must be [height, width, channels]")
        down, right = (_room(self, images_BYXC.shape[1:], dim) // 2 for dim in (0, 1))
        return {**fields, self.field: images_BYXC[:, down : down + self.size[0], right : right + self.size[1]]}


def _crop(crop: RandomCrop | CentralCrop, example: Example, place: Callable[[int], int]) -> Example:
    image = crop.image_of(example, crop.field)
    down, right = (place(_room(crop, image.shape, dim)) for dim in (0, 1))
    return {**example, crop.field: image[down : down + crop.size[0], right : right + crop.size[1]]}


def _room(crop: RandomCrop | CentralCrop, shape: Sequence[int], dim: int) -> int:
    """How many pixels an image of this shape has more than the window. Raises ConfigError where it has fewer."""
    if min(shape[0] - crop.size[0], shape[1] - crop.size[1]) < 0:
        raise ConfigError(f"{type(crop).__name__}: an image of {(*shape[:2],)} has no window of {crop.size}")
    return shape[dim] - crop.size[dim]


@dataclass(frozen=True)
class CutMix(BatchTransform):
    """Paste a box of another image of the same label into each image (Yun et al. 2019, arXiv:1905.04899).

    The box covers `share` of the image's area. An image whose label is unique in the batch is not changed.
    """

    share: InnerFraction = 0.25
    field: str = "image"
    label: str = "label"

    def __call__(self, batch: HostBatch, rng: np.random.Generator) -> HostBatch:
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
