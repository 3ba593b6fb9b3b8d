"""Building a dataset: clean, split, write, document."""

import contextlib
import datetime
import shutil
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jaxtrain.base.config import difference, flatten, to_json
from jaxtrain.base.errors import ConfigError
from jaxtrain.data.sources.base import Example
from jaxtrain.data.sources.combine import Mapped
from jaxtrain.data.sources.stored import Stored
from jaxtrain.datasets.card import Card, Split, Tally, content, digest, order, part
from jaxtrain.datasets.filters.base import Filter, Finding, Record
from jaxtrain.datasets.filters.near import near_pairs
from jaxtrain.datasets.formats import Format
from jaxtrain.datasets.schema import Schema
from jaxtrain.datasets.source import home
from jaxtrain.datasets.spec import Dataset

SAMPLES = 5


_AT_ONCE = 256


_SHOWN = 200


class _Surviving(Collection[Record]):
    """The raw records that no filter has dropped yet, read anew at every pass; transformed once, into `folder`."""

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
        """Many at once, which some sources read much faster."""
        for start in range(0, len(indices), _AT_ONCE):
            some = indices[start : start + _AT_ONCE]
            yield from zip(some, map(self.source.decode, self.source.fetch(some)), strict=True)

    def apply(self, one: Filter, say: Callable[[str], None]) -> Tally:
        """Drop what a filter finds."""
        seen, found = len(self), one.findings(self)
        samples = tuple(self._sample(index, finding) for index, finding in list(found.items())[:SAMPLES])
        for index in found:
            del self.splits[index]
        say(f"{type(one).__name__}: {len(found):,} of {seen:,} dropped")
        parameters = {f.name: to_json(getattr(one, f.name)) for f in fields(one)}
        return Tally(type(one).__name__, parameters, seen, len(found), samples)

    def _sample(self, index: int, finding: Finding) -> dict[str, Any]:
        shown = {name: str(value)[:_SHOWN] for name, value in self.source[index].items()}
        return {"index": index, "why": finding.why, "other": finding.other, "record": shown}


def build(
    spec: Dataset,
    where: Path | None = None,
    revision: str | None = None,
    say: Callable[[str], None] = lambda progress: None,
) -> Path:
    """Build a data set into `where`/name/version (`home()` by default) unless it is there; returns that folder.

    The folder takes its name only when it is complete; what an interrupted build left is removed by the next.
    `revision` is the git revision to write into the card; `say` is told what was done. Raises ConfigError where the
    version exists and was made otherwise, another process builds the data set, a split ends up empty, or the disk is
    full.
    """
    parent = (where or home()) / spec.name
    final = parent / spec.version
    made = to_json(flatten(spec))
    try:
        with _alone(parent):
            if final.exists():
                _same(final, made)
                return final
            unfinished = parent / f".{spec.version}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            try:
                _write(spec, unfinished, made, revision, say)
                unfinished.rename(final)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"the data set {final} cannot be built: {error}") from error
    return final


def _write(
    spec: Dataset, folder: Path, made: Mapping[str, Any], revision: str | None, say: Callable[[str], None]
) -> None:
    surviving = _Surviving(spec, folder / ".transformed")
    raw = len(surviving)
    say(f"{raw:,} raw records")
    tallies = tuple(surviving.apply(one, say) for one in spec.filters)
    names = list(spec.splits.parts)
    spec.form.prepare(folder, surviving.of(names[0]))
    splits = {name: _write_split(spec.form, folder, name, surviving.of(name), say) for name in names}
    near = _near(spec, surviving)
    shutil.rmtree(folder / ".transformed", ignore_errors=True)
    known = {one.path for split in splits.values() for one in split.files}
    beside = tuple(part(folder, path, 0) for path in sorted(folder.iterdir()) if path.name not in known)
    card = Card(
        **{name: getattr(spec, name) for name in ("name", "version", "description", "origin", "licence")},
        **{name: getattr(spec, name) for name in ("access", "retention", "label")},
        built=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        revision=revision,
        made=made,
        rule=str(spec.splits),
        by=spec.splits.by,
        form=to_json(spec.form),
        raw=raw,
        filters=tallies,
        near=near,
        splits=splits,
        beside=beside,
    )
    from jaxtrain.datasets.report import write_croissant, write_html

    write_html(card, folder)
    write_croissant(card, folder)
    card.write(folder)


def _write_split(
    form: Format, folder: Path, name: str, examples: Iterable[Example], say: Callable[[str], None]
) -> Split:
    paths = form.write(folder, name, examples)
    if not paths:
        raise ConfigError(f"split {name!r} would be empty: there are too few records, or the filters drop them all")
    # Everything that the card says of the records is read back from the files.
    written = form.records(tuple(map(str, paths)))
    counts = [len(form.records((str(path),))) for path in paths]
    digests: list[int] = []

    def examples_read() -> Iterator[Example]:
        for index in range(len(written)):
            digests.append(digest(example := written[index]))
            yield example

    schema = Schema.of(examples_read())
    files = tuple(part(folder, path, count) for path, count in zip(paths, counts, strict=True))
    say(f"{name}: {len(written):,} records")
    return Split(len(written), content(digests), order(digests), files, schema)


def _near(spec: Dataset, surviving: _Surviving) -> dict[str, int] | None:
    """Near-duplicate pairs within and across splits, by the first field to split by that holds text."""
    first = next(iter(surviving)).example
    texts = [name for name in spec.splits.by if isinstance(first[name], str)]
    if not texts:
        return None
    names = list(spec.splits.parts)
    found = {
        ", ".join(pair): 0 for i, one in enumerate(names) for pair in [(one,), *((one, b) for b in names[i + 1 :])]
    }
    for one, other, _ in near_pairs(surviving, texts[0]):
        pair = sorted({surviving.splits[one], surviving.splits[other]}, key=names.index)
        found[", ".join(pair)] += 1
    return found


def _same(final: Path, made: Mapping[str, Any]) -> None:
    before = Card.read(final).made
    if before != made:
        raise ConfigError(
            f"{final} was made otherwise; give what is new another version. What differs (there → now):\n"
            + difference(before, made)
        )


@contextlib.contextmanager
def _alone(parent: Path) -> Generator[None, None, None]:
    """One process at a time; a process that dies lets go."""
    import fcntl  # which Windows has not; reading needs none of this

    parent.mkdir(parents=True, exist_ok=True)
    with (parent / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another process is building into {parent}") from error
        yield
