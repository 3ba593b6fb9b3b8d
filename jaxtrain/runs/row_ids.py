"""Which example is which, in any run: the hash of its record as the source has it, before any transform.

Not here: what is kept by these ids (`rows`).
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxtrain.base.config import find
from jaxtrain.base.files import digest
from jaxtrain.data.pipeline import Pipeline
from jaxtrain.data.sources.base import Example, Source
from jaxtrain.data.sources.combine import InMemory, Mapped, Mixture, Wrapper
from jaxtrain.data.sources.stored import Stored

_CHUNK = 256  # records that are hashed together


def record_id(record: Example) -> int:
    """A hash of 64 bits of all fields of a record: of their names, shapes and values. The same for the same content,
    whether a number is one of Python or of numpy, and in any order of the fields.
    """
    parts = [part for name in sorted(record) for part in (f"\0{name}\0", *_content(record[name]))]
    return int(digest(*parts, length=16), 16)


def _content(value: Any) -> Iterator[str | bytes]:
    """What a value is, with its length or shape, so that no two values have the same parts."""
    if isinstance(value, str | bytes):
        content = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        yield f"{'text' if isinstance(value, str) else 'bytes'} {len(content)}:"
        yield content
    elif isinstance(value, Mapping):
        yield f"dict {len(value)}:"
        for name in sorted(value, key=str):
            yield from _content(str(name))
            yield from _content(value[name])
    elif isinstance(value, list | tuple):
        yield f"list {len(value)}:"
        for each in value:
            yield from _content(each)
    elif np.ndim(value) == 0:
        value = value.item() if hasattr(value, "item") else value
        yield f"{type(value).__name__} {value!r}:"
    elif (array := np.asarray(value)).dtype.kind in "OUSMm":
        yield from _content(array.tolist())
    else:
        array = array.astype(array.dtype.newbyteorder("<"))
        yield f"array {array.dtype.str} {array.shape}:"
        yield array.tobytes()


def record_ids(pipeline: Pipeline, first: int, end: int, each: Callable[[], None] = lambda: None) -> np.ndarray:
    """`record_id` of the records `first` to `end` - 1 of a pipeline's source: u64[end - first]. They are read ahead as
    batches are. `each` is called after every few hundred.
    """
    from jaxtrain.data.reading import read

    items, found = _Ids(raw_records(pipeline.source), first, end), [np.zeros(0, np.uint64)]
    if len(items):
        reading = read(items, threads=pipeline.threads, workers=0, prefetch=pipeline.prefetch)
        with contextlib.closing(reading) as chunks:
            for chunk in chunks:
                found.append(chunk["ids"])
                each()
    return np.concatenate(found)


@dataclass(frozen=True)
class _Ids:
    """Item i is the ids of the records `first` + i * _CHUNK on."""

    source: Source
    first: int
    end: int

    def __len__(self) -> int:
        return -(-(self.end - self.first) // _CHUNK)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        first = self.first + index * _CHUNK
        records = self.source.fetch(range(first, min(first + _CHUNK, self.end)))
        return {"ids": np.array([record_id(self.source.decode(each)) for each in records], np.uint64)}


def raw_records(source: Source) -> Source:
    """The source of the records before the transforms that are inside of it, by the same index. What holds transformed
    examples in memory or on disk is passed by, so that the records are not held there too.
    """
    if not any(True for _ in find(source, Mapped)):
        return source
    if isinstance(source, Mapped | InMemory | Stored):
        return raw_records(source.source)
    if isinstance(source, Wrapper) and type(source).raw is Wrapper.raw:
        return replace(source, source=raw_records(source.source))
    if type(source) is Mixture:
        return replace(source, sources=tuple(map(raw_records, source.sources)))
    return source
