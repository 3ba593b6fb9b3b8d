"""The tree of what a thing was made from, and the tree of what was made from it.

Not here: how the links are found (`links`), and drawing (`text`).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jaxtrain.base.errors import ConfigError
from jaxtrain.reports.lineage.links import Links, MadeFrom, is_same_data
from jaxtrain.reports.lineage.things import Data, Searched, Thing, find_things, thing_at
from jaxtrain.reports.status import read_status

DEEPEST_CHAIN = 40
"""Generations that are followed in each direction."""


@dataclass(frozen=True)
class Node:
    """A thing in the tree, and what leads on from it."""

    kind: str
    """`run`, `bundle`, `dataset`, `sweep`; `data` and `weights` for other sources; `missing`."""
    name: str
    """Of a run its folder's name; of a dataset name and version; of a bundle model and version; else as recorded."""
    folder: str
    """"" where it has none, or is not found."""
    about: str
    """What it is, in words."""
    relation: str = ""
    """What links it to the node above it, such as `began with step 8 of`; "" for the first."""
    notes: tuple[str, ...] = ()
    """What is not certain, or has changed since it was recorded; a clause each."""
    nodes: tuple["Node", ...] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)
    """Of a dataset, those of the records of each split."""


@dataclass(frozen=True)
class Lineage:
    """The lineage of a thing."""

    thing: Node
    made_from: tuple[Node, ...]
    led_to: tuple[Node, ...]
    searched: tuple[str, ...]
    """The folders that were searched for what it led to, and for what was moved."""
    wrong: tuple[str, ...]
    """What could not be read in them."""

    def as_facts(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def trace_lineage(path: Path, within: Sequence[Path] = ()) -> Lineage:
    """The lineage of the run, built dataset, bundle or sweep in a folder, which nothing is written into.

    within: the folders that are searched for what was made from it, and for what was moved; by default the folder that
        it is in, and `runs` and `bundles` in the current folder.

    Raises ConfigError where `path` is none of these or damaged, and where a folder of `within` does not exist.
    """
    thing = thing_at(path)
    for place in within:
        if not place.is_dir():
            raise ConfigError(f"--within {place}: there is no such folder")
    places = [*(within or _usual_places(thing)), *([thing.folder] if thing.kind == "sweep" else [])]
    found = find_things(places)
    tree = _Tree(Links(found))
    searched = tuple(dict.fromkeys(os.path.realpath(place) for place in places))
    return Lineage(tree.node(thing), tree.above(thing), tree.below(thing), searched, found.wrong)


def _usual_places(thing: Thing) -> list[Path]:
    """The folder that a thing is in, without the parts of its path that belong to it, and those of this project."""
    up = {"run": 1, "sweep": 1, "dataset": 2, "bundle": 2}[thing.kind]
    beside = thing.folder.parents[min(up, len(thing.folder.parents)) - 1]
    places = [beside, *(Path(name) for name in ("runs", "bundles"))]
    return [place for place in places if place.is_dir() and place != Path(place.anchor)]


class _Tree:
    def __init__(self, links: Links) -> None:
        self._links, self._shown = links, set[Path]()

    @property
    def _found(self) -> Searched:
        return self._links.found

    def node(self, thing: Thing, relation: str = "", notes: tuple[str, ...] = (), nodes: tuple[Node, ...] = ()) -> Node:
        """A thing without what leads on from it."""
        hashes = thing.data[0].hashes if thing.kind == "dataset" else {}
        return Node(thing.kind, _name(thing), str(thing.folder), _about(thing), relation, notes, nodes, hashes)

    def above(self, thing: Thing, path: tuple[Path, ...] = ()) -> tuple[Node, ...]:
        """What a thing was made from. path: the folders of the nodes above it in the tree."""
        path = (*path, thing.folder)
        if thing.kind == "bundle":
            source = self._links.run_of(thing)
            relation = f"made of step {thing.step} of"
            if source.thing is not None:
                return (self._source(source, relation, path),)
            return (self._source(source, relation, path), *(self._data(data, path) for data in thing.data))
        if thing.kind == "dataset":
            return tuple(self._data(data, path) for data in thing.data[1:])
        if thing.kind == "sweep":
            read = [data for run in self._trials(thing) for data in run.data]
            return tuple(self._data(data, path) for data in {repr(data): data for data in read}.values())
        nodes = [self._data(data, path) for data in thing.data]
        if (parent := self._links.parent(thing)) is not None:
            step = "" if parent.step is None else f"step {parent.step} of "
            nodes.append(self._source(parent, f"began with {step or 'the parameters of '}".rstrip(), path))
        if (sweep := self._links.sweep(thing)) is not None:
            nodes.append(self.node(sweep, "trial of"))
        return tuple(nodes)

    def _source(self, source: MadeFrom, relation: str, path: tuple[Path, ...]) -> Node:
        if source.thing is None:
            kind = "weights" if any(note.startswith("weights in") for note in source.notes) else "missing"
            return Node(kind, source.recorded, "", "", relation, source.notes)
        notes = source.notes
        if source.thing.folder in path:
            return self.node(source.thing, relation, (*notes, "a circle: it is above"))
        if len(path) >= DEEPEST_CHAIN:
            return self.node(source.thing, relation, (*notes, "not followed further"))
        return self.node(source.thing, relation, notes, self.above(source.thing, path))

    def _trials(self, sweep: Thing) -> list[Thing]:
        trials = [run for run in self._found.of("run") if sweep.folder in run.folder.parents]
        return [run for run in trials if (above := self._links.sweep(run)) and above.folder == sweep.folder]

    def _data(self, data: Data, path: tuple[Path, ...]) -> Node:
        used = ", ".join(data.used)
        relation = f"read as {used}:" if used else "read"
        if not data.version:
            return Node("data", data.name, "", data.hashes[""], relation)
        source, about = self._links.dataset(data), _hashes(data)
        if source.thing is None:
            return Node("missing", source.recorded, "", about, relation, source.notes, hashes=data.hashes)
        found, notes = source.thing, source.notes
        if found.folder in path or len(path) >= DEEPEST_CHAIN:
            nodes, notes = (), (*notes, "not followed further")
        else:
            nodes = self.above(found, path)
        return Node("dataset", source.recorded, str(found.folder), about, relation, notes, nodes, data.hashes)

    def below(self, thing: Thing, depth: int = 0) -> tuple[Node, ...]:
        """What was made from a thing."""
        self._shown.add(thing.folder)
        if thing.kind == "dataset":
            return tuple(self._readers(thing, depth))
        if thing.kind == "sweep":
            return tuple(self._next(run, "its trial", depth) for run in self._trials(thing))
        if thing.kind != "run":
            return ()
        nodes = []
        for bundle in self._found.of("bundle"):
            source = self._links.run_of(bundle)
            if source.thing is not None and source.thing.folder == thing.folder:
                nodes.append(self._next(bundle, f"its step {bundle.step} became", depth, source.notes))
        for run in self._found.of("run"):
            source = self._links.parent(run)
            if source is not None and source.thing is not None and source.thing.folder == thing.folder:
                step = "it" if source.step is None else f"its step {source.step}"
                nodes.append(self._next(run, f"{step} began", depth, source.notes))
        return tuple(nodes)

    def _readers(self, dataset: Thing, depth: int) -> list[Node]:
        """The runs that read a dataset, the bundles of runs that are gone, and the datasets that were built from it."""
        own, nodes = dataset.data[0], []
        things = [*self._found.of("run"), *self._found.of("bundle"), *self._found.of("dataset")]
        for thing in things:
            for data in thing.data[1:] if thing.kind == "dataset" else thing.data:
                if (data.name, data.version) != (own.name, own.version) or thing.folder == dataset.folder:
                    continue
                if thing.kind == "bundle" and self._links.run_of(thing).thing is not None:
                    continue
                notes = () if is_same_data(own, data) else ("it read other records of this name and version",)
                nodes.append(self._next(thing, f"read as {', '.join(data.used)} by", depth, notes))
        return nodes

    def _next(self, thing: Thing, relation: str, depth: int, notes: tuple[str, ...] = ()) -> Node:
        if thing.folder in self._shown:
            return self.node(thing, relation, (*notes, "shown elsewhere in this tree"))
        if depth + 1 >= DEEPEST_CHAIN:
            return self.node(thing, relation, (*notes, "not followed further"))
        return self.node(thing, relation, notes, self.below(thing, depth + 1))


def _name(thing: Thing) -> str:
    if thing.kind == "bundle":
        return f"{thing.name} {thing.folder.name}"
    return thing.name if thing.kind == "dataset" else thing.folder.name


def _about(thing: Thing) -> str:
    """A line about a thing, of its own files."""
    if thing.kind == "run":
        status = read_status(thing.folder, saved=thing.saved)
        done = f"{status.state} at step {status.step:,} of {status.of:,}" if status.of else status.state
        return ", ".join(part for part in (thing.name, done, f"fingerprint {thing.fingerprint}") if part)
    if thing.kind == "bundle":
        return f"of step {thing.step}, fingerprint {thing.fingerprint}"
    if thing.kind == "dataset":
        return _hashes(thing.data[0])
    metric = thing.saved.get("metric")
    return f"{thing.name}, judged by {metric}" if isinstance(metric, str) else thing.name


def _hashes(data: Data) -> str:
    """The number of records and the begin of the hash of each split."""
    parts = {split: content.partition(":") for split, content in data.hashes.items()}
    return ", ".join(f"{split} {count} records {content[:12]}" for split, (count, _, content) in parts.items())
