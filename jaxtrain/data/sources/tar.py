"""Tar files as a source, with WebDataset's naming of members."""

import io
import json
import tarfile
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.base.files import digest
from jaxtrain.base.ranges import PositiveInt
from jaxtrain.data.sources.base import Example, Source
from jaxtrain.data.sources.contents import content
from jaxtrain.data.sources.images import NOT_READ, SUFFIXES, is_hidden
from jaxtrain.data.sources.kept import until_files_change
from jaxtrain.data.sources.paths import PATH, data_file, make_absolute
from jaxtrain.data.sources.pixels import pixels

_FIELDS = {**dict.fromkeys(SUFFIXES, "image"), ".cls": "label", ".txt": "text"}
"""The field of a member by its suffix; any other suffix is itself the name of the field."""


@dataclass(frozen=True)
class _Member:
    """One file in a tar file."""

    name: str
    field: str
    start: int
    size: int


@dataclass(frozen=True)
class Tar(Source):
    """The examples of uncompressed tar files: members with the same name up to the first dot form one example.

    `7.jpg`, `7.cls`, `7.txt` are the fields "image" (u8[Y, X, C], decoded as by `ImageFolder`), "label" (an integer)
    and "text". `7.npy` is an array in the field "npy", `7.json` its value in the field "json"; members with any other
    suffix are bytes. `7.left.jpg` is the field "left". Images are resized to `size` (height, width) if it is given.
    Hidden members are left out. Raises ConfigError for a missing or compressed file, links, two members of one field,
    and unsupported images. Raises Damaged, naming file and member, for a member that does not decode.
    """

    paths: tuple[str, ...] = field(metadata=PATH)
    size: tuple[PositiveInt, PositiveInt] | None = None
    gray: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.paths, str) or not self.paths:
            raise ConfigError(f"Tar needs a tuple of one or more paths, got {self.paths!r}")
        make_absolute(self, "paths")

    def __len__(self) -> int:
        return len(_tar_examples(self.paths))

    def __getitem__(self, index: int) -> Example:
        path, number, members = self._find(index)
        with open(path, "rb") as file:
            example = {}
            for member in members:
                file.seek(member.start)
                try:
                    example[member.field] = self._decode(member, file.read(member.size))
                except ConfigError:
                    raise
                except (ValueError, OSError, EOFError) as error:
                    raise Damaged(path, number, f"its member {member.name} cannot be read ({error})") from error
        return example

    def where(self, index: int) -> str:
        path, _, members = self._find(index)
        return f"{members[0].name} of {path}"

    def identity(self) -> str:
        """How images are decoded, a sha256 of all files, and one of the members' names and sizes."""
        members = (member for _, _, some in _tar_examples(self.paths) for member in some)
        names = digest("\n".join(f"{member.name} {member.start} {member.size}" for member in members))
        return f"tar:{self.size}:{self.gray}:{content(self.paths)}:{names}"

    def _find(self, index: int) -> tuple[str, int, tuple[_Member, ...]]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return _tar_examples(self.paths)[index]

    def _decode(self, member: _Member, raw: bytes) -> Any:
        ending = Path(member.name).suffix.lower()
        if ending in SUFFIXES:
            return pixels(raw, self.size, self.gray)
        if ending == ".cls":
            return int(raw)
        if ending == ".txt":
            return raw.decode()
        if ending == ".npy":
            return np.load(io.BytesIO(raw), allow_pickle=False)
        return json.loads(raw) if ending == ".json" else raw


@until_files_change
@lru_cache(maxsize=64)
def _tar_examples(paths: tuple[str, ...]) -> list[tuple[str, int, tuple[_Member, ...]]]:
    """The file, the number in that file, and the members of every example."""
    return [(path, number, members) for path in paths for number, members in enumerate(_grouped(path))]


@until_files_change
@lru_cache(maxsize=1024)
def _grouped(path: str) -> list[tuple[_Member, ...]]:
    """The members of each example of a file, in the order of their first members."""
    found: dict[str, dict[str, _Member]] = {}
    data_file(path, "tar file")
    try:
        with tarfile.open(path, "r:") as opened:
            for info in opened:
                if info.isdir() or any(map(is_hidden, Path(info.name).parts)):
                    continue
                stem, member = _member(path, info)
                if (other := found.setdefault(stem, {}).setdefault(member.field, member)) is not member:
                    names = f"{other.name} and {member.name}"
                    raise ConfigError(f"Tar: {path}: {names} are both the field {member.field!r} of one example")
            _check_end(path, opened.offset)
    except tarfile.TarError as error:
        raise Damaged(path, None, f"it is not an uncompressed tar file, or damaged ({error})") from error
    return [tuple(members.values()) for members in found.values()]


def _check_end(path: str, end: int) -> None:
    """Raises Damaged where a file goes on after its last member, or lacks the empty blocks at the end of a tar file.
    Needed since `tarfile` takes an unreadable header for the end.
    """
    with open(path, "rb") as file:
        file.seek(end)
        if len(rest := file.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
            raise Damaged(path, None, "it was cut off: it ends without the empty blocks that end a tar file")
        while rest:
            if rest.strip(b"\0"):
                raise Damaged(path, None, f"at byte {end} is no member, nor the end: damage, or two tar files in one")
            rest = file.read(1 << 20)


def _member(path: str, info: tarfile.TarInfo) -> tuple[str, _Member]:
    """The path that the members of one example share, and the member."""
    if not info.isreg() or info.issparse():
        raise ConfigError(f"Tar: {path}: {info.name} is a link or no plain file: write the file itself")
    folder, _, name = info.name.rpartition("/")
    stem, _, endings = name.partition(".")
    parts = endings.split(".")
    ending = f".{parts[-1]}".lower()
    if ending in NOT_READ:
        raise ConfigError(f"Tar: {path}: {info.name} is an image of a kind that is not read: save it as PNG")
    if not endings:
        raise ConfigError(f"Tar: {path}: {info.name} has no ending that says what it is")
    of = ".".join(parts[:-1]) or _FIELDS.get(ending, parts[-1])
    return f"{folder}/{stem}", _Member(info.name, of, info.offset_data, info.size)
