"""Tokens on disk: files of documents as integers, tokenizers that make them, and rows of several documents.

Not here: cleaning texts and splitting them. A token file is `MAGIC`, the length of a JSON header, the header, padding
to 64 bytes, the tokens of all documents one after another with token 0 after each, where each document begins
(i64[documents + 1]), and a CRC-32 of each (u32[documents]). Files are mapped into memory: only what rows need is read.
"""

import hashlib
import importlib
import json
import os
import zlib
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.data.sources import Damaged, Example, Source
from jaxtrain.data.transforms import Transform
from jaxtrain.errors import ConfigError, nearest

MAGIC = b"jaxtoken"
SEPARATOR = 0
"""The token after each document, and at the end of a row that documents do not fill."""
_ALIGN = 64
_AT_ONCE = 1000


@dataclass(frozen=True)
class Tokenizer(ABC):
    """Text to integers and back."""

    @property
    @abstractmethod
    def vocab(self) -> int:
        """How many tokens there are."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One array of integers a text."""

    @abstractmethod
    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of some tokens."""

    @abstractmethod
    def identity(self) -> str:
        """Changes when the same text gets other tokens."""


@dataclass(frozen=True)
class Bytes(Tokenizer):
    """UTF-8 bytes, 0 to 255; text does not hold byte 0."""

    @property
    def vocab(self) -> int:
        """256."""
        return 256

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """u8[bytes]."""
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """What is no UTF-8 is shown as U+FFFD."""
        return bytes(np.asarray(tokens, np.uint8)).decode(errors="replace")

    def identity(self) -> str:
        """Always the same."""
        return "bytes"


@dataclass(frozen=True)
class HuggingFace(Tokenizer):
    """A JSON file of the `tokenizers` library, identified by its content. Raises ConfigError where there is none."""

    path: str = field(metadata={"meaning": False})

    @property
    def vocab(self) -> int:
        """Added tokens included."""
        return _tokenizer(self.path).get_vocab_size()

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """u32[tokens]."""
        return [np.array(one.ids, np.uint32) for one in _tokenizer(self.path).encode_batch_fast(list(texts))]

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """As the file says."""
        return _tokenizer(self.path).decode([int(token) for token in tokens])

    def identity(self) -> str:
        """A sha256 of the file."""
        return f"tokenizers:{hashlib.sha256(_require(Path(self.path)).read_bytes()).hexdigest()[:32]}"


def _library() -> Any:
    try:
        return importlib.import_module("tokenizers")
    except ImportError as error:
        raise ConfigError("tokenizers are missing: pip install 'jaxtrain[datasets]'") from error


@lru_cache(maxsize=8)
def _tokenizer(path: str) -> Any:
    try:
        return _library().Tokenizer.from_file(str(_require(Path(path))))
    except Exception as error:  # the library raises plain Exception
        raise ConfigError(f"{path} is no tokenizer file: {error}") from error


def _require(path: Path) -> Path:
    if not path.is_file():
        others = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ConfigError(f"there is no file {path}{nearest(path.name, others)}")
    return path


def train_bpe(texts: Iterable[str], vocab: int, path: Path) -> HuggingFace:
    """Learn a byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909; on bytes as in GPT-2) and write it to `path`.

    Token 0 stands between documents. Any text can be encoded, since all bytes are tokens. Raises ConfigError for a
    `vocab` that has no room for them.
    """
    library = _library()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    if vocab <= len(alphabet):
        raise ConfigError(f"train_bpe: vocab {vocab} must be more than the {len(alphabet)} bytes and a separator")
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=["<|separator|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    made.save(str(path))
    _tokenizer.cache_clear()
    return HuggingFace(str(path))


# Files.


def write_tokens(
    folder: Path, name: str, texts: Iterable[str], tokenizer: Tokenizer, per_file: int = 1 << 26
) -> list[Path]:
    """Write documents into token files `name-00000.bin`, … of about `per_file` tokens each; returns them in order.

    One file's documents are held in memory.
    """
    dtype = np.dtype(np.uint16 if tokenizer.vocab <= 1 << 16 else np.uint32)
    paths: list[Path] = []
    documents: list[np.ndarray] = []
    waiting = 0

    def flush() -> None:
        nonlocal waiting
        path = folder / f"{name}-{len(paths):05}.bin"
        _write(path, documents, dtype, tokenizer)
        paths.append(path)
        documents.clear()
        waiting = 0

    rest = iter(texts)
    while group := list(islice(rest, _AT_ONCE)):
        for document in tokenizer.encode(group):
            documents.append(document.astype(dtype, copy=False))
            waiting += len(document)
            if waiting >= per_file:
                flush()
    if documents:
        flush()
    return paths


def _write(path: Path, documents: Sequence[np.ndarray], dtype: np.dtype, tokenizer: Tokenizer) -> None:
    starts = np.cumsum([0, *(len(document) + 1 for document in documents)], dtype=np.int64)
    separator = np.array([SEPARATOR], dtype).tobytes()
    sums = np.array([zlib.crc32(document.tobytes()) for document in documents], np.uint32)
    header = {"dtype": dtype.name, "tokens": int(starts[-1]), "documents": len(documents)}
    text = json.dumps({**header, "vocab": tokenizer.vocab, "tokenizer": tokenizer.identity()}).encode()
    front = MAGIC + len(text).to_bytes(8, "little") + text
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(front.ljust(-(-len(front) // _ALIGN) * _ALIGN, b"\0"))
            for document in documents:
                file.write(document.tobytes() + separator)
            file.write(b"\0" * (-file.tell() % 8))
            file.write(starts.tobytes() + sums.tobytes())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    _open.cache_clear()


@dataclass(frozen=True)
class TokenFile:
    """A token file in memory: `tokens` u16 or u32[tokens], `starts` i64[documents + 1], `sums` u32[documents]."""

    tokens: np.ndarray
    starts: np.ndarray
    sums: np.ndarray
    vocab: int
    tokenizer: str


@lru_cache(maxsize=256)
def _open(path: str) -> TokenFile:
    size = _require(Path(path)).stat().st_size
    with open(path, "rb") as file:
        magic, length = file.read(len(MAGIC)), int.from_bytes(file.read(8), "little")
        text = file.read(min(length, 1 << 20)) if magic == MAGIC else b""
    try:
        header = json.loads(text)
        dtype = np.dtype(header["dtype"])
        tokens, documents = int(header["tokens"]), int(header["documents"])
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(path, None, "it is no token file, or its header is damaged") from error
    begin = -(-(len(MAGIC) + 8 + length) // _ALIGN) * _ALIGN
    table = -(-(begin + tokens * dtype.itemsize) // 8) * 8
    if size != (wanted := table + (documents + 1) * 8 + documents * 4):
        raise Damaged(path, None, f"it has {size:,} bytes, not the {wanted:,} that its header asks for")
    return TokenFile(
        # As plain arrays: a slice of a memmap object takes ten times as long.
        np.memmap(path, dtype, "r", begin, (tokens,)).view(np.ndarray),
        np.memmap(path, np.int64, "r", table, (documents + 1,)).view(np.ndarray),
        np.memmap(path, np.uint32, "r", table + (documents + 1) * 8, (documents,)).view(np.ndarray),
        header["vocab"],
        header["tokenizer"],
    )


def _files(paths: tuple[str, ...], name: str) -> list[TokenFile]:
    if isinstance(paths, str) or not paths:
        raise ConfigError(f"{name} needs a tuple of one or more paths, got {paths!r}")
    return [_open(path) for path in paths]


def _content(paths: tuple[str, ...]) -> str:
    """A hash of every document's checksum and length: changes with any token, and reads none."""
    found = hashlib.sha256()
    for path in paths:
        file = _open(path)
        found.update(file.tokenizer.encode() + file.starts.tobytes() + file.sums.tobytes())
    return found.hexdigest()[:32]


