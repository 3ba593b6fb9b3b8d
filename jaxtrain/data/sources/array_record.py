"""ArrayRecord files: records on disk, read by index."""

import hashlib
import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jaxtrain.base.errors import ConfigError, Damaged, nearest
from jaxtrain.data.sources.base import Example, Source

_EDGE = 1 << 20


@dataclass(frozen=True)
class ArrayRecord(Source):
    """Records of ArrayRecord files, in the order of `paths`, as `write_array_record` wrote them.

    Memory use does not grow with the files. Keep at most about 10,000 records a file: the time of one read
    grows with the number of records in its file. Raises ConfigError when a file is missing.
    """

    paths: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.paths, str) or not self.paths:
            raise ConfigError(f"ArrayRecord needs a tuple of one or more paths, got {self.paths!r}")

    def __len__(self) -> int:
        return len(_open_array_record(self.paths))

    def __getitem__(self, index: int) -> Example:
        return self.decode(self.fetch([index])[0])

    def fetch(self, indices: Sequence[int]) -> list[tuple[int, bytes]]:
        """The records' numbers and bytes. Raises Damaged, naming file and record."""
        records = _open_array_record(self.paths)
        try:
            read = records.__getitems__(list(indices)) if len(indices) > 1 else [records[indices[0]]]
        except (RuntimeError, ValueError, OSError) as error:
            raise self._damage(indices) from error
        return list(zip(indices, read, strict=True))

    def decode(self, stored: tuple[int, bytes]) -> Example:
        """The example. Raises Damaged for bytes that `write_array_record` did not write."""
        from flax.serialization import msgpack_restore

        index, record = stored
        try:
            example = msgpack_restore(record)
        except Exception as error:  # msgpack raises kinds of its own
            raise self._damaged(index, f"it does not decode ({type(error).__name__}: {error})") from error
        if not isinstance(example, dict):
            raise self._damaged(index, f"it decodes to a {type(example).__name__}, not to fields")
        return example

    def _damage(self, indices: Sequence[int]) -> Damaged:
        """Which of several records cannot be read."""
        records = _open_array_record(self.paths)
        for index in indices:
            try:
                records[index]
            except (RuntimeError, ValueError, OSError) as error:
                return self._damaged(index, f"it cannot be read{_said(error)}")
        return Damaged(self.paths[0], None, f"records {list(indices)} cannot be read together")

    def _damaged(self, index: int, why: str) -> Damaged:
        """With the file that example `index` is in, and its number there."""
        for path in self.paths:
            size = len(_open_array_record((path,)))
            if index < size:
                return Damaged(path, index, why)
            index -= size
        raise IndexError(index)

    def identity(self) -> str:
        """A sha256 of every file's size, first and last MiB; the last holds ArrayRecord's index of chunks."""
        _require_files(self.paths)
        digest = hashlib.sha256()
        for path in self.paths:
            size = os.path.getsize(path)
            with open(path, "rb") as file:
                digest.update(f"{size}:".encode() + file.read(_EDGE))
                file.seek(max(0, size - _EDGE))
                digest.update(file.read())
        return f"array_record:{digest.hexdigest()[:32]}"


@lru_cache(maxsize=64)
def _open_array_record(paths: tuple[str, ...]) -> Any:
    _require_files(paths)
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        return ArrayRecordDataSource(list(paths))
    except RuntimeError as error:
        for path in paths:
            if len(paths) > 1:
                _open_array_record((path,))
        raise Damaged(paths[0], None, f"it cannot be opened{_said(error)}") from error


def _said(error: Exception) -> str:
    """The first line of what a library said, if it said anything."""
    line = str(error).partition("\n")[0]
    return f" ({line})" if line else ""


def _require_files(paths: tuple[str, ...]) -> None:
    for path in map(Path, paths):
        if not path.is_file():
            others = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
            hint = nearest(path.name, others) if others else f"; {path.parent} has no files"
            raise ConfigError(f"ArrayRecord: no file {path}{hint}")


def write_array_record(path: str | os.PathLike[str], examples: Iterable[Mapping[str, Any]]) -> int:
    """Write `examples` to one ArrayRecord file at `path` and return how many there were.

    Values are numpy arrays or scalars, numbers, str or bytes. The file takes its name only when it is
    complete, so a reader never sees half of one; an existing file is replaced.
    """
    from flax.serialization import msgpack_serialize

    records = importlib.import_module("array_record.python.array_record_module")
    final = Path(path)
    unfinished = final.with_name(f".{final.name}.{os.getpid()}.unfinished")
    count = 0
    try:
        # One record a group, so that a random read decodes one record.
        writer = records.ArrayRecordWriter(str(unfinished), "group_size:1")
        try:
            for example in examples:
                writer.write(msgpack_serialize(dict(example)))
                count += 1
        finally:
            writer.close()
        unfinished.replace(final)
    except RuntimeError as error:
        raise OSError(str(error).split(";")[0]) from error  # a full disk, for one
    finally:
        unfinished.unlink(missing_ok=True)
    _open_array_record.cache_clear()  # a replaced file must not be read through its old handle
    return count
