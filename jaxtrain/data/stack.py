"""Stacking examples into a batch. Values that are not numbers, or do not fit their dtype, are refused."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.data.sources.base import Example, HostBatch

_NARROW = {"int64": "int32", "uint64": "uint32", "float64": "float32", "complex128": "complex64"}


def stack(examples: Sequence[Example], where: Callable[[int], str] = "row {}".format) -> HostBatch:
    """Stack examples on a new first dimension and add "mask": bool[rows], all True.

    64-bit numbers become int32, uint32 or float32, to which JAX would convert them silently. Raises ConfigError for
    numbers that do not fit, for examples that differ in fields, shapes or dtypes, and for values that are not numbers;
    `where` names the record of a row for the message.
    """
    names = list(examples[0])
    if "mask" in names:
        raise ConfigError('the field name "mask" is taken: it says which rows of a batch are real')
    for number, example in enumerate(examples):
        if example.keys() != examples[0].keys():
            raise ConfigError(
                f"row {number} has the fields {sorted(example)} but row 0 has {sorted(names)} "
                f"({where(number)}; {where(0)})"
            )
    columns = {name: _stack_field(name, [_array(example[name]) for example in examples], where) for name in names}
    return {**columns, "mask": np.ones(len(examples), bool)}


def check_alike(batch: HostBatch, first: HostBatch, where: Callable[[], str], where_first: Callable[[], str]) -> None:
    """Raises ConfigError for a batch that differs in fields, shapes or dtypes from the first example of its source."""
    if batch.keys() != first.keys():
        raise ConfigError(
            f"the examples have the fields {sorted(batch.keys() - {'mask'})} but the first one has "
            f"{sorted(first.keys() - {'mask'})} ({where()}; {where_first()})"
        )
    for name, x in batch.items():
        y = first[name]
        if (x.dtype, x.shape[1:]) != (y.dtype, y.shape[1:]):
            raise ConfigError(
                f"field {name!r} differs between examples: {y.dtype}{[*y.shape[1:]]}, {x.dtype}{[*x.shape[1:]]}; "
                f"add a transform that makes them alike{_or_floats(x, y)} ({where_first()}; {where()})"
            )


def _or_floats(value: np.ndarray, other: np.ndarray) -> str:
    """More advice where a number is written with a decimal point in some examples only."""
    return ", or, of JsonLines, name it in floats=(...)" if {value.dtype.kind, other.dtype.kind} == {"i", "f"} else ""


def _stack_field(name: str, values: list[np.ndarray], where: Callable[[int], str]) -> np.ndarray:
    first = values[0]
    narrow = np.empty((len(values), *first.shape), _NARROW.get(first.dtype.name, first.dtype))
    for row, value in enumerate(values):
        if value.dtype.kind in "OUSMm":
            text = value.dtype.kind in "US"
            advice = "add a transform that encodes it, such as Utf8(length)" if text else "make a number of it"
            raise ConfigError(
                f"field {name!r} is {_not_numbers(value)} in {where(row)}: {advice}, or leave it out with Select"
            )
        if value.dtype != first.dtype or value.shape != first.shape:
            kinds = {f"{value.dtype}{list(value.shape)}" for value in values}
            raise ConfigError(
                f"field {name!r} differs between examples: {', '.join(sorted(kinds))}; "
                f"add a transform that makes them alike{_or_floats(value, first)} ({where(0)}; {where(row)})"
            )
        if first.dtype == np.float64:
            _narrow_floats(name, value, narrow[row : row + 1], lambda row=row: where(row))
            continue
        narrow[row] = value
        if narrow.dtype != first.dtype and first.dtype.kind in "iu" and (narrow[row] != value).any():
            raise ConfigError(f"field {name!r} has integers that do not fit {narrow.dtype} in {where(row)}")
    return narrow


def _narrow_floats(name: str, value: np.ndarray, into: np.ndarray, where: Callable[[], str]) -> None:
    with np.errstate(over="ignore"):
        into[0] = value
    beyond = np.isinf(into[0]) & np.isfinite(value)
    if beyond.any():
        raise ConfigError(f"field {name!r} is {value[beyond].flat[0]} in {where()}, which does not fit {into.dtype}")


def _array(value: Any) -> np.ndarray:
    """The value as an array; lists of unequal length become an array of objects."""
    try:
        return np.asarray(value)
    except ValueError:
        return np.array([*value], object)


_KINDS = {
    "NoneType": "missing (null)",
    "dict": "a struct",
    "int": "an integer beyond 64 bits",
    "list": "lists of different lengths",
}


def _not_numbers(value: np.ndarray) -> str:
    """What a value is instead of numbers, such as "missing (null)" or "a Decimal, not a number,"."""
    if value.dtype != object:
        return f"{value.dtype}, not numbers,"
    kinds = {type(each).__name__ for each in value.flat}
    name = "NoneType" if "NoneType" in kinds else min(kinds)
    return _KINDS.get(name, f"a {name}, not a number,")
