"""The manifest of a bundle: every file with its hash, and where the bundle comes from. Needs no jax.

A bundle is a version folder of a Triton model repository: DIR/NAME/1. Not here: what the files hold.
"""

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from jaxtrain.base.checksums import read_regular, unreadable
from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.base.files import (
    LARGEST_JSON,
    digest,
    file_sha256,
    is_file_name,
    json_text,
    parsed_json,
    replace_text,
)
from jaxtrain.deploy.signature import FORMAT, check_format
from jaxtrain.deploy.values import quoted

MANIFEST_FILE, CONFIG_FILE = "manifest.json", "config.pbtxt"

MODEL_FILE, INT8_FILE = "model.onnx", "model.int8.onnx"

_KEYS = {
    "format": int,
    "name": str,
    "version": str,
    "created_by": dict,
    "lineage": dict,
    "licence": str,
    "files": dict,
    "sha256": str,
}

_IN_MEMORY = 1 << 31  # bytes: larger files are hashed where they lie


@dataclass(frozen=True)
class BundleManifest:
    """What manifest.json says.

    version: of the jaxtrain that wrote it. created_by: versions of packages. lineage: run, data and code.
    files: size in bytes and sha256 of every other file, by its path in the folder.
    """

    name: str
    version: str
    created_by: Mapping[str, str]
    lineage: Mapping[str, Any]
    licence: str
    files: Mapping[str, tuple[int, str]]

    def write(self, folder: Path) -> None:
        """Write it for the files that are in the folder; then it is on disk."""
        files = {name: {"sha256": sha256, "bytes": size} for name, (size, sha256) in self.files.items()}
        facts = {each: getattr(self, each) for each in ("name", "version", "created_by", "lineage", "licence")}
        replace_text(folder / MANIFEST_FILE, _sealed({"format": FORMAT, **facts, "files": files}))

    @classmethod
    def read(cls, folder: Path) -> "BundleManifest":
        """Raises Damaged where it is not what was written, and ConfigError for a newer format."""
        file = folder / MANIFEST_FILE
        content = _content(folder, MANIFEST_FILE)
        try:
            found = parsed_json(content, str(file))
        except ConfigError as error:
            raise Damaged(str(file), None, f"it is not what was written ({error})") from error
        if not isinstance(found, dict):
            raise Damaged(str(file), None, "it is no JSON object")
        check_format(found, str(file))
        for name, kind in _KEYS.items():
            if not isinstance(found.get(name), kind):
                raise Damaged(str(file), None, f"its {name!r} is {quoted(found.get(name))}")
        if content != _sealed({name: value for name, value in found.items() if name != "sha256"}).encode():
            raise Damaged(str(file), None, "it is not what was written: its checksum differs")
        if not isinstance(found["lineage"].get("step"), int):
            raise Damaged(str(file), None, "its 'lineage' has no step")
        files = {name: _entry(str(file), name, entry) for name, entry in found["files"].items()}
        _check_distinct(str(file), files)
        facts = {name: found[name] for name in ("name", "version", "created_by", "lineage", "licence")}
        return cls(**facts, files=files)

    def verified(self, folder: Path, endings: tuple[str, ...] = ("",)) -> dict[str, bytes]:
        """The content of the files with one of these endings, those of more than 2 GiB left out; the others are hashed
        too, but not held in memory. Raises Damaged for a file that is missing, is a link, is not in the manifest, or is
        not what was written.
        """
        for found in _entries(folder):
            if found not in self.files and found != MANIFEST_FILE:
                raise Damaged(str(folder / found), None, "it is not one of the files that the manifest names")
        contents = {}
        for name, (size, sha256) in self.files.items():
            file = folder / name
            try:
                _check_regular(folder, name)
                if (now := file.stat().st_size) != size:
                    raise Damaged(str(file), None, f"it has {now:,} bytes, of {size:,} that were written")
                if size <= _IN_MEMORY and name.endswith(endings):
                    contents[name] = read_regular(file)
                    hashed = digest(contents[name], length=64)
                else:
                    hashed = file_sha256(file)
            except OSError as error:
                raise unreadable(file, error) from error
            if hashed != sha256:
                raise Damaged(str(file), None, "its bytes have changed since it was written: its sha256 differs")
        return contents


