"""Transforms of fields: select, scale, encode."""

import math
from collections.abc import Mapping
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

    def traced(self, fields: Example) -> Example:
        value = self.field_of(fields, self.field)
        for given in (self.mean, self.std):
            if isinstance(given, tuple) and value.shape[1:][-1:] != (len(given),):
                raise ConfigError(f"Normalize: {len(given)} channels, but {self.field!r} has shape {value.shape[1:]}")
        mean, std = (np.asarray(given, np.float32) for given in (self.mean, self.std))
        return {**fields, self.field: (value.astype(np.float32) - mean) / std}

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

    def traced(self, fields: Example) -> Example:
        kept = {name: value for name, value in fields.items() if name in self.fields}
        if not kept:
            raise ConfigError(f"Select: none of {self.fields} in the example, which has {sorted(fields)}")
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

    def traced(self, fields: Example) -> Example:
        """Of places in the vocabulary."""
        places_B = self.field_of(fields, self.field)
        return {**fields, self.field: (places_B[:, None] == np.arange(len(self.vocabulary))).astype(np.float32)}

    def raw_inputs(self, kinds: Mapping[str, tuple[str, tuple[int, ...]]]) -> Mapping[str, Mapping[str, Any]]:
        """One of the vocabulary."""
        return {self.field: {"kind": "category", "values": self.vocabulary}} if self.field in kinds else {}


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

    def traced(self, fields: Example) -> Example:
        import jax.numpy as jnp  # not at the top: reading data needs no jax

        parts = [self.field_of(fields, name).astype(np.float32) for name in self.fields]
        vectors = [part.reshape(part.shape[0], math.prod(part.shape[1:])) for part in parts]
        return self.replaced(fields, self.fields, self.to, jnp.concatenate(vectors, axis=1))


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

    def traced(self, fields: Example) -> Example:
        """Of values that are as many in every row."""
        import jax.numpy as jnp  # not at the top: reading data needs no jax

        values = self.field_of(fields, self.field)
        rows, count = values.shape[0], values.shape[1] if values.ndim > 1 else -1
        if not 0 <= count <= self.length:
            raise ConfigError(f"Pad: {self.field!r} of shape {values.shape[1:]} does not fit the length {self.length}")
        added = ((0, 0), (0, self.length - count), *((0, 0) for _ in values.shape[2:]))
        padded = jnp.pad(values, added, constant_values=np.asarray(self.value).astype(values.dtype))
        mask = jnp.broadcast_to(np.arange(self.length) < count, (rows, self.length))
        return self.replaced({**fields, self.field: padded}, (), self.mask or f"{self.field}_mask", mask)
