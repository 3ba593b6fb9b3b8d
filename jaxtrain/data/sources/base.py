"""The base class of sources: examples that are read by index."""

import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.base.ranges import Checked
from jaxtrain.data.sources.pixels import pixels

Example = dict[str, Any]
"""One example: field name -> numpy array or scalar, Python number, str or bytes. Treat it as read-only."""

HostBatch = dict[str, np.ndarray]
"""Stacked examples on the host: field name -> array [rows, …]. Always has "mask": bool[rows]."""

T_co = TypeVar("T_co", covariant=True)


class Indexed(Protocol[T_co]):
    """Anything with a length whose items are read by index."""

    def __len__(self) -> int:
        """Number of items."""
        ...

    def __getitem__(self, index: int) -> T_co:
        """Item `index`."""
        ...


@dataclass(frozen=True)
class Source(Checked, ABC):
    """Examples by index. Subclasses are frozen dataclasses of plain fields that open nothing until read."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abstractmethod
    def __getitem__(self, index: int) -> Example:
        """Example `index`, 0 <= index < len(self): a new dict, always the same for the same index."""

    @abstractmethod
    def identity(self) -> str:
        """A short string that changes when the examples do; part of the fingerprint. Must be cheap."""

    @property
    def vocab(self) -> int | None:
        """Size of the vocabulary of its token ids; None if it is unknown, or if the examples hold no tokens."""
        return None

    def fetch(self, indices: Sequence[int]) -> list[Any]:
        """The records at these indices, not yet decoded. Override this where reading several at once is faster."""
        return [self[index] for index in indices]

    def decode(self, stored: Any) -> Example:
        """The example of one record that `fetch` returned."""
        return stored

    def where(self, index: int) -> str:
        """The location of example `index`, for messages: a file, and the line or row in it."""
        return f"example {index} of {type(self).__name__}"

    def warn_shuffled(self) -> None:
        """Called before examples are read in a random order; logs once where that is slow."""

    def raw(self, argument: str) -> Example:
        """A command-line argument as an example of this source without a label: see `RememberedSource.raw`."""
        return self.remembered().raw(argument)

    def remembered(self) -> "Source":
        """The source that a run saves in place of this one, so that `raw` opens no data file: one with a single empty
        example of the same fields. A source that overrides `raw`, which must not need data files, is saved itself.
        """
        return self if type(self).raw is not Source.raw else RememberedSource.like(spread(self))


def spread(source: Source) -> list[Example]:
    """Up to five examples at evenly spaced indices, without damaged ones; if those five are all damaged, the first that
    is not. Raises Damaged where every example is damaged.
    """
    size, found = len(source), []
    for tried, index in enumerate(chain((part * (size - 1) // 4 for part in range(5)), range(size))):
        with suppress(Damaged):
            found += [source[index]] if tried < 5 or not found else []
        if found and tried >= 4:
            return found
    raise Damaged(repr(source), None, "every record is damaged")


@dataclass(frozen=True)
class RememberedSource(Source):
    """Stands for another source where its data are not needed: one example with the same fields, of zeros and empty
    texts, for shapes and for reading raw inputs.
    """

    kinds: Mapping[str, tuple[str, tuple[int, ...]]]
    """Dtype and shape of every field. The dtype of text is "text" or "bytes"; a dim that varies between examples is -1.
    """
    unscaled: tuple[str, ...] = ()
    """Fields of floats that are not all in 0…1."""
    whole: bool = False
    """Whether a raw input must have all fields."""

    @classmethod
    def like(cls, examples: Sequence[Example]) -> "RememberedSource":
        """The source that stands for one with these examples."""
        kinds, unscaled = {}, []
        for name, value in examples[0].items():
            dtype, shape = _field_kind(value)
            alike = [np.asarray(one[name]) for one in examples if name in one and np.ndim(one[name]) == len(shape)]
            kinds[name] = (
                dtype,
                tuple(n if all(other.shape[dim] == n for other in alike) else -1 for dim, n in enumerate(shape)),
            )
            if np.dtype(dtype if dtype not in ("text", "bytes") else bool).kind == "f":
                unscaled += [name] if any((each < 0).any() or (each > 1).any() for each in alike) else []
        return cls(kinds, tuple(unscaled))

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Example:
        empty = {"text": "", "bytes": b""}
        return {
            name: empty[kind] if kind in empty else np.zeros([max(n, 0) for n in shape], kind)
            for name, (kind, shape) in self.kinds.items()
        }

    def identity(self) -> str:
        return f"remembered:{self.kinds}"

    def raw(self, argument: str) -> Example:
        """A command-line argument as an example without a label. The argument is a JSON object with all fields, a file
        .json with one, or else the value of the text field or, without one, of the largest field: a text or the path
        of a file.

        Images get this source's shape and dtype, with floats in 0…1. A file .npy holds the array itself. Raises
        ConfigError for a file that cannot be read, floats on another scale, and an object with other fields.
        """
        if (fields := self._json_fields(argument)) is not None:
            return fields
        if self.whole and len(self.kinds) > 1:
            names = ", ".join(self.kinds)
            raise ConfigError(f"{argument}: the model reads {names}: give a JSON object with these, or a file .json")
        texts = [name for name, (kind, _) in self.kinds.items() if kind in ("text", "bytes")]
        if texts:
            return {texts[0]: raw_text(argument, self.kinds[texts[0]][0] == "bytes")}
        name = max(self.kinds, key=lambda name: np.prod(np.abs(self.kinds[name][1])))
        (dtype, shape), path = self.kinds[name], Path(argument)
        if not os.path.isfile(argument):
            raise ConfigError(f"this model reads files with its {name!r}, and there is no file {argument}")
        try:
            if path.suffix == ".npy":
                return {name: self._array(name, np.load(path, allow_pickle=False))}
            if len(shape) not in (2, 3) or -1 in shape:
                raise ValueError("give the array itself, in a file .npy")
            if name in self.unscaled:
                raise ValueError(
                    "its floats are not all in 0…1, so how pixels become them is not known: give the array itself, in "
                    "a file .npy, or train on u8 images and scale them by Normalize"
                )
            image = pixels(path.read_bytes(), (shape[0], shape[1]), gray=shape[2:] in ((), (1,))).reshape(shape)
            return {name: (image.astype(np.float32) / 255 if np.dtype(dtype).kind == "f" else image).astype(dtype)}
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read as a {name} of shape {list(shape)}: {error}") from error

    def _json_fields(self, argument: str) -> Example | None:
        """The fields in a JSON object; None for an argument that is not an object with a field of this source."""
        in_file = argument.endswith(".json") and os.path.isfile(argument)
        if not in_file and not argument.lstrip().startswith("{"):
            return None
        try:
            found = self._json_object(argument, in_file)
        except ValueError as error:
            if in_file:
                raise ConfigError(f"{argument} {error}") from error
            return None
        if missing := self.kinds.keys() - found.keys():
            raise ConfigError(f"{argument}: the model also reads {', '.join(sorted(missing))}")
        return {name: self._json_value(name, found[name], argument) for name in self.kinds}

    def _json_object(self, argument: str, in_file: bool) -> dict[str, Any]:
        """The JSON object in an argument, or in a file. Raises ValueError where it has no field of this source."""
        try:
            found = json.loads(Path(argument).read_text(encoding="utf-8") if in_file else argument)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is not JSON ({error})") from error
        if not isinstance(found, dict) or not found.keys() & self.kinds.keys():
            raise ValueError(f"has none of the fields that the model reads: {', '.join(self.kinds)}")
        return found

    def _json_value(self, name: str, value: Any, argument: str) -> Any:
        """A JSON value as a field. Raises ConfigError where it does not fit the field."""
        kind, shape = self.kinds[name]
        try:
            if isinstance(value, str) != (kind in ("text", "bytes")):
                raise ValueError(f"it is {value!r}")
            text = value.encode() if kind == "bytes" else value
            return text if isinstance(value, str) else self._array(name, np.asarray(value))[()]
        except (ValueError, TypeError, OverflowError) as error:
            raise ConfigError(f"{argument}: {name!r} is to be {kind}{list(shape)}: {error}") from error

    def _array(self, name: str, given: np.ndarray) -> np.ndarray:
        """An array in a field's shape and dtype. Raises ValueError where it does not fit."""
        kind, shape = self.kinds[name]
        array, whole = given.astype(kind), given.dtype.kind in "biu"
        if np.dtype(kind).kind in "biu" and not np.array_equal(array, given):
            raise ValueError(f"its numbers do not fit {array.dtype}")
        if whole and array.dtype.kind == "f" and name not in self.unscaled and shape and (array.max(initial=0) > 1):
            raise ValueError(f"its integers are up to {array.max():g}, where the floats of the data are in 0…1")
        if -1 not in shape:
            return array.reshape(shape)
        if array.ndim != len(shape) or any(n not in (-1, size) for n, size in zip(shape, array.shape, strict=True)):
            raise ValueError(f"it is of shape {list(array.shape)}")
        return array


