"""CSV files as a source."""

import csv
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import BinaryIO

from jaxtrain.base.errors import ConfigError, Damaged, nearest
from jaxtrain.data.sources.base import Example, Source
from jaxtrain.data.sources.kept import until_files_change
from jaxtrain.data.sources.offsets import Located, line_number, locate
from jaxtrain.data.sources.paths import PATH, data_file, make_absolute

_BYTE_ORDER_MARK = "\ufeff"

_MOST_HEADER = 500  # characters of a header in an error message


@dataclass(frozen=True)
class Csv(Source):
    """The rows of CSV files (RFC 4180, UTF-8) with one header line each, in the order of `paths`.

    `ints`, `floats` and `texts` name the columns to read and their types, which a CSV file does not: "007" may be a
    number or a code. A quoted cell may hold line ends. The offsets of rows are found once, by reading the whole file,
    and kept in the user's cache. Raises ConfigError for a missing or compressed file, for unknown columns, and where no
    column is named. Raises Damaged, naming file, line and column, for a cell that is not a number and a row of another
    length.
    """

    paths: tuple[str, ...] = field(metadata=PATH)
    ints: tuple[str, ...] = ()
    floats: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    delimiter: str = ","

    def __post_init__(self) -> None:
        for name in ("paths", "ints", "floats", "texts"):
            if isinstance(getattr(self, name), str):
                raise ConfigError(f"Csv {name} is a tuple, as ({getattr(self, name)!r},)")
        if not self.paths or len(self.delimiter) != 1:
            raise ConfigError("Csv needs one or more paths, and a delimiter of one character")
        make_absolute(self, "paths")

    def __len__(self) -> int:
        for path in self.paths:
            self._kinds(path)
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        path, number, start = self._rows.find(index)
        kinds, names = self._kinds(path), _header(path, self.delimiter)
        with open(path, "rb") as file:
            file.seek(start)
            try:
                cells = next(_reader(file, self.delimiter))
                if len(cells) != len(names):
                    raise ValueError(f"it has {len(cells)} cells, not the {len(names)} of the header")
                found = dict(zip(names, cells, strict=True))
                return {name: _cell(name, found[name], read) for name, read in kinds.items()}
            except (csv.Error, ValueError) as error:
                raise Damaged(path, number, f"line {line_number(path, start)} cannot be read: {error}") from error

    def where(self, index: int) -> str:
        return self._rows.line(index)

    def identity(self) -> str:
        """The columns, the delimiter, and a sha256 of all files."""
        return f"csv:{self.ints}:{self.floats}:{self.texts}:{self.delimiter}:{self._rows.content()}"

    def _kinds(self, path: str) -> dict[str, Callable[[str], int | float | str]]:
        """The function that parses the cells of each column."""
        kinds: dict[str, Callable[[str], int | float | str]] = dict.fromkeys(self.ints, _int_cell)
        kinds |= dict.fromkeys(self.floats, _float_cell) | dict.fromkeys(self.texts, str)
        names = _header(path, self.delimiter)
        for name in kinds:
            if name not in names:
                raise ConfigError(f"Csv: {path} has no column {name!r}{_instead(name, names)}")
        if len(kinds) < len(self.ints + self.floats + self.texts):
            raise ConfigError("Csv: a column is named twice in ints, floats and texts")
        if not kinds:
            raise ConfigError(
                f"Csv: say which columns of {path} to read, and what they are, by ints=(...), floats=(...) and "
                f"texts=(...); it has {', '.join(map(repr, names))[:_MOST_HEADER]}"
            )
        return kinds

    @property
    def _rows(self) -> Located:
        return locate(self.paths, f"CSV ({self.delimiter!r})", _scan_with(self.delimiter))


@lru_cache(maxsize=16)
def _scan_with(delimiter: str) -> Callable[[BinaryIO], Iterator[int]]:
    return partial(_row_starts, delimiter)  # the same object for the same delimiter, as the cache of `locate` needs


def _row_starts(delimiter: str, file: BinaryIO) -> Iterator[int]:
    """The first byte of each row below the header, without empty lines."""
    at = 0

    def lines() -> Iterator[bytes]:
        nonlocal at
        for line in file:
            at += len(line)
            yield line

    reader, start = _reader(lines(), delimiter), 0
    try:
        for number, cells in enumerate(reader):
            if number and cells:
                yield start
            start = at
    except (csv.Error, ValueError) as error:
        raise Damaged(file.name, None, f"line {line_number(file.name, start)} cannot be read: {error}") from error


def _reader(lines: Iterator[bytes] | BinaryIO, delimiter: str) -> Iterator[list[str]]:
    """Rows parsed from lines; takes no more lines than a row needs."""
    csv.field_size_limit(1 << 30)  # instead of 128 KiB, for cells that hold whole documents
    return csv.reader(
        (line.decode().removeprefix(_BYTE_ORDER_MARK) for line in lines), delimiter=delimiter, strict=True
    )


@until_files_change
@lru_cache(maxsize=1024)
def _header(path: str, delimiter: str) -> list[str]:
    with data_file(path, "CSV file").open("rb") as file:
        try:
            names = next(_reader(file, delimiter), [])
        except (csv.Error, ValueError) as error:
            raise Damaged(path, None, f"line 1 cannot be read as a line of UTF-8 text: {error}") from error
    if any(ord(sign) < ord(" ") and sign not in "\t\r\n" for name in names for sign in name):
        raise Damaged(path, None, "its first line is not text: it is not a CSV file")
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"Csv: the first line of {path} has to name each column once, got {names}"[:_MOST_HEADER])
    return names


def _instead(name: str, names: list[str]) -> str:
    """A suggestion: the nearest column, or another delimiter where the header has a single column."""
    other = next((sign for sign in (";", "\t", "|", ",") if len(names) == 1 and name in names[0].split(sign)), None)
    return f"; its header is {names[0]!r}: say delimiter={other!r}" if other else nearest(name, names)[:_MOST_HEADER]


def _cell(name: str, cell: str, read: Callable[[str], int | float | str]) -> int | float | str:
    try:
        return read(cell)
    except ValueError as error:
        raise ValueError(f"{cell!r} in column {name!r} is {error}") from error


def _int_cell(cell: str) -> int:
    if not re.fullmatch(r"[+-]?\d+", cell.strip()):
        raise ValueError("not an integer" if cell.strip() else "empty")
    return int(cell)


def _float_cell(cell: str) -> float:
    try:
        value = float("" if "_" in cell else cell)
    except ValueError:
        raise ValueError("not a number" if cell.strip() else "empty") from None
    if math.isinf(value) and "inf" not in cell.lower():
        raise ValueError("beyond float64")
    return value
