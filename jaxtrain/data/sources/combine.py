"""Sources made of other sources: the first examples, mixtures, transformed examples, examples kept in memory."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from jaxtrain.base.config import flatten
from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.base.files import digest
from jaxtrain.base.ranges import Positive, PositiveInt
from jaxtrain.data.sources.base import Example, Source
from jaxtrain.data.sources.kept import until_files_change
from jaxtrain.data.transforms.base import Transform
from jaxtrain.data.transforms.fitted import FittedTransform

_MOST_PICKS = 1000  # in a block of a mixture


@dataclass(frozen=True)
class Wrapper(Source):
    """A source that delegates everything to another one; subclasses override what they change."""

    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return self.decode(self.fetch([index])[0])

    def fetch(self, indices: Sequence[int]) -> list[Any]:
        return self.source.fetch(indices)

    def decode(self, stored: Any) -> Example:
        return self.source.decode(stored)

    @property
    def vocab(self) -> int | None:
        return self.source.vocab

    def where(self, index: int) -> str:
        return self.source.where(index)

    def warn_shuffled(self) -> None:
        self.source.warn_shuffled()

    def raw(self, argument: str) -> Example:
        return self.source.raw(argument)

    def remembered(self) -> Source:
        inner = self.source.remembered()
        return inner if type(self).raw is Wrapper.raw else replace(self, source=inner)

    def identity(self) -> str:
        return self.source.identity()


@dataclass(frozen=True)
class Take(Wrapper):
    """The first `count` examples of another source. Raises ConfigError where it has fewer."""

    count: PositiveInt

    def __len__(self) -> int:
        if self.count > len(self.source):
            raise ConfigError(f"Take: {self.count} of the {len(self.source)} examples of {self.source!r}")
        return self.count

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return super().__getitem__(index)

    def identity(self) -> str:
        return f"take:{self.count}:{self.source.identity()}"


@dataclass(frozen=True)
class Mapped(Wrapper):
    """Another source's examples after deterministic transforms; `InMemory` or `Stored` around it keeps the results.

    Raises ConfigError for random transforms, which belong in a pipeline: it draws new numbers whenever it reads.
    """

    transforms: tuple[Transform, ...]

    def __post_init__(self) -> None:
        for transform in self.transforms:
            if isinstance(transform, FittedTransform) and transform.fitted is None:
                raise ConfigError(
                    f"Mapped: {transform!r} is fitted on the training split: give it to the pipeline's transforms"
                )
            if transform.training_only or transform.evaluating() != transform:
                raise ConfigError(f"Mapped: {transform!r} is random: give it to the pipeline's transforms")

    def decode(self, stored: Any) -> Example:
        return self._apply(self.source.decode(stored))

    def raw(self, argument: str) -> Example:
        return self._apply(self.source.raw(argument))

    def identity(self) -> str:
        transforms = digest(json.dumps(flatten(self.transforms), sort_keys=True), length=16)
        return f"mapped:{transforms}:{self.source.identity()}"

    def _apply(self, example: Example) -> Example:
        for transform in self.transforms:
            example = transform(example, np.random.default_rng(0))
        return example


@dataclass(frozen=True)
class InMemory(Wrapper):
    """Another source's examples, each read once in a process and then kept in memory."""

    def fetch(self, indices: Sequence[int]) -> list[Example]:
        kept = _memory(self)
        missing = [index for index in indices if index not in kept]
        if missing:
            kept.update(zip(missing, map(self.source.decode, self.source.fetch(missing)), strict=True))
        return [kept[index] for index in indices]

    def decode(self, stored: Example) -> Example:
        return dict(stored)  # a copy, so that callers cannot change the one in memory

    def warn_shuffled(self) -> None:
        """Nothing: each example is read once."""


@until_files_change
@lru_cache(maxsize=64)
def _memory(source: InMemory) -> dict[int, Example]:
    return {}


