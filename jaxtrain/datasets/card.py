"""The card of a data set: what it is, where it comes from, how it was made, and what is in it, hashes included.

Not here: making or reading the data. A data set is a folder, and this is the file in it that says so.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.data.sources.base import Example
from jaxtrain.datasets.schema import Field, Schema

FILE = "card.json"
_EDGE = 1 << 20


@dataclass(frozen=True)
class Part:
    """One file of a data set, by its path below the folder."""

    path: str
    bytes: int
    records: int
    sha256: str
    edges: str
    """A hash of its size, first and last MiB: quick to compare whenever the data are opened."""


@dataclass(frozen=True)
class Tally:
    """What a quality filter did."""

    name: str
    parameters: Mapping[str, Any]
    seen: int
    dropped: int
    samples: Sequence[Mapping[str, Any]]
    """Some of what was dropped: index, why, the index of another record it repeats or contradicts, and the record."""


@dataclass(frozen=True)
class Split:
    """One split: how much, in which files, and what its records look like."""

    records: int
    content: str
    """A hash of the decoded records, whatever their order and files."""
    order: str
    """A hash of their order: the batch of a step depends on it."""
    files: tuple[Part, ...]
    schema: Schema


@dataclass(frozen=True, kw_only=True)
class Card:
    """All there is to know about a data set without reading it; lists of files are relative to its folder."""

    name: str
    version: str
    description: str
    origin: str
    licence: str
    access: str
    retention: str
    built: str
    """When, UTC."""
    revision: str | None
    """The git revision of the code around the working directory."""
    made: Mapping[str, Any]
    """The functions that made it and their parameters, by dotted path."""
    rule: str
    """Which records go to which split."""
    by: tuple[str, ...]
    """The fields that tell records apart, by whose hash they are split."""
    label: str | None
    form: Mapping[str, Any]
    """How records are kept in files, as JSON."""
    raw: int
    """Records before the filters."""
    filters: tuple[Tally, ...]
    near: Mapping[str, int] | None
    """Pairs of near-duplicates left, within a split ("train") and across two ("train, test"); None: not counted."""
    splits: Mapping[str, Split]
    beside: tuple[Part, ...] = ()
    """What else reading needs: a tokenizer, plans of packed rows; they hold no records."""

    @property
    def schema(self) -> Schema:
        """Of the first split: what a model is trained on, and what is asked of it should look like."""
        return next(iter(self.splits.values())).schema

    def write(self, folder: Path, name: str = FILE) -> None:
        """To a file, sealed by a hash of itself."""
        value = dataclasses.asdict(self)
        text = json.dumps({**value, "seal": _seal(value)}, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Card":
        """The card of a folder.

        Raises ConfigError where there is none, where it was changed after building, and where it names a file outside.
        """
        path = folder / FILE
        if not path.is_file():
            raise ConfigError(f"{folder} is not a data set: it has no {FILE}")
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            seal = value.pop("seal")
        except (ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"{path} is damaged: {error}") from error
        if seal != _seal(value):
            raise ConfigError(
                f"{path} does not match its seal: it was changed after building; build the data set again"
            )
        try:
            card = cls._of(value)
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{path} was written by another version ({error}): build the data set again") from error
        for part in (*card.beside, *(part for split in card.splits.values() for part in split.files)):
            if not (folder / part.path).resolve().is_relative_to(folder.resolve()):
                raise ConfigError(f"{path} names a file outside of its folder: {part.path}")
        return card

    @classmethod
    def _of(cls, value: Mapping[str, Any]) -> "Card":
        splits = {
            name: Split(
                one["records"], one["content"], one["order"], _parts(one["files"]), Schema.from_json(one["schema"])
            )
            for name, one in value["splits"].items()
        }
        read: dict[str, Any] = {
            "splits": splits,
            "beside": _parts(value["beside"]),
            "filters": tuple(Tally(**tally) for tally in value["filters"]),
            "by": tuple(value["by"]),
        }
        whole: dict[str, Any] = {**value, **read}
        return cls(**whole)

    def __str__(self) -> str:
        lines = [f"{self.name} {self.version}, built {self.built}", self.description, ""]
        about = ("origin", "licence", "access", "retention", "rule")
        lines += [f"{name:<10}{getattr(self, name)}" for name in about]
        lines += ["", f"{self.raw:,} raw records"]
        for tally in self.filters:
            lines.append(f"  {_call(tally)}: {tally.dropped:,} of {tally.seen:,} dropped")
            lines += [f"    e.g. record {sample['index']}: {sample['why']}" for sample in tally.samples[:2]]
        for name, split in self.splits.items():
            lines.append(f"{name}: {split.records:,} records in {len(split.files)} files, content {split.content}")
        if self.near is not None:
            found = ", ".join(f"{where}: {count}" for where, count in self.near.items() if count) or "none"
            lines.append(f"near-duplicates left: {found}")
        lines += ["", f"fields of {next(iter(self.splits))}:"]
        return "\n".join([*lines, *(f"  {name}: {describe(field)}" for name, field in self.schema.fields.items())])


def describe(field: Field) -> str:
    """A field in one line."""
    shape = f"[{', '.join('?' if size is None else str(size) for size in field.shape)}]" if field.shape else ""
    words = [f"{field.kind} {field.dtype}{shape}"]
    if field.low is not None and field.high is not None:
        words.append(f"{'length ' if field.kind in ('text', 'bytes') else ''}{field.low:g}…{field.high:g}")
    if field.vocabulary is not None:
        common = sorted(field.vocabulary.items(), key=lambda item: -item[1])
        words.append(
            ", ".join(f"{value} ×{count:,}" for value, count in common[:12]) + (" …" if len(common) > 12 else "")
        )
    if field.missing:
        words.append(f"{field.missing:.1%} missing")
    return "; ".join(words)


def digest(example: Example) -> int:
    """A 128-bit hash of a record as it was decoded: names, kinds and values of its fields in order of name."""
    found = hashlib.sha256()
    for name, value in sorted(example.items()):
        if isinstance(value, str | bytes):
            raw = value.encode() if isinstance(value, str) else value
            found.update(repr((name, type(value).__name__, len(raw))).encode() + raw)
        else:
            array = np.ascontiguousarray(value)
            found.update(repr((name, array.dtype.str, array.shape)).encode() + array.tobytes())
    return int.from_bytes(found.digest()[:16], "big")


def content(digests: Iterable[int]) -> str:
    """The hash of a set of records, from theirs: independent of their order (a sum modulo 2^128) and their files."""
    count, total = 0, 0
    for one in digests:
        count, total = count + 1, (total + one) % (1 << 128)
    return f"{count}:{total:032x}"


def order(digests: Iterable[int]) -> str:
    """The hash of the order of records, from theirs."""
    found = hashlib.sha256()
    for one in digests:
        found.update(one.to_bytes(16, "big"))
    return found.hexdigest()[:32]


def edges(path: Path) -> str:
    """A hash of a file's size, first and last MiB."""
    size = path.stat().st_size
    with path.open("rb") as file:
        found = hashlib.sha256(f"{size}:".encode() + file.read(_EDGE))
        file.seek(max(0, size - _EDGE))
        found.update(file.read())
    return found.hexdigest()[:32]


def part(folder: Path, path: Path, records: int) -> Part:
    """What the card says of a file."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Part(str(path.relative_to(folder)), path.stat().st_size, records, sha256, edges(path))


def _parts(files: Iterable[Mapping[str, Any]]) -> tuple[Part, ...]:
    return tuple(Part(**one) for one in files)


def _call(tally: Tally) -> str:
    return f"{tally.name}({', '.join(f'{name}={value!r}' for name, value in tally.parameters.items())})"


def _seal(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
