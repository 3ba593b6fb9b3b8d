"""The schema of a data set: what its fields hold, to check a record against and to compare two data sets by.

One class for training and serving: a card holds it, and requests are checked against it. Not here: what a data set
should hold, and what to do with records that differ.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jaxtrain.base.errors import ConfigError, nearest

VOCABULARY = 100
"""Fields with more distinct values than this have no vocabulary."""

BINS = 30
"""A histogram has at most so many bins."""

Kind = Literal["text", "bytes", "integer", "number", "array"]

_WORD = 64  # a longer text is no entry of a vocabulary
_FLUSH = 1 << 10
_LISTED = 20
_FINEST = -1000
_LISTS = ("shape", "edges", "counts")


@dataclass(frozen=True)
class Field:
    """One column of a data set.

    `shape` is None where a size varies; `missing` is the rate of records in which the field is absent, None, NaN (a
    scalar) or an empty text. `low` and `high` bound the values of numbers and of the entries of arrays, and the lengths
    of text (characters) and bytes; so do the bins of the histogram, `edges` [n + 1] and `counts` [n]. Entries that are
    NaN or infinite are in neither. `vocabulary` counts every value of a field of integers, or of texts shorter than
    64 characters, that takes at most VOCABULARY values, each twice or more on average.
    """

    kind: Kind
    dtype: str
    shape: tuple[int | None, ...]
    missing: float
    low: float | None
    high: float | None
    vocabulary: Mapping[str, int] | None
    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Schema:
    """The fields of `records` examples."""

    records: int
    fields: Mapping[str, Field]

    @classmethod
    def of(cls, examples: Iterable[Mapping[str, Any]]) -> "Schema":
        """What examples hold, in one pass, in memory that does not grow with them, and whatever their order.

        Raises ConfigError for a field that is of several kinds or of none, or of several numbers of dimensions.
        """
        columns: dict[str, _Column] = {}
        records = 0
        for example in examples:
            for name, value in example.items():
                column = columns.setdefault(name, _Column())
                try:
                    column.add(value)
                except ConfigError as error:
                    raise ConfigError(f"field {name!r} of record {records}: {error}") from error
            records += 1
        for name, column in columns.items():
            if column.kind is None:
                raise ConfigError(f"field {name!r} is None in every record: leave it out")
        return cls(records, {name: column.field(records) for name, column in sorted(columns.items())})

    def violations(self, example: Mapping[str, Any]) -> list[str]:
        """What in an example is not as it was in the examples of this schema, a message each.

        A dtype may be any that fits the field's without loss; Python's numbers have none and fit any of their kind.
        """
        found = [
            f"{name}: no such field{nearest(name, self.fields)}" for name in sorted(example.keys() - self.fields.keys())
        ]
        for name, field in self.fields.items():
            found += [f"{name}: {what}" for what in _violations(field, example.get(name), name in example)]
        return found

    def drift(self, other: "Schema") -> dict[str, float]:
        """How far every field's distribution is from the other's: 0, the same, to 1, nothing in common.

        It is the Jensen–Shannon divergence (Lin 1991), in bits, of the values where both have a vocabulary, else of
        the bins of the coarser histogram; missing is one more value. A field that only one has, or of another kind, is
        at 1.
        """
        return {
            name: _divergence(self.fields[name], other.fields[name])
            if name in self.fields and name in other.fields
            else 1.0
            for name in sorted({*self.fields, *other.fields})
        }

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        fields = {name: dataclasses.asdict(field) for name, field in self.fields.items()}
        return {
            "records": self.records,
            "fields": {name: {**field, **{key: list(field[key]) for key in _LISTS}} for name, field in fields.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Schema":
        """The schema that `to_json` gave."""
        fields = {
            name: Field(**field | {key: tuple(field[key]) for key in _LISTS}) for name, field in value["fields"].items()
        }
        return cls(value["records"], fields)


@dataclass(frozen=True)
class _Value:
    """A value as its field sees it."""

    kind: Kind
    dtype: str
    shape: tuple[int, ...]
    numbers: np.ndarray  # float64[n]: its entries or its length; of a scalar that is missing, none
    word: str | None  # what a vocabulary may hold of it

    @property
    def missing(self) -> bool:
        return self.kind != "array" and not self.numbers.size


def _look(value: Any) -> _Value:
    if isinstance(value, str | bytes):
        kind, dtype = ("text", "str") if isinstance(value, str) else ("bytes", "bytes")
        word = str(value) if kind == "text" and len(value) < _WORD else None
        return _Value(kind, dtype, (), np.array([len(value)] if value else [], np.float64), word)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ConfigError(f"{_shown(value)} is not an array: {error}") from error
    if array.dtype.kind not in "biuf":
        raise ConfigError(f"{_shown(value)} is neither text, bytes, a number nor an array of numbers")
    numbers = array.astype(np.float64).ravel()
    if array.ndim:
        return _Value("array", array.dtype.name, array.shape, numbers, None)
    if array.dtype.kind == "f":
        return _Value("number", array.dtype.name, (), numbers[~np.isnan(numbers)], None)
    return _Value("integer", array.dtype.name, (), numbers, str(int(array)))


class _Column:
    """What is known of a field after some records."""

    def __init__(self) -> None:
        self.kind: Kind | None = None
        self.dtype = ""
        self.shape: tuple[int | None, ...] = ()
        self.present = 0
        self.words: Counter[str] | None = Counter()
        self.histogram = _Histogram()
        self.waiting: list[np.ndarray] = []
        self.entries = 0

    def add(self, value: Any) -> None:
        if value is None:
            return
        seen = _look(value)
        if self.kind is None:
            self.kind, self.dtype, self.shape = seen.kind, seen.dtype, seen.shape
        elif {self.kind, seen.kind} == {"integer", "number"}:
            self.kind = "number"
        elif self.kind != seen.kind or len(self.shape) != len(seen.shape):
            raise ConfigError(
                f"{_named(seen.kind, seen.dtype, seen.shape)}, but the records before hold "
                f"{_named(self.kind, self.dtype, self.shape)}"
            )
        if self.dtype != seen.dtype:
            self.dtype = np.result_type(self.dtype, seen.dtype).name
        if self.shape != seen.shape:
            sizes = zip(self.shape, seen.shape, strict=True)
            self.shape = tuple(one if one == other else None for one, other in sizes)
        if seen.missing:
            return
        self.present += 1
        if self.words is not None:
            if seen.word is None:
                self.words = None
            else:
                self.words[seen.word] += 1
                self.words = self.words if len(self.words) <= VOCABULARY else None
        self.waiting.append(seen.numbers)
        self.entries += seen.numbers.size
        if self.entries >= _FLUSH:
            self.flush()

    def flush(self) -> None:
        if self.waiting:
            self.histogram.add(np.concatenate(self.waiting))
        self.waiting, self.entries = [], 0

    def field(self, records: int) -> Field:
        assert self.kind is not None
        self.flush()
        whole = self.kind in ("text", "bytes") or np.dtype(self.dtype).kind in "biu"
        edges, counts = self.histogram.result(0 if whole else _FINEST)
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


class _Histogram:
    """Counts in bins [k 2^e, (k + 1) 2^e), with the least e for which at most BINS of them hold all values.

    Such bins nest: what comes out does not depend on the order of the values, and two histograms can be compared
    exactly in the bins of the coarser.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.exponent = _FINEST
        self.counts: Counter[int] = Counter()

    def add(self, values: np.ndarray) -> None:
        values = values[np.isfinite(values)]
        if not values.size:
            return
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        largest = max(abs(self.low), abs(self.high))
        # Not finer than 2^-40 of the largest value: the bins' numbers stay exact.
        exponent = max(self.exponent, math.frexp(largest)[1] - 40 if largest else _FINEST)
        while math.floor(math.ldexp(self.high, -exponent)) - math.floor(math.ldexp(self.low, -exponent)) >= BINS:
            exponent += 1
        self._coarsen(exponent)
        bins, counts = np.unique(np.floor(np.ldexp(values, -exponent)), return_counts=True)
        self.counts.update(dict(zip(map(int, bins.tolist()), counts.tolist(), strict=True)))

    def result(self, finest: int) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """Edges and counts, with bins of width 2^finest or more."""
        if not self.counts:
            return (), ()
        self._coarsen(max(self.exponent, finest))
        bins = range(min(self.counts), max(self.counts) + 1)
        with np.errstate(over="ignore"):
            edges = np.nan_to_num(np.ldexp(np.arange(bins.start, bins.stop + 1, dtype=np.float64), self.exponent))
        return tuple(edges.tolist()), tuple(self.counts[number] for number in bins)

    def _coarsen(self, exponent: int) -> None:
        coarser: Counter[int] = Counter()
        for number, count in self.counts.items():
            coarser[number >> (exponent - self.exponent)] += count
        self.exponent, self.counts = exponent, coarser