@dataclass(frozen=True)
class Mixture(Source):
    """Several sources of the same fields, interleaved by weights; example i depends on i alone.

    A block of at most 1,000 picks repeats; weights are rounded to shares of it, and each source's picks are spread
    evenly. An epoch ends when every source has been read to its end; a source that ends before repeats. Raises
    ConfigError for weights that are not positive, or too small for a block.
    """

    sources: tuple[Source, ...]
    weights: tuple[Positive, ...]

    def __post_init__(self) -> None:
        if len(self.sources) != len(self.weights) or not self.sources:
            raise ConfigError(f"Mixture needs one positive weight a source, got {self.weights} for {len(self.sources)}")
        if min(_picks(self.weights)[1]) == 0:
            raise ConfigError(f"Mixture: each weight must be at least 1/{_MOST_PICKS} of all, got {self.weights}")

    def __len__(self) -> int:
        order, counts, _ = _picks(self.weights)
        ends = []
        for number, source in enumerate(self.sources):
            blocks, rest = divmod(len(source) - 1, counts[number])
            ends.append(blocks * len(order) + int(np.nonzero(order == number)[0][rest]) + 1)
        return max(ends)

    def __getitem__(self, index: int) -> Example:
        return self.decode(self.fetch([index])[0])

    def fetch(self, indices: Sequence[int]) -> list[tuple[int, Any]]:
        """The number of its source and the record, for each index; each source's `fetch` is called once."""
        found: list[tuple[int, Any]] = [(0, None)] * len(indices)
        wanted: dict[int, list[tuple[int, int]]] = {}
        for place, index in enumerate(indices):
            number, nth = self._pick(index)
            wanted.setdefault(number, []).append((place, nth))
        for number, pairs in wanted.items():
            stored = self.sources[number].fetch([nth for _, nth in pairs])
            for (place, _), one in zip(pairs, stored, strict=True):
                found[place] = number, one
        return found

    def _pick(self, index: int) -> tuple[int, int]:
        """The number of the source of an example, and its index in that source."""
        order, counts, seen = _picks(self.weights)
        block, offset = divmod(index, len(order))
        number = int(order[offset])
        return number, (block * counts[number] + int(seen[offset])) % len(self.sources[number])

    def warn_shuffled(self) -> None:
        for source in self.sources:
            source.warn_shuffled()

    def where(self, index: int) -> str:
        number, nth = self._pick(index)
        return self.sources[number].where(nth)

    def decode(self, stored: tuple[int, Any]) -> Example:
        """The example of a stored record. Raises ConfigError where it has other fields than the first source."""
        number, one = stored
        example = self.sources[number].decode(one)
        if example.keys() != (fields := _field_names(self.sources[0])):
            raise ConfigError(f"Mixture: source {number} has the fields {sorted(example)}, source 0 {sorted(fields)}")
        return example

    @property
    def vocab(self) -> int | None:
        return max((source.vocab or 0 for source in self.sources), default=0) or None

    def raw(self, argument: str) -> Example:
        return self.sources[0].raw(argument)

    def remembered(self) -> Source:
        return self.sources[0].remembered()

    def identity(self) -> str:
        return f"mixture:{self.weights}:{':'.join(source.identity() for source in self.sources)}"


@until_files_change
@lru_cache(maxsize=64)
def _field_names(source: Source) -> frozenset[str]:
    for index in range(len(source)):
        with suppress(Damaged):
            return frozenset(source[index])
    return frozenset()


@lru_cache(maxsize=64)
def _picks(weights: tuple[float, ...]) -> tuple[np.ndarray, list[int], np.ndarray]:
    """One block: the source of each pick, the number of picks of each source, and for each pick how many picks of the
    same source come before it.
    """
    shares = np.array(weights) / sum(weights)
    # The smallest block in which these weights are exact; else the largest, in which they are exact to a thousandth.
    sizes = np.arange(1, _MOST_PICKS + 1)
    wrong = np.abs(np.round(shares * sizes[:, None]) / sizes[:, None] - shares).max(1)
    size = int(sizes[np.argmax(wrong < 1e-9)]) if (wrong < 1e-9).any() else _MOST_PICKS
    counts = np.floor(shares * size + 1e-9).astype(int)
    counts[np.argsort(counts - shares * size)[: size - counts.sum()]] += 1
    # Pick k of the n picks of a source is at (k + 1/2) / n of the block.
    place = np.concatenate([(np.arange(n) + 0.5) / max(n, 1) for n in counts])
    order = np.repeat(np.arange(len(counts)), counts)[np.argsort(place, kind="stable")]
    seen = np.zeros(size, int)
    for number in range(len(counts)):
        seen[order == number] = np.arange(counts[number])
    return order, counts.tolist(), seen