@dataclass(frozen=True)
class Documents(Source):
    """{"tokens": u16 or u32[any]}: the documents of token files, one an example, each compared with its checksum.

    Raises Damaged for one that differs.
    """

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return _ends(self.paths)[-1]

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        which, number = _place(_ends(self.paths), index)
        file = _open(self.paths[which])
        tokens = file.tokens[file.starts[number] : file.starts[number + 1] - 1]
        if zlib.crc32(tokens.tobytes()) != file.sums[number]:
            raise Damaged(self.paths[which], number, "its tokens do not match their checksum")
        return {"tokens": tokens.copy()}

    def identity(self) -> str:
        """From the checksums of all documents."""
        return f"documents:{_content(self.paths)}"


@lru_cache(maxsize=64)
def _ends(paths: tuple[str, ...]) -> list[int]:
    return list(accumulate(len(file.sums) for file in _files(paths, "Documents")))


def _place(ends: list[int], index: int) -> tuple[int, int]:
    """Which file an index is in, and where in it."""
    which = bisect_right(ends, index)
    return which, index - (ends[which - 1] if which else 0)


@dataclass(frozen=True)
class Tokens(Source):
    """{"tokens": i32[length + 1]}: rows of the documents as one stream, with token 0 after each, file by file.

    Rows overlap by one token, so that every token but a file's first is a target once; what is left at the end of a
    file and does not fill a row is left out.
    """

    paths: tuple[str, ...]
    length: int
    tokenizer: Tokenizer = field(default_factory=Bytes)

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"Tokens length must be at least 1, got {self.length}")

    def __len__(self) -> int:
        return _row_ends(self.paths, self.length)[-1]

    def __getitem__(self, index: int) -> Example:
        ends = _row_ends(self.paths, self.length)
        if not 0 <= index < ends[-1]:
            raise IndexError(index)
        which, number = _place(ends, index)
        begin = number * self.length
        row = _open(self.paths[which]).tokens[begin : begin + self.length + 1]
        return {"tokens": row.astype(np.int32)}

    @property
    def vocab(self) -> int:
        """As the files say."""
        return max(_open(path).vocab for path in self.paths)

    def raw(self, argument: str) -> Example:
        """The tokens of a text, however long."""
        return {"tokens": self.tokenizer.encode([argument])[0].astype(np.int32)}

    def identity(self) -> str:
        """From the checksums of all documents, and the length."""
        return f"tokens:{self.length}:{_content(self.paths)}"


