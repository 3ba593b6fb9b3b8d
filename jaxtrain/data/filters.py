"""Quality filters: named values that say which records of a data set are faulty, and why.

Not here: dropping and counting them, which is the builder's. What a filter finds is the same in every process.
"""

import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np

from jaxtrain.data.card import digest
from jaxtrain.data.sources import Example
from jaxtrain.data.transforms import Transform
from jaxtrain.errors import ConfigError, nearest


@dataclass(frozen=True)
class Record:
    """A record on its way into a data set: `index` is its place in the raw source."""

    index: int
    split: str
    example: Example


@dataclass(frozen=True)
class Finding:
    """Why a record is faulty, in words, and the index of the record that it repeats or contradicts."""

    why: str
    other: int | None = None


@dataclass(frozen=True)
class Filter(ABC):
    """A judgement of records. Subclasses are frozen dataclasses of plain fields."""

    @abstractmethod
    def findings(self, records: Collection[Record]) -> dict[int, Finding]:
        """The faulty ones by their index. Raises ConfigError where they lack the field, or it is of another kind."""


@dataclass(frozen=True)
class _OneByOne(Filter):
    """A filter that judges every record by itself, by one field."""

    field: str

    def findings(self, records: Collection[Record]) -> dict[int, Finding]:
        """The records in whose field there is a fault."""
        found = ((record.index, self._fault(_value(record, self.field))) for record in records)
        return {index: Finding(why) for index, why in found if why}

    @abstractmethod
    def _fault(self, value: Any) -> str | None:
        """What is wrong with a value."""


@dataclass(frozen=True)
class NotEmpty(_OneByOne):
    """Finds None, NaN, arrays without entries, and text or bytes of nothing but white space."""

    def _fault(self, value: Any) -> str | None:
        if isinstance(value, str | bytes):
            return None if value.strip() else "empty"
        if value is None:
            return "None"
        array = np.asarray(value)
        if not array.size:
            return "empty"
        return "NaN" if array.ndim == 0 and array.dtype.kind == "f" and np.isnan(array) else None


@dataclass(frozen=True)
class Length(_OneByOne):
    """Finds text of fewer than `least` or more than `most` characters; of bytes, it counts bytes."""

    least: int
    most: int

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most:
            raise ConfigError(f"Length: needs 0 <= least <= most, got {self.least} and {self.most}")

    def _fault(self, value: Any) -> str | None:
        _text(value, self.field)
        if self.least <= len(value) <= self.most:
            return None
        unit = "bytes" if isinstance(value, bytes) else "characters"
        return f"{len(value):,} {unit}, not {self.least:,} to {self.most:,}"


@dataclass(frozen=True)
class Language(_OneByOne):
    """Finds text in none of `languages` (ISO 639 codes), by py3langid (Lui & Baldwin 2012).

    Texts shorter than `shortest` are not judged. If the first 200 characters are in one of the languages, so is the
    text; else the whole is judged, and found where they have a probability below 0.05 together: near relatives such as
    Portuguese and Galician are easily confused. Raises ConfigError for an unknown language.
    """

    languages: tuple[str, ...]
    shortest: int = 40

    def __post_init__(self) -> None:
        if not self.languages:
            raise ConfigError("Language: name one or more languages, as in ('en', 'pt')")

    def findings(self, records: Collection[Record]) -> dict[int, Finding]:
        """The records in other languages."""
        known = _identifier().labels
        for language in self.languages:
            if language not in known:
                raise ConfigError(f"Language: {language!r} is not known{nearest(language, known)}")
        return super().findings(records)

    def _fault(self, value: Any) -> str | None:
        text = _text(value, self.field)
        if len(text) < self.shortest or _identifier().classify(text[:_START])[0] in self.languages:
            return None
        ranked = _identifier().rank(text)
        if sum(share for language, share in ranked if language in self.languages) >= _DOUBT:
            return None
        return f"language {ranked[0][0]}, not {' or '.join(self.languages)}"


_START, _DOUBT = 200, 0.05


