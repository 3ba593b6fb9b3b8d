"""Building a dataset: transform, split, filter, write, and document it by a card."""

import contextlib
import datetime
import shutil
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jaxtrain.base.config import difference, flatten, to_json
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.files import atomic_folder, remove_unfinished
from jaxtrain.data.sources.base import Example
from jaxtrain.data.sources.combine import Mapped
from jaxtrain.data.sources.stored import Stored
from jaxtrain.datasets.card import Card, DataFile, Split, Tally, content_hash, order_hash, record_hash
from jaxtrain.datasets.filters.base import Filter, Finding, Record
from jaxtrain.datasets.filters.near import near_pairs
from jaxtrain.datasets.formats import Format
from jaxtrain.datasets.schema import Schema
from jaxtrain.datasets.source import home
from jaxtrain.datasets.spec import Dataset

Log = Callable[[str], None]

SAMPLES = 5
"""The card shows this many of the records that a filter drops."""

_READ_TOGETHER = 256  # records

_SHOWN = 200  # characters of a field in a sample


class _Remaining(Collection[Record]):
    """The raw records that no filter has dropped yet: read at every pass, transformed once, into `folder`."""

    def __init__(self, spec: Dataset, folder: Path) -> None:
        self.source = spec.records
        if spec.transforms:
            self.source = Stored(Mapped(spec.records, spec.transforms), str(folder)).records
        every = self._read(range(len(self.source)))
        self.splits = {index: spec.splits.split(example) for index, example in every}

    def __len__(self) -> int:
        return len(self.splits)

    def __iter__(self) -> Iterator[Record]:
        return (Record(index, self.splits[index], example) for index, example in self._read(list(self.splits)))

    def __contains__(self, record: object) -> bool:
        return isinstance(record, Record) and record.index in self.splits

    def of(self, split: str) -> Iterator[Example]:
        return (example for _, example in self._read([i for i, where in self.splits.items() if where == split]))

    def _read(self, indices: Sequence[int]) -> Iterator[tuple[int, Example]]:
        """Several at a time, which some sources read much faster."""
        for start in range(0, len(indices), _READ_TOGETHER):
            some = indices[start : start + _READ_TOGETHER]
            yield from zip(some, map(self.source.decode, self.source.fetch(some)), strict=True)

    def apply(self, one: Filter, log: Log) -> Tally:
        """Drop the records that a filter finds."""
        seen, found = len(self), one.findings(self)
        samples = tuple(self._sample(index, finding) for index, finding in list(found.items())[:SAMPLES])
        for index in found:
            del self.splits[index]
        log(f"{type(one).__name__}: {len(found):,} of {seen:,} dropped")
        parameters = {f.name: to_json(getattr(one, f.name)) for f in fields(one)}
        return Tally(type(one).__name__, parameters, seen, len(found), samples)

    def _sample(self, index: int, finding: Finding) -> dict[str, Any]:
        shown = {name: str(value)[:_SHOWN] for name, value in self.source[index].items()}
        return {"index": index, "why": finding.why, "other": finding.other, "record": shown}


def build(
    spec: Dataset, where: Path | None = None, revision: str | None = None, log: Log = lambda progress: None
) -> Path:
    """Build a dataset into `where`/name/version (`home()` by default) unless it is there; returns that folder.

    The folder takes its name only when it is complete; the next build removes what an interrupted one left. `revision`
    is the git revision to write into the card; `log` is called with a line for each thing that is done. Raises
    ConfigError where the version exists and was built from another value, where another process builds the dataset,
    where a split ends up empty, and where the disk is full.
    """
    parent = (where or home()) / spec.name
    final = parent / spec.version
    made = to_json(flatten(spec))
    try:
        with _alone(parent):
            if final.exists():
                _require_same(final, made)
                return final
            remove_unfinished(final)
            with atomic_folder(final) as unfinished:
                _write_dataset(spec, unfinished, made, revision, log)
    except OSError as error:
        raise ConfigError(f"the dataset {final} cannot be built: {error}") from error
    return final


def _write_dataset(spec: Dataset, folder: Path, made: Mapping[str, Any], revision: str | None, log: Log) -> None:
    remaining = _Remaining(spec, folder / ".transformed")
    raw = len(remaining)
    log(f"{raw:,} raw records")
    tallies = tuple(remaining.apply(one, log) for one in spec.filters)
    names = list(spec.splits.parts)
    spec.format.prepare(folder, remaining.of(names[0]))
    splits = {name: _write_split(spec.format, folder, name, remaining.of(name), log) for name in names}
    near = _count_near(spec, remaining)
    shutil.rmtree(folder / ".transformed", ignore_errors=True)
    known = {one.path for split in splits.values() for one in split.files}
    others = tuple(DataFile.of(folder, path, 0) for path in sorted(folder.iterdir()) if path.name not in known)
    card = Card(
        **{name: getattr(spec, name) for name in ("name", "version", "description", "origin", "licence")},
        **{name: getattr(spec, name) for name in ("access", "retention", "label")},
        built=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        revision=revision,
        made=made,
        rule=str(spec.splits),
        by=spec.splits.by,
        format=to_json(spec.format),
        raw=raw,
        filters=tallies,
        near=near,
        splits=splits,
        other_files=others,
    )
    from jaxtrain.datasets.report import write_croissant, write_html

    write_html(card, folder)
    write_croissant(card, folder)
    card.write(folder)


def _write_split(storage: Format, folder: Path, name: str, examples: Iterable[Example], log: Log) -> Split:
    paths = storage.write(folder, name, examples)
    if not paths:
        raise ConfigError(f"split {name!r} would be empty: there are too few records, or the filters drop them all")
    # Everything that the card holds about the records is read back from the files.
    written = storage.records(tuple(map(str, paths)))
    counts = [len(storage.records((str(path),))) for path in paths]
    hashes: list[int] = []

    def examples_read() -> Iterator[Example]:
        for index in range(len(written)):
            hashes.append(record_hash(example := written[index]))
            yield example

    schema = Schema.of(examples_read())
    files = tuple(DataFile.of(folder, path, count) for path, count in zip(paths, counts, strict=True))
    log(f"{name}: {len(written):,} records")
    return Split(len(written), content_hash(hashes), order_hash(hashes), files, schema)


def _count_near(spec: Dataset, remaining: _Remaining) -> dict[str, int] | None:
    """Near-duplicate pairs within and across splits, by the first of the fields to split by that holds text."""
    first = next(iter(remaining)).example
    texts = [name for name in spec.splits.by if isinstance(first[name], str)]
    if not texts:
        return None
    names = list(spec.splits.parts)
    found = {
        ", ".join(pair): 0 for i, one in enumerate(names) for pair in [(one,), *((one, b) for b in names[i + 1 :])]
    }
    for one, other, _ in near_pairs(remaining, texts[0]):
        pair = sorted({remaining.splits[one], remaining.splits[other]}, key=names.index)
        found[", ".join(pair)] += 1
    return found


def _require_same(final: Path, made: Mapping[str, Any]) -> None:
    before = Card.read(final).made
    if before != made:
        raise ConfigError(
            f"{final} was built from another value: give the changed dataset another version. "
            "What differs (there → now):\n" + difference(before, made)
        )


@contextlib.contextmanager
def _alone(parent: Path) -> Generator[None, None, None]:
    """A lock on a dataset's folder, released when the process ends."""
    import fcntl  # not on Windows, where datasets can be read

    parent.mkdir(parents=True, exist_ok=True)
    with (parent / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another process is building into {parent}") from error
        yield
