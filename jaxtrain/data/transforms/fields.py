"""Transforms of fields: select, scale, encode."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.ranges import AnyInt, Finite, Positive, PositiveInt
from jaxtrain.data.sources.base import Example
from jaxtrain.data.transforms.base import Transform, check_once


@dataclass(frozen=True)
class Normalize(Transform):
    """(value - mean) / std as float32. `mean` and `std` are one number, or one per channel (last dimension)."""

    mean: Finite | tuple[Finite, ...]
    std: Positive | tuple[Positive, ...]
    field: str = "image"

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        value = self.numbers_of(example, self.field)
        for name, given in (("mean", self.mean), ("std", self.std)):
            if isinstance(given, tuple) and value.shape[-1:] != (len(given),):
                raise ConfigError(
                    f"Normalize: {name} has {len(given)} values but {self.field!r} has shape {value.shape}"
                )
        return {
            **example,
            self.field: (value - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32),
        }

    def undo(self, name: str, values: Any) -> Any:
        """values · std + mean."""
        if name != self.field:
            return values
        return values * np.asarray(self.std, np.float32) + np.asarray(self.mean, np.float32)


@dataclass(frozen=True)
class Select(Transform):
    """Keep only the named fields. A missing one is skipped, since inputs for prediction have no label.

    Raises ConfigError where the example has none of them.
    """

    fields: tuple[str, ...]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        kept = {name: example[name] for name in self.fields if name in example}
        if not kept:
            raise ConfigError(f"Select: none of {self.fields} in the example, which has {sorted(example)}")
        return kept


@dataclass(frozen=True)
class OneHot(Transform):
    """One-hot encoding of a value of `vocabulary`: float32[len(vocabulary)].

    Raises ConfigError for a value that is not in the vocabulary or is neither text nor an integer, and for a vocabulary
    with a repeated value.
    """

    field: str
    vocabulary: tuple[str | AnyInt, ...]

    def __post_init__(self) -> None:
        if len(set(self.vocabulary)) < len(self.vocabulary):
            raise ConfigError(f"OneHot: the vocabulary must have each value once, got {self.vocabulary}")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        value = self.category_of(example, self.field)
        if value not in self.vocabulary:
            known = [*map(str, self.vocabulary)]
            kind = f", a {type(value).__name__}, which the vocabulary has as another type"
            near = kind if str(value) in known else nearest(str(value), known)
            raise ConfigError(f"OneHot: {self.field!r} is {value!r}{near}")
        return {**example, self.field: np.array([value == known for known in self.vocabulary], np.float32)}


@dataclass(frozen=True)
class Columns(Transform):
    """Numbers and vectors of several fields joined into one float32 vector in `to`, which replaces the fields.

    Raises ConfigError for text, numbers beyond float32, and a field `to` that exists and is not one of `fields`.
    """

    fields: tuple[str, ...]
    to: str = "features"

    def __post_init__(self) -> None:
        check_once(self, "fields")

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        parts = [np.ravel(self.numbers_of(example, name)) for name in self.fields]
        return self.replaced(example, self.fields, self.to, np.concatenate(parts))


@dataclass(frozen=True)
class Pad(Transform):
    """Pad the values in `field`, [n, …], with `value` to [length, …], so that batches have one shape.

    `mask` is the name of a new field, bool[length], that is True at the n values; by default "{field}_mask". Raises
    ConfigError for more than `length` values, and where the example already has the field `mask`.
    """

    field: str
    length: PositiveInt
    value: float = 0
    mask: str | None = None

    def __post_init__(self) -> None:
        if self.mask == "mask":
            raise ConfigError('Pad: the field name "mask" is taken: it says which rows of a batch are real')

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        values = np.asarray(self.field_of(example, self.field))
        if values.ndim < 1 or values.dtype.kind not in "biuf":
            raise ConfigError(f"Pad: {self.field!r} must be numbers [n, …], got {values.dtype}{list(values.shape)}")
        if len(values) > self.length:
            raise ConfigError(f"Pad: {self.field!r} has {len(values)} values, more than the length {self.length}")
        with np.errstate(invalid="ignore"):
            fill = np.asarray(self.value).astype(values.dtype)
        if not np.array_equal(fill, self.value, equal_nan=True):
            raise ConfigError(f"Pad: the value {self.value} does not fit {self.field!r}, which is {values.dtype}")
        padded = np.full((self.length, *values.shape[1:]), fill, values.dtype)
        padded[: len(values)] = values
        changed, mask = {**example, self.field: padded}, np.arange(self.length) < len(values)
        return self.replaced(changed, (), self.mask or f"{self.field}_mask", mask)
