"""Reads files that another process is writing, in untrusted folders: bounded, without blocking, and bit by bit.

Imports no jax. Not here: what the lines mean.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

LARGEST_TAIL = 1 << 18
"""Bytes at the end of a file of lines that are read where only its last lines matter."""

_PIECE = 1 << 24  # bytes that a follower reads at once


def read_bounded(path: Path, most: int, from_end: bool = False) -> tuple[bytes, os.stat_result] | None:
    """At most `most` bytes at the start, or the end, of a file, and its stat; None where there is none.

    Raises OSError for a file that cannot be read, and for what is no file: a named pipe would block for ever.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{path.name} is no file")
        size = min(found.st_size, most)
        return os.pread(file, size, found.st_size - size if from_end else 0), found
    finally:
        os.close(file)


def last_objects(data: bytes, whole: bool) -> list[dict[str, Any]]:
    """The JSON objects in the lines of a file's end, without damaged lines and one that is being written.

    whole: whether it is the whole file; else the first line is cut off, and left out.
    """
    lines = data.split(b"\n")
    found = [json_object(line) for line in (lines if whole else lines[1:])]
    return [each for each in found if each is not None]


def json_object(line: bytes) -> dict[str, Any] | None:
    """The JSON object in a line; None for any other content."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


class Follower:
    """Reads the lines that are appended to a file, as they come. A file that is replaced or truncated, as by a run that
    resumes, is read again from its start.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._at, self._rest = path, 0, b""
        self._file: tuple[int, int] | None = None
        self.begun_anew = False
        """Whether the last `read` started again, so that what was read before is void."""

    def read(self) -> list[dict[str, Any]]:
        """The objects of the lines that are complete since the last call; damaged lines are left out. [] where the file
        is missing or cannot be read.
        """
        self.begun_anew, found = False, []
        try:
            file = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return []
        try:
            facts = os.fstat(file)
            if not stat.S_ISREG(facts.st_mode):
                return []
            same = (facts.st_dev, facts.st_ino)
            if self._file is not None and (same != self._file or facts.st_size < self._at):
                self._at, self._rest, self.begun_anew = 0, b"", True
            self._file = same
            while data := os.pread(file, _PIECE, self._at):
                self._at += len(data)
                *lines, self._rest = (self._rest + data).split(b"\n")
                found += [each for each in map(json_object, lines) if each is not None]
        except OSError:  # of a network file system: the next call goes on
            pass
        finally:
            os.close(file)
        return found
