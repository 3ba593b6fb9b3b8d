"""Transforms of text."""

import hashlib
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from jaxtrain.base.ranges import PositiveInt, Range
from jaxtrain.data.sources.base import Example
from jaxtrain.data.transforms.base import Transform


@dataclass(frozen=True)
class Utf8(Transform):
    """Replace the text in `field` (str or bytes) by its UTF-8 bytes in `to`: uint8[length], cut or padded with 0.

    Byte 0 does not occur in text.
    """

    length: PositiveInt
    field: str = "text"
    to: str = "bytes"

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        text = self.text_of(example, self.field)
        raw = (text.encode() if isinstance(text, str) else text)[: self.length]
        return self.replaced(example, (self.field,), self.to, np.frombuffer(raw.ljust(self.length, b"\0"), np.uint8))


@dataclass(frozen=True)
class Hash(Transform):
    """The hashing trick (Weinberger et al. 2009): a text or integer to an int32 below `buckets`, on any machine alike.

    Raises ConfigError for anything else.
    """

    field: str
    buckets: Annotated[int, Range(at_least=1, at_most=2**31 - 1, hint="hashes are i32")]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        value = self.field_of(example, self.field)
        if isinstance(self.category_of(example, self.field), str):
            value = self.text_of(example, self.field)
        raw = value if isinstance(value, bytes) else str(value).encode()
        place = int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little") % self.buckets
        return {**example, self.field: np.int32(place)}
