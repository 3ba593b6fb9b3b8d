"""A source's examples, written to records on disk when first read."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from jaxtrain.base.cache import cache
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.files import atomic_folder, digest
from jaxtrain.data.sources.array_record import ArrayRecord, write_array_record
from jaxtrain.data.sources.base import Example, Source
from jaxtrain.data.sources.combine import Wrapper
from jaxtrain.data.sources.paths import PATH, is_of_a_run_folder, make_absolute

_RECORDS = 10_000  # in a file: the time to read a record grows with their number


@dataclass(frozen=True)
class Stored(Wrapper):
    """Another source's examples, written to ArrayRecord files when first read, and from then on read from disk.

    The files are in a folder below `folder` (by default the user's cache), named by the other source's identity and
    renamed to that when all files are complete. Progress is printed on stderr. A value that was loaded from a run
    folder writes nothing, since whoever wrote that folder would choose where.
    """

    folder: str | None = field(default=None, metadata=PATH)

    def __post_init__(self) -> None:
        make_absolute(self, "folder")
        object.__setattr__(self, "_may_write", not is_of_a_run_folder())

    def __len__(self) -> int:
        return len(self.records)

    def fetch(self, indices: Sequence[int]) -> list[Any]:
        return self.records.fetch(indices)

    def decode(self, stored: Any) -> Example:
        return self.records.decode(stored)

    def where(self, index: int) -> str:
        return self.records.where(index)

    def warn_shuffled(self) -> None:
        """Nothing: records are read by index."""

    @cached_property
    def records(self) -> ArrayRecord:
        """The ArrayRecord files. The first use writes them, unless this source was loaded from a run folder."""
        folder = Path(self.folder) if self.folder else cache("data")
        return _stored(self.source, folder, getattr(self, "_may_write", True))


@lru_cache(maxsize=64)
def _stored(source: Source, folder: Path, may_write: bool) -> ArrayRecord:
    final = folder / digest(source.identity(), length=16)
    if not final.is_dir() and not may_write:
        raise ConfigError(
            f"Stored: {final} is not there, and nothing is written because a run's folder says so: give the data by "
            "an experiment's file, with --data FILE[:FUNCTION]"
        )
    if not final.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"Stored: writing {len(source):,} examples to {final}, once", file=sys.stderr)
        try:
            with atomic_folder(final) as unfinished:
                for part, start in enumerate(range(0, len(source), _RECORDS)):
                    rows = range(start, min(start + _RECORDS, len(source)))
                    write_array_record(unfinished / f"{part:05}.arrayrecord", (source[row] for row in rows))
                    _print_progress(rows.stop, len(rows), len(source))
        except OSError:
            if not final.is_dir():  # else another process has just written the same files
                raise
    return ArrayRecord(tuple(str(path) for path in sorted(final.glob("*.arrayrecord"))))


def _print_progress(done: int, new: int, total: int) -> None:
    """Print a line for each tenth of the total."""
    if 10 * done // total > 10 * (done - new) // total:
        print(f"Stored: {done:,} of {total:,} examples", file=sys.stderr)
