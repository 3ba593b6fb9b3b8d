"""Tokenizers: text to token ids and back."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.files import atomic_write, digest, require_file
from jaxtrain.base.packages import needs
from jaxtrain.base.ranges import Checked, PositiveInt
from jaxtrain.data.sources.base import Example
from jaxtrain.data.sources.kept import until_files_change
from jaxtrain.data.sources.paths import PATH, data_file, make_absolute
from jaxtrain.data.transforms.base import Transform


@dataclass(frozen=True)
class Tokenizer(Checked, ABC):
    """Text to token ids and back."""

    @property
    @abstractmethod
    def vocab(self) -> int:
        """Number of tokens."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The token ids of each text, an unsigned integer array [tokens] each."""

    @abstractmethod
    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of token ids."""

    @abstractmethod
    def identity(self) -> str:
        """A string that changes when a text gets other tokens."""


@dataclass(frozen=True)
class Bytes(Tokenizer):
    """UTF-8 bytes, 0 to 255; byte 0 does not occur in text. Invalid UTF-8 decodes to U+FFFD."""

    @property
    def vocab(self) -> int:
        return 256

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        return bytes(np.asarray(tokens, np.uint8)).decode(errors="replace")

    def identity(self) -> str:
        return "bytes"


@dataclass(frozen=True)
class HuggingFace(Tokenizer):
    """A JSON file of the `tokenizers` library, identified by its content. Raises ConfigError where it is missing."""

    path: str = field(metadata=PATH)

    def __post_init__(self) -> None:
        make_absolute(self, "path")

    @property
    def vocab(self) -> int:
        return _tokenizer(self.path).get_vocab_size()

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(one.ids, np.uint32) for one in _tokenizer(self.path).encode_batch_fast(list(texts))]

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        return _tokenizer(self.path).decode([int(token) for token in tokens])

    def identity(self) -> str:
        return f"tokenizers:{digest(require_file(self.path, 'tokenizer file').read_bytes())}"


def _library() -> Any:
    with needs("HuggingFace", "tokenizers", "datasets"):
        return importlib.import_module("tokenizers")


@until_files_change
@lru_cache(maxsize=8)
def _tokenizer(path: str) -> Any:
    library, file = _library(), data_file(path, "tokenizer file")
    try:
        return library.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise ConfigError(f"{path} is not a tokenizer file: {error}") from error


def train_bpe(texts: Iterable[str], vocab: int, path: Path) -> HuggingFace:
    """Train a byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909; on bytes as in GPT-2) and write it to `path`.

    Token 0 separates documents. Any text can be encoded, since every byte is a token. Raises ConfigError for a `vocab`
    too small for that.
    """
    library = _library()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    if vocab <= len(alphabet):
        raise ConfigError(f"train_bpe: vocab {vocab} must be more than the {len(alphabet)} bytes and a separator")
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=["<|separator|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    with atomic_write(path) as temporary:
        tokenizer.save(str(temporary))
    _tokenizer.cache_clear()
    return HuggingFace(str(path))


@dataclass(frozen=True)
class Tokenize(Transform):
    """Replace the text in `field` by its tokens in `to`: i32[length], cut or padded with token 0."""

    tokenizer: Tokenizer
    length: PositiveInt
    field: str = "text"
    to: str = "tokens"

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        text = self.text_of(example, self.field)
        try:
            text = text.decode() if isinstance(text, bytes) else text
        except UnicodeDecodeError as error:
            raise ConfigError(f"Tokenize: {self.field!r} is not UTF-8 text: {error}") from error
        tokens = self.tokenizer.encode([text])[0][: self.length].astype(np.int32)
        return self.replaced(example, (self.field,), self.to, np.pad(tokens, (0, self.length - len(tokens))))

    def traced(self, fields: Example) -> Example:
        """The tokens are an input already."""
        tokens = self.field_of(fields, self.field)
        return self.replaced(fields, (self.field,), self.to, tokens.astype(np.int32))

    def raw_inputs(self, kinds: Mapping[str, tuple[str, tuple[int, ...]]]) -> Mapping[str, Mapping[str, Any]]:
        """A text by this tokenizer; bytes are tokens themselves."""
        if self.field not in kinds:
            return {}
        if isinstance(self.tokenizer, Bytes):
            return {self.field: {"kind": "text", "bytes": self.length}}
        if not isinstance(self.tokenizer, HuggingFace):
            raise ConfigError(f"Tokenize cannot be exported: {type(self.tokenizer).__name__} has no file of its own")
        return {self.field: {"kind": "tokens", "length": self.length, "tokenizer": self.tokenizer.path}}
