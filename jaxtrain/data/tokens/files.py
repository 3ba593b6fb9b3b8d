"""Token files: documents as one memory-mapped array of token ids, and sources that read them."""

import json
import logging
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, islice
from pathlib import Path

import numpy as np

from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.base.files import atomic_write, digest
from jaxtrain.base.ranges import PositiveInt
from jaxtrain.data.sources.base import Example, RememberedSource, Source, raw_text
from jaxtrain.data.sources.kept import until_files_change
from jaxtrain.data.sources.paths import PATH, data_file, make_absolute
from jaxtrain.data.tokens.tokenizers import Bytes, Tokenizer

MAGIC = b"jaxtoken"

SEPARATOR = 0
"""The token after each document, and the padding of packed rows."""

_ALIGN = 64  # bytes; the tokens begin at a multiple of it

_ENCODED_TOGETHER = 1000  # documents in one call of the tokenizer


def write_tokens(
    folder: Path, name: str, texts: Iterable[str], tokenizer: Tokenizer, per_file: int = 1 << 26
) -> list[Path]:
    """Write documents to token files `name-00000.bin`, … of about `per_file` tokens each; returns their paths in order.

    Holds the documents of one file in memory.
    """
    dtype = np.dtype(np.uint16 if tokenizer.vocab <= 1 << 16 else np.uint32)
    paths: list[Path] = []
    documents: list[np.ndarray] = []
    waiting = 0

    def flush() -> None:
        nonlocal waiting
        path = folder / f"{name}-{len(paths):05}.bin"
        _write_file(path, documents, dtype, tokenizer)
        paths.append(path)
        documents.clear()
        waiting = 0

    rest = iter(texts)
    while group := list(islice(rest, _ENCODED_TOGETHER)):
        for document in tokenizer.encode(group):
            documents.append(document.astype(dtype, copy=False))
            waiting += len(document)
            if waiting >= per_file:
                flush()
    if documents:
        flush()
    return paths


