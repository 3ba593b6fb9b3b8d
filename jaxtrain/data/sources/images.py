"""Folders of images as a source."""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from jaxtrain.base.errors import ConfigError, Damaged, nearest
from jaxtrain.base.ranges import PositiveInt
from jaxtrain.data.sources.base import Example, Source
from jaxtrain.data.sources.contents import content
from jaxtrain.data.sources.kept import note_state, until_files_change
from jaxtrain.data.sources.paths import PATH, make_absolute
from jaxtrain.data.sources.pixels import pixels

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")

NOT_READ = (".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".psd", ".dcm", ".ppm", ".pgm", ".pbm", ".tga")
"""Suffixes of images that `ImageFolder` refuses."""

_SYSTEM = ("__MACOSX", "@eaDir", "lost+found")  # folders of operating systems; some hold copies of images

_SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}

_MOST_CLASSES = 20  # names in an error message


@dataclass(frozen=True)
class ImageFolder(Source):
    """{"image": u8[Y, X, C], "label": i32}: images in one folder per class, resized to `size` (height, width).

    `classes` are the folders' names in the order of their labels. Give all splits the same tuple, so that labels agree
    where a split lacks a class. Images at any depth below a class's folder belong to that class. Without folders there
    are neither classes nor labels. C is 1 if `gray`, else 3.

    Hidden files and folders (`.ipynb_checkpoints`, `._1.png`) and files that are not images are left out. The EXIF
    orientation is applied, palettes are converted to colours, transparent pixels are blended with white, and of an
    animation the first frame is read. Raises ConfigError for a folder without images, folders that do not match the
    classes, a class without images, and unsupported kinds of images, such as TIFF. Raises Damaged, naming the file, for
    an image that does not decode, has 16 bits a sample, or is neither gray nor RGB, such as CMYK.
    """

    folder: str = field(metadata=PATH)
    size: tuple[PositiveInt, PositiveInt]
    classes: tuple[str, ...] | None = None
    gray: bool = False

    def __post_init__(self) -> None:
        make_absolute(self, "folder")
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise ConfigError(f"ImageFolder classes must differ from each other, got {self.classes}")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        return self.decode(self.fetch([index])[0])

    def fetch(self, indices: Sequence[int]) -> list[tuple[int, bytes]]:
        """Index and encoded bytes of each image."""
        return [(index, _bytes(self._files[index])) for index in indices]

    def decode(self, stored: tuple[int, bytes]) -> Example:
        index, raw = stored
        path = self._files[index]
        label = {"label": np.int32(self.classes.index(_class(path, self.folder)))} if self.classes else {}
        return {"image": self._pixels(path, raw), **label}

    def raw(self, argument: str) -> Example:
        """An image file, decoded like those of the source."""
        if not Path(argument).is_file():
            raise ConfigError(f"this model reads image files, and there is no file {argument}")
        try:
            return {"image": self._pixels(argument, _bytes(argument))}
        except Damaged as error:
            raise ConfigError(str(error)) from error

    def where(self, index: int) -> str:
        return self._files[index]

    def identity(self) -> str:
        """How images are decoded, the classes, and a sha256 of the names and bytes of the images."""
        lines = "\n".join(f"{_relative(file, self.folder)} {os.path.getsize(file)}" for file in self._files)
        return f"images:{self.size}:{self.gray}:{self.classes}:{content(self._files, lines)}"

    @property
    def _files(self) -> tuple[str, ...]:
        return _listed(self.folder, self.classes)

    def _pixels(self, path: str, raw: bytes) -> np.ndarray:
        try:
            return pixels(raw, self.size, self.gray)
        except ConfigError:
            raise  # Pillow is not installed
        except ValueError as error:
            raise Damaged(path, None, f"it is not an image that can be read ({error})") from error


def folder_classes(folder: str) -> tuple[str, ...]:
    """The names of the folders of images in `folder`, in alphabetical order, for the `classes` of `ImageFolder`.

    Take them from the training split, and use them for all splits and the task. Paths are as in `ImageFolder`.
    """
    holder = ImageFolder(folder, (1, 1))
    return tuple(sorted({_class(path, holder.folder) for path in _found(holder.folder)} - {""}))


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Damaged(path, None, f"it cannot be read ({error.strerror})") from error