def raw_text(argument: str, as_bytes: bool = False) -> Any:
    """A text, or the content of a file if the argument is the path of one. Raises ConfigError if it is not UTF-8."""
    path = Path(argument)
    try:
        if not os.path.isfile(argument):  # `Path.is_file` raises for long texts
            if path.suffix in (".txt", ".json", ".md", ".npy") and len(argument.split()) == 1:
                logging.getLogger("jaxtrain.data").warning("there is no file %s: it is read as a text", argument)
            return argument.encode() if as_bytes else argument
        return path.read_bytes() if as_bytes else path.read_bytes().decode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{argument} cannot be read as a text: {error}") from error


def list_array(values: Sequence[Any], dtype: str | None) -> np.ndarray:
    """A list as an array: with this dtype if it holds numbers, of objects if it holds None or unequal lists."""
    try:
        array = np.asarray(values)
    except ValueError:  # lists of different lengths
        return np.array([*values], object)
    return array if dtype is None or array.dtype.kind not in "biuf" else array.astype(dtype)


def _field_kind(value: Any) -> tuple[str, tuple[int, ...]]:
    if isinstance(value, str | bytes):
        return "text" if isinstance(value, str) else "bytes", ()
    array = np.asarray(value)
    return ("bool", ()) if array.dtype == object else (array.dtype.str, array.shape)  # raw inputs hold no objects
