"""Sources that read other tools' files: Parquet tables and folders of images. Not here: our own files."""

import hashlib
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.data.sources import Damaged, Example, Source
from jaxtrain.errors import ConfigError, nearest

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")


@dataclass(frozen=True)
class Parquet(Source):
    """The rows of Parquet files, in the order of `paths`; lists become arrays.

    A row is read with all of its row group, of which the last few are kept: in order this is quick, at random it is
    not. To shuffle, wrap it in `Stored` (once to records on disk) or `InMemory`. `columns` are all by default. Raises
    ConfigError for a missing file or column, Damaged for what cannot be read.
    """

    paths: tuple[str, ...]
    columns: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return int(_groups(self)[1][-1])

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        groups, ends = _groups(self)
        which = int(np.searchsorted(ends, index, side="right"))
        rows = _group(self, *groups[which])
        row = index - (int(ends[which - 1]) if which else 0)
        return {name: np.asarray(v) if isinstance(v := values[row], list) else v for name, values in rows.items()}

    def identity(self) -> str:
        """A sha256 of every file's last 64 KiB, which hold the schema and where each column lies, and its size."""
        found = hashlib.sha256()
        for path in self.paths:
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - (1 << 16)))
                found.update(f"{size}:".encode() + file.read())
        return f"parquet:{self.columns}:{found.hexdigest()[:32]}"


@lru_cache(maxsize=64)
def _groups(source: Parquet) -> tuple[list[tuple[str, int]], np.ndarray]:
    groups, sizes = [], []
    for path in source.paths:
        file = _open(path)
        for name in source.columns or ():
            if name not in file.schema_arrow.names:
                raise ConfigError(f"Parquet: {path} has no column {name!r}{nearest(name, file.schema_arrow.names)}")
        groups += [(path, number) for number in range(file.num_row_groups)]
        sizes += [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    return groups, np.cumsum(sizes or [0])


@lru_cache(maxsize=8)
def _group(source: Parquet, path: str, number: int) -> dict[str, list[Any]]:
    columns = None if source.columns is None else list(source.columns)
    try:
        return _open(path).read_row_group(number, columns=columns, use_threads=False).to_pydict()
    except (OSError, ValueError) as error:
        raise Damaged(path, None, f"row group {number} cannot be read ({error})") from error


def _open(path: str) -> Any:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError("Parquet needs pyarrow: pip install 'jaxtrain[datasets]'") from error
    if not Path(path).is_file():
        others = [other.name for other in Path(path).parent.glob("*")]
        raise ConfigError(f"Parquet: no file {path}{nearest(Path(path).name, others)}")
    try:
        # A file of its own for each reading: one is not safe to read from several threads.
        return parquet.ParquetFile(path, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        raise Damaged(path, None, f"it cannot be opened ({error})") from error


@dataclass(frozen=True)
class ImageFolder(Source):
    """{"image": u8[Y, X, C], "label": i32}: images in one folder a class, brought to `size` (height, width).

    Classes are the folders' names in alphabetical order; without folders there is no label. C is 1 if `gray`, else 3.
    Raises ConfigError for a folder without images, Damaged for an image that does not decode.
    """

    folder: str = field(metadata={"meaning": False})
    size: tuple[int, int]
    gray: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by label."""
        return _listed(self.folder)[1]

    def __len__(self) -> int:
        return len(_listed(self.folder)[0])

    def __getitem__(self, index: int) -> Example:
        return self.decode(self.fetch([index])[0])

    def fetch(self, indices: Sequence[int]) -> list[tuple[int, bytes]]:
        """The images' numbers and bytes."""
        return [(index, self._bytes(_listed(self.folder)[0][index])) for index in indices]

    def _bytes(self, path: str) -> bytes:
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise Damaged(path, None, f"it cannot be read ({error.strerror})") from error

    def decode(self, stored: tuple[int, bytes]) -> Example:
        """The pixels, and the label."""
        import io

        try:
            from PIL import Image
        except ImportError as error:
            raise ConfigError("ImageFolder needs Pillow: pip install 'jaxtrain[images]'") from error
        index, raw = stored
        path = Path(_listed(self.folder)[0][index])
        try:
            with Image.open(io.BytesIO(raw)) as image:
                resized = image.convert("L" if self.gray else "RGB").resize((self.size[1], self.size[0]))
        except Exception as error:  # Pillow's formats raise kinds of their own, SyntaxError among them
            raise Damaged(str(path), None, f"it is no image that can be read ({error})") from error
        pixels = np.asarray(resized, np.uint8).reshape(*self.size, -1)
        label = {"label": np.int32(self.classes.index(path.parent.name))} if self.classes else {}
        return {"image": pixels, **label}

    def identity(self) -> str:
        """From every image's name and size in bytes."""
        files = _listed(self.folder)[0]
        said = "\n".join(f"{os.path.relpath(file, self.folder)} {os.path.getsize(file)}" for file in files)
        return f"images:{hashlib.sha256(said.encode()).hexdigest()[:32]}"


@lru_cache(maxsize=16)
def _listed(folder: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    root = Path(folder)
    if not root.is_dir():
        others = [other.name for other in root.parent.glob("*/")]
        raise ConfigError(f"ImageFolder: there is no folder {root}{nearest(root.name, others)}")
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ConfigError(f"ImageFolder: {root} holds no images ({', '.join(SUFFIXES)})")
    classes = {path.parent.name for path in found if path.parent != root}
    if classes and any(path.parent == root for path in found):
        raise ConfigError(f"ImageFolder: {root} holds both images and folders of images; give each a class")
    return tuple(map(str, found)), tuple(sorted(classes))
