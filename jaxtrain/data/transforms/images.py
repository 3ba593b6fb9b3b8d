"""Transforms of images."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.ranges import InnerFraction, NonNegativeInt, PositiveInt
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
        # Not np.pad, which takes longer than all the rest of reading a small image.
        padded = np.zeros((height + 2 * self.pixels, width + 2 * self.pixels, channels), image.dtype)
        padded[self.pixels : self.pixels + height, self.pixels : self.pixels + width] = image
        return {**example, self.field: padded[down : down + height, right : right + width]}


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

    Evaluation takes the central window (`CentralCrop`) instead, since models need the same shape there.
    """

    size: tuple[PositiveInt, PositiveInt]
    field: str = "image"

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return _crop(self, example, lambda room: int(rng.integers(0, room + 1)))

    def evaluating(self) -> Transform:
        return CentralCrop(self.size, self.field)


@dataclass(frozen=True)
class CentralCrop(Transform):
    """The central window of `size` (height, width) of an image [height, width, channels]."""

    size: tuple[PositiveInt, PositiveInt]
    field: str = "image"

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return _crop(self, example, lambda room: room // 2)


def _crop(crop: RandomCrop | CentralCrop, example: Example, place: Callable[[int], int]) -> Example:
    image = crop.image_of(example, crop.field)
    tall, wide = image.shape[0] - crop.size[0], image.shape[1] - crop.size[1]
    if min(tall, wide) < 0:
        raise ConfigError(f"{type(crop).__name__}: an image of {image.shape[:2]} has no window of {crop.size}")
    down, right = place(tall), place(wide)
    return {**example, crop.field: image[down : down + crop.size[0], right : right + crop.size[1]]}


@dataclass(frozen=True)
class CutMix(BatchTransform):
    """Paste a box of another image of the same label into each image (Yun et al. 2019, arXiv:1905.04899).

    The box covers `share` of the image's area. An image whose label no other in the batch has is not changed.
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