@lru_cache(maxsize=64)
def _row_ends(paths: tuple[str, ...], length: int) -> list[int]:
    return list(accumulate(max(0, (len(file.tokens) - 1) // length) for file in _files(paths, "Tokens")))


# Packing.


def plan_packing(paths: tuple[str, ...], length: int) -> Path:
    """Plan rows of `length` + 1 tokens that hold whole documents, the best fit first, and write the plan to a file.

    Best-fit decreasing (Johnson 1973; for language models Ding et al. 2024, arXiv:2404.10830): the longest document
    that is left goes to the fullest row that has room. Longer documents than a row are cut into pieces that fill rows.
    """
    room = length + 1
    pieces: list[np.ndarray] = []  # file, first token, tokens
    for number, path in enumerate(paths):
        starts = np.asarray(_open(path).starts)
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
    open_rows: list[list[int]] = [[] for _ in range(room + 1)]  # by the room that is left
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
    unfinished = plan.with_name(f".{plan.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as file:
            np.save(file, np.concatenate([[_planned(paths), zlib.crc32(flat.data), len(rows)], flat]))
        unfinished.replace(plan)
    finally:
        unfinished.unlink(missing_ok=True)
    _plan.cache_clear()
    return plan


def _plan_path(paths: tuple[str, ...], length: int) -> Path:
    return Path(paths[0]).with_suffix(f".packed-{length}.npy")


def _planned(paths: tuple[str, ...]) -> int:
    """Of which files a plan is, as a number."""
    return int(_content(paths)[:15], 16)


@lru_cache(maxsize=64)
def _plan(paths: tuple[str, ...], length: int) -> tuple[np.ndarray, np.ndarray]:
    _files(paths, "Packed")
    path = _plan_path(paths, length)
    if not path.is_file():
        raise ConfigError(f"Packed: there is no plan {path}: make it with plan_packing(paths, {length})")
    try:
        (planned, crc, count), flat = np.split(np.load(path, mmap_mode="r").view(np.ndarray), [3])
    except (OSError, ValueError, EOFError) as error:
        raise Damaged(str(path), None, f"it is no plan of rows ({error})") from error
    if planned != _planned(paths):
        raise ConfigError(f"Packed: {path} was planned for other files: make it with plan_packing(paths, {length})")
    if crc != zlib.crc32(flat.data):
        raise Damaged(str(path), None, "the plan of rows does not match its checksum")
    return flat[: count + 1], flat[count + 1 :].reshape(-1, 3)


@dataclass(frozen=True)
class Packed(Source):
    """{"tokens": i32[length + 1], "segments": i32[length + 1]}: several documents in a row, numbered 1, 2, … in it.

    Rows follow a plan that `plan_packing` made. Segment 0 is what fills up the row. Raises ConfigError without a plan.
    """

    paths: tuple[str, ...]
    length: int
    tokenizer: Tokenizer = field(default_factory=Bytes)

    def __len__(self) -> int:
        return len(_plan(self.paths, self.length)[0]) - 1

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        bounds, pieces = _plan(self.paths, self.length)
        tokens = np.full(self.length + 1, SEPARATOR, np.int32)
        segments = np.zeros(self.length + 1, np.int32)
        at = 0
        for segment, (file, begin, size) in enumerate(pieces[bounds[index] : bounds[index + 1]].tolist(), 1):
            tokens[at : at + size] = _open(self.paths[file]).tokens[begin : begin + size]
            segments[at : at + size] = segment
            at += size
        return {"tokens": tokens, "segments": segments}

    @property
    def vocab(self) -> int:
        """As the files say."""
        return max(_open(path).vocab for path in self.paths)

    def raw(self, argument: str) -> Example:
        """The tokens of a text, however long."""
        return {"tokens": self.tokenizer.encode([argument])[0].astype(np.int32)}

    def identity(self) -> str:
        """From the checksums of all documents, and the length."""
        return f"packed:{self.length}:{_content(self.paths)}"


@dataclass(frozen=True)
class Tokenize(Transform):
    """Text in `field` to its tokens in `to`: i32[length], cut or filled up with token 0. The text itself is dropped."""

    tokenizer: Tokenizer
    length: int
    field: str = "text"
    to: str = "tokens"

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with `to` in place of `field`."""
        tokens = self.tokenizer.encode([self.field_of(example, self.field)])[0][: self.length]
        rest = {name: value for name, value in example.items() if name != self.field}
        return {**rest, self.to: np.pad(tokens.astype(np.int32), (0, self.length - len(tokens)))}
