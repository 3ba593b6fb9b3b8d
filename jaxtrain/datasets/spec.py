"""What a dataset is made of, as a value: records, splits, filters, format."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from jaxtrain.base.config import check_types
from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.files import check_file_name
from jaxtrain.base.ranges import Checked, Positive
from jaxtrain.data.sources.base import Example, Source
from jaxtrain.data.transforms.base import Transform
from jaxtrain.datasets.card import record_hash
from jaxtrain.datasets.filters.base import Filter
from jaxtrain.datasets.formats import Format, Records


@dataclass(frozen=True)
class HashSplits(Checked):
    """Splits by a hash of the record's fields `by`, not by its position: added records move no other."""

    parts: Mapping[str, Positive]
    """Shares by name, summing to 1. The first split is the one to train on."""
    by: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in self.parts:
            check_file_name(name, "HashSplits")
        if not self.parts or not self.by or abs(sum(self.parts.values()) - 1) > 1e-9:
            raise ConfigError(f"HashSplits: shares above 0 that sum to 1, and fields to split by; got {self}")

    def split(self, example: Example) -> str:
        """The name of a record's split."""
        for name in self.by:
            if name not in example:
                raise ConfigError(f"HashSplits: a record has no field {name!r}{nearest(name, example)}")
        place = record_hash({name: example[name] for name in self.by}) / (1 << 128)
        bounds = np.cumsum(list(self.parts.values()))
        return list(self.parts)[min(int(np.searchsorted(bounds, place, side="right")), len(bounds) - 1)]

    def __str__(self) -> str:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in self.parts.items())
        return f"{shares} by a hash of {', '.join(self.by)}"


@dataclass(frozen=True, kw_only=True)
class Dataset(Checked):
    """What a dataset is made of. `jaxtrain data build` builds what a function annotated `-> Dataset` returns.

    Raises ConfigError for a name or version that cannot be a folder's, and for empty texts about origin and use.
    """

    name: str
    version: str
    """MAJOR.MINOR.PATCH: raise it whenever anything below changes."""
    description: str
    origin: str
    """Where the raw records come from: package and version, URL, paper."""
    licence: str
    access: str
    """Who may use it."""
    retention: str
    """How long it is kept."""
    records: Source
    splits: HashSplits
    transforms: tuple[Transform, ...] = ()
    """Applied to each raw record, before the filters."""
    filters: tuple[Filter, ...] = ()
    """Quality filters, in this order."""
    label: str | None = None
    """The field with the class of a record, if there is one."""
    format: Format = field(default_factory=Records)

    def __post_init__(self) -> None:
        check_types(self)
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.name):
            raise ConfigError(f"Dataset name {self.name!r}: use lower-case letters, digits, - and _")
        if not re.fullmatch(r"\d+\.\d+\.\d+", self.version):
            raise ConfigError(f"Dataset version {self.version!r}: use MAJOR.MINOR.PATCH, as in 1.0.0")
        for name in ("description", "origin", "licence", "access", "retention"):
            if not getattr(self, name).strip():
                raise ConfigError(f"Dataset {name} may not be empty: describe it in words")