def _relative(path: str, folder: str) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _class(path: str, folder: str) -> str:
    """The class of an image: the name of the folder directly below `folder` that holds it; "" if there is none."""
    return _relative(path, folder).rpartition("/")[0].partition("/")[0]


@until_files_change
@lru_cache(maxsize=16)
def _listed(folder: str, classes: tuple[str, ...] | None) -> tuple[str, ...]:
    """The images, sorted by path. Raises ConfigError where their folders do not match the classes."""
    found = _found(folder)
    names = {_class(path, folder) for path in found} - {""}
    if classes is None and names:
        raise ConfigError(f"ImageFolder: {folder} holds folders of images: {_advice(names)}")
    if classes is not None and "" in {_class(path, folder) for path in found}:
        raise ConfigError(f"ImageFolder: {folder} holds images beside its folders, which have no class")
    for name in sorted(names - set(classes or ())):
        near = nearest(name, classes or ())
        if unicodedata.normalize("NFC", name) in [unicodedata.normalize("NFC", known) for known in classes or ()]:
            near = f"; one of them looks the same, but its accents are other characters: write it as {name!a}"
        raise ConfigError(f"ImageFolder: the folder {folder}/{name} is none of the classes{near}")
    return found


def _advice(names: set[str]) -> str:
    if len(names) > _MOST_CLASSES:
        return "give all splits and the task one tuple of classes, as from folder_classes(the folder of training)"
    return f"give all splits and the task the same tuple of classes, for example classes={tuple(sorted(names))!r}"


@until_files_change
@lru_cache(maxsize=16)
def _found(folder: str) -> tuple[str, ...]:
    """All images below a folder. Raises ConfigError for files and folders that are probably meant to be images of it
    but are none.
    """
    root = Path(folder)
    if root.is_file():
        raise ConfigError(f"ImageFolder: {root} is a file, not a folder of images; tar files are read by Tar")
    if not root.is_dir():
        others = [other.name for other in root.parent.glob("*/")]
        raise ConfigError(f"ImageFolder: there is no folder {root}{nearest(root.name, others)}")
    files = sorted(_visible(root))
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    if other := next((path for path in files if path.suffix.lower() in NOT_READ), None):
        raise ConfigError(f"ImageFolder: {other} is an image of a kind that is not read: save it as PNG, or move it")
    if gone := next((path for path in images if path.is_symlink() and not os.path.exists(path)), None):
        raise ConfigError(f"ImageFolder: {gone} is a link to a file that is not there: remove it")
    if not images:
        raise ConfigError(f"ImageFolder: {root} holds no images ({', '.join(SUFFIXES)})")
    _check_folders(root, files, images)
    return tuple(map(str, images))


def _check_folders(root: Path, files: Sequence[Path], images: Sequence[Path]) -> None:
    """Raises ConfigError where the folders below `root` are splits instead of classes, or one of them has no images."""
    folders = {path.name for path in root.iterdir() if path.is_dir() and not is_hidden(path.name)}
    parents = {path.relative_to(root).parts[:-1] for path in images}
    splits = sorted(name for name in folders if name.lower() in _SPLITS)
    if splits and (len(splits) == len(folders) or any((name,) not in parents for name in splits)):
        raise ConfigError(
            f"ImageFolder: {root} holds the splits {', '.join(splits)}: make one ImageFolder of each, as of "
            f"{root / splits[0]}, all with the same classes"
        )
    for name in sorted(folders - {parts[0] for parts in parents if parts}):
        held = sorted(path.name for path in files if path.relative_to(root).parts[0] == name)[:3]
        raise ConfigError(
            f"ImageFolder: the folder {root / name} has no image that is read ({', '.join(SUFFIXES)}), "
            f"but {', '.join(held) or 'no file at all'}: save them as PNG, or move the folder"
        )


def _visible(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_unread):
        note_state([str(folder)])
        folders[:] = [name for name in folders if not is_hidden(name)]
        for place in (Path(folder, name) for name in folders):
            if place.is_symlink() and place.resolve() in (Path(folder).resolve(), *Path(folder).resolve().parents):
                raise ConfigError(f"ImageFolder: {place} links to a folder that it is in: remove the link")
        yield from (Path(folder, name) for name in files if not is_hidden(name))


def _unread(error: OSError) -> None:
    raise Damaged(str(error.filename), None, f"the folder cannot be read ({error.strerror})") from error


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or was made by an operating system."""
    return name.startswith(".") or name in _SYSTEM
