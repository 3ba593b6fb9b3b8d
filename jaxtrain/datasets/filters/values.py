"""Filters of values: empty, length, range."""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import NonNegativeInt, Range
from jaxtrain.datasets.filters.base import OneByOne, text_of


@dataclass(frozen=True)
class NotEmpty(OneByOne):
    """Finds None, NaN, arrays without entries, and text or bytes that are empty or only white space."""

    def _fault(self, value: Any) -> str | None:
        if isinstance(value, str | bytes):
            return None if value.strip() else "empty"
        if value is None:
            return "None"
        array = np.asarray(value)
        if not array.size:
            return "empty"
        return "NaN" if array.ndim == 0 and array.dtype.kind == "f" and np.isnan(array) else None


@dataclass(frozen=True)
class Length(OneByOne):
    """Finds text of fewer than `least` or more than `most` characters, and bytes of fewer or more bytes."""

    least: NonNegativeInt
    most: NonNegativeInt

    def __post_init__(self) -> None:
        if self.least > self.most:
            raise ConfigError(f"Length: needs least <= most, got {self.least} and {self.most}")

    def _fault(self, value: Any) -> str | None:
        text_of(value, self.field)
        if self.least <= len(value) <= self.most:
            return None
        unit = "bytes" if isinstance(value, bytes) else "characters"
        return f"{len(value):,} {unit}, not {self.least:,} to {self.most:,}"


Bound = Annotated[float, Range(hint="None: no bound")]


@dataclass(frozen=True)
class InRange(OneByOne):
    """Finds numbers, and arrays with entries, below `low` or above `high`, and NaN. None is no bound."""

    low: Bound | None
    high: Bound | None

    def __post_init__(self) -> None:
        low, high = self._bounds
        if not low <= high or (self.low is None and self.high is None):
            raise ConfigError(f"InRange: needs low <= high, or one of them, got {self.low} and {self.high}")

    @property
    def _bounds(self) -> tuple[float, float]:
        return -np.inf if self.low is None else self.low, np.inf if self.high is None else self.high

    def _fault(self, value: Any) -> str | None:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise ConfigError(f"field {self.field!r} holds a {type(value).__name__}, not numbers")
        low, high = self._bounds
        outside = array[~((array >= low) & (array <= high))]
        if not outside.size:
            return None
        many = f" and {outside.size - 1:,} more" if outside.size > 1 else ""
        return f"{outside.flat[0]:g}{many} not in {low:g}…{high:g}"
