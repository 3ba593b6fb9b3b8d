"""Comparing a dataset with its own card, and one dataset with another."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxtrain.base.config import difference
from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.base.files import file_sha256
from jaxtrain.data.sources.base import Source
from jaxtrain.datasets.card import Card, DataFile, content_hash, order_hash, record_hash
from jaxtrain.datasets.source import stored_format

NOTABLE = 0.01
"""The least drift, in bits, that is shown."""


def check(folder: Path) -> Iterator[str]:
    """Re-read a whole dataset and yield one message for each difference from its card, with the file and the record.

    Raises ConfigError where there is no card.
    """
    card = Card.read(folder)
    storage = stored_format(card)
    for file in card.other_files:
        yield from _check_file(folder, file)
    for name, split in card.splits.items():
        whole, hashes = True, []
        for file in split.files:
            path = folder / file.path
            yield from _check_file(folder, file)
            if not path.is_file():
                whole = False
                continue
            try:
                source = storage.records((str(path),))
                if len(source) != file.records:
                    yield f"{file.path}: {len(source):,} records, not the {file.records:,} of the card"
            except (Damaged, ConfigError) as error:
                whole = False
                yield f"{file.path}: cannot be opened: {error}"
                continue
            for index in range(len(source)):
                try:
                    example = source[index]
                except Damaged as error:
                    whole = False
                    yield f"{file.path}: record {index}: {error.why}"
                    continue
                hashes.append(record_hash(example))
                yield from (f"{file.path}: record {index}: {what}" for what in split.schema.violations(example))
        if whole and content_hash(hashes) != split.content:
            yield f"{name}: the records' hash is {content_hash(hashes)}, not the card's {split.content}"
        elif whole and order_hash(hashes) != split.order:
            yield f"{name}: the records are the card's, but in another order"


def _check_file(folder: Path, file: DataFile) -> Iterator[str]:
    path = folder / file.path
    if not path.is_file():
        yield f"{file.path}: missing"
        return
    if path.stat().st_size != file.bytes:
        yield f"{file.path}: {path.stat().st_size:,} bytes, not the {file.bytes:,} of the card"
    if file_sha256(path) != file.sha256:
        yield f"{file.path}: its sha256 is not the card's"


@dataclass(frozen=True)
class Diff:
    """What changed from one dataset to another. A record is identified by the fields that its dataset is split by."""

    names: tuple[str, str]
    added: int
    removed: int
    relabelled: int
    """Records with the same identifying fields and another label."""
    changed: int
    """Records with the same identifying fields and label, and other differences."""
    moved: int
    """Records in another split."""
    same: int
    repeated: tuple[int, int]
    """Records of each dataset with the same identifying fields as a later one, which alone was compared."""
    made: str
    """Differences between the values that they were built from, one a line."""
    drift: dict[str, dict[str, float]]
    """By split and field, in bits (`Schema.drift`)."""
    samples: tuple[str, ...]

    def __str__(self) -> str:
        counts = ("added", "removed", "relabelled", "changed", "moved", "same")
        lines = [f"{self.names[0]} → {self.names[1]}"]
        lines += [f"  {name:<11}{getattr(self, name):>9,}" for name in counts]
        lines += [f"    {sample}" for sample in self.samples]
        if any(self.repeated):
            lines.append(f"  repeated in either, so not compared: {self.repeated[0]:,} and {self.repeated[1]:,}")
        for split, fields in self.drift.items():
            shown = [f"{name} {bits:.3f}" for name, bits in fields.items() if bits >= NOTABLE]
            lines.append(f"  drift of {split}, bits: {', '.join(shown) or f'none above {NOTABLE}'}")
        return "\n".join([*lines, *(["  how they were made:", self.made] if self.made else [])])


def diff(one: Path, other: Path, samples: int = 5) -> Diff:
    """What changed from one dataset folder to another. Raises ConfigError where they cannot be compared."""
    cards = Card.read(one), Card.read(other)
    if cards[0].by != cards[1].by or cards[0].label != cards[1].label:
        raise ConfigError(
            f"{one} identifies records by {cards[0].by} and labels by {cards[0].label!r}, "
            f"{other} by {cards[1].by} and {cards[1].label!r}: they cannot be compared record by record"
        )
    before, after = _Entries(one, cards[0]), _Entries(other, cards[1])
    counts: Counter[str] = Counter()
    shown: list[str] = []
    for key in [*before.by_key, *(after.by_key.keys() - before.by_key.keys())]:
        old, new = before.by_key.get(key), after.by_key.get(key)
        kinds = _changes(old, new)
        counts.update(kinds)
        entry = " → ".join(filter(None, [before.show(old), after.show(new)]))
        shown += [f"{kind}: {entry}" for kind in kinds if kind != "same" and counts[kind] <= samples]
    drift = {
        name: cards[0].splits[name].schema.drift(split.schema)
        for name, split in cards[1].splits.items()
        if name in cards[0].splits
    }
    return Diff(
        names=(f"{cards[0].name} {cards[0].version}", f"{cards[1].name} {cards[1].version}"),
        **{kind: counts[kind] for kind in ("added", "removed", "relabelled", "changed", "moved", "same")},
        repeated=(before.repeated, after.repeated),
        made=difference(cards[0].made, cards[1].made),
        drift=drift,
        samples=tuple(sorted(shown)),
    )


@dataclass(frozen=True)
class _Entry:
    split: str
    index: int
    label: str | None
    whole: int


def _changes(old: _Entry | None, new: _Entry | None) -> list[str]:
    """What happened to a record from one dataset to another: a field of `Diff`, or two where it was moved as well."""
    if old is None or new is None:
        return ["added" if old is None else "removed"]
    moved = ["moved"] if old.split != new.split else []
    if old.label != new.label:
        return [*moved, "relabelled"]
    if old.whole != new.whole:
        return [*moved, "changed"]
    return moved or ["same"]


class _Entries:
    """The records of a dataset by the hash of their identifying fields; holds hashes only."""

    def __init__(self, folder: Path, card: Card) -> None:
        storage = stored_format(card)
        self.sources: dict[str, Source] = {}
        self.by_key: dict[int, _Entry] = {}
        for name, split in card.splits.items():
            self.sources[name] = source = storage.records(tuple(str(folder / file.path) for file in split.files))
            for index in range(len(source)):
                example = source[index]
                # A record that was turned into tokens has none of the fields that it was split by.
                identifying = {key: example[key] for key in card.by if key in example} or example
                label = str(example[card.label]) if card.label in example else None
                self.by_key[record_hash(identifying)] = _Entry(name, index, label, record_hash(example))
        self.repeated = sum(split.records for split in card.splits.values()) - len(self.by_key)

    def show(self, entry: _Entry | None) -> str:
        """One record in a few words."""
        if entry is None:
            return ""
        example = self.sources[entry.split][entry.index]
        values = ", ".join(f"{name} {str(value)[:60]!r}" for name, value in example.items())
        return f"{entry.split} {entry.index} ({values[:160]})"
