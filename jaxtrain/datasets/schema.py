"""The schema of a dataset: what its fields hold, to check records against and to compare two datasets by.

Training and serving use the same class: a card holds it, and requests are checked against it. Not here: what to do with
records that differ.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.ranges import Checked, NonNegativeInt
from jaxtrain.datasets.fields import Column, Field, Value, parse, shown, type_name
from jaxtrain.datasets.histogram import divergence, rebin

_MOST_VIOLATIONS = 20  # entries of a vocabulary in an error message
_TUPLES = ("shape", "edges", "counts")


@dataclass(frozen=True)
class Schema(Checked):
    """The fields of `records` examples."""

    records: NonNegativeInt
    fields: Mapping[str, Field]

    @classmethod
    def of(cls, examples: Iterable[Mapping[str, Any]]) -> "Schema":
        """The schema of examples, in one pass and constant memory; their order does not matter.

        Raises ConfigError for a field that is of several kinds or of none, or of several numbers of dimensions.
        """
        columns: dict[str, Column] = {}
        records = 0
        for example in examples:
            for name, value in example.items():
                column = columns.setdefault(name, Column())
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
        """One message for each difference between an example and the examples of this schema.

        A dtype may be any that casts to the field's without loss. Python's numbers fit any dtype of their kind.
        """
        found = [
            f"{name}: no such field{nearest(name, self.fields)}" for name in sorted(example.keys() - self.fields.keys())
        ]
        for name, field in self.fields.items():
            found += [f"{name}: {what}" for what in _violations(field, example.get(name), name in example)]
        return found

    def drift(self, other: "Schema") -> dict[str, float]:
        """Jensen–Shannon divergence of every field from the same field of the other schema, in bits: 0, equal, to 1.

        It is of the values where both have a vocabulary, else of the bins of the coarser histogram; missing is one more
        value. A field that only one schema has, or that is of another kind, has 1.
        """
        return {
            name: _divergence(self.fields[name], other.fields[name])
            if name in self.fields and name in other.fields
            else 1.0
            for name in sorted({*self.fields, *other.fields})
        }

    def to_json(self) -> dict[str, Any]:
        """The schema as JSON."""
        fields = {name: dataclasses.asdict(field) for name, field in self.fields.items()}
        return {
            "records": self.records,
            "fields": {name: {**field, **{key: list(field[key]) for key in _TUPLES}} for name, field in fields.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Schema":
        """The schema that `to_json` gave."""
        fields = {
            name: Field(**field | {key: tuple(field[key]) for key in _TUPLES})
            for name, field in value["fields"].items()
        }
        return cls(value["records"], fields)


def _violations(field: Field, value: Any, present: bool) -> Iterable[str]:
    expected = type_name(field.kind, field.dtype, field.shape)
    if value is None:
        return () if field.missing else (f"{'is None' if present else 'is missing'}, expected {expected}",)
    try:
        seen = parse(value)
    except ConfigError as error:
        return (f"{error}, expected {expected}",)
    if not _fits(field, seen, typed=hasattr(value, "dtype")):
        return (f"{type_name(seen.kind, seen.dtype, seen.shape)} {shown(value)}, expected {expected}",)
    return itertools.chain(_shape_violations(field, seen, expected), _value_violations(field, value, seen))


def _fits(field: Field, seen: Value, typed: bool) -> bool:
    """Whether kind, dtype and number of dimensions may stand in the field."""
    if len(seen.shape) != len(field.shape):
        return False
    if seen.kind != field.kind and (seen.kind, field.kind) != ("integer", "number"):
        return False
    if field.kind in ("text", "bytes"):
        return True
    own, wanted = np.dtype(seen.dtype), np.dtype(field.dtype)
    return np.can_cast(own, wanted, "safe") if typed else own.kind != "f" or wanted.kind == "f"


def _shape_violations(field: Field, seen: Value, expected: str) -> Iterable[str]:
    if any(wanted not in (None, size) for size, wanted in zip(seen.shape, field.shape, strict=True)):
        yield f"{type_name(seen.kind, seen.dtype, seen.shape)}, expected {expected}"


def _value_violations(field: Field, value: Any, seen: Value) -> Iterable[str]:
    if seen.missing:
        if not field.missing:
            yield f"{shown(value)} counts as missing, which it never was"
    elif not np.isfinite(seen.numbers).all():
        yield f"{shown(value)} holds {np.count_nonzero(~np.isfinite(seen.numbers))} entries that are NaN or infinite"
    elif field.vocabulary is not None:
        word = str(value) if field.kind == "text" else seen.word
        if word not in field.vocabulary:
            hint = nearest(str(word), field.vocabulary, listed=len(field.vocabulary) <= _MOST_VIOLATIONS)
            yield f"{shown(value)} is not in the vocabulary{hint}"
    elif seen.numbers.size and field.low is not None and field.high is not None:
        low, high = float(seen.numbers.min()), float(seen.numbers.max())
        if low < field.low or high > field.high:
            what = "length " if field.kind in ("text", "bytes") else ""
            outside = low if low < field.low else high
            yield f"{shown(value)}: {what}{outside:g} is outside {field.low:g}…{field.high:g}"


def _divergence(one: Field, other: Field) -> float:
    if one.kind != other.kind:
        return 1.0
    if one.vocabulary is not None and other.vocabulary is not None:
        return divergence(_shares(one.missing, one.vocabulary), _shares(other.missing, other.vocabulary))
    width = max((field.edges[1] - field.edges[0] for field in (one, other) if field.edges), default=1.0)
    p, q = (_shares(field.missing, rebin(field.edges, field.counts, width)) for field in (one, other))
    return divergence(p, q)


def _shares(missing: float, counts: Mapping[Any, int]) -> dict[Any, float]:
    """The share of each value, with the missing ones as None."""
    total = sum(counts.values())
    return {None: missing, **{key: (1 - missing) * count / total for key, count in counts.items()}}
