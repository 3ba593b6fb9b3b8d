"""The card of a dataset: what it is, where it comes from, how it was made, what is in it, and hashes of all of it.

A dataset is a folder with a file card.json. Not here: making or reading the data.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.base.config import check_types
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.files import check_file_name, digest, edges, file_sha256, read_json, replace_text
from jaxtrain.base.ranges import Checked, NonNegativeInt
from jaxtrain.data.sources.base import Example
from jaxtrain.datasets.schema import Schema

FILE = "card.json"


@dataclass(frozen=True)
class DataFile(Checked):
    """One file of a dataset, by its path below the dataset's folder."""

    path: str
    bytes: NonNegativeInt
    records: NonNegativeInt
    sha256: str
    edges: str
    """A hash of its size, first and last MiB: quick enough to be compared whenever the dataset is opened."""

    @classmethod
    def of(cls, folder: Path, path: Path, records: int) -> "DataFile":
        """The entry of a file of `folder` that holds `records` records."""
        return cls(str(path.relative_to(folder)), path.stat().st_size, records, file_sha256(path), edges(path))


@dataclass(frozen=True)
class Tally(Checked):
    """What one quality filter dropped."""

    name: str
    parameters: Mapping[str, Any]
    seen: NonNegativeInt
    dropped: NonNegativeInt
    samples: Sequence[Mapping[str, Any]]
    """Some dropped records: index, why, the index of the record it repeats or contradicts, and the record."""

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.parameters.items())})"


@dataclass(frozen=True)
class Split(Checked):
    """One split: number of records, files, hashes and schema."""

    records: NonNegativeInt
    content: str
    """A hash of the decoded records; their order and files do not matter."""
    order: str
    """A hash of their order, which the batch of a step depends on."""
    files: tuple[DataFile, ...]
    schema: Schema


@dataclass(frozen=True, kw_only=True)
class Card(Checked):
    """Everything that is known about a dataset without reading it. Paths are relative to its folder."""

    name: str
    version: str
    description: str
    origin: str
    licence: str
    access: str
    retention: str
    built: str
    """Time in UTC, ISO format."""
    revision: str | None
    """The git revision of the code around the working directory."""
    made: Mapping[str, Any]
    """The value that it was built from (`Dataset`), flattened to dotted paths."""
    rule: str
    """How records are assigned to splits, in words."""
    by: tuple[str, ...]
    """The fields that identify a record; splits are by their hash."""
    label: str | None
    format: Mapping[str, Any]
    """The storage format (`Format`) as JSON."""
    raw: NonNegativeInt
    """Number of records before the filters."""
    filters: tuple[Tally, ...]
    near: Mapping[str, NonNegativeInt] | None
    """Remaining pairs of near-duplicates within a split ("train") and across two ("train, test"); None: not counted."""
    splits: Mapping[str, Split]
    other_files: tuple[DataFile, ...] = ()
    """Files without records that reading needs: a tokenizer, plans of packed rows."""

    @property
    def schema(self) -> Schema:
        """The schema of the first split, which is the one to train on."""
        return next(iter(self.splits.values())).schema

    def write(self, folder: Path, name: str = FILE) -> None:
        """Write the card to a JSON file, with a hash of itself."""
        value = dataclasses.asdict(self)
        text = json.dumps({**value, "seal": _seal(value)}, indent=1, ensure_ascii=False, allow_nan=False)
        replace_text(folder / name, text + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Card":
        """The card of a folder.

        Raises ConfigError where there is none, where it was changed after building or is no card, and where it names a
        file outside of the folder.
        """
        path = folder / FILE
        if not path.is_file():
            raise ConfigError(f"{folder} is not a dataset: it has no {FILE}")
        try:
            value = read_json(path)
        except ConfigError as error:
            raise ConfigError(f"{path} is damaged: {error}") from error
        if not isinstance(value, dict) or "seal" not in value:
            raise ConfigError(f"{path} is damaged: it is no object with a seal; build the dataset again")
        if value.pop("seal") != _seal(value):
            raise ConfigError(f"{path} does not match its seal: it was changed after building; build the dataset again")
        try:
            card = cls._of(value)
            check_types(card)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            why = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
            raise ConfigError(f"{path} was written by another version ({why}): build the dataset again") from error
        for name in (card.name, card.version, *card.splits):
            check_file_name(name, str(path))
        if not card.splits:
            raise ConfigError(f"{path}: splits: there is none; build the dataset again")
        for file in (*card.other_files, *(file for split in card.splits.values() for file in split.files)):
            if not _is_inside(folder, file.path):
                raise ConfigError(f"{path} names a file outside of its folder: {file.path}")
        return card

    @classmethod
    def _of(cls, value: Mapping[str, Any]) -> "Card":
        splits = {
            name: Split(
                one["records"], one["content"], one["order"], _files(one["files"]), Schema.from_json(one["schema"])
            )
            for name, one in value["splits"].items()
        }
        read: dict[str, Any] = {
            "splits": splits,
            "other_files": _files(value["other_files"]),
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
            lines.append(f"  {tally}: {tally.dropped:,} of {tally.seen:,} dropped")
            lines += [f"    e.g. record {sample['index']}: {sample['why']}" for sample in tally.samples[:2]]
        for name, split in self.splits.items():
            lines.append(f"{name}: {split.records:,} records in {len(split.files)} files, content {split.content}")
        if self.near is not None:
            found = ", ".join(f"{where}: {count}" for where, count in self.near.items() if count) or "none"
            lines.append(f"near-duplicates left: {found}")
        lines += ["", f"fields of {next(iter(self.splits))}:"]
        return "\n".join([*lines, *(f"  {name}: {field}" for name, field in self.schema.fields.items())])


def record_hash(example: Example) -> int:
    """A 128-bit hash of a decoded record: names, types and values of its fields, in order of name."""
    parts: list[bytes] = []
    for name, value in sorted(example.items()):
        if isinstance(value, str | bytes):
            content = value.encode() if isinstance(value, str) else value
            parts += [repr((name, type(value).__name__, len(content))).encode(), content]
        else:
            array = np.ascontiguousarray(value)
            parts += [repr((name, array.dtype.str, array.shape)).encode(), array.tobytes()]
    return int(digest(*parts), 16)


def content_hash(hashes: Iterable[int]) -> str:
    """The hash of a set of records, from theirs: their sum modulo 2^128, so order and files do not matter."""
    count, total = 0, 0
    for one in hashes:
        count, total = count + 1, (total + one) % (1 << 128)
    return f"{count}:{total:032x}"


def order_hash(hashes: Iterable[int]) -> str:
    """The hash of a sequence of records, from theirs."""
    return digest(b"".join(one.to_bytes(16, "big") for one in hashes))


def _is_inside(folder: Path, name: str) -> bool:
    try:
        short = all(len(os.fsencode(part)) < 256 for part in Path(name).parts)
        return short and (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError):  # too long, a loop of links, a NUL
        return False


def _files(values: Iterable[Mapping[str, Any]]) -> tuple[DataFile, ...]:
    return tuple(DataFile(**one) for one in values)


def _seal(value: Mapping[str, Any]) -> str:
    return digest(json.dumps(value, sort_keys=True), length=64)
