"""What a filter is: it finds the records to drop, and says why."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.ranges import Checked
from jaxtrain.data.sources.base import Example


@dataclass(frozen=True)
class Record:
    """A raw record with the split that it belongs to; `index` is its index in the raw source."""

    index: int
    split: str
    example: Example


@dataclass(frozen=True)
class Finding:
    """Why a record is to be dropped, and the index of the record that it repeats or contradicts, if any."""

    why: str
    other: int | None = None


@dataclass(frozen=True)
class Filter(Checked, ABC):
    """Finds records to drop. Subclasses are frozen dataclasses of plain fields."""

    @abstractmethod
    def findings(self, records: Collection[Record]) -> dict[int, Finding]:
        """The records to drop, by index. Raises ConfigError where a record lacks the field or it has another type."""


@dataclass(frozen=True)
class OneByOne(Filter):
    """A filter that looks at one field of one record at a time."""

    field: str

    def findings(self, records: Collection[Record]) -> dict[int, Finding]:
        found = ((record.index, self._fault(value_of(record, self.field))) for record in records)
        return {index: Finding(why) for index, why in found if why}

    @abstractmethod
    def _fault(self, value: Any) -> str | None:
        """What is wrong with a value; None where nothing is."""


def value_of(record: Record, field: str) -> Any:
    """A field of a record. Raises ConfigError with the nearest name where the record has no such field."""
    if field not in record.example:
        raise ConfigError(f"record {record.index} has no field {field!r}{nearest(field, record.example)}")
    return record.example[field]


def text_of(value: Any, field: str) -> str:
    """A text, decoded if it is bytes. Raises ConfigError for another type."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if not isinstance(value, str):
        raise ConfigError(f"field {field!r} holds a {type(value).__name__}, not text")
    return value
