"""Parquet tables as a source."""

import importlib
import logging
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError, Damaged, nearest
from jaxtrain.base.packages import needs
from jaxtrain.data.sources.base import Example, Source, list_array
from jaxtrain.data.sources.contents import content
from jaxtrain.data.sources.kept import until_files_change
from jaxtrain.data.sources.paths import PATH, data_file, make_absolute

_KEPT = 8  # row groups in memory


@dataclass(frozen=True)
class Parquet(Source):
    """The rows of Parquet files, in the order of `paths`; lists become arrays.

    Reading a row reads its whole row group, and the last few groups are cached: fast in order, slow at random. To
    shuffle, wrap it in `Stored` (copies it once to records on disk) or `InMemory`. `columns` are all by default. Values
    that are neither numbers nor text (null, dates, decimals, structs) are given as Python values, for a transform to
    encode; a batch refuses them, naming column, row and file. Raises ConfigError for a missing file or column, and for
    files that differ in columns or types; Damaged for a file or row group that cannot be read.
    """

    paths: tuple[str, ...] = field(metadata=PATH)
    columns: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.paths, str) or not self.paths:
            raise ConfigError(f"Parquet needs a tuple of one or more paths, got {self.paths!r}")
        make_absolute(self, "paths")

    def __len__(self) -> int:
        return int(_row_groups(self)[1][-1])

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        groups, ends = _row_groups(self)
        which = int(np.searchsorted(ends, index, side="right"))
        rows = _read_group(self, *groups[which])
        row = index - (int(ends[which - 1]) if which else 0)
        return {name: values[row] for name, values in rows.items()}

    def where(self, index: int) -> str:
        groups, ends = _row_groups(self)
        which = int(np.searchsorted(ends, index, side="right"))
        path = groups[which][0]
        first = next(number for number, (file, _) in enumerate(groups) if file == path)
        return f"row {index - (int(ends[first - 1]) if first else 0)} of {path}"

    def warn_shuffled(self) -> None:
        if len(_row_groups(self)[0]) > _KEPT:
            _warn_slow(self)

    def identity(self) -> str:
        """The columns, and a sha256 of all files."""
        return f"parquet:{self.columns}:{content(self.paths, kind='Parquet file')}"


@lru_cache(maxsize=64)
def _warn_slow(source: Parquet) -> None:
    """Logs it once in a process."""
    size = len(source) // len(_row_groups(source)[0])
    logging.getLogger("jaxtrain.data").warning(
        "Parquet: each row that is read at random decodes its row group of about %s rows, which is 100 times slower, "
        "or more, than reading in order: wrap the source in Stored(...), which copies it once to records on disk",
        f"{size:,}",
    )


@until_files_change
@lru_cache(maxsize=64)
def _row_groups(source: Parquet) -> tuple[list[tuple[str, int]], np.ndarray]:
    """The file and the number of every row group, and the number of rows up to the end of each."""
    groups, sizes, first = [], [], {}
    for path in source.paths:
        file = _open_table(path)
        kinds = _kinds(source, path, file.schema_arrow)
        first = first or kinds
        if name := next((name for name in {**first, **kinds} if first.get(name) != kinds.get(name)), None):
            here, there = kinds.get(name, "not there"), first.get(name, "not there")
            raise ConfigError(
                f"Parquet: column {name!r} is {here} in {path}, but {there} in {source.paths[0]}: write all files "
                "alike, or name the columns to read in columns=(...)"
            )
        groups += [(path, number) for number in range(file.num_row_groups)]
        sizes += [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    return groups, np.cumsum(sizes or [0])


def _kinds(source: Parquet, path: str, schema: Any) -> dict[str, str]:
    """The type of each column that is read, by `_plain_kind`."""
    for name in source.columns or ():
        if name not in schema.names:
            raise ConfigError(f"Parquet: {path} has no column {name!r}{nearest(name, schema.names)}")
    chosen = source.columns or schema.names
    if twice := next((name for name in chosen if schema.names.count(name) > 1 or chosen.count(name) > 1), None):
        raise ConfigError(f"Parquet: {path}: the column {twice!r} is there twice: give each a name of its own")
    return {name: _plain_kind(str(schema.field(name).type)) for name in chosen}


def _plain_kind(kind: str) -> str:
    """The name of a type without what changes no value that is read: "list<float>" for "list<item: double>"."""
    kind = re.sub(r"dictionary<values=([^,]+),[^>]*>", r"\1", kind)
    kind = re.sub(r"large_|fixed_size_|_view| not null|\w+: |\[\d+\]", "", kind)
    return re.sub(r"\b(halffloat|double)\b", "float", re.sub(r"\b(u?int(8|16|32)|int64)\b", "int", kind))


@until_files_change
@lru_cache(maxsize=_KEPT)
def _read_group(source: Parquet, path: str, number: int) -> dict[str, list[Any]]:
    columns = None if source.columns is None else list(source.columns)
    try:
        table = _open_table(path).read_row_group(number, columns=columns, use_threads=False)
    except (OSError, ValueError) as error:
        raise Damaged(path, None, f"row group {number} cannot be read ({error})") from error
    return {name: _values(path, name, column) for name, column in zip(table.column_names, table.columns, strict=True)}


def _values(path: str, name: str, column: Any) -> list[Any]:
    try:
        values = column.to_pylist()
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"Parquet: column {name!r} of {path} is {column.type}, which cannot be read ({error}): leave it out by "
            "naming the others in columns=(...)"
        ) from error
    kind, inner = str(column.type), column.type
    while hasattr(inner, "value_type") and "list" in str(inner).partition("<")[0]:
        inner = inner.value_type
    dtype = _dtype(str(inner))
    if kind == "uint64":
        return [value if value is None else np.uint64(value) for value in values]
    return [list_array(value, dtype) if isinstance(value, list) else value for value in values]


def _dtype(kind: str) -> str | None:
    """The dtype for the elements of a list, so that empty lists get it too; None where the content decides."""
    if kind in ("float", "double"):
        return "float64"
    if kind == "uint64":
        return "uint64"
    return "int64" if kind.lstrip("u").startswith("int") else None


def _open_table(path: str) -> Any:
    with needs("Parquet", "pyarrow", "datasets"):
        parquet = importlib.import_module("pyarrow.parquet")
    data_file(path, "Parquet file")
    try:
        # A new file object for each read: one object is not safe to use from several threads.
        return parquet.ParquetFile(path, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        raise Damaged(path, None, f"it cannot be opened ({error})") from error
