"""Rows of bytes of another source's text, held in memory."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.ranges import PositiveInt
from jaxtrain.data.sources.base import Example, Source, raw_text
from jaxtrain.data.sources.kept import until_files_change


@dataclass(frozen=True)
class Windows(Source):
    """{"tokens": int32[length + 1]}: rows of the UTF-8 bytes of another source's text, for language models.

    The documents are joined with one zero byte between them, in memory. Row i is bytes i * length to i * length +
    length, the last one included: rows overlap by one byte, so that every byte but the first is a target once. A
    shorter last row is left out. `Tokens` reads such rows from files, with any tokenizer.
    """

    source: Source
    length: PositiveInt
    field: str = "text"

    def __len__(self) -> int:
        return max(0, (len(_joined_bytes(self.source, self.field)) - 1) // self.length)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = index * self.length
        row = _joined_bytes(self.source, self.field)[first : first + self.length + 1]
        return {"tokens": row.astype(np.int32)}

    @property
    def vocab(self) -> int:
        return 256

    def raw(self, argument: str) -> Example:
        """The bytes of a text of any length, or of a file."""
        return {"tokens": np.frombuffer(raw_text(argument, as_bytes=True), np.uint8).astype(np.int32)}

    def remembered(self) -> Source:
        return replace(self, source=self.source.remembered())

    def identity(self) -> str:
        return f"windows:{self.length}:{self.field}:{self.source.identity()}"


@until_files_change
@lru_cache(maxsize=8)
def _joined_bytes(source: Source, name: str) -> np.ndarray:
    documents = []
    for index in range(len(source)):
        example = source[index]
        if name not in example:
            raise ConfigError(f"Windows: {type(source).__name__} has no field {name!r}{nearest(name, example)}")
        text = example[name]
        documents.append(text.encode() if isinstance(text, str) else text)
    return np.frombuffer(b"\0".join(documents), np.uint8)
