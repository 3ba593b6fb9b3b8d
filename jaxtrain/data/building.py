"""Building: from raw records to a data set, a folder of files with a card. Filtering happens here, never while reading.

Not here: what a filter finds, and how a data set is read.
"""

import contextlib
import datetime
import fcntl
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.data.card import Card, Split, Tally, content, digest, part
from jaxtrain.data.combine import Mapped, Stored
from jaxtrain.data.filters import Filter, Finding, Record, near_pairs
from jaxtrain.data.schema import Schema
from jaxtrain.data.sources import ArrayRecord, Example, Source, write_array_record
from jaxtrain.data.tokens import (
    Bytes,
    Documents,
    HuggingFace,
    Packed,
    Tokenizer,
    Tokens,
    plan_packing,
    train_bpe,
    write_tokens,
)
from jaxtrain.data.transforms import Transform
from jaxtrain.errors import ConfigError, nearest
from jaxtrain.places import cache
from jaxtrain.values import check_types, difference, meaning, to_json

SAMPLES = 5
_AT_ONCE = 256
_SHOWN = 200


def home() -> Path:
    """Where data sets are built and looked for unless said otherwise: $JAXTRAIN_DATA, or the user's cache."""
    given = os.environ.get("JAXTRAIN_DATA")
    return Path(given) if given else cache("datasets")


@dataclass(frozen=True)
class HashSplits:
    """Splits by a hash of the record's fields `by`, never by its position: adding records moves no other."""

    parts: Mapping[str, float]
    """Shares by name, summing to 1; the first is the one to train on."""
    by: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.parts or not self.by or min(self.parts.values()) <= 0 or abs(sum(self.parts.values()) - 1) > 1e-9:
            raise ConfigError(f"HashSplits: shares above 0 that sum to 1, and fields to split by; got {self}")

    def split(self, example: Example) -> str:
        """The name of a record's split."""
        for name in self.by:
            if name not in example:
                raise ConfigError(f"HashSplits: a record has no field {name!r}{nearest(name, example)}")
        place = digest({name: example[name] for name in self.by}) / (1 << 128)
        bounds = np.cumsum(list(self.parts.values()))
        return list(self.parts)[min(int(np.searchsorted(bounds, place, side="right")), len(bounds) - 1)]

    def __str__(self) -> str:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in self.parts.items())
        return f"{shares} by a hash of {', '.join(self.by)}"


@dataclass(frozen=True)
class Form(ABC):
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
class Records(Form):
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
class TokenRows(Form):
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


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """What a data set is made of. A function of an experiment file that is annotated `-> DataSet` can be built by name.

    Raises ConfigError for a name or version that cannot be a folder's, and for empty words about origin and use.
    """

    name: str
    version: str
    """MAJOR.MINOR.PATCH: raise it whenever anything below changes."""
    description: str
    origin: str
    """Where the raw records come from: package and version, address, paper."""
    licence: str
    access: str
    """Who may use it."""
    retention: str
    """How long it is kept."""
    records: Source
    splits: HashSplits
    transforms: tuple[Transform, ...] = ()
    """Applied to each raw record, before the filters."""
    filters: tuple[Filter, ...] = ()
    """Quality filters, in this order."""
    label: str | None = None
    """The field that says what a record is, if there is one."""
    form: Form = field(default_factory=Records)

    def __post_init__(self) -> None:
        check_types(self)
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.name):
            raise ConfigError(f"DataSet name {self.name!r}: use lower-case letters, digits, - and _")
        if not re.fullmatch(r"\d+\.\d+\.\d+", self.version):
            raise ConfigError(f"DataSet version {self.version!r}: use MAJOR.MINOR.PATCH, as in 1.0.0")
        for name in ("description", "origin", "licence", "access", "retention"):
            if not getattr(self, name).strip():
                raise ConfigError(f"DataSet {name}: say it in words; it may not be empty")


class _Surviving(Collection[Record]):
    """The raw records that no filter has dropped yet, read anew at every pass; transformed once, into `folder`."""

    def __init__(self, spec: DataSet, folder: Path) -> None:
        self.source = spec.records
        if spec.transforms:
            self.source = Stored(Mapped(spec.records, spec.transforms), str(folder)).records
        every = self._read(range(len(self.source)))
        self.splits = {index: spec.splits.split(example) for index, example in every}

    def __len__(self) -> int:
        return len(self.splits)

    def __iter__(self) -> Iterator[Record]:
        return (Record(index, self.splits[index], example) for index, example in self._read(list(self.splits)))

    def __contains__(self, record: object) -> bool:
        return isinstance(record, Record) and record.index in self.splits

    def of(self, split: str) -> Iterator[Example]:
        return (example for _, example in self._read([i for i, where in self.splits.items() if where == split]))

    def _read(self, indices: Sequence[int]) -> Iterator[tuple[int, Example]]:
        """Many at once, which some sources read much faster."""
        for start in range(0, len(indices), _AT_ONCE):
            some = indices[start : start + _AT_ONCE]
            yield from zip(some, map(self.source.decode, self.source.fetch(some)), strict=True)

    def apply(self, one: Filter, say: Callable[[str], None]) -> Tally:
        """Drop what a filter finds."""
        seen, found = len(self), one.findings(self)
        samples = tuple(self._sample(index, finding) for index, finding in list(found.items())[:SAMPLES])
        for index in found:
            del self.splits[index]
        say(f"{type(one).__name__}: {len(found):,} of {seen:,} dropped")
        parameters = {f.name: to_json(getattr(one, f.name)) for f in fields(one)}
        return Tally(type(one).__name__, parameters, seen, len(found), samples)

    def _sample(self, index: int, finding: Finding) -> dict[str, Any]:
        shown = {name: str(value)[:_SHOWN] for name, value in self.source[index].items()}
        return {"index": index, "why": finding.why, "other": finding.other, "record": shown}


