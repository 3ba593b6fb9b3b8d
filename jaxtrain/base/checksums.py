"""Checksums of the files and arrays in a folder, in a manifest that has a checksum of its own.

Not here: what the files mean, and what is done about damaged ones.
"""

import errno
import json
import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from jaxtrain.base.errors import Damaged, Retry
from jaxtrain.base.files import replace_text

MANIFEST = "manifest.jsonl"
"""The file's name. Its line 1 holds the crc32 of the rest, line 2 the checksums."""

_READ_BYTES = 1 << 20  # read at once: they fit into a core's cache

UNCERTAIN = {errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EHOSTDOWN}
"""Errors of a file system that do not mean that the file is damaged: reading it may succeed a minute later."""


@dataclass(frozen=True)
class Manifest:
    """The contents of a folder when it was completed.

    files: size in bytes and crc32 of each file, by its path in the folder.
    arrays: checksums of the arrays in these files, by name; JSON.
    """

    files: Mapping[str, tuple[int, int]]
    arrays: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Write it into its folder, whole or not at all; it is on disk when this returns."""
        body = json.dumps({"files": dict(self.files), "arrays": dict(self.arrays)}, sort_keys=True) + "\n"
        replace_text(folder / MANIFEST, _headed(body))

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """The manifest in a folder; None where there is none. Raises Damaged where its bytes have changed."""
        file = folder / MANIFEST
        try:
            text = read_regular(file)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(file, error) from error
        body = text.partition(b"\n")[2].decode("utf-8", "replace")
        if text != _headed(body).encode():
            raise Damaged(str(file), None, "it is not what was written: its checksum differs")
        try:
            found = json.loads(body)
            files = {_checked_name(name): (int(size), int(crc)) for name, (size, crc) in found["files"].items()}
            return cls(files, dict(found["arrays"]))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise Damaged(str(file), None, f"it is not a manifest ({error!r})") from error

    def faults(
        self, folder: Path, most: int | None = None, part: int = 0, parts: int = 1
    ) -> Iterator[tuple[int, Damaged]]:
        """The damaged files: the index of each in the sorted names, and what is wrong with it.

        most: larger files, in bytes, are compared by size only; None reads all.
        part, parts: only files part, part + parts, …, so that several processes share the reading.
        """
        for number, name in list(enumerate(sorted(self.files)))[part::parts]:
            size, crc = self.files[name]
            try:
                why = self._differs(folder / name, size, crc, most is None or size <= most)
            except OSError as error:
                yield number, unreadable(folder / name, error)
                continue
            if why:
                yield number, Damaged(str(folder / name), None, why)

    def _differs(self, file: Path, size: int, crc: int, read: bool) -> str:
        now = os.stat(file)
        if not stat.S_ISREG(now.st_mode):
            return "it is not a file"
        if now.st_size != size:
            return f"it has {now.st_size:,} bytes, of {size:,} that were written"
        return (
            "its bytes have changed since it was written: its checksum differs" if read and crc32(file) != crc else ""
        )


def crc32(file: Path) -> int:
    """The crc32 of a file. It runs at 2 GB/s and detects every change within 32 neighbouring bits."""
    found, block = 0, bytearray(_READ_BYTES)
    with file.open("rb", buffering=0) as opened:
        while count := opened.readinto(block):
            found = zlib.crc32(memoryview(block)[:count], found)
    return found


def crc32_of_array(x: np.ndarray) -> int:
    """The crc32 of an array's bytes in row-major order, of any dtype."""
    return zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)


def checksums(folder: Path, known: Mapping[str, tuple[int, int]] | None = None) -> dict[str, tuple[int, int]]:
    """Size and crc32 of every file below a folder, by its path in it; files in `known` are not read again."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: (known or {}).get(name) or (path.stat().st_size, crc32(path)) for name, path in names.items()}


def read_regular(file: Path) -> bytes:
    """The bytes of a regular file. Raises OSError for anything else, such as a pipe, which would block forever."""
    if not stat.S_ISREG(os.stat(file).st_mode):
        raise OSError(errno.EINVAL, "it is not a file")
    return file.read_bytes()


def unreadable(file: Path, error: OSError) -> Damaged:
    """The Damaged for a file that raised `error` when it was read. Raises Retry for the errors in `UNCERTAIN`."""
    if error.errno in UNCERTAIN:
        raise Retry(f"{file} cannot be read at the moment: {error.strerror}; run the same command again") from error
    missing = isinstance(error, FileNotFoundError)
    return Damaged(str(file), None, "it is missing" if missing else f"it cannot be read ({error.strerror or error})")


def _checked_name(name: str) -> str:
    """The name of a file. Raises ValueError for one that leads out of the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{name!r} is not a path inside of the folder")
    return name


def _headed(body: str) -> str:
    """The body of a manifest below the line with its checksum."""
    return f'{{"crc32": "{zlib.crc32(body.encode()):08x}"}}\n{body}'
