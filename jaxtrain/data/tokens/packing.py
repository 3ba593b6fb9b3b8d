"""Packing whole documents into rows."""

import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.base.files import atomic_write
from jaxtrain.data.sources.base import Example
from jaxtrain.data.sources.kept import until_files_change
from jaxtrain.data.tokens.files import SEPARATOR, TokenSource, documents_hash, open_files, open_tokens


def plan_packing(paths: tuple[str, ...], length: int) -> Path:
    """Plan rows of `length` + 1 tokens that hold whole documents, and write the plan to a file, whose path it returns.

    Best-fit decreasing (Johnson 1973; for language models Ding et al. 2024, arXiv:2404.10830): the longest remaining
    document goes to the fullest row with enough room. Documents longer than a row are cut into pieces of a row each.
    """
    room = length + 1
    pieces: list[np.ndarray] = []  # file, first token, tokens
    for number, path in enumerate(paths):
        starts = np.asarray(open_tokens(path).starts)
        sizes = np.diff(starts) - 1  # without separators
        counts = np.maximum(1, -(-sizes // room))
        document = np.repeat(np.arange(len(sizes)), counts)
        part = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
        begin = starts[document] + part * room
        tokens = np.minimum(sizes[document] - part * room, room)
        pieces.append(np.stack([np.full(len(begin), number), begin, tokens], 1)[tokens > 0])
    every = np.concatenate(pieces)
    every = every[np.argsort(-every[:, 2], kind="stable")]
    rows: list[list[int]] = []
    open_rows: list[list[int]] = [[] for _ in range(room + 1)]  # by the room left in them
    roomy = np.zeros(room + 1, bool)
    for piece, size in enumerate(every[:, 2].tolist()):
        found = size + int(np.argmax(roomy[size:]))
        if roomy[found]:
            row = open_rows[found].pop()
            roomy[found] = bool(open_rows[found])
        else:
            row, found = len(rows), room
            rows.append([])
        rows[row].append(piece)
        if left := found - size:
            open_rows[left].append(row)
            roomy[left] = True
    order = np.concatenate([np.array(row) for row in rows])
    bounds = np.cumsum([0, *map(len, rows)])
    plan = _plan_path(paths, length)
    flat = np.concatenate([bounds, every[order].ravel()]).astype(np.int64)
    with atomic_write(plan) as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate([[_files_number(paths), zlib.crc32(flat.data), len(rows)], flat]))
    _read_plan.cache_clear()
    return plan


def _plan_path(paths: tuple[str, ...], length: int) -> Path:
    return Path(paths[0]).with_suffix(f".packed-{length}.npy")


def _files_number(paths: tuple[str, ...]) -> int:
    """A hash of the files that a plan is for, as an int64."""
    return int(documents_hash(paths)[:15], 16)


@until_files_change
@lru_cache(maxsize=64)
def _read_plan(paths: tuple[str, ...], length: int) -> tuple[np.ndarray, np.ndarray]:
    """A plan: the bounds of rows in the list of pieces, i64[rows + 1], and the pieces of documents, i64[pieces, 3] with
    file, first token and number of tokens.
    """
    open_files(paths, "Packed")
    path = _plan_path(paths, length)
    if not path.is_file():
        raise ConfigError(f"Packed: there is no plan {path}: make it with plan_packing(paths, {length})")
    try:
        (planned, crc, count), flat = np.split(np.load(path, mmap_mode="r").view(np.ndarray), [3])
    except (OSError, ValueError, EOFError) as error:
        raise Damaged(str(path), None, f"it is not a plan of rows ({error})") from error
    if planned != _files_number(paths):
        raise ConfigError(f"Packed: {path} was planned for other files: make it with plan_packing(paths, {length})")
    if crc != zlib.crc32(flat.data):
        raise Damaged(str(path), None, "the plan of rows does not match its checksum")
    return flat[: count + 1], flat[count + 1 :].reshape(-1, 3)


@dataclass(frozen=True)
class Packed(TokenSource):
    """{"tokens": i32[length + 1], "segments": i32[length + 1]}: several documents in a row, numbered from 1.

    Rows follow a plan that `plan_packing` made. Segment 0 is padding. Raises ConfigError without a plan.
    """

    def __len__(self) -> int:
        return len(_read_plan(self.paths, self.length)[0]) - 1

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        bounds, pieces = _read_plan(self.paths, self.length)
        tokens = np.full(self.length + 1, SEPARATOR, np.int32)
        segments = np.zeros(self.length + 1, np.int32)
        at = 0
        for segment, (file, begin, size) in enumerate(pieces[bounds[index] : bounds[index + 1]].tolist(), 1):
            tokens[at : at + size] = open_tokens(self.paths[file]).tokens[begin : begin + size]
            segments[at : at + size] = segment
            at += size
        return {"tokens": tokens, "segments": segments}

    def identity(self) -> str:
        """The row length, and a hash of the checksums of all documents."""
        return f"packed:{self.length}:{documents_hash(self.paths)}"
