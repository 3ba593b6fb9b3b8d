"""Folders of images as a source."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from jaxtrain.base.config import NOT_IN_FINGERPRINT
from jaxtrain.base.errors import ConfigError, Damaged, nearest
from jaxtrain.base.files import digest
from jaxtrain.base.packages import needs
from jaxtrain.base.ranges import PositiveInt
from jaxtrain.data.sources.base import Example, Source

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")


@dataclass(frozen=True)
class ImageFolder(Source):
    """{"image": u8[Y, X, C], "label": i32}: images in one folder a class, resized to `size` (height, width).

    Classes are the folders' names in alphabetical order; without folders there is no label. C is 1 if `gray`, else 3.
    Raises ConfigError for a folder without images, Damaged for an image that does not decode.
    """

    folder: str = field(metadata=NOT_IN_FINGERPRINT)
    size: tuple[PositiveInt, PositiveInt]
    gray: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels."""
        return _listed(self.folder)[1]

    def __len__(self) -> int:
        return len(_listed(self.folder)[0])

    def __getitem__(self, index: int) -> Example:
        return self.decode(self.fetch([index])[0])

    def fetch(self, indices: Sequence[int]) -> list[tuple[int, bytes]]:
        """Index and encoded bytes of each image."""
        return [(index, self._bytes(_listed(self.folder)[0][index])) for index in indices]

    def _bytes(self, path: str) -> bytes:
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise Damaged(path, None, f"it cannot be read ({error.strerror})") from error

    def decode(self, stored: tuple[int, bytes]) -> Example:
        with needs("ImageFolder", "Pillow", "images"):
            from PIL import Image
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
        """A hash of every image's name and size in bytes."""
        files = _listed(self.folder)[0]
        lines = "\n".join(f"{os.path.relpath(file, self.folder)} {os.path.getsize(file)}" for file in files)
        return f"images:{digest(lines)}"


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