def _violations(field: Field, value: Any, present: bool) -> Iterable[str]:
    expected = _named(field.kind, field.dtype, field.shape)
    if value is None:
        if not field.missing:
            yield f"{'is None' if present else 'is missing'}, expected {expected}"
        return
    try:
        seen = _look(value)
    except ConfigError as error:
        yield f"{error}, expected {expected}"
        return
    fits = seen.kind == field.kind or (seen.kind, field.kind) == ("integer", "number")
    if fits and field.kind not in ("text", "bytes"):
        own, wanted = np.dtype(seen.dtype), np.dtype(field.dtype)
        fits = np.can_cast(own, wanted, "safe") if hasattr(value, "dtype") else own.kind != "f" or wanted.kind == "f"
    if not fits or len(seen.shape) != len(field.shape):
        yield f"{_named(seen.kind, seen.dtype, seen.shape)} {_shown(value)}, expected {expected}"
        return
    if any(wanted not in (None, size) for size, wanted in zip(seen.shape, field.shape, strict=True)):
        yield f"{_named(seen.kind, seen.dtype, seen.shape)}, expected {expected}"
    if seen.missing:
        if not field.missing:
            yield f"{_shown(value)} counts as missing, which it never was"
    elif not np.isfinite(seen.numbers).all():
        yield f"{_shown(value)} holds {np.count_nonzero(~np.isfinite(seen.numbers))} entries that are NaN or infinite"
    elif field.vocabulary is not None:
        word = str(value) if field.kind == "text" else seen.word
        if word not in field.vocabulary:
            hint = nearest(str(word), field.vocabulary, listed=len(field.vocabulary) <= _LISTED)
            yield f"{_shown(value)} is not in the vocabulary{hint}"
    elif seen.numbers.size and field.low is not None and field.high is not None:
        low, high = float(seen.numbers.min()), float(seen.numbers.max())
        if low < field.low or high > field.high:
            what = "length " if field.kind in ("text", "bytes") else ""
            outside = low if low < field.low else high
            yield f"{_shown(value)}: {what}{outside:g} is outside {field.low:g}…{field.high:g}"