@lru_cache(maxsize=1)
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise _needs("Language", "py3langid") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@dataclass(frozen=True)
class BrokenEncoding(_OneByOne):
    """Finds text that was decoded wrongly: characters that were lost (U+FFFD), and what ftfy can repair (Speer 2019).

    That includes the control characters that dashes and quotes of Windows-1252 become when read as Latin-1.
    """

    def _fault(self, value: Any) -> str | None:
        text = _text(value, self.field)
        if text.isascii():
            return None
        if (at := text.find("\ufffd")) >= 0:
            return f"lost characters: {_around(text, at)}"
        fixed = _fix(text)
        if fixed == text:
            return None
        pairs = enumerate(zip(text, fixed, strict=False))
        at = next((at for at, (one, other) in pairs if one != other), len(fixed))
        return f"{_around(text, at)} should be {_around(fixed, at)}"


@dataclass(frozen=True)
class MendEncoding(Transform):
    """Text in `field` that was decoded wrongly, as it was meant: what `BrokenEncoding` finds, if it can be mended."""

    field: str

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example with its text mended."""
        text = self.field_of(example, self.field)
        return {**example, self.field: text if text.isascii() else _fix(text)}


@dataclass(frozen=True)
class InRange(_OneByOne):
    """Finds numbers, and arrays with entries, below `low` or above `high`; None is no bound. NaN is outside."""

    low: float | None
    high: float | None

    def __post_init__(self) -> None:
        low, high = self._bounds
        if not low <= high or (self.low is None and self.high is None):
            raise ConfigError(f"InRange: needs low <= high, or one of them, got {self.low} and {self.high}")

    @property
    def _bounds(self) -> tuple[float, float]:
        return -np.inf if self.low is None else self.low, np.inf if self.high is None else self.high

    def _fault(self, value: Any) -> str | None:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise ConfigError(f"field {self.field!r} holds a {type(value).__name__}, not numbers")
        low, high = self._bounds
        outside = array[~((array >= low) & (array <= high))]
        if not outside.size:
            return None
        many = f" and {outside.size - 1:,} more" if outside.size > 1 else ""
        return f"{outside.flat[0]:g}{many} not in {low:g}…{high:g}"


@dataclass(frozen=True)
class ExactDuplicates(Filter):
    """Finds records whose `fields` are those of an earlier one."""

    fields: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.fields:
            raise ConfigError("ExactDuplicates: name one or more fields to compare")

    def findings(self, records: Collection[Record]) -> dict[int, Finding]:
        """All but the first of those that are the same."""
        firsts: dict[int, int] = {}
        found = {}
        for record in records:
            key = digest({name: _value(record, name) for name in self.fields})
            first = firsts.setdefault(key, record.index)
            if first != record.index:
                found[record.index] = Finding(f"same as record {first}", first)
        return found


@dataclass(frozen=True)
class LabelConflicts(Filter):
    """Finds records with the same text, but for case and white space, and different labels: all of them."""

    field: str
    label: str

    def findings(self, records: Collection[Record]) -> dict[int, Finding]:
        """The records that contradict another."""
        labels: dict[int, dict[str, int]] = {}
        keys: list[tuple[int, int, str]] = []
        for record in records:
            key = digest({"": " ".join(_text(_value(record, self.field), self.field).casefold().split())})
            label = str(_value(record, self.label))
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
    """Finds texts that nearly repeat an earlier one that is kept: see `near_pairs`."""

    field: str
    threshold: float = 0.7

    def __post_init__(self) -> None:
        _check_threshold("NearDuplicates", self.threshold)

    def findings(self, records: Collection[Record]) -> dict[int, Finding]:
        """The later ones of those that are nearly the same."""
        groups, pairs = _near(records, self.field, self.threshold)
        found = {copy: Finding(f"same words as record {group[0]}", group[0]) for group in groups for copy in group[1:]}
        for one, other, jaccard in pairs:
            first, second = groups[one], groups[other]
            if first[0] not in found and second[0] not in found:
                found |= {index: Finding(f"likeness {jaccard:.2f} to record {first[0]}", first[0]) for index in second}
        return found


@dataclass(frozen=True)
class Leaks(Filter):
    """Finds texts that nearly repeat one of the splits `keep`, in all other splits: see `near_pairs`."""

    field: str
    threshold: float = 0.7
    keep: tuple[str, ...] = ("validation", "test")

    def __post_init__(self) -> None:
        _check_threshold("Leaks", self.threshold)
        if not self.keep:
            raise ConfigError("Leaks: name one or more splits to keep, as in ('test',)")

    def findings(self, records: Collection[Record]) -> dict[int, Finding]:
        """The records of other splits that leak."""
        splits = {record.index: record.split for record in records}
        groups, pairs = _near(records, self.field, self.threshold)
        everyone = ((place, place, 1.0) for place in range(len(groups)))
        found: dict[int, Finding] = {}
        for one, other, jaccard in (*everyone, *pairs):
            for here, there in ((one, other), (other, one)):
                kept = next((index for index in groups[there] if splits[index] in self.keep), None)
                if kept is not None:
                    why = Finding(f"likeness {jaccard:.2f} to record {kept} of {splits[kept]}", kept)
                    found |= {
                        index: why for index in groups[here] if splits[index] not in self.keep and index not in found
                    }
        return found


def near_pairs(records: Collection[Record], field: str, threshold: float = 0.7) -> list[tuple[int, int, float]]:
    """The pairs of texts that nearly repeat each other: two indices, in the order of records, and their likeness.

    Likeness is the Jaccard index of their sets of three words in a row, whatever their case and punctuation, and
    is 0…1; pairs have `threshold` or more of it. Candidates come from MinHash (Broder 1997) with 64 permutations
    in bands (datasketch), and are then compared exactly: no pair is found falsely, and one at the threshold is missed
    in 2 % of cases at most, less above it. Texts without any word are near to none.
    """
    _check_threshold("near_pairs", threshold)
    groups, pairs = _near(records, field, threshold)
    found = [(one, other, 1.0) for group in groups for one, other in combinations(group, 2)]
    found += [(a, b, jaccard) for one, other, jaccard in pairs for a in groups[one] for b in groups[other]]
    place = {record.index: place for place, record in enumerate(records)}
    ordered = ((a, b, jaccard) if place[a] < place[b] else (b, a, jaccard) for a, b, jaccard in found)
    return sorted(ordered, key=lambda pair: (place[pair[0]], place[pair[1]]))


_PERMUTATIONS, _RECALL, _SHINGLE = 64, 0.98, 3


def _near(
    records: Collection[Record], field: str, threshold: float
) -> tuple[list[list[int]], list[tuple[int, int, float]]]:
    """The indices of texts with the same shingles, in groups by their first; pairs of groups that are near."""
    try:
        from datasketch import MinHash
    except ImportError as error:
        raise _needs("near-duplicates", "datasketch") from error
    empty = MinHash(_PERMUTATIONS, hashfunc=int)
    groups: list[list[int]] = []
    known: dict[int, int] = {}
    signatures: list[np.ndarray] = []
    for index, shingles in _all_shingles(records, field):
        place = known.setdefault(digest({"": shingles}), len(groups))
        if place < len(groups):
            groups[place].append(index)
            continue
        groups.append([index])
        one = empty.copy()
        one.update_batch(shingles.tolist())
        signatures.append(one.hashvalues)
    candidates = _candidates(np.array(signatures), threshold) if signatures else []
    wanted = {groups[place][0] for pair in candidates for place in pair}
    sets = {index: shingles for index, shingles in _all_shingles(records, field, wanted)} if wanted else {}
    pairs = []
    for one, other in candidates:
        a, b = sets[groups[one][0]], sets[groups[other][0]]
        common = np.intersect1d(a, b, assume_unique=True).size
        jaccard = common / (a.size + b.size - common)
        if jaccard >= threshold:
            pairs.append((one, other, jaccard))
    return groups, pairs


def _candidates(signatures: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """Pairs of rows that agree in all of one of the bands, as wide as the recall at the threshold allows."""
    rows = max(
        (r for r in range(1, _PERMUTATIONS) if 1 - (1 - threshold**r) ** (_PERMUTATIONS // r) >= _RECALL), default=1
    )
    found: set[tuple[int, int]] = set()
    for start in range(0, _PERMUTATIONS - rows + 1, rows):
        band = np.ascontiguousarray(signatures[:, start : start + rows])
        keys = band.view(np.dtype((np.void, band.itemsize * rows))).ravel()
        _, groups, counts = np.unique(keys, return_inverse=True, return_counts=True)
        order, ends = np.argsort(groups, kind="stable"), np.cumsum(counts)
        for place in np.flatnonzero(counts > 1):
            found.update(combinations(order[ends[place] - counts[place] : ends[place]].tolist(), 2))
    return sorted(found)


_APART = re.compile(r"\W+")
_LETTERS = np.zeros(256, bool)
_LETTERS[[ord(letter) for letter in "0123456789_abcdefghijklmnopqrstuvwxyz"]] = True
_LETTERS[128:] = True  # the bytes of other letters
_BASE = 0x9E3779B97F4A7C15
_MIX = np.uint64(_BASE)


def _all_shingles(
    records: Iterable[Record], field: str, wanted: Collection[int] | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """uint32[n], sorted hashes of the runs of words of every text that has words; of the `wanted` records."""
    for record in records:
        if wanted is not None and record.index not in wanted:
            continue
        words = _words(_text(_value(record, field), field))
        if not words.size:
            continue
        if words.size < _SHINGLE:
            words = np.pad(words, (0, _SHINGLE - words.size))
        runs = np.zeros(words.size - _SHINGLE + 1, np.uint64)
        for place in range(_SHINGLE):
            runs = (runs + words[place : runs.size + place]) * _MIX
            runs ^= runs >> np.uint64(29)
        hashes = np.sort((runs >> np.uint64(32)).astype(np.uint32))
        yield record.index, hashes[np.diff(hashes, prepend=~hashes[:1]) != 0]


def _words(text: str) -> np.ndarray:
    """uint64[n]: a hash of each word, whatever its case."""
    text = text.casefold()
    if not text.isascii():
        text = _APART.sub(" ", unicodedata.normalize("NFKC", text))
    letters = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    edges = np.flatnonzero(np.diff(_LETTERS[letters], prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    # A word is the polynomial of its bytes: a difference of running sums, moved to where the word starts.
    up, down = _powers(1 << (letters.size + 1).bit_length())
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum((letters + np.uint64(1)) * up[: letters.size])])
    return (sums[ends] - sums[starts]) * down[starts]


@lru_cache(maxsize=32)
def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """uint64[size] twice: the powers of the base and of its inverse, modulo 2^64."""
    bases = np.array([_BASE, pow(_BASE, -1, 1 << 64)], np.uint64)[:, None]
    up, down = np.cumprod(np.broadcast_to(bases, (2, size)), axis=1, dtype=np.uint64)
    return up, down


def _check_threshold(name: str, threshold: float) -> None:
    if not 0 < threshold < 1:
        raise ConfigError(f"{name}: threshold must be above 0 and below 1, got {threshold}")


def _value(record: Record, field: str) -> Any:
    if field not in record.example:
        raise ConfigError(f"record {record.index} has no field {field!r}{nearest(field, record.example)}")
    return record.example[field]


def _text(value: Any, field: str) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if not isinstance(value, str):
        raise ConfigError(f"field {field!r} holds a {type(value).__name__}, not text")
    return value


def _around(text: str, at: int) -> str:
    return repr(text[max(0, at - 10) : at + 20])


def _needs(what: str, package: str) -> ConfigError:
    return ConfigError(f"{what} needs {package}: pip install 'jaxtrain[datasets]'")


def _fix(text: str) -> str:
    try:
        from ftfy import fix_encoding
    except ImportError as error:
        raise _needs("BrokenEncoding", "ftfy") from error
    return fix_encoding(text)
