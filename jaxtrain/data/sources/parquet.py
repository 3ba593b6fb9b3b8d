"""Parquet tables as a source."""

import hashlib
import importlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError, Damaged, nearest
from jaxtrain.data.sources.base import Example, Source


@dataclass(frozen=True)
class Parquet(Source):
    """The rows of Parquet files, in the order of `paths`; lists become arrays.

    A row is read with all of its row group, of which the last few are kept: in order this is quick, at random it is
    not. To shuffle, wrap it in `Stored` (once to records on disk) or `InMemory`. `columns` are all by default. Raises
    ConfigError for a missing file or column, Damaged for what cannot be read.
    """

    paths: tuple[str, ...]
    columns: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return int(_groups(self)[1][-1])

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        groups, ends = _groups(self)
        which = int(np.searchsorted(ends, index, side="right"))
        rows = _group(self, *groups[which])
        row = index - (int(ends[which - 1]) if which else 0)
        return {name: np.asarray(v) if isinstance(v := values[row], list) else v for name, values in rows.items()}

    def identity(self) -> str:
        """A sha256 of every file's last 64 KiB, which hold the schema and where each column lies, and its size."""
        found = hashlib.sha256()
        for path in self.paths:
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - (1 << 16)))
                found.update(f"{size}:".encode() + file.read())
        return f"parquet:{self.columns}:{found.hexdigest()[:32]}"


@lru_cache(maxsize=64)
def _groups(source: Parquet) -> tuple[list[tuple[str, int]], np.ndarray]:
    groups, sizes = [], []
    for path in source.paths:
        file = _open(path)
        for name in source.columns or ():
            if name not in file.schema_arrow.names:
                raise ConfigError(f"Parquet: {path} has no column {name!r}{nearest(name, file.schema_arrow.names)}")
        groups += [(path, number) for number in range(file.num_row_groups)]
        sizes += [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    return groups, np.cumsum(sizes or [0])


@lru_cache(maxsize=8)
def _group(source: Parquet, path: str, number: int) -> dict[str, list[Any]]:
    columns = None if source.columns is None else list(source.columns)
    try:
        return _open(path).read_row_group(number, columns=columns, use_threads=False).to_pydict()
    except (OSError, ValueError) as error:
        raise Damaged(path, None, f"row group {number} cannot be read ({error})") from error


def _open(path: str) -> Any:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError("Parquet needs pyarrow: pip install 'jaxtrain[datasets]'") from error
    if not Path(path).is_file():
        others = [other.name for other in Path(path).parent.glob("*")]
        raise ConfigError(f"Parquet: no file {path}{nearest(Path(path).name, others)}")
    try:
        # A file of its own for each reading: one is not safe to read from several threads.
        return parquet.ParquetFile(path, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        raise Damaged(path, None, f"it cannot be opened ({error})") from error
