"""Tokenizers: text to token ids and back."""

import hashlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.base.config import NOT_IN_FINGERPRINT
from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.data.sources.base import Example
from jaxtrain.data.transforms.base import Transform


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

    path: str = field(metadata=NOT_IN_FINGERPRINT)

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
        return f"tokenizers:{hashlib.sha256(require_file(Path(self.path)).read_bytes()).hexdigest()[:32]}"


def _library() -> Any:
    try:
        return importlib.import_module("tokenizers")
    except ImportError as error:
        raise ConfigError("tokenizers are missing: pip install 'jaxtrain[datasets]'") from error


@lru_cache(maxsize=8)
def _tokenizer(path: str) -> Any:
    try:
        return _library().Tokenizer.from_file(str(require_file(Path(path))))
    except Exception as error:  # the library raises plain Exception
        raise ConfigError(f"{path} is no tokenizer file: {error}") from error


def require_file(path: Path) -> Path:
    """The path. Raises ConfigError, with the nearest name beside it, where there is no such file."""
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
