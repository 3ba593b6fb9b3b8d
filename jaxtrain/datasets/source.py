"""A built data set as a source, pinned by name and version. Not here: building it."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from jaxtrain.base.cache import cache
from jaxtrain.base.config import NOT_IN_FINGERPRINT, flatten, from_json
from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.data.sources.base import Example, Source
from jaxtrain.datasets.card import Card, edges
from jaxtrain.datasets.formats import Format


def home() -> Path:
    """Where data sets are built and looked for unless said otherwise: $JAXTRAIN_DATA, or the user's cache."""
    given = os.environ.get("JAXTRAIN_DATA")
    return Path(given) if given else cache("datasets")


@dataclass(frozen=True)
class Built(Source):
    """One split of a data set that `jaxtrain data build` made, by name and version under `folder` or the usual place.

    Its identity is the card's hash of the decoded records and of their order. When it is first read, every file is
    compared with the card (size, first and last MiB; all of it by `jaxtrain data check`). Raises ConfigError where the
    data set is not there, where a file is missing or is not the card's, and where the card was changed.
    """

    name: str
    version: str
    split: str = "train"
    folder: str | None = field(default=None, metadata=NOT_IN_FINGERPRINT)

    @property
    def path(self) -> Path:
        """The data set's own folder."""
        return (Path(self.folder) if self.folder else home()) / self.name / self.version

    @property
    def card(self) -> Card:
        """What is known about the data set."""
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
        """As the files' own source fetches it."""
        return self._opened[1].fetch(indices)

    def decode(self, stored: Any) -> Example:
        """As the files' own source decodes it."""
        return self._opened[1].decode(stored)

    @property
    def vocab(self) -> int | None:
        """That of the files' own source."""
        return self._opened[1].vocab

    def raw(self, argument: str) -> Example:
        """As the files' own source reads it."""
        return self._opened[1].raw(argument)

    def identity(self) -> str:
        """Name, version, split, and hashes of the decoded records, of their order and of how rows are made of them."""
        card = self.card
        split, form = card.splits[self.split], json.dumps(flatten(stored_format(card)), sort_keys=True).encode()
        rows = f"{split.content} {split.order} {hashlib.sha256(form).hexdigest()[:16]}"
        return f"{self.name} {self.version} {self.split} {rows}"


@lru_cache(maxsize=64)
def _opened(folder: Path, split: str) -> tuple[Card, Source]:
    if not folder.is_dir():
        raise ConfigError(_missing(folder))
    card = Card.read(folder)
    if split not in card.splits:
        raise ConfigError(f"{folder} has no split {split!r}{nearest(split, card.splits)}")
    for part in (*card.beside, *card.splits[split].files):
        path = folder / part.path
        if not path.is_file():
            raise ConfigError(f"{path} is missing, which {folder}'s card names: build the data set again")
        if path.stat().st_size != part.bytes or edges(path) != part.edges:
            raise ConfigError(
                f"{path} is not the file that {folder}'s card describes; `jaxtrain data check {folder}` says more"
            )
    paths = tuple(str(folder / part.path) for part in card.splits[split].files)
    return card, stored_format(card).rows(paths, folder)


def stored_format(card: Card) -> Format:
    """How the records of a built data set are kept."""
    return from_json(card.form)


def _missing(folder: Path) -> str:
    versions = [path.name for path in folder.parent.glob("[0-9]*")] if folder.parent.is_dir() else []
    names = [path.name for path in folder.parent.parent.glob("[a-z0-9]*")] if folder.parent.parent.is_dir() else []
    function = folder.parent.name.replace("-", "_")
    near = f"; built versions: {', '.join(sorted(versions))}" if versions else nearest(folder.parent.name, names)
    return (
        f"the data set {folder.parent.name} {folder.name} is not built (there is no {folder}){near}; "
        f"the shipped ones are built by `jaxtrain data build experiments/datasets.py:{function}`"
    )
