"""Columns in memory as a source."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.files import digest
from jaxtrain.data.sources.base import Example, Source


@dataclass(frozen=True, eq=False)
class Arrays(Source):
    """Columns in memory: example i is row i of every column.

    `columns` maps field names to arrays with the same first dimension, or to lists of str or bytes. Two `Arrays` are
    equal if their contents are. Raises ConfigError where there are no columns, for columns of different lengths, and
    for objects that are neither str nor bytes.
    """

    columns: Mapping[str, Any] = field(repr=False)

    def __post_init__(self) -> None:
        columns = {name: _as_column(name, values) for name, values in self.columns.items()}
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ConfigError(f"Arrays needs one or more columns of one length, got lengths {lengths}")
        object.__setattr__(self, "columns", columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> Example:
        return {name: column[index] for name, column in self.columns.items()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arrays) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    def identity(self) -> str:
        """A sha256 of names, dtypes, shapes and values."""
        return f"arrays:{self._content}"

    @cached_property
    def _content(self) -> str:
        parts: list[memoryview | str] = []
        for name, column in sorted(self.columns.items()):
            parts.append(repr((name, column.dtype.str, column.shape)))
            parts.append(repr(column.tolist()) if column.dtype == object else column.ravel().view(np.uint8).data)
        return digest(*parts)


def _as_column(name: str, values: Any) -> np.ndarray:
    if isinstance(values, np.ma.MaskedArray):
        raise ConfigError(f"Arrays column {name!r} is a masked array: fill it, and give its mask as another")
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ConfigError(
            f"Arrays column {name!r} holds rows of different shapes: pad them to one, or give the examples by "
            f"Items and a transform such as Pad ({error})"
        ) from error
    if array.dtype.kind in "USO":  # fixed-width strings lose trailing zero bytes; objects keep them
        array = np.asarray(values, dtype=object)
        wrong = {type(value).__name__ for value in array.flat if not isinstance(value, str | bytes)}
        if wrong:
            raise ConfigError(f"Arrays column {name!r} holds {sorted(wrong)}; use numbers, str or bytes")
    if array.ndim == 0:
        raise ConfigError(f"Arrays column {name!r} is a single value; give one row per example")
    return array
