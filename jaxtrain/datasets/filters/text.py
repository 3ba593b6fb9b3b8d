"""Filters of text, by language and encoding, and a transform that repairs encodings."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.packages import needs
from jaxtrain.base.ranges import NonNegativeInt
from jaxtrain.data.sources.base import Example
from jaxtrain.data.transforms.base import Transform
from jaxtrain.datasets.filters.base import Finding, OneByOne, Record, text_of

_START = 200  # characters that are tried first

_DOUBT = 0.05  # the least probability of the wanted languages


@dataclass(frozen=True)
class Language(OneByOne):
    """Finds text in none of `languages` (ISO 639 codes), by py3langid (Lui & Baldwin 2012).

    Texts of fewer than `shortest` characters pass. A text passes if its first 200 characters are classified as one of
    the languages; else the whole text is classified, and passes if the languages have a probability of 0.05 or more
    together, since close relatives such as Portuguese and Galician are easily confused. Raises ConfigError for an
    unknown language.
    """

    languages: tuple[str, ...]
    shortest: NonNegativeInt = 40

    def __post_init__(self) -> None:
        if not self.languages:
            raise ConfigError("Language: name one or more languages, as in ('en', 'pt')")

    def findings(self, records: Collection[Record]) -> dict[int, Finding]:
        known = _identifier().labels
        for language in self.languages:
            if language not in known:
                raise ConfigError(f"Language: {language!r} is not known{nearest(language, known)}")
        return super().findings(records)

    def _fault(self, value: Any) -> str | None:
        text = text_of(value, self.field)
        if len(text) < self.shortest or _identifier().classify(text[:_START])[0] in self.languages:
            return None
        ranked = _identifier().rank(text)
        if sum(share for language, share in ranked if language in self.languages) >= _DOUBT:
            return None
        return f"language {ranked[0][0]}, not {' or '.join(self.languages)}"


@lru_cache(maxsize=1)
def _identifier() -> Any:
    with needs("Language", "py3langid", "datasets"):
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@dataclass(frozen=True)
class BrokenEncoding(OneByOne):
    """Finds text that was decoded wrongly: with lost characters (U+FFFD), or that ftfy can repair (Speer 2019).

    For example, dashes and quotes of Windows-1252 become control characters when they are decoded as Latin-1.
    """

    def _fault(self, value: Any) -> str | None:
        text = text_of(value, self.field)
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
    """Repair text in `field` that was decoded wrongly: what `BrokenEncoding` finds, where ftfy can repair it."""

    field: str

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        text = self.field_of(example, self.field)
        return {**example, self.field: text if text.isascii() else _fix(text)}


def _around(text: str, at: int) -> str:
    return repr(text[max(0, at - 10) : at + 20])


def _fix(text: str) -> str:
    with needs("BrokenEncoding", "ftfy", "datasets"):
        from ftfy import fix_encoding
    return fix_encoding(text)
