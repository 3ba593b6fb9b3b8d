"""The offsets of the records of a file, found once by reading the whole file and kept in the user's cache."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jaxtrain.base.cache import cache
from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.base.files import atomic_write, digest
from jaxtrain.data.sources.contents import file_state, is_settled
from jaxtrain.data.sources.kept import until_files_change

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")

Scan = Callable[[BinaryIO], Iterator[int]]
"""Yields the offset of each record of a file that is open at its beginning."""


@dataclass(frozen=True)
class Offsets:
    """The offset of each record in bytes, i64[records], and a sha256 of the whole file."""

    starts: np.ndarray
    content: str


@dataclass(frozen=True)
class Located:
    """The records of several files as one list."""

    paths: tuple[str, ...]
    files: tuple[Offsets, ...]
    ends: np.ndarray
    """Number of records up to the end of each file."""

    def __len__(self) -> int:
        return int(self.ends[-1])

    def find(self, index: int) -> tuple[str, int, int]:
        """The file of a record, its number in that file, and its offset in bytes."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = int(np.searchsorted(self.ends, index, side="right"))
        number = index - (int(self.ends[which - 1]) if which else 0)
        return self.paths[which], number, int(self.files[which].starts[number])

    def content(self) -> str:
        """A hash of the contents of all files, independent of their names."""
        return digest(*(file.content for file in self.files))

    def line(self, index: int) -> str:
        """The place of a record for messages, such as "line 3 of FILE"."""
        path, _, start = self.find(index)
        return f"line {line_number(path, start)} of {path}"


def line_number(path: str, start: int) -> int:
    """The number, from 1, of the line that begins at this offset."""
    with open(path, "rb") as file:
        return 1 + sum(file.read(min(1 << 20, start - at)).count(b"\n") for at in range(0, start, 1 << 20))


@until_files_change
@lru_cache(maxsize=64)
def locate(paths: tuple[str, ...], kind: str, scan: Scan) -> Located:
    """The records of files, found by `scan`; `kind` identifies `scan` in the cache and names the files in messages.
    Raises ConfigError or Damaged.
    """
    files = tuple(_cached_offsets(path, kind, scan) for path in paths)
    return Located(paths, files, np.cumsum([len(file.starts) for file in files]))


@until_files_change
@lru_cache(maxsize=1024)
def _cached_offsets(path: str, kind: str, scan: Scan) -> Offsets:
    if Path(path).suffix in _COMPRESSED:
        raise ConfigError(f"{path} is compressed, so no record can be read by its index: decompress it first")
    kept = cache("offsets") / f"{digest(kind, file_state(path, f'{kind} file'))}.npz"
    try:
        with np.load(kept) as found:
            return Offsets(found["starts"], str(found["content"]))
    except (OSError, ValueError, KeyError):
        made = _found_offsets(path, scan)
    if not is_settled(path):
        return made
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(kept) as temporary, temporary.open("wb") as file:
            np.savez(file, starts=made.starts, content=made.content)
    except OSError:
        pass  # no room in the cache: the next process reads the file again
    return made


def _found_offsets(path: str, scan: Scan) -> Offsets:
    try:
        with open(path, "rb") as file:
            starts = np.fromiter(scan(file), np.int64)
            file.seek(0)
            return Offsets(starts, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise Damaged(path, None, f"it cannot be read ({error.strerror})") from error
