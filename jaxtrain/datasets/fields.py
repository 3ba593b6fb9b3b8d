"""One field of a dataset: what its values are, collected in one pass over them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import Checked, FiniteOnHost, Fraction, NonNegativeInt, PositiveInt
from jaxtrain.base.text import cut
from jaxtrain.datasets.histogram import FINEST, Histogram

VOCABULARY = 100
"""Fields with more distinct values than this have no vocabulary."""

Kind = Literal["text", "bytes", "integer", "number", "array"]

_WORD = 64  # characters; a longer text is no entry of a vocabulary
_FLUSH = 1 << 10  # entries that are counted together


@dataclass(frozen=True)
class Field(Checked):
    """One column of a dataset.

    `shape` is None where a size varies; `missing` is the rate of records in which the field is absent, None, NaN (a
    scalar) or an empty text. `low`, `high` and the histogram, `edges` [n + 1] and `counts` [n], are of the values of
    numbers and of the entries of arrays, and of the lengths of text (characters) and bytes; entries that are NaN or
    infinite are left out. `vocabulary` counts every value of a field of integers, or of texts shorter than
    64 characters, that takes at most VOCABULARY values, each twice or more on average.
    """

    kind: Kind
    dtype: str
    shape: tuple[NonNegativeInt | None, ...]
    missing: Fraction
    low: FiniteOnHost | None
    high: FiniteOnHost | None
    vocabulary: Mapping[str, PositiveInt] | None
    edges: tuple[FiniteOnHost, ...]
    counts: tuple[NonNegativeInt, ...]

    def __str__(self) -> str:
        words = [f"{self.kind} {self.dtype}{_shape_text(self.shape)}"]
        if self.low is not None and self.high is not None:
            words.append(f"{'length ' if self.kind in ('text', 'bytes') else ''}{self.low:g}…{self.high:g}")
        if self.vocabulary is not None:
            common = sorted(self.vocabulary.items(), key=lambda item: -item[1])
            counts = ", ".join(f"{value} ×{count:,}" for value, count in common[:12])
            words.append(counts + (" …" if len(common) > 12 else ""))
        if self.missing:
            words.append(f"{self.missing:.1%} missing")
        return "; ".join(words)


@dataclass(frozen=True)
class Value:
    """One value of a field, reduced to what a schema records."""

    kind: Kind
    dtype: str
    shape: tuple[int, ...]
    numbers: np.ndarray  # float64[n]: its entries or its length; empty for a missing scalar
    word: str | None  # its entry in a vocabulary

    @property
    def missing(self) -> bool:
        """Whether it is an empty text or NaN."""
        return self.kind != "array" and not self.numbers.size


def parse(value: Any) -> Value:
    """What a schema records of a value. Raises ConfigError for one that is no text, bytes, number or numeric array."""
    if isinstance(value, str | bytes):
        kind, dtype = ("text", "str") if isinstance(value, str) else ("bytes", "bytes")
        word = str(value) if kind == "text" and len(value) < _WORD else None
        return Value(kind, dtype, (), np.array([len(value)] if value else [], np.float64), word)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ConfigError(f"{shown(value)} is not an array: {error}") from error
    if array.dtype.kind not in "biuf":
        raise ConfigError(f"{shown(value)} is neither text, bytes, a number nor an array of numbers")
    numbers = array.astype(np.float64).ravel()
    if array.ndim:
        return Value("array", array.dtype.name, array.shape, numbers, None)
    if array.dtype.kind == "f":
        return Value("number", array.dtype.name, (), numbers[~np.isnan(numbers)], None)
    return Value("integer", array.dtype.name, (), numbers, str(int(array)))


class Column:
    """Collects the values of one field."""

    def __init__(self) -> None:
        self.kind: Kind | None = None
        self.dtype = ""
        self.shape: tuple[int | None, ...] = ()
        self.present = 0
        self.words: Counter[str] | None = Counter()
        self.histogram = Histogram()
        self.waiting: list[np.ndarray] = []
        self.entries = 0

    def add(self, value: Any) -> None:
        """Count a value. Raises ConfigError for one of another kind than those before."""
        if value is None:
            return
        seen = parse(value)
        self._widen(seen)
        if seen.missing:
            return
        self.present += 1
        self._count_word(seen.word)
        self.waiting.append(seen.numbers)
        self.entries += seen.numbers.size
        if self.entries >= _FLUSH:
            self._flush()

    def _widen(self, seen: Value) -> None:
        """Make kind, dtype and shape those of all values so far. Raises ConfigError for one of another kind."""
        if self.kind is None:
            self.kind, self.dtype, self.shape = seen.kind, seen.dtype, seen.shape
        elif {self.kind, seen.kind} == {"integer", "number"}:
            self.kind = "number"
        elif self.kind != seen.kind or len(self.shape) != len(seen.shape):
            raise ConfigError(
                f"{type_name(seen.kind, seen.dtype, seen.shape)}, but the records before hold "
                f"{type_name(self.kind, self.dtype, self.shape)}"
            )
        if self.dtype != seen.dtype:
            self.dtype = np.result_type(self.dtype, seen.dtype).name
        if self.shape != seen.shape:
            sizes = zip(self.shape, seen.shape, strict=True)
            self.shape = tuple(one if one == other else None for one, other in sizes)

    def _count_word(self, word: str | None) -> None:
        """Count a value for the vocabulary; there is none once a value is too long, or there are too many of them."""
        if self.words is None or word is None:
            self.words = None
            return
        self.words[word] += 1
        if len(self.words) > VOCABULARY:
            self.words = None

    def _flush(self) -> None:
        if self.waiting:
            self.histogram.add(np.concatenate(self.waiting))
        self.waiting, self.entries = [], 0

    def field(self, records: int) -> Field:
        """The field of `records` examples, of which at least one had a value."""
        assert self.kind is not None
        self._flush()
        whole = self.kind in ("text", "bytes") or np.dtype(self.dtype).kind in "biu"
        edges, counts = self.histogram.result(0 if whole else FINEST)
        few = self.words is not None and 0 < 2 * len(self.words) <= self.words.total()
        empty = not counts
        return Field(
            kind=self.kind,
            dtype=self.dtype,
            shape=self.shape,
            missing=(records - self.present) / records,
            low=None if empty else self.histogram.low,
            high=None if empty else self.histogram.high,
            vocabulary=dict(sorted(self.words.items())) if few and self.words is not None else None,
            edges=edges,
            counts=counts,
        )


def type_name(kind: str, dtype: str, shape: tuple[int | None, ...]) -> str:
    """Kind, dtype and shape for messages, e.g. `array float32[8, ?]`."""
    return kind if kind in ("text", "bytes") else f"{kind} {dtype}{_shape_text(shape)}"


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]" if shape else ""


def shown(value: Any) -> str:
    """A value for messages, cut to 60 characters."""
    return cut(repr(value) if isinstance(value, str | bytes) else str(value))
