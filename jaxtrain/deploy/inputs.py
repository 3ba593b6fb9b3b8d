"""The kinds of raw inputs, and how each becomes a row of a tensor. Needs numpy alone."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.files import is_file_name
from jaxtrain.base.packages import needs
from jaxtrain.deploy.values import (
    TENSOR_DTYPES,
    abbreviated,
    check_keys,
    checked_name,
    composed,
    is_count,
    is_size,
    numbers,
    quoted,
    utf8,
    wrong,
)

_COMPARED = 200  # values, and letters of each, of which the nearest is found


@dataclass(frozen=True)
class Tensor:
    """An array that a graph takes or gives: rows on dim 0, `shape` is that of a row."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    classes: tuple[str, ...] = ()
    """Of an output of probabilities, what each of its numbers is about."""

    def to_json(self) -> dict[str, Any]:
        """As in signature.json."""
        classes = {"classes": list(self.classes)} if self.classes else {}
        return {"name": self.name, "dtype": self.dtype, "shape": ["batch", *self.shape], **classes}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> "Tensor":
        """Raises ConfigError for what `to_json` does not write."""
        check_keys(value, {"name", "dtype", "shape"}, {"classes"}, where)
        name, shape, classes = checked_name(value["name"], where), value["shape"], value.get("classes", [])
        if not (isinstance(shape, list) and shape[:1] == ["batch"] and all(is_size(n) for n in shape[1:])):
            raise ConfigError(f"{where}.shape: {shape!r} is not ['batch', sizes …]")
        if value["dtype"] not in TENSOR_DTYPES:
            raise ConfigError(f"{where}.dtype: {value['dtype']!r} is none of {', '.join(TENSOR_DTYPES)}")
        if not (isinstance(classes, list) and all(isinstance(each, str) for each in classes)):
            raise ConfigError(f"{where}.classes: {quoted(classes)} are not texts")
        if classes and shape != ["batch", len(classes)]:
            raise ConfigError(f"{where}.classes: {len(classes)} names for an output of shape {quoted(shape)}")
        return cls(name, value["dtype"], tuple(shape[1:]), tuple(classes))


