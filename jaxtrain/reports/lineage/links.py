"""Links a thing to what it was made from, though folders may have been moved: by path, then by name and content.

Not here: finding and reading the things, and drawing.
"""

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jaxtrain.base.errors import ConfigError, Damaged, Retry
from jaxtrain.datasets.source import home
from jaxtrain.reports.find import sweep_of
from jaxtrain.reports.lineage.things import Data, Searched, Thing, read_thing, thing_kind

LARGEST_CHECKPOINT = 1 << 30
"""A checkpoint of more bytes is not read to find out whether a run began with it."""

MOST_STEPS = 16
"""Checkpoints of one run that are compared with what another began with, the newest first."""


@dataclass(frozen=True)
class MadeFrom:
    """What something was made from, as far as it was found."""

    thing: Thing | None
    """None where it is not there any more, and is no folder of ours."""
    recorded: str
    """The path, or the name and version, that was recorded."""
    step: int | None = None
    """Of a run, the checkpoint."""
    notes: tuple[str, ...] = ()
    """Where it is, if it is not where it was, and what is not certain; a clause each."""


@dataclass
class Links:
    """The links of things to what they were made from, among all that was found."""

    found: Searched
    _read: dict[Path, Thing | None] = field(default_factory=dict)
    _parents: dict[Path, MadeFrom | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._read = {thing.folder: thing for thing in self.found.things}

    def at(self, folder: Path) -> Thing | None:
        """The thing in a folder; None for none that can be read."""
        try:
            folder = Path(os.path.realpath(folder))
        except (OSError, ValueError):  # a NUL in what was recorded
            return None
        if folder not in self._read:
            try:
                kind = thing_kind(iter(os.listdir(folder)))
            except OSError:
                kind = None
            self._read[folder] = None if kind is None else read_thing(folder, kind)
        thing = self._read[folder]
        return None if thing is None or thing.wrong else thing

    def _run_at(self, folder: Path) -> Thing | None:
        thing = self.at(folder)
        return thing if thing is not None and thing.kind == "run" else None

    def parent(self, run: Thing) -> MadeFrom | None:
        """The run, or the file of weights, whose parameters a run began with; None where they were random."""
        if not run.start:
            return None
        if run.folder not in self._parents:
            self._parents[run.folder] = self._parent(run)
        return self._parents[run.folder]

    def _parent(self, run: Thing) -> MadeFrom:
        recorded = str(run.start["source"])
        identity = run.start.get("identity")
        asked = run.start.get("step")
        unproven: list[tuple[Thing, str]] = []
        for path in _places(recorded, run):
            if (thing := self._run_at(path)) is not None and thing.folder != run.folder:
                step, why = matching_step(thing.folder, asked, identity)
                if step is not None:
                    return MadeFrom(thing, recorded, step)
                unproven.append((thing, why))
            elif os.path.isfile(path) or os.path.isfile(path / "config.json"):
                return MadeFrom(None, recorded, notes=(f"weights in {path}",))
        name, absolute = Path(recorded).name, {str(path) for path in _places(recorded, run)}
        for thing in self.found.of("run"):
            if thing.folder == run.folder or any(thing is other for other, _ in unproven):
                continue
            if thing.recorded not in absolute and thing.folder.name != name:
                continue
            step, why = matching_step(thing.folder, asked, identity)
            if step is not None:
                return MadeFrom(thing, recorded, step, (f"moved: recorded as {recorded}",))
            if thing.recorded in absolute and not unproven:
                unproven.append((thing, f"moved: recorded as {recorded}; {why}"))
        if unproven:
            return MadeFrom(unproven[0][0], recorded, notes=(unproven[0][1],))
        return MadeFrom(None, recorded, notes=("no longer there",))

    def run_of(self, bundle: Thing) -> MadeFrom:
        """The run that a bundle was made of: the one with its fingerprint in the recorded folder, else one of that
        fingerprint which was recorded there, or has that folder's name.
        """
        there = self._run_at(Path(bundle.recorded)) if bundle.recorded else None
        if there is not None and there.fingerprint == bundle.fingerprint:
            return MadeFrom(there, bundle.recorded, bundle.step)
        gone = "another run is there now" if there else "no longer there"
        same = [thing for thing in self.found.of("run") if thing.fingerprint == bundle.fingerprint]
        named = [thing for thing in same if thing.recorded == bundle.recorded]
        named += [thing for thing in same if thing.folder.name == Path(bundle.recorded).name and thing not in named]
        if not named:
            others = tuple(f"{thing.folder} is a run of the same experiment" for thing in same[:3])
            return MadeFrom(None, bundle.recorded, bundle.step, (gone, *others))
        notes = [f"moved: recorded as {bundle.recorded}", *([gone] if there else [])]
        notes += [f"{thing.folder} has the same name and fingerprint" for thing in named[1:3]]
        return MadeFrom(named[0], bundle.recorded, bundle.step, tuple(notes))

    def dataset(self, data: Data) -> MadeFrom:
        """The folder of a built dataset that a run read, with a note where it is gone or holds other records now."""
        recorded = f"{data.name} {data.version}"
        if not data.version:
            return MadeFrom(None, data.name)
        usual = (Path(data.folder) if data.folder else home()) / data.name / data.version
        there = self.at(usual)
        if there is not None and there.kind == "dataset" and is_same_data(there.data[0], data):
            return MadeFrom(there, recorded)
        moved = [thing for thing in self.found.of("dataset") if is_same_data(thing.data[0], data)]
        if moved:
            return MadeFrom(moved[0], recorded, notes=(f"moved: recorded in {usual}",))
        if there is not None and there.kind == "dataset":
            return MadeFrom(there, recorded, notes=("its records are others than those that were read",))
        return MadeFrom(None, recorded, notes=(f"no longer in {usual}",))

    def sweep(self, run: Thing) -> Thing | None:
        """The sweep that a run is a trial of."""
        folder = sweep_of(run.folder)
        thing = self.at(Path(folder)) if folder else None
        return thing if thing is not None and thing.kind == "sweep" else None


def is_same_data(one: Data, other: Data) -> bool:
    """Whether two datasets have the same name and version, and the same records in the splits that both name."""
    shared = one.hashes.keys() & other.hashes.keys()
    same = all(one.hashes[split] == other.hashes[split] for split in shared)
    return (one.name, one.version) == (other.name, other.version) and bool(shared) and same


def _places(recorded: str, run: Thing) -> Iterator[Path]:
    """Where a recorded path may lead: a relative one counts from the folder in which training was started, which is
    above the run's folder, now or when it was trained, or is the current one.
    """
    if os.path.isabs(recorded):
        yield Path(recorded)
        return
    bases = [Path.cwd(), *run.folder.parents, *(Path(run.recorded).parents if run.recorded else [])]
    for base in dict.fromkeys(bases):
        yield Path(os.path.normpath(base / recorded))


def matching_step(folder: Path, asked: object, identity: object) -> tuple[int | None, str]:
    """The step whose checkpoint has the content that another run began with (its `start.identity`), else None and why
    that is not known.
    """
    if not isinstance(identity, str):
        return None, "what it began with was not recorded"
    from jaxtrain.experiment.saved import saved_steps

    try:
        steps = [asked] if type(asked) is int else saved_steps(folder / "checkpoints")[::-1]
    except (ConfigError, Retry) as error:
        return None, str(error)
    large = False
    for step in steps[:MOST_STEPS]:
        checkpoint = folder / "checkpoints" / str(step)
        if _bytes(checkpoint) > LARGEST_CHECKPOINT:
            large = True
        elif _identity(str(folder), step) == identity:
            return step, ""
    if large:
        return None, "by its path: its checkpoints are too large to be compared here"
    return None, "by its path: none of its checkpoints is the one that was begun with, which may have been deleted"


@functools.lru_cache(maxsize=4096)
def _identity(folder: str, step: int) -> str:
    from jaxtrain.experiment.start import Start

    try:
        return Start(folder, step=step).identity()
    except (ConfigError, Damaged, OSError):
        return ""


def _bytes(folder: Path) -> int:
    """The bytes of all files in a folder."""
    return sum(_size(Path(parent, name)) for parent, _, names in os.walk(folder) for name in names)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
