"""Sources: examples, each read by its index."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.base.ranges import Checked
from jaxtrain.data.sources.pixels import pixels

Example = dict[str, Any]
"""One example: field name -> numpy array or scalar, Python number, str or bytes. Not to be written into."""

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
        """A short string that changes when the examples do. Joins the fingerprint; cheap."""

    @property
    def vocab(self) -> int | None:
        """Size of the vocabulary that its token ids come from; None where they are no tokens or it is unknown."""
        return None

    def fetch(self, indices: Sequence[int]) -> list[Any]:
        """Stored records at these indices, not decoded yet. Override it where reading several at once is faster."""
        return [self[index] for index in indices]

    def decode(self, stored: Any) -> Example:
        """The example of one record that `fetch` returned."""
        return stored

    def where(self, index: int) -> str:
        """Where example `index` lies, for messages: a file, and the line or row in it."""
        return f"example {index} of {type(self).__name__}"

    def warn_shuffled(self) -> None:
        """Called before examples are read in a random order; logs once where that is slow."""

    def raw(self, argument: str) -> Example:
        """A command-line argument, a text or the path of a file, as an example of this source without a label.

        Images get this source's shape [Y, X, C], and are u8 if its images are, else f32 in 0…1; .npy files hold the
        array itself. Raises ConfigError for a file that cannot be read.
        """
        like = self[0]
        texts = [name for name, value in like.items() if isinstance(value, str | bytes)]
        if texts:
            return {texts[0]: argument}
        name, value = max(like.items(), key=lambda item: np.size(item[1]))
        path = Path(argument)
        if not path.is_file():
            raise ConfigError(f"this model reads files with its {name!r}, and there is no file {argument}")
        try:
            if path.suffix == ".npy":
                return {name: np.load(path, allow_pickle=False).astype(value.dtype).reshape(value.shape)}
            Y, X, C = value.shape
            image = pixels(path.read_bytes(), (Y, X), gray=C == 1).reshape(value.shape)
            return {name: image if image.dtype == value.dtype else image.astype(np.float32) / 255}
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read as a {name} of shape {list(value.shape)}: {error}") from error

    def remembered(self) -> "Source":
        """What a run saves of this source, so that `raw` opens no data file: a source of one empty example like the
        first that is not damaged. A source with a `raw` of its own, which must not need data files, is saved itself.
        """
        if type(self).raw is not Source.raw:
            return self
        for index in range(len(self)):
            with suppress(Damaged):
                return RememberedSource({name: _kind(value) for name, value in self[index].items()})
        raise Damaged(repr(self), None, "every record is damaged")


@dataclass(frozen=True)
class RememberedSource(Source):
    """One example of zeros and empty texts, with the fields of another source: for its shapes alone.

    kinds: dtype and shape of every field; the dtype of text is "text".
    """

    kinds: Mapping[str, tuple[str, tuple[int, ...]]]

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Example:
        return {name: "" if kind == "text" else np.zeros(shape, kind) for name, (kind, shape) in self.kinds.items()}

    def identity(self) -> str:
        return f"remembered:{self.kinds}"


def list_array(values: Sequence[Any], dtype: str | None) -> np.ndarray:
    """A list as an array, of this dtype if it holds numbers; of objects where it holds None or lists that differ."""
    try:
        array = np.asarray(values)
    except ValueError:  # lists of different lengths
        return np.array([*values], object)
    return array if dtype is None or array.dtype.kind not in "biuf" else array.astype(dtype)


def _kind(value: Any) -> tuple[str, tuple[int, ...]]:
    array = np.asarray(value)
    if isinstance(value, str | bytes) or array.dtype == object:  # an object is none that a raw input has
        return "text" if isinstance(value, str | bytes) else "bool", ()
    return array.dtype.str, array.shape
