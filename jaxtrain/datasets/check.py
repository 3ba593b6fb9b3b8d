"""Comparing data sets: with their own card, and one with another. Not here: making either."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxtrain.base.config import difference
from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.data.sources.base import Source
from jaxtrain.datasets.card import Card, Part, content, digest, order
from jaxtrain.datasets.source import stored_format

NOTABLE = 0.01
"""Drift, in bits, from which a field is mentioned."""


def check(folder: Path) -> Iterator[str]:
    """Everything that is wrong with a data set, re-reading all of it; names the file and the record of each fault.

    Raises ConfigError where there is no card to compare with.
    """
    card = Card.read(folder)
    form = stored_format(card)
    for part in card.beside:
        yield from _file(folder, part)
    for name, split in card.splits.items():
        whole, digests = True, []
        for part in split.files:
            path = folder / part.path
            yield from _file(folder, part)
            if not path.is_file():
                whole = False
                continue
            try:
                source = form.records((str(path),))
                if len(source) != part.records:
                    yield f"{part.path}: {len(source):,} records, not the {part.records:,} of the card"
            except (Damaged, ConfigError) as error:
                whole = False
                yield f"{part.path}: cannot be opened: {error}"
                continue
            for index in range(len(source)):
                try:
                    example = source[index]
                except Damaged as error:
                    whole = False
                    yield f"{part.path}: record {index}: {error.why}"
                    continue
                digests.append(digest(example))
                yield from (f"{part.path}: record {index}: {what}" for what in split.schema.violations(example))
        if whole and content(digests) != split.content:
            yield f"{name}: the records' hash is {content(digests)}, not the card's {split.content}"
        elif whole and order(digests) != split.order:
            yield f"{name}: the records are the card's, but in another order"


def _file(folder: Path, part: Part) -> Iterator[str]:
    path = folder / part.path
    if not path.is_file():
        yield f"{part.path}: missing"
        return
    if path.stat().st_size != part.bytes:
        yield f"{part.path}: {path.stat().st_size:,} bytes, not the {part.bytes:,} of the card"
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != part.sha256:
            yield f"{part.path}: its sha256 is not the card's"


@dataclass(frozen=True)
class Diff:
    """What changed from one data set to another; records are told apart by the fields that they are split by."""

    names: tuple[str, str]
    added: int
    removed: int
    relabelled: int
    """Same text, another label."""
    changed: int
    """Same in the fields that tell records apart and in the label, other elsewhere."""
    moved: int
    """In another split."""
    same: int
    repeated: tuple[int, int]
    """Records of either that no field to tell them apart by distinguishes from another: only the last was compared."""
    made: str
    """How they were made: one line for every difference."""
    drift: dict[str, dict[str, float]]
    """By split and field, in bits (Schema.drift)."""
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
    """What changed from one data set folder to another. Raises ConfigError where they cannot be compared."""
    cards = Card.read(one), Card.read(other)
    if cards[0].by != cards[1].by or cards[0].label != cards[1].label:
        raise ConfigError(
            f"{one} tells records apart by {cards[0].by} and labels by {cards[0].label!r}, "
            f"{other} by {cards[1].by} and {cards[1].label!r}: they cannot be compared record by record"
        )
    before, after = _Entries(one, cards[0]), _Entries(other, cards[1])
    counts: Counter[str] = Counter()
    shown: list[str] = []
    for key in [*before.by_key, *(after.by_key.keys() - before.by_key.keys())]:
        old, new = before.by_key.get(key), after.by_key.get(key)
        if old is None or new is None:
            kinds = ["added" if old is None else "removed"]
        else:
            kinds = ["moved"] if old.split != new.split else []
            kinds += ["relabelled"] if old.label != new.label else ["changed"] if old.whole != new.whole else []
        counts.update(kinds or ["same"])
        entry = f"{before.show(old)} → {after.show(new)}" if old and new else before.show(old) or after.show(new)
        shown += [f"{kind}: {entry}" for kind in kinds if counts[kind] <= samples]
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


class _Entries:
    """The records of a data set by the hash of what tells them apart; holds hashes only."""

    def __init__(self, folder: Path, card: Card) -> None:
        form = stored_format(card)
        self.sources: dict[str, Source] = {}
        self.by_key: dict[int, _Entry] = {}
        for name, split in card.splits.items():
            self.sources[name] = source = form.records(tuple(str(folder / part.path) for part in split.files))
            for index in range(len(source)):
                example = source[index]
                # A record that was turned into tokens has none of the fields that it was split by.
                telling = {key: example[key] for key in card.by if key in example} or example
                label = str(example[card.label]) if card.label in example else None
                self.by_key[digest(telling)] = _Entry(name, index, label, digest(example))
        self.repeated = sum(split.records for split in card.splits.values()) - len(self.by_key)

    def show(self, entry: _Entry | None) -> str:
        """One record in a few words."""
        if entry is None:
            return ""
        example = self.sources[entry.split][entry.index]
        values = ", ".join(f"{name} {str(value)[:60]!r}" for name, value in example.items())
        return f"{entry.split} {entry.index} ({values[:160]})"