def build(
    spec: DataSet,
    where: Path | None = None,
    revision: str | None = None,
    say: Callable[[str], None] = lambda progress: None,
) -> Path:
    """Build a data set into `where`/name/version (`home()` by default) unless it is there; returns that folder.

    The folder takes its name only when it is complete; what an interrupted build left is removed by the next.
    `revision` is the git revision to write into the card; `say` is told what was done. Raises ConfigError where the
    version exists and was made otherwise, another process builds the data set, a split ends up empty, or the disk is
    full.
    """
    parent = (where or home()) / spec.name
    final = parent / spec.version
    made = to_json(meaning(spec))
    try:
        with _alone(parent):
            if final.exists():
                _same(final, made)
                return final
            unfinished = parent / f".{spec.version}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            try:
                _write(spec, unfinished, made, revision, say)
                unfinished.rename(final)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"the data set {final} cannot be written: {error.strerror or error}") from error
    return final


def _write(
    spec: DataSet, folder: Path, made: Mapping[str, Any], revision: str | None, say: Callable[[str], None]
) -> None:
    surviving = _Surviving(spec, folder / ".transformed")
    raw = len(surviving)
    say(f"{raw:,} raw records")
    tallies = tuple(surviving.apply(one, say) for one in spec.filters)
    names = list(spec.splits.parts)
    spec.form.prepare(folder, surviving.of(names[0]))
    splits = {name: _write_split(spec.form, folder, name, surviving.of(name), say) for name in names}
    near = _near(spec, surviving)
    shutil.rmtree(folder / ".transformed", ignore_errors=True)
    known = {one.path for split in splits.values() for one in split.files}
    beside = tuple(part(folder, path, 0) for path in sorted(folder.iterdir()) if path.name not in known)
    card = Card(
        **{name: getattr(spec, name) for name in ("name", "version", "description", "origin", "licence")},
        **{name: getattr(spec, name) for name in ("access", "retention", "label")},
        built=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        revision=revision,
        made=made,
        rule=str(spec.splits),
        by=spec.splits.by,
        form=to_json(spec.form),
        raw=raw,
        filters=tallies,
        near=near,
        splits=splits,
        beside=beside,
    )
    from jaxtrain.data.showing import write_croissant, write_html

    write_html(card, folder)
    write_croissant(card, folder)
    card.write(folder)


def _write_split(form: Form, folder: Path, name: str, examples: Iterable[Example], say: Callable[[str], None]) -> Split:
    paths = form.write(folder, name, examples)
    if not paths:
        raise ConfigError(f"split {name!r} would be empty: there are too few records, or the filters drop them all")
    # Everything that the card says of the records is read back from the files.
    written = form.records(tuple(map(str, paths)))
    counts = [len(form.records((str(path),))) for path in paths]
    schema = Schema.of(written[index] for index in range(len(written)))
    hashed = content(digest(written[index]) for index in range(len(written)))
    files = tuple(part(folder, path, count) for path, count in zip(paths, counts, strict=True))
    say(f"{name}: {len(written):,} records")
    return Split(len(written), hashed, files, schema)


def _near(spec: DataSet, surviving: _Surviving) -> dict[str, int] | None:
    """Near-duplicate pairs within and across splits, by the first field to split by that holds text."""
    first = next(iter(surviving)).example
    texts = [name for name in spec.splits.by if isinstance(first[name], str)]
    if not texts:
        return None
    names = list(spec.splits.parts)
    found = {
        ", ".join(pair): 0 for i, one in enumerate(names) for pair in [(one,), *((one, b) for b in names[i + 1 :])]
    }
    for one, other, _ in near_pairs(surviving, texts[0]):
        pair = sorted({surviving.splits[one], surviving.splits[other]}, key=names.index)
        found[", ".join(pair)] += 1
    return found


def _same(final: Path, made: Mapping[str, Any]) -> None:
    before = Card.read(final).made
    if before != made:
        raise ConfigError(
            f"{final} was made otherwise; give what is new another version. What differs (there → now):\n"
            + difference(before, made)
        )


@contextlib.contextmanager
def _alone(parent: Path) -> Generator[None, None, None]:
    """One process at a time; a process that dies lets go."""
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another process is building into {parent}") from error
        yield


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