def _write_file(path: Path, documents: Sequence[np.ndarray], dtype: np.dtype, tokenizer: Tokenizer) -> None:
    starts = np.cumsum([0, *(len(document) + 1 for document in documents)], dtype=np.int64)
    separator = np.array([SEPARATOR], dtype).tobytes()
    sums = np.array([zlib.crc32(document.tobytes()) for document in documents], np.uint32)
    header = {"dtype": dtype.name, "tokens": int(starts[-1]), "documents": len(documents)}
    text = json.dumps({**header, "vocab": tokenizer.vocab, "tokenizer": tokenizer.identity()}).encode()
    front = MAGIC + len(text).to_bytes(8, "little") + text
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(front.ljust(-(-len(front) // _ALIGN) * _ALIGN, b"\0"))
        for document in documents:
            file.write(document.tobytes() + separator)
        file.write(b"\0" * (-file.tell() % 8))
        file.write(starts.tobytes() + sums.tobytes())
    open_tokens.cache_clear()


@dataclass(frozen=True)
class TokenFile:
    """A token file in memory: `tokens` u16 or u32[tokens], `starts` i64[documents + 1], `sums` u32[documents]."""

    tokens: np.ndarray
    starts: np.ndarray
    sums: np.ndarray
    vocab: int
    tokenizer: str


@until_files_change
@lru_cache(maxsize=256)
def open_tokens(path: str) -> TokenFile:
    """A token file, memory-mapped and kept open. Raises ConfigError or Damaged where it cannot be read."""
    size = data_file(path, "token file").stat().st_size
    with open(path, "rb") as file:
        magic, length = file.read(len(MAGIC)), int.from_bytes(file.read(8), "little")
        text = file.read(min(length, 1 << 20)) if magic == MAGIC else b""
    try:
        header = json.loads(text)
        dtype = np.dtype(header["dtype"])
        tokens, documents = int(header["tokens"]), int(header["documents"])
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(path, None, "it is not a token file, or its header is damaged") from error
    begin = -(-(len(MAGIC) + 8 + length) // _ALIGN) * _ALIGN
    table = -(-(begin + tokens * dtype.itemsize) // 8) * 8
    if size != (wanted := table + (documents + 1) * 8 + documents * 4):
        raise Damaged(path, None, f"it has {size:,} bytes, not the {wanted:,} that its header asks for")
    return TokenFile(
        # As plain arrays: slicing a memmap object takes ten times as long.
        np.memmap(path, dtype, "r", begin, (tokens,)).view(np.ndarray),
        np.memmap(path, np.int64, "r", table, (documents + 1,)).view(np.ndarray),
        np.memmap(path, np.uint32, "r", table + (documents + 1) * 8, (documents,)).view(np.ndarray),
        header["vocab"],
        header["tokenizer"],
    )


def open_files(paths: tuple[str, ...], name: str) -> list[TokenFile]:
    """Several token files; `name` is the class of the source, for messages."""
    if isinstance(paths, str) or not paths:
        raise ConfigError(f"{name} needs a tuple of one or more paths, got {paths!r}")
    return [open_tokens(path) for path in paths]


def documents_hash(paths: tuple[str, ...]) -> str:
    """A hash of the checksums and lengths of all documents: it changes with any token, but reads no tokens."""
    files = map(open_tokens, paths)
    return digest(*(part for file in files for part in (file.tokenizer, file.starts.data, file.sums.data)))


@dataclass(frozen=True)
class Documents(Source):
    """{"tokens": u16 or u32[any]}: the documents of token files, one per example.

    Each document is verified by its checksum when it is read. Raises Damaged where that differs.
    """

    paths: tuple[str, ...] = field(metadata=PATH)

    def __post_init__(self) -> None:
        make_absolute(self, "paths")

    def __len__(self) -> int:
        return _ends(self.paths)[-1]

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        which, number = _file_of(_ends(self.paths), index)
        file = open_tokens(self.paths[which])
        tokens = file.tokens[file.starts[number] : file.starts[number + 1] - 1]
        if zlib.crc32(tokens.tobytes()) != file.sums[number]:
            raise Damaged(self.paths[which], number, "its tokens do not match their checksum")
        return {"tokens": tokens.copy()}

    def identity(self) -> str:
        return f"documents:{documents_hash(self.paths)}"


@until_files_change
@lru_cache(maxsize=64)
def _ends(paths: tuple[str, ...]) -> list[int]:
    return list(accumulate(len(file.sums) for file in open_files(paths, "Documents")))


def _file_of(ends: list[int], index: int) -> tuple[int, int]:
    """The number of the file that holds an index, and the index within that file. ends: of each file's indices."""
    which = bisect_right(ends, index)
    return which, index - (ends[which - 1] if which else 0)


@dataclass(frozen=True)
class TokenSource(Source):
    """Rows of `length` + 1 tokens from token files. `tokenizer` encodes raw texts for prediction."""

    paths: tuple[str, ...] = field(metadata=PATH)
    length: PositiveInt
    tokenizer: Tokenizer = field(default_factory=Bytes)

    def __post_init__(self) -> None:
        make_absolute(self, "paths")

    @property
    def vocab(self) -> int:
        return max(open_tokens(path).vocab for path in self.paths)

    def raw(self, argument: str) -> Example:
        """The tokens of a text of any length, or of a file. Raises ConfigError where token files exist and were written
        by another tokenizer.
        """
        if other := self._other_tokenizer([path for path in self.paths if Path(path).is_file()]):
            raise ConfigError(other)
        return {"tokens": self.tokenizer.encode([raw_text(argument)])[0].astype(np.int32)}

    def remembered(self) -> Source:
        """This source; if its files were written by another tokenizer, which is logged, one that reads no texts."""
        if not (other := self._other_tokenizer(self.paths)):
            return self
        logging.getLogger("jaxtrain.data").warning("%s", other)
        return RememberedSource.like([{"tokens": self[0]["tokens"]}])

    def _other_tokenizer(self, paths: Sequence[str]) -> str:
        own = self.tokenizer.identity()
        for path in paths:
            if (written := open_tokens(path).tokenizer) != own:
                return (
                    f"{type(self).__name__}: {path} was written by the tokenizer {written}, but tokenizer={own}: texts "
                    "for predict would become other tokens, so give the tokenizer that wrote it"
                )
        return ""


@dataclass(frozen=True)
class Tokens(TokenSource):
    """{"tokens": i32[length + 1]}: rows from a stream of documents, file by file, with token 0 after each document.

    Rows overlap by one token, so that every token but a file's first is a target once. A shorter last row of a file is
    left out.
    """

    def __len__(self) -> int:
        return _row_ends(self.paths, self.length)[-1]

    def __getitem__(self, index: int) -> Example:
        ends = _row_ends(self.paths, self.length)
        if not 0 <= index < ends[-1]:
            raise IndexError(index)
        which, number = _file_of(ends, index)
        begin = number * self.length
        row = open_tokens(self.paths[which]).tokens[begin : begin + self.length + 1]
        return {"tokens": row.astype(np.int32)}

    def identity(self) -> str:
        """The row length, and a hash of the checksums of all documents."""
        return f"tokens:{self.length}:{documents_hash(self.paths)}"


@until_files_change
@lru_cache(maxsize=64)
def _row_ends(paths: tuple[str, ...], length: int) -> list[int]:
    return list(accumulate(max(0, (len(file.tokens) - 1) // length) for file in open_files(paths, "Tokens")))
