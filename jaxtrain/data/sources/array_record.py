"""ArrayRecord files: records on disk that are read by index."""

import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.base.files import atomic_write
from jaxtrain.data.sources.base import Example, Source
from jaxtrain.data.sources.contents import content
from jaxtrain.data.sources.kept import until_files_change
from jaxtrain.data.sources.paths import PATH, data_file, make_absolute


@dataclass(frozen=True)
class ArrayRecord(Source):
    """Records of ArrayRecord files, in the order of `paths`, as `write_array_record` wrote them.

    Memory use does not grow with the files. Keep at most about 10,000 records in a file: the time of a read grows with
    the number of records in its file. Raises ConfigError where a file is missing.
    """

    paths: tuple[str, ...] = field(metadata=PATH)

    def __post_init__(self) -> None:
        if isinstance(self.paths, str) or not self.paths:
            raise ConfigError(f"ArrayRecord needs a tuple of one or more paths, got {self.paths!r}")
        make_absolute(self, "paths")

    def __len__(self) -> int:
        return len(_open_records(self.paths))

    def __getitem__(self, index: int) -> Example:
        return self.decode(self.fetch([index])[0])

    def fetch(self, indices: Sequence[int]) -> list[tuple[int, bytes]]:
        """Index and bytes of each record. Raises Damaged, naming file and record."""
        records = _open_records(self.paths)
        try:
            read = records.__getitems__(list(indices)) if len(indices) > 1 else [records[indices[0]]]
        except (RuntimeError, ValueError, OSError) as error:
            raise self._damage(indices) from error
        return list(zip(indices, read, strict=True))

    def decode(self, stored: tuple[int, bytes]) -> Example:
        """The example of a record. Raises Damaged for bytes that `write_array_record` did not write."""
        from flax.serialization import msgpack_restore

        index, record = stored
        try:
            example = msgpack_restore(record)
        except Exception as error:  # msgpack has exception classes of its own
            raise self._damaged(index, f"it does not decode ({type(error).__name__}: {error})") from error
        if not isinstance(example, dict):
            raise self._damaged(index, f"it decodes to a {type(example).__name__}, not to fields")
        return example

    def _damage(self, indices: Sequence[int]) -> Damaged:
        """The error for the first of several records that cannot be read."""
        records = _open_records(self.paths)
        for index in indices:
            try:
                records[index]
            except (RuntimeError, ValueError, OSError) as error:
                return self._damaged(index, f"it cannot be read{_library_reason(error)}")
        return Damaged(self.paths[0], None, f"records {list(indices)} cannot be read together")

    def _damaged(self, index: int, why: str) -> Damaged:
        """The error for example `index`, with its file and its number in that file."""
        for path in self.paths:
            size = len(_open_records((path,)))
            if index < size:
                return Damaged(path, index, why)
            index -= size
        raise IndexError(index)

    def where(self, index: int) -> str:
        found = self._damaged(index, "")
        return f"record {found.record} of {found.file}"

    def identity(self) -> str:
        """A sha256 of all files."""
        return f"array_record:{content(self.paths, kind='ArrayRecord file')}"


@until_files_change
@lru_cache(maxsize=64)
def _open_records(paths: tuple[str, ...]) -> Any:
    for path in paths:
        data_file(path, "ArrayRecord file")
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        return ArrayRecordDataSource(list(paths))
    except RuntimeError as error:
        for path in paths:
            if len(paths) > 1:
                _open_records((path,))
        raise Damaged(paths[0], None, f"it cannot be opened{_library_reason(error)}") from error


def _library_reason(error: Exception) -> str:
    """The first line of a library's message, in parentheses, if there is one."""
    line = str(error).partition("\n")[0]
    return f" ({line})" if line else ""


def write_array_record(path: str | os.PathLike[str], examples: Iterable[Mapping[str, Any]]) -> int:
    """Write `examples` to one ArrayRecord file at `path`; returns their number.

    Values are numpy arrays or scalars, numbers, str or bytes. The file is renamed to `path` when it is complete, so a
    reader never sees half of one; an existing file is replaced.
    """
    from flax.serialization import msgpack_serialize

    records = importlib.import_module("array_record.python.array_record_module")
    count = 0
    try:
        with atomic_write(Path(path)) as temporary:
            # One record in each group, so that a random read decodes one record.
            writer = records.ArrayRecordWriter(str(temporary), "group_size:1")
            try:
                for example in examples:
                    writer.write(msgpack_serialize(dict(example)))
                    count += 1
            finally:
                writer.close()
    except RuntimeError as error:
        raise OSError(str(error).split(";")[0]) from error  # such as a full disk
    _open_records.cache_clear()  # else a replaced file would be read through its old handle
    return count
