"""What a filter is: it names the records that it drops, and why."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.data.sources.base import Example


@dataclass(frozen=True)
class Record:
    """A record on its way into a data set: `index` is its place in the raw source."""

    index: int
    split: str
    example: Example


@dataclass(frozen=True)
class Finding:
    """Why a record is faulty, in words, and the index of the record that it repeats or contradicts."""

    why: str
    other: int | None = None


@dataclass(frozen=True)
class Filter(ABC):
    """A judgement of records. Subclasses are frozen dataclasses of plain fields."""

    @abstractmethod
    def findings(self, records: Collection[Record]) -> dict[int, Finding]:
        """The faulty ones by their index. Raises ConfigError where they lack the field, or it is of another kind."""


@dataclass(frozen=True)
class OneByOne(Filter):
    """A filter that judges every record by itself, by one field."""

    field: str

    def findings(self, records: Collection[Record]) -> dict[int, Finding]:
        """The records in whose field there is a fault."""
        found = ((record.index, self._fault(value_of(record, self.field))) for record in records)
        return {index: Finding(why) for index, why in found if why}

    @abstractmethod
    def _fault(self, value: Any) -> str | None:
        """What is wrong with a value."""


def value_of(record: Record, field: str) -> Any:
    """A field of a record. Raises ConfigError, with the nearest name, where it has none."""
    if field not in record.example:
        raise ConfigError(f"record {record.index} has no field {field!r}{nearest(field, record.example)}")
    return record.example[field]


def text_of(value: Any, field: str) -> str:
    """A text, decoded where it is bytes. Raises ConfigError for another type."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if not isinstance(value, str):
        raise ConfigError(f"field {field!r} holds a {type(value).__name__}, not text")
    return value


def missing_package(what: str, package: str) -> ConfigError:
    """The error for a package that a filter needs and that is not installed."""
    return ConfigError(f"{what} needs {package}: pip install 'jaxtrain[datasets]'")


def check_threshold(name: str, threshold: float) -> None:
    """Raise ConfigError for a similarity that is not between 0 and 1."""
    if not 0 < threshold < 1:
        raise ConfigError(f"{name}: threshold must be above 0 and below 1, got {threshold}")