@dataclass(frozen=True, kw_only=True)
class Input(ABC):
    """What a person gives, and how it becomes a row of a tensor."""

    kind: ClassVar[str]
    name: str
    tensor: str

    @abstractmethod
    def spec(self) -> Tensor:
        """The tensor that it becomes."""

    @abstractmethod
    def row(self, value: Any) -> np.ndarray:
        """One raw value as a row of the tensor. Raises ConfigError for one that it cannot be."""

    def to_json(self) -> dict[str, Any]:
        """As in signature.json."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.repr}
        lists = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
        return {"name": values.pop("name"), "kind": self.kind, **values, **lists}

    @abstractmethod
    def check(self) -> None:
        """Raises ConfigError for fields that no exporter writes; those of a signature.json are checked so."""

    def wrong(self, what: str) -> ConfigError:
        """The error for a value, or a field, of this input."""
        return wrong(self.name, what)


@dataclass(frozen=True, kw_only=True)
class Text(Input):
    """A text, or its UTF-8 bytes, of which `bytes` count; shorter ones are padded with byte 0."""

    kind = "text"
    bytes: int
    keep: str = "first"
    """Which bytes of a longer text count: the first, or the last."""
    least: int = 0
    """Bytes that there must be."""

    def spec(self) -> Tensor:
        return Tensor(self.tensor, "uint8", (self.bytes,))

    def row(self, value: Any) -> np.ndarray:
        raw = utf8(self.name, value)
        if len(raw) < self.least:
            raise self.wrong("it is empty" if not raw else f"it has {len(raw)} bytes, of at least {self.least}")
        kept = raw[: self.bytes] if self.keep == "first" else raw[-self.bytes :]
        return np.frombuffer(kept.ljust(self.bytes, b"\0"), np.uint8)

    def check(self) -> None:
        if not (is_size(self.bytes) and self.keep in ("first", "last") and is_count(self.least)):
            raise self.wrong(f"a text of {self.bytes!r} bytes, of which {self.keep!r} are kept, is none")


@dataclass(frozen=True, kw_only=True)
class TokenIds(Input):
    """A text as token ids by a file of the `tokenizers` library; cut after `length`, shorter ones padded."""

    kind = "tokens"
    tokenizer: str
    """The name of its file in the bundle."""
    length: int
    pad: int = 0
    keep: str = "first"
    least: int = 0
    encode: Callable[[str], Sequence[int]] | None = field(default=None, repr=False, compare=False)
    """Reads texts; without it only token ids are taken."""
    vocab: int = field(default=2**31, repr=False, compare=False)
    """That of the tokenizer, once it is loaded."""

    def spec(self) -> Tensor:
        return Tensor(self.tensor, "int32", (self.length,))

    def row(self, value: Any) -> np.ndarray:
        if isinstance(value, str | bytes):
            if self.encode is None:
                raise self.wrong("its tokenizer is not loaded: give token ids")
            try:
                text = utf8(self.name, value).decode()
            except UnicodeDecodeError as error:
                raise self.wrong(f"its bytes are no UTF-8 text: {error}") from error
            ids = np.asarray(self.encode(text), np.int64)
        else:
            ids = numbers(self.name, value, np.int64)
            if ids.ndim != 1 or (ids.size and not 0 <= ids.min() <= ids.max() < self.vocab):
                raise self.wrong(
                    f"token ids are a list of integers from 0 to {self.vocab - 1}, not {abbreviated(value)}"
                )
        if len(ids) < self.least:
            raise self.wrong(f"it has {len(ids)} tokens, of at least {self.least}")
        kept = ids[: self.length] if self.keep == "first" else ids[-self.length :]
        return np.pad(kept, (0, self.length - len(kept)), constant_values=self.pad).astype(np.int32)

    def check(self) -> None:
        if not is_file_name(self.tokenizer if isinstance(self.tokenizer, str) else ""):
            raise self.wrong(f"tokenizer {self.tokenizer!r} is no name of a file in the bundle")
        sizes = is_size(self.length) and is_count(self.least) and self.keep in ("first", "last")
        if not (sizes and isinstance(self.pad, int)):
            raise self.wrong(f"{self.length!r} tokens, padded with {self.pad!r}, are none")


@dataclass(frozen=True, kw_only=True)
class Category(Input):
    """One of some values, texts or integers: `first` + its place among them; another one is `unknown`.

    Texts that differ only in how accents are written (NFC, NFD) are one.
    """

    kind = "category"
    values: tuple[str | int, ...]
    first: int = 0
    unknown: int | None = None
    """None refuses other values."""

    def spec(self) -> Tensor:
        return Tensor(self.tensor, "int32", ())

    def row(self, value: Any) -> np.ndarray:
        value = self._plain(value)
        if (place := self._places.get(value)) is not None:
            return np.asarray(place, np.int32)
        kinds = {type(each) for each in self.values}
        if self.unknown is None or (kinds and type(value) not in kinds):
            known = [*map(str, self.values)] if len(self.values) <= _COMPARED else []
            near = nearest(str(value)[:_COMPARED], known, listed=len(known) <= 20)
            raise self.wrong(f"it is {quoted(value)}, none of its values{near}")
        return np.asarray(self.unknown, np.int32)

    def _plain(self, value: Any) -> str | int:
        if isinstance(value, str | bytes):
            try:
                return composed(
                    value.decode(errors="replace") if isinstance(value, bytes) else utf8(self.name, value).decode()
                )
            except UnicodeDecodeError as error:
                raise self.wrong(f"it is no UTF-8 text: {error}") from error
        if isinstance(value, list | tuple) or (array := np.asarray(value)).ndim or array.dtype.kind not in "biu":
            raise self.wrong(f"it is {abbreviated(value)}, neither a text nor an integer")
        return int(value)

    @functools.cached_property
    def _places(self) -> dict[str | int, int]:
        return {composed(value): number for number, value in enumerate(self.values, self.first)}

    def check(self) -> None:
        kinds = {type(each) for each in self.values}
        if not kinds <= {str, int} or not all(isinstance(n, int) for n in (self.first, self.unknown or 0)):
            raise self.wrong("its values are texts or integers, and first and unknown integers")


def with_encode(tokens: TokenIds, folder: Path) -> TokenIds:
    """With the tokenizer of a file in this folder. Raises ConfigError for one that is none."""
    with needs("this bundle", "tokenizers", "datasets"):
        import tokenizers
    path = folder / tokens.tokenizer
    try:
        found = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ConfigError(f"{path} is no tokenizer file: {error}") from error
    return replace(tokens, encode=lambda text: found.encode(text).ids, vocab=found.get_vocab_size())
