"""A source's examples, written to records on disk when first read."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from jaxtrain.base.cache import cache
from jaxtrain.base.files import atomic_folder, digest
from jaxtrain.data.sources.array_record import ArrayRecord, write_array_record
from jaxtrain.data.sources.base import Example, Source
from jaxtrain.data.sources.combine import Wrapper
from jaxtrain.data.sources.paths import PATH, make_absolute

_RECORDS = 10_000  # a file: reading one record costs more the more there are


@dataclass(frozen=True)
class Stored(Wrapper):
    """Another source's examples, written to ArrayRecord files when first read, and from then on read from disk.

    The files are in a folder named by the other source's identity under `folder` (by default the user's cache), which
    takes its name only when all are complete.
    """

    folder: str | None = field(default=None, metadata=PATH)

    def __post_init__(self) -> None:
        make_absolute(self, "folder")

    def __len__(self) -> int:
        return len(self.records)

    def fetch(self, indices: Sequence[int]) -> list[Any]:
        return self.records.fetch(indices)

    def decode(self, stored: Any) -> Example:
        return self.records.decode(stored)

    @cached_property
    def records(self) -> ArrayRecord:
        """The files; the first use writes all of them."""
        return _stored(self.source, Path(self.folder) if self.folder else cache("data"))


@lru_cache(maxsize=64)
def _stored(source: Source, folder: Path) -> ArrayRecord:
    final = folder / digest(source.identity(), length=16)
    if not final.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_folder(final) as unfinished:
                for part, start in enumerate(range(0, len(source), _RECORDS)):
                    rows = range(start, min(start + _RECORDS, len(source)))
                    write_array_record(unfinished / f"{part:05}.arrayrecord", (source[row] for row in rows))
        except OSError:
            if not final.is_dir():  # else another process was quicker, with the same files
                raise
    return ArrayRecord(tuple(str(path) for path in sorted(final.glob("*.arrayrecord"))))
