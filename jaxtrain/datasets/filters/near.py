"""Near-duplicates by MinHash over shingles of words."""

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from itertools import combinations

import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.packages import needs
from jaxtrain.datasets.card import record_hash
from jaxtrain.datasets.filters.base import Record, text_of, value_of

_PERMUTATIONS, _RECALL, _SHINGLE = 64, 0.98, 3

_APART = re.compile(r"\W+")

_LETTERS = np.zeros(256, bool)
_LETTERS[[ord(letter) for letter in "0123456789_abcdefghijklmnopqrstuvwxyz"]] = True
_LETTERS[128:] = True  # the bytes of other letters

_BASE = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio
_MIX = np.uint64(_BASE)


def near_pairs(records: Collection[Record], field: str, threshold: float = 0.7) -> list[tuple[int, int, float]]:
    """Near-duplicate pairs of texts: two indices in the order of records, and their similarity.

    Similarity is the Jaccard index, 0…1, of the sets of shingles (three words in a row, without case and punctuation);
    pairs have `threshold` or more. Candidates come from MinHash (Broder 1997) with 64 permutations in bands
    (datasketch) and are then compared exactly: no pair is a false positive, and a pair at the threshold is missed in
    2 % of cases at most, above it in fewer. Texts without any word are in no pair. Raises ConfigError for a threshold
    that is not between 0 and 1.
    """
    if not 0 < threshold < 1:
        raise ConfigError(f"near_pairs: threshold must be above 0 and below 1, got {threshold}")
    groups, pairs = near(records, field, threshold)
    found = [(one, other, 1.0) for group in groups for one, other in combinations(group, 2)]
    found += [(a, b, jaccard) for one, other, jaccard in pairs for a in groups[one] for b in groups[other]]
    place = {record.index: place for place, record in enumerate(records)}
    ordered = ((a, b, jaccard) if place[a] < place[b] else (b, a, jaccard) for a, b, jaccard in found)
    return sorted(ordered, key=lambda pair: (place[pair[0]], place[pair[1]]))


def near(
    records: Collection[Record], field: str, threshold: float
) -> tuple[list[list[int]], list[tuple[int, int, float]]]:
    """Groups of the indices of texts with equal shingles, and near pairs of groups with their similarity."""
    with needs("finding near-duplicates", "datasketch", "datasets"):
        from datasketch import MinHash
    empty = MinHash(_PERMUTATIONS, hashfunc=int)
    groups: list[list[int]] = []
    known: dict[int, int] = {}
    signatures: list[np.ndarray] = []
    for index, shingles in _all_shingles(records, field):
        place = known.setdefault(record_hash({"": shingles}), len(groups))
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
    """Pairs of rows that are equal in one of the bands, which are as wide as the recall at the threshold allows."""
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


def _all_shingles(
    records: Iterable[Record], field: str, wanted: Collection[int] | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Index and sorted shingle hashes, uint32[n], of the `wanted` records (default: all) whose text has words."""
    for record in records:
        if wanted is not None and record.index not in wanted:
            continue
        words = _word_hashes(text_of(value_of(record, field), field))
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


def _word_hashes(text: str) -> np.ndarray:
    """A hash of each word, without case: uint64[n]."""
    text = text.casefold()
    if not text.isascii():
        text = _APART.sub(" ", unicodedata.normalize("NFKC", text))
    letters = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    edges = np.flatnonzero(np.diff(_LETTERS[letters], prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    # The hash of a word is the polynomial of its bytes: a difference of running sums, shifted to the word's start.
    up, down = _powers(1 << (letters.size + 1).bit_length())
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum((letters + np.uint64(1)) * up[: letters.size])])
    return (sums[ends] - sums[starts]) * down[starts]


@lru_cache(maxsize=32)
def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of the base and of its inverse modulo 2^64: uint64[size] each."""
    bases = np.array([_BASE, pow(_BASE, -1, 1 << 64)], np.uint64)[:, None]
    up, down = np.cumprod(np.broadcast_to(bases, (2, size)), axis=1, dtype=np.uint64)
    return up, down