def config_of(folder: Path) -> str | None:
    """The config.pbtxt beside a version folder; None where there is none. Raises Damaged for what is no text file."""
    if not os.path.lexists(folder.parent / CONFIG_FILE):
        return None
    return _content(folder.parent, CONFIG_FILE).decode(errors="replace")


def files_of(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and sha256 of every file of a folder but the manifest."""
    names = [name for name in _entries(folder) if name != MANIFEST_FILE]
    return {name: ((folder / name).stat().st_size, file_sha256(folder / name)) for name in names}


def version_folder(path: Path) -> Path:
    """The bundle that a path names: itself, the latest version of a model, or that of the only model of a repository.

    Raises ConfigError where there is none, or more than one model.
    """
    if (path / MANIFEST_FILE).exists():
        return path
    if versions := _versions(path):
        return path / str(versions[-1])
    models = sorted(each for each in path.iterdir() if each.is_dir() and _versions(each)) if path.is_dir() else []
    if len(models) > 1:
        raise ConfigError(f"{path} holds {', '.join(each.name for each in models)}: name one, as {models[0]}")
    if not models:
        raise ConfigError(f"{path} is no bundle: it has no {MANIFEST_FILE}, nor has a folder in it")
    return models[0] / str(_versions(models[0])[-1])


def is_bundle(path: Path) -> bool:
    """Whether a path names a bundle, or one that lost its manifest, rather than a run."""
    if (path / MANIFEST_FILE).exists() or _versions(path):
        return True
    if not path.is_dir() or (path / "experiment.json").exists():
        return (path / "signature.json").exists()
    return any(each.is_dir() and _versions(each) for each in path.iterdir())


def _versions(path: Path) -> list[int]:
    """The numbers of the versions of a model, ascending."""
    if not path.is_dir():
        return []
    names = [each.name for each in path.iterdir() if each.name.isdecimal() and each.is_dir()]
    known = [name for name in names if (path / name / MANIFEST_FILE).exists() or (path / CONFIG_FILE).exists()]
    return sorted(int(name) for name in known if name == str(int(name)))


def _sealed(facts: Mapping[str, Any]) -> str:
    """The text of a manifest, with a hash of all else in it."""
    body = json.dumps(facts, sort_keys=True)
    return json_text({**facts, "sha256": digest(body, length=64)}) + "\n"


def _entry(file: str, name: str, entry: Any) -> tuple[int, str]:
    path = PurePosixPath(name)
    plain = path.parts and str(path) == name and all(is_file_name(part) and len(part) < 256 for part in path.parts)
    if not plain or name == MANIFEST_FILE:
        raise Damaged(file, None, f"{quoted(name)} is no path of a file inside of the bundle")
    if not (isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str)):
        raise Damaged(file, None, f"what it says of {quoted(name)} is no size and sha256")
    return entry["bytes"], entry["sha256"]


def _check_distinct(file: str, names: Mapping[str, Any]) -> None:
    """Raises Damaged for two names that are one file where letters have no case."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(name.casefold(), name)) != name:
            raise Damaged(file, None, f"{name!r} and {other!r} are one file on some systems")


def _check_regular(folder: Path, name: str) -> None:
    """Raises Damaged for a link on the way to a file, and for what is no file."""
    path = folder
    for part in PurePosixPath(name).parts:
        path = path / part
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            raise Damaged(str(path), None, "it is a link, which could lead anywhere: copy the file itself")
    if not stat.S_ISREG(mode):
        raise Damaged(str(path), None, "it is no file")


def _content(folder: Path, name: str) -> bytes:
    """The bytes of a file of JSON or text. Raises Damaged for a link, what is no file, and one that is too large."""
    try:
        _check_regular(folder, name)
        if (size := (folder / name).stat().st_size) > LARGEST_JSON:
            raise Damaged(str(folder / name), None, f"it has {size:,} bytes, of at most {LARGEST_JSON:,}")
        return read_regular(folder / name)
    except OSError as error:
        raise unreadable(folder / name, error) from error


def _entries(folder: Path) -> list[str]:
    """The paths of all that is in a folder but folders; links are not followed."""
    found = []
    for parent, folders, names in os.walk(folder):
        links = [each for each in folders if os.path.islink(os.path.join(parent, each))]
        found += [Path(parent, each).relative_to(folder).as_posix() for each in [*names, *links]]
    return sorted(found)
