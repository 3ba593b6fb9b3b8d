"""JSON Lines files as a source."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from jaxtrain.base.errors import ConfigError, Damaged, nearest
from jaxtrain.base.files import unique_keys
from jaxtrain.data.sources.base import Example, Source, list_array
from jaxtrain.data.sources.offsets import Located, line_number, locate
from jaxtrain.data.sources.paths import PATH, make_absolute

_BOM_BYTES = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class JsonLines(Source):
    """The lines of JSON Lines files, one object each, in the order of `paths`; lists become arrays.

    `floats` names the fields that are float64 even on lines that write them without a decimal point; other numbers have
    the type in which they are written. null and objects are given as Python values, which a batch refuses, naming the
    line. Empty lines are left out. The offsets of lines are found once, by reading the whole file, and kept in the
    user's cache. Raises ConfigError for a missing or compressed file, and for `floats` that the first line lacks;
    Damaged, naming file and line, for a line that is not a JSON object, a repeated key and a number beyond float64. NaN
    and Infinity are read, as by Python.
    """

    paths: tuple[str, ...] = field(metadata=PATH)
    floats: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.paths, str) or not self.paths:
            raise ConfigError(f"JsonLines needs a tuple of one or more paths, got {self.paths!r}")
        make_absolute(self, "paths")

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Example:
        path, number, start = self._lines.find(index)
        with open(path, "rb") as file:
            file.seek(start)
            line = file.readline()
        try:
            found = json.loads(line.removeprefix(_BOM_BYTES), parse_float=_finite_float, object_pairs_hook=unique_keys)
            if not isinstance(found, dict):
                raise ValueError(f"it is a {type(found).__name__}, not an object")
            if b"\\u" in line:
                json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair is no text
        except (ValueError, RecursionError) as error:
            whole = "it has to be one whole object: " if isinstance(error, json.JSONDecodeError) else ""
            raise Damaged(path, number, f"line {line_number(path, start)} cannot be read: {whole}{error}") from error
        if index == 0:
            for name in self.floats:
                if name not in found:
                    raise ConfigError(f"JsonLines: floats: {self.where(0)} has no field {name!r}{nearest(name, found)}")
        return {name: self._value(name, value) for name, value in found.items()}

    def where(self, index: int) -> str:
        return self._lines.line(index)

    def identity(self) -> str:
        """The fields that are floats, and a sha256 of all files."""
        return f"json_lines:{self.floats}:{self._lines.content()}"

    def _value(self, name: str, value: Any) -> Any:
        floats = name in self.floats
        if isinstance(value, list):
            return list_array(value, "float64" if floats else None if value else "int64")
        return float(value) if floats and type(value) is int else value

    @property
    def _lines(self) -> Located:
        return locate(self.paths, "JSON Lines", _line_starts)


def _line_starts(file: BinaryIO) -> Iterator[int]:
    start = 0
    for line in file:
        if line.strip(b" \t\r\n" + _BOM_BYTES):
            yield start
        start += len(line)


def _finite_float(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"the number {text} is beyond float64")
    return value
