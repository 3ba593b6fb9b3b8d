"""Finds and reads what a lineage is made of: runs, bundles, built datasets and sweeps, in untrusted folders.

Imports no jax. Not here: how they are linked (`links`), and how that is drawn (`tree`).
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.datasets.card import FILE as CARD_FILE
from jaxtrain.datasets.card import Card
from jaxtrain.deploy.manifest import MANIFEST_FILE, BundleManifest, is_bundle, version_folder
from jaxtrain.reports.find import DEEPEST, LARGEST_RUN_FILE, experiment_name, read_run_file
from jaxtrain.reports.tail import json_object, read_bounded

ThingKind = Literal["run", "bundle", "dataset", "sweep"]

MOST_FOLDERS = 50_000
"""Folders that one search looks into."""

_SIGNS: Mapping[str, ThingKind] = {
    MANIFEST_FILE: "bundle",  # before experiment.json, which a bundle holds too
    "experiment.json": "run",
    "sweep.json": "sweep",
    CARD_FILE: "dataset",
}


@dataclass(frozen=True)
class Data:
    """Data that a run recorded: a built dataset, or another source."""

    name: str
    """Of the dataset; of another source its class."""
    version: str
    """"" for another source."""
    hashes: Mapping[str, str]
    """Of a dataset: the hash of the decoded records of each split; of another source: {"": its identity}."""
    used: tuple[str, ...]
    """What reads it: the pipelines `data`, `evals.test`; `records` of a dataset."""
    folder: str | None = None
    """The folder of datasets where one was given."""


@dataclass(frozen=True)
class Thing:
    """A run, bundle, dataset or sweep, and what its own files say of its origin."""

    kind: ThingKind
    folder: Path
    """Absolute, without links."""
    name: str
    """Of a run and a sweep that of the experiment, which may be "" for a run; of a bundle that of the model."""
    wrong: str = ""
    """Why its files cannot be read, in words; the other fields are empty then."""
    fingerprint: str = ""
    """Of a run, and of the run that a bundle was made of."""
    recorded: str = ""
    """Of a run, the folder where it was last trained; of a bundle, the folder of its run."""
    step: int | None = None
    """Of a bundle."""
    start: Mapping[str, Any] = field(default_factory=dict)
    """Of a run that began with the parameters of another: source, step and identity."""
    data: tuple[Data, ...] = ()
    """Of a run; of a bundle, those of its run; of a dataset, itself and then what it was built from."""
    saved: Mapping[str, Any] = field(default_factory=dict)
    """The content of its file, where that is JSON."""


@dataclass(frozen=True)
class Searched:
    """What a search found."""

    things: tuple[Thing, ...]
    wrong: tuple[str, ...]
    """What could not be read or was left out, a sentence each."""

    def of(self, kind: ThingKind) -> Iterator[Thing]:
        """Those of one kind that could be read."""
        return (thing for thing in self.things if thing.kind == kind and not thing.wrong)


def thing_at(path: Path) -> Thing:
    """The run, bundle, dataset or sweep that a path names. Raises ConfigError where it names none, or a damaged one."""
    try:
        folder = Path(os.path.realpath(path))
        kind = thing_kind(name for name in os.listdir(folder))
        if kind is None and is_bundle(folder):
            folder, kind = version_folder(folder), "bundle"
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}: give an existing folder") from error
    if kind is None:
        raise ConfigError(
            f"{path} is no run, dataset, bundle or sweep: it has none of {', '.join(_SIGNS)}; to search a folder for "
            "what was made from something, name it by --within"
        )
    if (thing := read_thing(folder, kind)).wrong:
        raise ConfigError(f"{path}: this {kind} cannot be read: {thing.wrong}")
    return thing


def thing_kind(names: Iterator[str]) -> ThingKind | None:
    """What a folder is that holds entries of these names."""
    held = set(names)
    return next((kind for sign, kind in _SIGNS.items() if sign in held and _is_likely(kind, held)), None)


def _is_likely(kind: ThingKind, held: set[str]) -> bool:
    return kind != "bundle" or "signature.json" in held  # other programs have manifests too


def find_things(places: Sequence[Path], most: int = MOST_FOLDERS) -> Searched:
    """All below these folders, in order of their names; links are not followed, hidden folders left out, and nothing is
    searched inside of a run, bundle or dataset, or deeper than `DEEPEST` levels.
    """
    things: dict[Path, Thing] = {}
    wrong: list[str] = []
    waiting = [(Path(os.path.realpath(place)), 0) for place in reversed(places)]
    looked: set[Path] = set()
    while waiting:
        folder, depth = waiting.pop()
        if folder in looked:
            continue
        if len(looked) == most:
            wrong.append(f"only the first {most:,} folders were searched: name smaller ones by --within")
            break
        looked.add(folder)
        try:
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
            kind = thing_kind(entry.name for entry in entries)
            inner = [entry.name for entry in entries if _is_searched(entry)]
        except OSError as error:
            wrong.append(f"{folder} was not searched: {error.strerror or error}")
            continue
        if kind is not None:
            things[folder] = thing = read_thing(folder, kind)
            if thing.wrong:
                wrong.append(f"{folder}: this {kind} cannot be read: {thing.wrong}")
        if kind in (None, "sweep") and depth < DEEPEST:
            waiting += [(folder / name, depth + 1) for name in reversed(inner)]
    return Searched(tuple(things[folder] for folder in sorted(things)), tuple(wrong))


def _is_searched(entry: os.DirEntry[str]) -> bool:
    try:
        return not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def read_thing(folder: Path, kind: ThingKind) -> Thing:
    """What the files of a folder say; nothing is raised for what they hold."""
    read = {"run": _run, "bundle": _bundle, "dataset": _dataset, "sweep": _sweep}[kind]
    try:
        return read(folder)
    except (OSError, ConfigError, Damaged, UnicodeError) as error:
        return Thing(kind, folder, folder.name, wrong=str(error))


def _run(folder: Path) -> Thing:
    saved = read_run_file(folder)
    if saved is None:
        raise ConfigError("experiment.json is no file")
    config = saved.get("config")
    config = config if isinstance(config, dict) else {}
    start = saved["experiment"].get("start")
    start = start if isinstance(start, dict) and isinstance(start.get("source"), str) else {}
    if start:
        start = {**start, "identity": config.get("start.identity")}
    return Thing(
        "run",
        folder,
        experiment_name(saved),
        fingerprint=_text(saved.get("fingerprint")),
        recorded=_text(saved.get("folder")),
        start=start,
        data=data_of(config, saved["experiment"]),
        saved=saved,
    )


def _bundle(folder: Path) -> Thing:
    manifest = BundleManifest.read(folder)
    lineage = manifest.lineage
    identities = lineage.get("data") if isinstance(lineage.get("data"), dict) else {}
    return Thing(
        "bundle",
        folder,
        manifest.name,
        fingerprint=_text(lineage.get("fingerprint")),
        recorded=_text(lineage.get("run")),
        step=lineage["step"],
        data=_merged(_datas_of_bundle(identities or {})),
    )


def _dataset(folder: Path) -> Thing:
    if read_bounded(folder / CARD_FILE, 0) is None:  # raises OSError for what is no file
        raise ConfigError(f"{CARD_FILE} is missing")
    card = Card.read(folder)
    hashes = {name: split.content for name, split in card.splits.items()}
    itself = Data(card.name, card.version, hashes, ())
    made = card.made
    return Thing("dataset", folder, f"{card.name} {card.version}", data=(itself, *data_of(made, made)))


def _sweep(folder: Path) -> Thing:
    content = read_bounded(folder / "sweep.json", LARGEST_RUN_FILE)
    saved = None if content is None else json_object(content[0])
    if saved is None:
        raise ConfigError("sweep.json is not JSON, or larger than 16 MiB")
    return Thing("sweep", folder, _text(saved.get("experiment")), saved=saved)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def data_of(config: Mapping[str, Any], experiment: Mapping[str, Any]) -> tuple[Data, ...]:
    """The data that a run recorded, by the config of its experiment.json and the experiment itself."""
    folders = _folders_of_datasets(experiment)
    found = []
    for path, identity in config.items():
        base, _, last = path.rpartition(".")
        if last != "identity" or not isinstance(identity, str) or not _IS_SOURCE.search(base):
            continue
        kind = _text(config.get(f"{base}.kind"))
        if kind != "Built" and any(other.startswith(f"{base}.source") for other in config):
            continue  # a mixture: those in it are named
        if kind != "Built":
            found.append(Data(kind, "", {"": identity}, (_pipeline(base),)))
            continue
        name, version, split = (_text(config.get(f"{base}.{part}")) for part in ("name", "version", "split"))
        content = identity.removeprefix(f"{name} {version} {split} ").partition(" ")[0]
        found.append(Data(name, version, {split: content}, (_pipeline(base),), folders.get((name, version))))
    return _merged(found)


_IS_SOURCE = re.compile(r"(^records|\.source|\.sources\.\d+)$")


def _pipeline(path: str) -> str:
    """The pipeline that a path of the config is in: `data`, `evals.test`."""
    parts = path.split(".")
    return ".".join(parts[: 2 if parts[0] == "evals" else 1])


def _datas_of_bundle(identities: Mapping[str, Any]) -> list[Data]:
    """The built datasets among the identities of data in a manifest, which has no classes of sources."""
    found = []
    for path, identity in identities.items():
        base = path.rpartition(".")[0]
        if isinstance(identity, str) and _IS_SOURCE.search(base) and (built := _BUILT.fullmatch(identity)):
            name, version, split, content = built.groups()
            found.append(Data(name, version, {split: content}, (_pipeline(base),)))
    return found


_BUILT = re.compile(r"(\S+) (\S+) (\S+) (\d+:[0-9a-f]{32}) [0-9a-f]{32} [0-9a-f]{16}")
"""The identity of a built dataset: name, version, split, and hashes of its records, their order and their format."""


def _merged(found: Sequence[Data]) -> tuple[Data, ...]:
    """One entry for the splits of a dataset, and for pipelines of the same source."""
    merged: dict[tuple[str, ...], Data] = {}
    for each in found:
        key = (each.name, each.version, "" if each.version else each.hashes[""])
        if (other := merged.get(key)) is None:
            merged[key] = each
            continue
        used = tuple(dict.fromkeys([*other.used, *each.used]))
        merged[key] = Data(each.name, each.version, {**other.hashes, **each.hashes}, used, each.folder or other.folder)
    return tuple(merged.values())


def _folders_of_datasets(value: Any) -> dict[tuple[str, str], str]:
    """The folder that an experiment names for each built dataset, by name and version."""
    found: dict[tuple[str, str], str] = {}
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            name, version, folder = one.get("name"), one.get("version"), one.get("folder")
            if one.get("$kind") == "Built" and isinstance(folder, str) and isinstance(name, str):
                found[name, _text(version)] = folder
        waiting += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
    return found
