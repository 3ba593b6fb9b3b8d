"""Transforms of categories and words, whose vocabulary comes from the training split."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import Checked, Positive, PositiveInt
from jaxtrain.data.sources.base import Example
from jaxtrain.data.transforms.base import with_place
from jaxtrain.data.transforms.fitted import FittedTransform


@dataclass(frozen=True)
class Categories(FittedTransform):
    """Replace a text or an integer by its index, from 1, in the sorted values of the training split, as int32.

    Values that occur fewer than `least` times in the training split become 0. A missing field is skipped. Texts that
    differ only in the encoding of accents (NFC, NFD) count as equal.
    """

    field: str
    least: PositiveInt = 1

    def fit(self, examples: Iterable[Example]) -> Self:
        """Raises ConfigError for values that are neither text nor integers, and for a mix of both."""
        counts = Counter[str | int]()
        for number, example in enumerate(examples):
            with with_place(f"example {number} of the training split".format):
                counts[_composed(self.category_of(example, self.field))] += 1
        if len({type(value) for value in counts}) > 1:
            raise ConfigError(f"Categories: {self.field!r} holds both text and integers")
        return replace(self, fitted=tuple(sorted(value for value, count in counts.items() if count >= self.least)))

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        if self.field not in example:
            return example
        value, known = _composed(self.category_of(example, self.field)), next(iter(self._numbers), None)
        if known is not None and type(value) is not type(known):
            other = f"a {type(value).__name__}, but the training split holds {type(known).__name__}s such as {known!r}"
            raise ConfigError(f"Categories: {self.field!r} is {value!r}, {other}")
        return {**example, self.field: np.int32(self._numbers.get(value, 0))}

    def traced(self, fields: Example) -> Example:
        """The number is an input already."""
        return {**fields, self.field: fields[self.field].astype(np.int32)} if self.field in fields else fields

    def raw_inputs(self, kinds: Mapping[str, tuple[str, tuple[int, ...]]]) -> Mapping[str, Mapping[str, Any]]:
        """One of the values of the training split."""
        category = {"kind": "category", "values": self.known(), "first": 1, "unknown": 0}
        return {self.field: category} if self.field in kinds else {}

    @cached_property
    def _numbers(self) -> dict[str | int, int]:
        return {_composed(value): number for number, value in enumerate(self.known(), 1)}


@dataclass(frozen=True)
class Vocabulary(Checked):
    """Words in alphabetical order, and the inverse document frequency of each."""

    words: tuple[str, ...]
    idf: tuple[Positive, ...]


@dataclass(frozen=True)
class TfIdf(FittedTransform):
    """Replace the text in `field` by its TF-IDF vector in `to`: float32[size], of norm 1, or 0 without a known word.

    The vocabulary is the `size` most frequent words of the training split, in lower case, of two or more letters or
    digits; ties are broken alphabetically, and if there are fewer words the last entries are 0. The inverse document
    frequency of a word in d of n texts is ln((1 + n) / (1 + d)) + 1.
    """

    field: str
    size: PositiveInt = 1000
    to: str = "features"

    def fit(self, examples: Iterable[Example]) -> Self:
        """Counts the occurrences of words, and the texts that hold each."""
        words, texts, total = Counter[str](), Counter[str](), 0
        for example in examples:
            with with_place(f"example {total} of the training split".format):
                found = self._words(example)
            words.update(found)
            texts.update(set(found))
            total += 1
        if not words:
            raise ConfigError(
                f"TfIdf: no text of the training split has a word of two letters or digits in {self.field!r}"
            )
        chosen = sorted(sorted(words, key=lambda word: (-words[word], word))[: self.size])
        idf = np.log((1 + total) / (1 + np.array([texts[word] for word in chosen], np.float64))) + 1
        return replace(self, fitted=Vocabulary(tuple(chosen), tuple(idf.tolist())))

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        vector = np.zeros(self.size)
        for word, count in Counter(self._words(example)).items():
            if word in self._columns:
                column, idf = self._columns[word]
                vector[column] = count * idf
        value = (vector / (np.linalg.norm(vector) or 1)).astype(np.float32)
        return self.replaced(example, (self.field,), self.to, value)

    def traced(self, fields: Example) -> Example:
        if self.field not in fields:
            return fields
        raise ConfigError(
            "TfIdf cannot be exported: it splits words by Python's tables of letters, which other languages do not "
            "share; use Utf8 and a model that reads bytes, such as NaiveBayes"
        )

    @cached_property
    def _columns(self) -> dict[str, tuple[int, float]]:
        known = self.known()
        return {word: (column, known.idf[column]) for column, word in enumerate(known.words)}

    def _words(self, example: Example) -> Sequence[str]:
        text = self.text_of(example, self.field)
        text = text if isinstance(text, str) else text.decode(errors="replace")
        return re.findall(r"\w\w+", unicodedata.normalize("NFC", text).lower())


def _composed(value: str | int) -> str | int:
    """A text in Unicode's normal form NFC: a letter and its accent are one character."""
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else value
