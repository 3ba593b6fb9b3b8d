"""Forms: how the records of a data set are kept in files, and what is read of them. Not here: which records."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.data.sources.array_record import ArrayRecord, write_array_record
from jaxtrain.data.sources.base import Example, Source
from jaxtrain.data.tokens.files import Documents, Tokens, write_tokens
from jaxtrain.data.tokens.packing import Packed, plan_packing
from jaxtrain.data.tokens.tokenizers import Bytes, HuggingFace, Tokenizer, train_bpe


@dataclass(frozen=True)
class Format(ABC):
    """How the records of a split are kept in files."""

    def prepare(self, folder: Path, examples: Iterable[Example]) -> None:  # noqa: B027 (most forms need nothing)
        """What has to be learned from the first split before anything is written."""

    @abstractmethod
    def write(self, folder: Path, split: str, examples: Iterable[Example]) -> list[Path]:
        """Write a split's records into files of `folder`; returns them in their order."""

    @abstractmethod
    def records(self, paths: tuple[str, ...]) -> Source:
        """What was written, one record an example: what is hashed, checked and compared."""

    def rows(self, paths: tuple[str, ...], folder: Path) -> Source:
        """What is trained on; the records themselves unless they are laid out in another way."""
        return self.records(paths)


@dataclass(frozen=True)
class Records(Format):
    """ArrayRecord files of at most so many records; reading one costs more the more there are in its file."""

    per_file: int = 10_000

    def write(self, folder: Path, split: str, examples: Iterable[Example]) -> list[Path]:
        """Files `train-00000.arrayrecord`, …"""
        paths: list[Path] = []
        for group in _groups(examples, self.per_file):
            paths.append(folder / f"{split}-{len(paths):05}.arrayrecord")
            write_array_record(paths[-1], group)
        return paths

    def records(self, paths: tuple[str, ...]) -> Source:
        """The records."""
        return ArrayRecord(paths)


@dataclass(frozen=True)
class TokenRows(Format):
    """Token files of a text field, read as rows of `length` + 1 tokens for a language model.

    With `packed`, rows hold whole documents side by side (best fit), told apart by `segments`; else the documents are
    one stream that is cut into rows. `bpe` trains a byte-level BPE of so many tokens on the first split, instead of
    `tokenizer`.
    """

    length: int
    text: str = "text"
    tokenizer: Tokenizer = field(default_factory=Bytes)
    bpe: int | None = None
    packed: bool = True

    def prepare(self, folder: Path, examples: Iterable[Example]) -> None:
        """Train the tokenizer."""
        if self.bpe is not None:
            train_bpe((self._text(example) for example in examples), self.bpe, folder / "tokenizer.json")

    def write(self, folder: Path, split: str, examples: Iterable[Example]) -> list[Path]:
        """Files `train-00000.bin`, …, and their packing plan."""
        texts = (self._text(example) for example in examples)
        paths = [Path(path) for path in write_tokens(folder, split, texts, self._tokenizer(folder))]
        if self.packed:
            plan_packing(tuple(map(str, paths)), self.length)
        return paths

    def records(self, paths: tuple[str, ...]) -> Source:
        """One document an example."""
        return Documents(paths)

    def rows(self, paths: tuple[str, ...], folder: Path) -> Source:
        """Rows of several documents, or of the stream."""
        kind = Packed if self.packed else Tokens
        return kind(paths, self.length, tokenizer=self._tokenizer(folder))

    def _tokenizer(self, folder: Path) -> Tokenizer:
        return self.tokenizer if self.bpe is None else HuggingFace(str(folder / "tokenizer.json"))

    def _text(self, example: Example) -> str:
        if self.text not in example:
            raise ConfigError(f"TokenRows: a record has no field {self.text!r}{nearest(self.text, example)}")
        return example[self.text]


def _groups(examples: Iterable[Example], size: int) -> Iterator[Iterator[Example]]:
    """Runs of `size` examples, none of them held in memory; each has to be used up before the next."""
    rest = iter(examples)
    for first in rest:
        taken = [first]

        def group(taken: list[Example] = taken) -> Iterator[Example]:
            yield taken.pop()
            for _, example in zip(range(size - 1), rest, strict=False):
                yield example

        yield group()
