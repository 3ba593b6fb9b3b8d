"""A built dataset as a source, pinned by name and version. Not here: building it."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from jaxtrain.base.cache import cache
from jaxtrain.base.config import flatten, from_json
from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.files import check_file_name, digest, edges
from jaxtrain.data.sources.base import Example, Source
from jaxtrain.data.sources.paths import PATH, make_absolute
from jaxtrain.datasets.card import Card
from jaxtrain.datasets.formats import Format


def home() -> Path:
    """The default folder of datasets: $JAXTRAIN_DATA, or one in the user's cache."""
    given = os.environ.get("JAXTRAIN_DATA")
    return Path(given) if given else cache("datasets")


@dataclass(frozen=True)
class Built(Source):
    """One split of a dataset that `jaxtrain data build` made, by name and version under `folder` (default: `home()`).

    Its identity is the card's hash of the decoded records and of their order. When it is first read, every file is
    compared with the card (size, first and last MiB; `jaxtrain data check` compares all). Raises ConfigError where the
    dataset is not there, where a file is missing or differs from the card, and where the card was changed.
    """

    name: str
    version: str
    split: str = "train"
    folder: str | None = field(default=None, metadata=PATH)

    def __post_init__(self) -> None:
        for name in (self.name, self.version):
            check_file_name(str(name), "Built")  # they are parts of a path
        make_absolute(self, "folder")

    @property
    def path(self) -> Path:
        """The dataset's own folder."""
        return (Path(self.folder) if self.folder else home()) / self.name / self.version

    @property
    def card(self) -> Card:
        """The dataset's card."""
        return self._opened[0]

    @cached_property
    def _opened(self) -> tuple[Card, Source]:
        return _opened(self.path, self.split)

    def __reduce__(self) -> tuple[Any, ...]:
        return Built, (self.name, self.version, self.split, self.folder)  # without what is open

    def __len__(self) -> int:
        return len(self._opened[1])

    def __getitem__(self, index: int) -> Example:
        return self._opened[1][index]

    def fetch(self, indices: Sequence[int]) -> list[Any]:
        return self._opened[1].fetch(indices)

    def decode(self, stored: Any) -> Example:
        return self._opened[1].decode(stored)

    @property
    def vocab(self) -> int | None:
        return self._opened[1].vocab

    def raw(self, argument: str) -> Example:
        return self._opened[1].raw(argument)

    def remembered(self) -> Source:
        return self._opened[1].remembered()

    def identity(self) -> str:
        """Name, version, split, and hashes of the decoded records, of their order and of the storage format."""
        split, storage = self.card.splits[self.split], flatten(stored_format(self.card))
        hashes = f"{split.content} {split.order} {digest(json.dumps(storage, sort_keys=True), length=16)}"
        return f"{self.name} {self.version} {self.split} {hashes}"


@lru_cache(maxsize=64)
def _opened(folder: Path, split: str) -> tuple[Card, Source]:
    if not folder.is_dir():
        raise _not_built(folder)
    card = Card.read(folder)
    if split not in card.splits:
        raise ConfigError(f"{folder} has no split {split!r}{nearest(split, card.splits)}")
    for file in (*card.other_files, *card.splits[split].files):
        path = folder / file.path
        if not path.is_file():
            raise ConfigError(f"{path} is missing, which {folder}'s card names: build the dataset again")
        if path.stat().st_size != file.bytes or edges(path) != file.edges:
            raise ConfigError(
                f"{path} is not the file that {folder}'s card describes; `jaxtrain data check {folder}` says more"
            )
    paths = tuple(str(folder / file.path) for file in card.splits[split].files)
    return card, stored_format(card).rows(paths, folder)


def stored_format(card: Card) -> Format:
    """The storage format of a built dataset. Raises ConfigError where the card names none."""
    found = from_json(card.format, wanted=Format, path="format")
    if not isinstance(found, Format):
        raise ConfigError(f"format: the card of {card.name} has no storage format: build the dataset again")
    return found


def _not_built(folder: Path) -> ConfigError:
    versions = [path.name for path in folder.parent.glob("[0-9]*")] if folder.parent.is_dir() else []
    names = [path.name for path in folder.parent.parent.glob("[a-z0-9]*")] if folder.parent.parent.is_dir() else []
    function = folder.parent.name.replace("-", "_")
    near = f"; built versions: {', '.join(sorted(versions))}" if versions else nearest(folder.parent.name, names)
    return ConfigError(
        f"the dataset {folder.parent.name} {folder.name} is not built (there is no {folder}){near}; "
        f"the shipped ones are built by `jaxtrain data build experiments/datasets.py:{function}`"
    )
