"""Where the records of a file begin: found once by reading all of it, and kept in the user's cache."""

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
"""Yields the first byte of each record of a file that is open at its beginning."""


@dataclass(frozen=True)
class Offsets:
    """First byte of each record, i64[records], and a sha256 of the whole file."""

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
        """File, number of the record in it, and its first byte."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = int(np.searchsorted(self.ends, index, side="right"))
        number = index - (int(self.ends[which - 1]) if which else 0)
        return self.paths[which], number, int(self.files[which].starts[number])

    def content(self) -> str:
        """A hash of all files, whatever their names."""
        return digest(*(file.content for file in self.files))

    def line(self, index: int) -> str:
        """ "line 3 of FILE": where a record begins."""
        path, _, start = self.find(index)
        return f"line {line_number(path, start)} of {path}"


def line_number(path: str, start: int) -> int:
    """The line, from 1, that begins at a byte."""
    with open(path, "rb") as file:
        return 1 + sum(file.read(min(1 << 20, start - at)).count(b"\n") for at in range(0, start, 1 << 20))


@until_files_change
@lru_cache(maxsize=64)
def locate(paths: tuple[str, ...], kind: str, scan: Scan) -> Located:
    """The records of files; `kind` names what they are and how `scan` finds them. Raises ConfigError or Damaged."""
    files = tuple(_offsets(path, kind, scan) for path in paths)
    return Located(paths, files, np.cumsum([len(file.starts) for file in files]))


@until_files_change
@lru_cache(maxsize=1024)
def _offsets(path: str, kind: str, scan: Scan) -> Offsets:
    if Path(path).suffix in _COMPRESSED:
        raise ConfigError(f"{path} is compressed, so no record can be read by its index: decompress it first")
    kept = cache("offsets") / f"{digest(kind, file_state(path, f'{kind} file'))}.npz"
    try:
        with np.load(kept) as found:
            return Offsets(found["starts"], str(found["content"]))
    except (OSError, ValueError, KeyError):
        made = _scan(path, scan)
    if not is_settled(path):
        return made
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(kept) as temporary, temporary.open("wb") as file:
            np.savez(file, starts=made.starts, content=made.content)
    except OSError:
        pass  # no room in the cache: the file is read again by the next process
    return made


def _scan(path: str, scan: Scan) -> Offsets:
    try:
        with open(path, "rb") as file:
            starts = np.fromiter(scan(file), np.int64)
            file.seek(0)
            return Offsets(starts, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise Damaged(path, None, f"it cannot be read ({error.strerror})") from error
