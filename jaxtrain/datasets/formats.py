"""Storage formats of a dataset: how the records of a split are written to files and read back."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.ranges import Checked, PositiveInt, Range
from jaxtrain.data.sources.array_record import ArrayRecord, write_array_record
from jaxtrain.data.sources.base import Example, Source
from jaxtrain.data.tokens.files import Documents, Tokens, write_tokens
from jaxtrain.data.tokens.packing import Packed, plan_packing
from jaxtrain.data.tokens.tokenizers import Bytes, HuggingFace, Tokenizer, train_bpe


@dataclass(frozen=True)
class Format(Checked, ABC):
    """How the records of a split are kept in files."""

    def prepare(self, folder: Path, examples: Iterable[Example]) -> None:
        """Learn from the first split what writing needs, such as a tokenizer. Does nothing by default."""

    @abstractmethod
    def write(self, folder: Path, split: str, examples: Iterable[Example]) -> list[Path]:
        """Write a split's records to files in `folder`; returns the files in order."""

    @abstractmethod
    def records(self, paths: tuple[str, ...]) -> Source:
        """The records as written, one an example: they are hashed, checked and compared."""

    def rows(self, paths: tuple[str, ...], folder: Path) -> Source:
        """The examples to train on; by default the records."""
        return self.records(paths)


@dataclass(frozen=True)
class Records(Format):
    """ArrayRecord files of at most `per_file` records: the time to read a record grows with the size of its file."""

    per_file: PositiveInt = 10_000

    def write(self, folder: Path, split: str, examples: Iterable[Example]) -> list[Path]:
        paths: list[Path] = []
        for group in _runs(examples, self.per_file):
            paths.append(folder / f"{split}-{len(paths):05}.arrayrecord")
            write_array_record(paths[-1], group)
        return paths

    def records(self, paths: tuple[str, ...]) -> Source:
        return ArrayRecord(paths)


@dataclass(frozen=True)
class TokenRows(Format):
    """Token files of a text field, read as rows of `length` + 1 tokens for a language model.

    With `packed`, rows hold whole documents side by side (best fit) and `segments` numbers them; else the documents are
    one stream that is cut into rows. `bpe` is the vocabulary size of a byte-level BPE that is trained on the first
    split and used instead of `tokenizer`.
    """

    length: PositiveInt
    text: str = "text"
    tokenizer: Tokenizer = field(default_factory=Bytes)
    bpe: Annotated[int, Range(at_least=257, hint="the 256 bytes and a separator")] | None = None
    packed: bool = True

    def prepare(self, folder: Path, examples: Iterable[Example]) -> None:
        if self.bpe is not None:
            train_bpe((self._text(example) for example in examples), self.bpe, folder / "tokenizer.json")

    def write(self, folder: Path, split: str, examples: Iterable[Example]) -> list[Path]:
        texts = (self._text(example) for example in examples)
        paths = [Path(path) for path in write_tokens(folder, split, texts, self._tokenizer(folder))]
        if self.packed:
            plan_packing(tuple(map(str, paths)), self.length)
        return paths

    def records(self, paths: tuple[str, ...]) -> Source:
        return Documents(paths)

    def rows(self, paths: tuple[str, ...], folder: Path) -> Source:
        kind = Packed if self.packed else Tokens
        return kind(paths, self.length, tokenizer=self._tokenizer(folder))

    def _tokenizer(self, folder: Path) -> Tokenizer:
        return self.tokenizer if self.bpe is None else HuggingFace(str(folder / "tokenizer.json"))

    def _text(self, example: Example) -> str:
        if self.text not in example:
            raise ConfigError(f"TokenRows: a record has no field {self.text!r}{nearest(self.text, example)}")
        return example[self.text]


def _runs(examples: Iterable[Example], size: int) -> Iterator[Iterator[Example]]:
    """Runs of `size` examples, read as they are consumed: each has to be consumed before the next."""
    rest = iter(examples)
    for first in rest:
        taken = [first]

        def group(taken: list[Example] = taken) -> Iterator[Example]:
            yield taken.pop()
            for _, example in zip(range(size - 1), rest, strict=False):
                yield example

        yield group()