def _named(kind: str, dtype: str, shape: tuple[int | None, ...]) -> str:
    sizes = f"[{', '.join('?' if size is None else str(size) for size in shape)}]" if shape else ""
    return kind if kind in ("text", "bytes") else f"{kind} {dtype}{sizes}"


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str | bytes) else " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}…"


def _divergence(one: Field, other: Field) -> float:
    if one.kind != other.kind:
        return 1.0
    if one.vocabulary is not None and other.vocabulary is not None:
        p, q = (_shares(field.missing, field.vocabulary or {}) for field in (one, other))
    else:
        width = max((field.edges[1] - field.edges[0] for field in (one, other) if field.edges), default=1.0)
        p, q = (_shares(field.missing, _binned(field, width)) for field in (one, other))
    found = 0.0
    for key in p.keys() | q.keys():
        a, b = p.get(key, 0.0), q.get(key, 0.0)
        middle = (a + b) / 2
        found += sum(share / 2 * math.log2(share / middle) for share in (a, b) if share)
    return min(1.0, max(0.0, found))


def _binned(field: Field, width: float) -> Counter[float]:
    counts: Counter[float] = Counter()
    for edge, count in zip(field.edges, field.counts, strict=False):
        counts[edge // width] += count
    return counts


def _shares(missing: float, counts: Mapping[Any, int]) -> dict[Any, float]:
    total = sum(counts.values())
    return {None: missing, **{key: (1 - missing) * count / total for key, count in counts.items()}}
