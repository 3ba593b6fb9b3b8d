"""Filters that compare records: duplicates, conflicting labels, leaks between splits."""

from collections.abc import Collection
from dataclasses import dataclass

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import InnerFraction
from jaxtrain.datasets.card import record_hash
from jaxtrain.datasets.filters.base import Filter, Finding, Record, text_of, value_of
from jaxtrain.datasets.filters.near import near


@dataclass(frozen=True)
class ExactDuplicates(Filter):
    """Finds records with the same values in `fields` as an earlier record."""

    fields: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.fields:
            raise ConfigError("ExactDuplicates: name one or more fields to compare")

    def findings(self, records: Collection[Record]) -> dict[int, Finding]:
        firsts: dict[int, int] = {}
        found = {}
        for record in records:
            key = record_hash({name: value_of(record, name) for name in self.fields})
            first = firsts.setdefault(key, record.index)
            if first != record.index:
                found[record.index] = Finding(f"same as record {first}", first)
        return found


@dataclass(frozen=True)
class LabelConflicts(Filter):
    """Finds all records with the same text, up to case and white space, and different labels."""

    field: str
    label: str

    def findings(self, records: Collection[Record]) -> dict[int, Finding]:
        labels: dict[int, dict[str, int]] = {}
        keys: list[tuple[int, int, str]] = []
        for record in records:
            key = record_hash({"": " ".join(text_of(value_of(record, self.field), self.field).casefold().split())})
            label = str(value_of(record, self.label))
            labels.setdefault(key, {}).setdefault(label, record.index)
            keys.append((record.index, key, label))
        found = {}
        for index, key, label in keys:
            other = next((pair for pair in labels[key].items() if pair[0] != label), None)
            if other:
                found[index] = Finding(
                    f"label {label}, but record {other[1]} has this text and label {other[0]}", other[1]
                )
        return found


@dataclass(frozen=True)
class NearDuplicates(Filter):
    """Finds texts that nearly repeat an earlier one that is kept; `near_pairs` says what nearly means."""

    field: str
    threshold: InnerFraction = 0.7

    def findings(self, records: Collection[Record]) -> dict[int, Finding]:
        groups, pairs = near(records, self.field, self.threshold)
        found = {copy: Finding(f"same words as record {group[0]}", group[0]) for group in groups for copy in group[1:]}
        for one, other, jaccard in pairs:
            first, second = groups[one], groups[other]
            if first[0] not in found and second[0] not in found:
                why = Finding(f"similarity {jaccard:.2f} to record {first[0]}", first[0])
                found |= dict.fromkeys(second, why)
        return found


@dataclass(frozen=True)
class Leaks(Filter):
    """Finds texts outside of the splits `keep` that nearly repeat one inside of them (`near_pairs`)."""

    field: str
    threshold: InnerFraction = 0.7
    keep: tuple[str, ...] = ("validation", "test")

    def __post_init__(self) -> None:
        if not self.keep:
            raise ConfigError("Leaks: name one or more splits to keep, as in ('test',)")

    def findings(self, records: Collection[Record]) -> dict[int, Finding]:
        splits = {record.index: record.split for record in records}
        groups, pairs = near(records, self.field, self.threshold)
        everyone = ((place, place, 1.0) for place in range(len(groups)))
        found: dict[int, Finding] = {}
        for one, other, jaccard in (*everyone, *pairs):
            for here, there in ((one, other), (other, one)):
                kept = next((index for index in groups[there] if splits[index] in self.keep), None)
                if kept is not None:
                    why = Finding(f"similarity {jaccard:.2f} to record {kept} of {splits[kept]}", kept)
                    found |= {
                        index: why for index in groups[here] if splits[index] not in self.keep and index not in found
                    }
        return found
