"""Parquet tables as a source."""

import importlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError, Damaged, nearest
from jaxtrain.base.files import edges, require_file
from jaxtrain.base.packages import needs
from jaxtrain.data.sources.base import Example, Source
from jaxtrain.data.sources.paths import PATH, make_absolute


@dataclass(frozen=True)
class Parquet(Source):
    """The rows of Parquet files, in the order of `paths`; lists become arrays.

    Reading a row reads its whole row group, and the last few groups are kept: quick in order, slow at random. To
    shuffle, wrap it in `Stored` (copies it once to records on disk) or `InMemory`. `columns` are all by default. Raises
    ConfigError for a missing file or column, Damaged for a file or row group that cannot be read.
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
        return {name: np.asarray(v) if isinstance(v := values[row], list) else v for name, values in rows.items()}

    def identity(self) -> str:
        """The columns, and a sha256 of every file's size, first and last MiB; the last holds Parquet's metadata."""
        return f"parquet:{self.columns}:{edges(*map(Path, self.paths))}"


@lru_cache(maxsize=64)
def _row_groups(source: Parquet) -> tuple[list[tuple[str, int]], np.ndarray]:
    """File and number of every row group, and the number of rows up to its end."""
    groups, sizes = [], []
    for path in source.paths:
        file = _open_table(path)
        for name in source.columns or ():
            if name not in file.schema_arrow.names:
                raise ConfigError(f"Parquet: {path} has no column {name!r}{nearest(name, file.schema_arrow.names)}")
        groups += [(path, number) for number in range(file.num_row_groups)]
        sizes += [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    return groups, np.cumsum(sizes or [0])


@lru_cache(maxsize=8)
def _read_group(source: Parquet, path: str, number: int) -> dict[str, list[Any]]:
    columns = None if source.columns is None else list(source.columns)
    try:
        return _open_table(path).read_row_group(number, columns=columns, use_threads=False).to_pydict()
    except (OSError, ValueError) as error:
        raise Damaged(path, None, f"row group {number} cannot be read ({error})") from error


def _open_table(path: str) -> Any:
    with needs("Parquet", "pyarrow", "datasets"):
        parquet = importlib.import_module("pyarrow.parquet")
    require_file(path, "Parquet file")
    try:
        # A new file object for each reading: one is not safe to read from several threads.
        return parquet.ParquetFile(path, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        raise Damaged(path, None, f"it cannot be opened ({error})") from error
