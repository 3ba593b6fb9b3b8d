"""Raw inputs that are numbers: arrays, images, sound, one number. Needs numpy alone."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtrain.deploy.inputs import Category, Input, Tensor, Text, TokenIds
from jaxtrain.deploy.values import TENSOR_DTYPES, abbreviated, is_float, is_size, numbers

_EXACT = 1 << 24  # beyond it float32 skips integers


@dataclass(frozen=True, kw_only=True)
class NumericInput(Input):
    """The base of inputs that are arrays of numbers of one shape, from `range[0]` to `range[1]` where it is given."""

    shape: tuple[int, ...]
    dtype: str
    range: tuple[float, ...] = ()
    missing: bool = False
    """Whether NaN, or null, is taken: a value that is not known."""

    def spec(self) -> Tensor:
        return Tensor(self.tensor, self.dtype, self.shape)

    def row(self, value: Any) -> np.ndarray:
        array = numbers(self.name, value, self.dtype)
        if array.shape != self.shape:
            raise self.wrong(f"it is of shape {list(array.shape)}, not {list(self.shape)}")
        if is_float(array.dtype):
            known = array if not self.missing else array[~np.isnan(array)]
            if not np.isfinite(known).all():
                raise self.wrong(f"it holds {known[~np.isfinite(known)].flat[0]}, but has to be finite numbers")
            if self.missing:
                array = np.where(np.isnan(array), np.asarray(np.nan, array.dtype), array)  # one NaN, whatever its bits
        if self.range and array.size and not self.range[0] <= array.min() <= array.max() <= self.range[1]:
            inside = (array >= self.range[0]) & (array <= self.range[1]) | (array != array)
            if not inside.all():
                low, high = self.range
                raise self.wrong(f"it holds {array[~inside].flat[0]}, but is on the scale of {low:g} to {high:g}")
        return array

    def check(self) -> None:
        if not (all(is_size(n) for n in self.shape) and self.dtype in TENSOR_DTYPES and isinstance(self.missing, bool)):
            raise self.wrong(f"{self.dtype!r}{list(self.shape)} is no kind of array")
        ends = [each for each in self.range if isinstance(each, int | float) and math.isfinite(each)]
        if self.range and (len(ends) != 2 or len(self.range) != 2 or ends[0] >= ends[1]):
            raise self.wrong(f"{list(self.range)} is no range of numbers")


@dataclass(frozen=True, kw_only=True)
class Array(NumericInput):
    """An array of numbers."""

    kind = "array"


@dataclass(frozen=True, kw_only=True)
class Image(NumericInput):
    """Pixels [height, width, channels] on the scale `range`, or an encoded image, which is resized and put on it."""

    kind = "image"

    def row(self, value: Any) -> np.ndarray:
        return super().row(self.decoded(value) if isinstance(value, bytes) else value)

    def decoded(self, encoded: bytes) -> np.ndarray:
        """The pixels of a file. Raises ConfigError where it is no image."""
        from jaxtrain.data.sources.pixels import pixels

        try:
            found = pixels(encoded, (self.shape[0], self.shape[1]), gray=self.shape[2] == 1)
        except ValueError as error:
            raise self.wrong(f"it cannot be read as an image: {error}") from error
        if self.range == (0, 255):
            return found
        low, high = np.asarray(self.range, np.float32)
        return (found.astype(np.float32) / 255) * (high - low) + low

    def check(self) -> None:
        super().check()
        if len(self.shape) != 3 or self.shape[2] not in (1, 3) or not self.range:
            raise self.wrong(f"an image is [height, width, 1 or 3] with a range, not {list(self.shape)}")


@dataclass(frozen=True, kw_only=True)
class Audio(Input):
    """Samples of one channel, at `rate` a second."""

    kind = "audio"
    samples: int
    rate: int

    def spec(self) -> Tensor:
        return Tensor(self.tensor, "float32", (self.samples,))

    def row(self, value: Any) -> np.ndarray:
        array = numbers(self.name, value, "float32")
        if array.shape != (self.samples,) or not np.isfinite(array).all():
            raise self.wrong(f"it has to be {self.samples} finite samples, not {abbreviated(value)}")
        return array

    def check(self) -> None:
        if not (is_size(self.samples) and is_size(self.rate)):
            raise self.wrong(f"{self.samples!r} samples at {self.rate!r} Hz are no sound")


@dataclass(frozen=True, kw_only=True)
class Number(Input):
    """A number; one that is missing is NaN, or null."""

    kind = "number"
    missing: bool = False
    """Whether it may be missing."""
    integer: bool = False

    def spec(self) -> Tensor:
        return Tensor(self.tensor, "float32", ())

    def row(self, value: Any) -> np.ndarray:
        array = numbers(self.name, math.nan if value is None else value, "float32")
        if array.shape:
            raise self.wrong(f"it has to be one number, not {abbreviated(value)}")
        if not np.isfinite(array) and not (self.missing and np.isnan(array)):
            raise self.wrong("it is missing" if np.isnan(array) else f"it is {array}, but has to be finite")
        if self.integer and np.isfinite(array) and (float(array) != value or array % 1 or abs(array) > _EXACT):
            raise self.wrong(f"it is {abbreviated(value)}, but has to be an integer within ±{_EXACT:,}")
        return np.asarray(np.nan, np.float32) if np.isnan(array) else array

    def check(self) -> None:
        if not (isinstance(self.missing, bool) and isinstance(self.integer, bool)):
            raise self.wrong("missing and integer are true or false")


INPUT_KINDS: dict[str, type[Input]] = {
    each.kind: each for each in (Text, TokenIds, Image, Array, Audio, Number, Category)
}
"""By the name in signature.json."""
