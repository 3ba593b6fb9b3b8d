"""Values of raw inputs and of a bundle's JSON: what is taken, as bytes, numbers or names, and what is refused."""

import json
import math
import reprlib
import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.files import check_file_name, unique_keys

TENSOR_DTYPES = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "bfloat16", "float32")

_LINE = 80  # letters of a value in a message


def utf8(who: str, value: Any) -> bytes:
    """A text's bytes. Raises ConfigError for what is none, half of a surrogate pair too."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise wrong(who, f"it has to be a text, not {abbreviated(value)}")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise wrong(who, f"it is no Unicode text: {error}") from error


def numbers(who: str, value: Any, dtype: Any) -> np.ndarray:
    """A value as an array of this dtype. Raises ConfigError for other values, and for numbers that do not fit."""
    kind = np_dtype(dtype)
    try:
        array = np.asarray(_without_null(value) if isinstance(value, list | tuple) else value)
    except (ValueError, RecursionError, OverflowError) as error:
        raise wrong(who, "its lists differ in length, or are too deep") from error
    if array.dtype != kind and (array.dtype.kind not in "biuf" or array.dtype.itemsize > 8):
        raise wrong(who, f"it has to be numbers, not {abbreviated(value)}")
    if array.dtype == kind:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        found = array.astype(kind)
    if kind.kind in "biu" and not np.array_equal(found, array):
        raise wrong(who, f"its numbers do not fit {dtype}: {abbreviated(value)}")
    if is_float(kind) and (np.isinf(found) != np.isinf(array)).any():
        raise wrong(who, f"it has a number beyond {dtype}: {abbreviated(value)}")
    return found


def np_dtype(name: Any) -> np.dtype:
    """The dtype of this name, `bfloat16` too."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def is_float(dtype: np.dtype) -> bool:
    """Whether it has NaN and infinities, among `TENSOR_DTYPES`. To numpy bfloat16 is of the kind V."""
    return dtype.kind in "fV"


def composed(value: str | int) -> str | int:
    """A text with an accent and its letter as one character (NFC), where some systems write two."""
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else value


def wrong(who: str, what: str) -> ConfigError:
    """The error for a value, or a field, of an input."""
    return ConfigError(f"input {who!r}: {what}")


def json_value(content: str) -> Any:
    """A raw input of JSON. Raises ValueError for what is none, for a key that occurs twice, NaN, and 1e999."""
    try:
        return json.loads(content, object_pairs_hook=unique_keys, parse_float=_finite, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("its lists or objects are too deep") from error


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:_LINE]} is beyond float64")
    return number


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON: a number that is missing is null")


def _without_null(value: Any) -> Any:
    """Nested lists with NaN for null."""
    if isinstance(value, list | tuple):
        return [_without_null(each) for each in value]
    return math.nan if value is None else value


def check_keys(value: Mapping[str, Any], needed: set[str], more: set[str], where: str) -> None:
    """Raises ConfigError for a key of a JSON object that is missing, and for one that is not known."""
    for name in sorted(needed - value.keys()):
        raise ConfigError(f"{where}: it has no {name!r}")
    for name in value:
        if name not in needed | more:
            raise ConfigError(f"{where}: it has a {name!r}, which is not known here{nearest(name, needed | more)}")


def checked_name(value: Any, where: str) -> str:
    """A name of JSON. Raises ConfigError for one that no file could have."""
    if not isinstance(value, str):
        raise ConfigError(f"{where}: the name {value!r} is no text")
    check_file_name(value, where)
    return value


def is_count(value: Any) -> bool:
    """Whether it is an i32 from 0 on."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def is_size(value: Any) -> bool:
    """Whether it is an i32 from 1 on."""
    return is_count(value) and value > 0


def abbreviated(value: Any) -> str:
    """A value for a message, on one line of at most 80 characters; of a large one only the beginning is read."""
    return _cut(json.dumps(value[:_LINE]) if isinstance(value, str) else _SHORT.repr(value))


def quoted(value: Any) -> str:
    """As `abbreviated`, with a text as Python writes it."""
    return _cut(repr(value[:_LINE]) if isinstance(value, str) else _SHORT.repr(value))


def _cut(text: str) -> str:
    line = " ".join(text.split()) if "\n" in text else text
    return line if len(line) <= _LINE else f"{line[: _LINE - 3]}…"


class _Short(reprlib.Repr):
    """Of lists the first values, and of texts and bytes the first letters."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = self.maxdict = self.maxstring = self.maxlong = _LINE
        self.maxother, self.maxlevel = 2 * _LINE, 8

    def repr_int(self, x: int, level: int) -> str:
        digits = x.bit_length() * 3 // 10
        return repr(x) if digits < 2 * _LINE else f"an integer of about {digits:,} digits"

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x[:_LINE])


_SHORT = _Short()
