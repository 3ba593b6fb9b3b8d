"""Sources: examples, each read by its index. A source holds paths and opens them when first read.

Every source can be pickled to a worker process and read by several threads at once. What it opens is kept per
process by the cached functions below, which build their result locally and publish it in one assignment.
"""

import hashlib
import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from jaxtrain.errors import ConfigError, nearest

Example = dict[str, Any]
"""One example: field name -> numpy array or scalar, Python number, str or bytes. Not to be written into."""

Batch = dict[str, np.ndarray]
"""Stacked examples: field name -> array with rows as first dimension. Always has "mask": bool[rows]."""

T_co = TypeVar("T_co", covariant=True)


class Indexed(Protocol[T_co]):
    """Anything with a length whose items are read by index."""

    def __len__(self) -> int:
        """Number of items."""
        ...

    def __getitem__(self, index: int) -> T_co:
        """Item `index`."""
        ...


_EDGE = 1 << 20


class Damaged(Exception):
    """A file, or record `record` (from 0) of it, that cannot be read or is not what was written."""

    def __init__(self, file: str, record: int | None, why: str) -> None:
        self.file, self.record, self.why = file, record, why
        super().__init__(f"{file}{'' if record is None else f', record {record}'}: {why}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Damaged, (self.file, self.record, self.why)  # it has to come back from worker processes


@dataclass(frozen=True)
class Source(ABC):
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
        """How many tokens its integers may be, where it knows."""
        return None

    def fetch(self, indices: Sequence[int]) -> list[Any]:
        """What stands at these indices as it is stored: several at once, for sources that read so faster."""
        return [self[index] for index in indices]

    def decode(self, stored: Any) -> Example:
        """The example that was stored as one item of what `fetch` gives."""
        return stored

    def raw(self, argument: str) -> Example:
        """What a command line gives, a text or a file, as an example like those here but with no label.

        Images become f32[Y, X, C] in 0…1 of the shape here; .npy files hold the array itself. Raises ConfigError for a
        file that cannot be read so.
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
            return {name: _pixels(path, value.shape)}
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read as a {name} of shape {list(value.shape)}: {error}") from error


def _pixels(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigError("reading images needs Pillow: pip install 'jaxtrain[images]' (or give .npy files)") from error
    Y, X, C = shape
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L" if C == 1 else "RGB").resize((X, Y)), np.float32) / 255
    return pixels.reshape(shape)


@dataclass(frozen=True, eq=False)
class Arrays(Source):
    """Columns in memory: example i is row i of every column.

    `columns` maps field names to arrays of one leading length, or to lists of str or bytes. Raises
    ConfigError for no columns, columns of different lengths, or objects that are neither str nor bytes. Two
    of them are equal when their contents are.
    """

    columns: Mapping[str, Any] = field(repr=False)

    def __post_init__(self) -> None:
        columns = {name: _column(name, values) for name, values in self.columns.items()}
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ConfigError(f"Arrays needs one or more columns of one length, got lengths {lengths}")
        object.__setattr__(self, "columns", columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> Example:
        return {name: column[index] for name, column in self.columns.items()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arrays) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)

    def identity(self) -> str:
        """A sha256 of names, dtypes, shapes and values."""
        return f"arrays:{self._content}"

    @cached_property
    def _content(self) -> str:
        digest = hashlib.sha256()
        for name, column in sorted(self.columns.items()):
            digest.update(repr((name, column.dtype.str, column.shape)).encode())
            digest.update(repr(column.tolist()).encode() if column.dtype == object else column.tobytes())
        return digest.hexdigest()[:32]


def _column(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind in "USO":  # fixed-width strings lose trailing zero bytes; objects keep every text as it is
        array = np.asarray(values, dtype=object)
        wrong = {type(value).__name__ for value in array.flat if not isinstance(value, str | bytes)}
        if wrong:
            raise ConfigError(f"Arrays column {name!r} holds {sorted(wrong)}; use numbers, str or bytes")
    if array.ndim == 0:
        raise ConfigError(f"Arrays column {name!r} is a single value; give one row per example")
    return array


@dataclass(frozen=True)
class ArrayRecord(Source):
    """Records of ArrayRecord files, in the order of `paths`, as `write_array_record` wrote them.

    Memory use does not grow with the files. Keep at most about 10,000 records a file: the time of one read
    grows with the number of records in its file. Raises ConfigError when a file is missing.
    """

    paths: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.paths, str) or not self.paths:
            raise ConfigError(f"ArrayRecord needs a tuple of one or more paths, got {self.paths!r}")

    def __len__(self) -> int:
        return len(_open_array_record(self.paths))

    def __getitem__(self, index: int) -> Example:
        return self.decode(self.fetch([index])[0])

    def fetch(self, indices: Sequence[int]) -> list[tuple[int, bytes]]:
        """The records' numbers and bytes. Raises Damaged, naming file and record."""
        records = _open_array_record(self.paths)
        try:
            read = records.__getitems__(list(indices)) if len(indices) > 1 else [records[indices[0]]]
        except (RuntimeError, ValueError, OSError) as error:
            raise self._damage(indices) from error
        return list(zip(indices, read, strict=True))

    def decode(self, stored: tuple[int, bytes]) -> Example:
        """The example. Raises Damaged for bytes that `write_array_record` did not write."""
        from flax.serialization import msgpack_restore

        index, record = stored
        try:
            example = msgpack_restore(record)
        except Exception as error:  # msgpack raises kinds of its own
            raise self._damaged(index, f"it does not decode ({type(error).__name__}: {error})") from error
        if not isinstance(example, dict):
            raise self._damaged(index, f"it decodes to a {type(example).__name__}, not to fields")
        return example

    def _damage(self, indices: Sequence[int]) -> Damaged:
        """Which of several records cannot be read."""
        records = _open_array_record(self.paths)
        for index in indices:
            try:
                records[index]
            except (RuntimeError, ValueError, OSError) as error:
                return self._damaged(index, f"it cannot be read{_said(error)}")
        return Damaged(self.paths[0], None, f"records {list(indices)} cannot be read together")

    def _damaged(self, index: int, why: str) -> Damaged:
        """With the file that example `index` is in, and its number there."""
        for path in self.paths:
            size = len(_open_array_record((path,)))
            if index < size:
                return Damaged(path, index, why)
            index -= size
        raise IndexError(index)

    def identity(self) -> str:
        """A sha256 of every file's size, first and last MiB; the last holds ArrayRecord's index of chunks."""
        _require_files(self.paths)
        digest = hashlib.sha256()
        for path in self.paths:
            size = os.path.getsize(path)
            with open(path, "rb") as file:
                digest.update(f"{size}:".encode() + file.read(_EDGE))
                file.seek(max(0, size - _EDGE))
                digest.update(file.read())
        return f"array_record:{digest.hexdigest()[:32]}"


@lru_cache(maxsize=64)
def _open_array_record(paths: tuple[str, ...]) -> Any:
    _require_files(paths)
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        return ArrayRecordDataSource(list(paths))
    except RuntimeError as error:
        for path in paths:
            if len(paths) > 1:
                _open_array_record((path,))
        raise Damaged(paths[0], None, f"it cannot be opened{_said(error)}") from error


def _said(error: Exception) -> str:
    """The first line of what a library said, if it said anything."""
    line = str(error).partition("\n")[0]
    return f" ({line})" if line else ""


def _require_files(paths: tuple[str, ...]) -> None:
    for path in map(Path, paths):
        if not path.is_file():
            others = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
            hint = nearest(path.name, others) if others else f"; {path.parent} has no files"
            raise ConfigError(f"ArrayRecord: no file {path}{hint}")


def write_array_record(path: str | os.PathLike[str], examples: Iterable[Mapping[str, Any]]) -> int:
    """Write `examples` to one ArrayRecord file at `path` and return how many there were.

    Values are numpy arrays or scalars, numbers, str or bytes. The file takes its name only when it is
    complete, so a reader never sees half of one; an existing file is replaced.
    """
    from flax.serialization import msgpack_serialize

    records = importlib.import_module("array_record.python.array_record_module")
    final = Path(path)
    unfinished = final.with_name(f".{final.name}.{os.getpid()}.unfinished")
    count = 0
    try:
        # One record a group, so that a random read decodes one record.
        writer = records.ArrayRecordWriter(str(unfinished), "group_size:1")
        try:
            for example in examples:
                writer.write(msgpack_serialize(dict(example)))
                count += 1
        finally:
            writer.close()
        unfinished.replace(final)
    except RuntimeError as error:
        raise OSError(str(error).split(";")[0]) from error  # a full disk, for one
    finally:
        unfinished.unlink(missing_ok=True)
    _open_array_record.cache_clear()  # a replaced file must not be read through its old handle
    return count


@dataclass(frozen=True)
class Tfds(Source):
    """A data set that TensorFlow Datasets prepared on disk as ArrayRecord files. TensorFlow is not needed.

    `name` is "dataset", "dataset/config" or with a version "dataset:1.0.0"; `split` may be a slice such as
    "train[:90%]"; `data_dir` is the folder that holds the data set's folder. Text comes as bytes, labels as
    ints. Nothing is downloaded. Raises ConfigError for a missing package, data set or split.
    """

    name: str
    split: str
    data_dir: str

    def __len__(self) -> int:
        return len(_open_tfds(self))

    def __getitem__(self, index: int) -> Example:
        return _open_tfds(self)[index]

    def identity(self) -> str:
        """The prepared name and version, the split, and its number of examples."""
        opened = _open_tfds(self)
        return f"tfds:{opened.dataset_info.full_name}:{self.split}:{len(opened)}"


@lru_cache(maxsize=64)
def _open_tfds(source: Tfds) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"Tfds needs the package {error.name!r}, which is missing: pip install 'jaxtrain[tfds]'"
        ) from error
    folder = Path(source.data_dir)
    try:
        builder: Any = tfds.builder(source.name, data_dir=folder, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        hint = nearest(source.name, found) or "; that folder is missing or empty"
        raise ConfigError(f"Tfds: no data set {source.name!r} in {folder}{hint}") from error
    splits = builder.info.splits
    if not splits:
        raise ConfigError(
            f"Tfds: {source.name!r} is not prepared in {folder}; run its builder's "
            'download_and_prepare(file_format="array_record") first'
        )
    try:
        return builder.as_data_source(source.split)
    except ValueError as error:
        raise ConfigError(
            f"Tfds: {source.name!r} has no split {source.split!r}{nearest(source.split, splits)} ({error})"
        ) from error


@dataclass(frozen=True)
class Windows(Source):
    """{"tokens": int32[length + 1]}: rows of the UTF-8 bytes of another source's text, for language models.

    The documents are joined with one byte 0 between them and held in memory. Row i is bytes
    [i * length, i * length + length]; rows overlap by one byte, so that every byte but the first is a target
    once. A last row that would be shorter is left out.
    """

    source: Source
    length: int
    field: str = "text"

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"Windows length must be at least 1 byte, got {self.length}")

    def __len__(self) -> int:
        return max(0, (len(_joined_bytes(self.source, self.field)) - 1) // self.length)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = index * self.length
        row = _joined_bytes(self.source, self.field)[first : first + self.length + 1]
        return {"tokens": row.astype(np.int32)}

    def raw(self, argument: str) -> Example:
        """The tokens of a text, however long."""
        return {"tokens": np.frombuffer(argument.encode(), np.uint8).astype(np.int32)}

    def identity(self) -> str:
        """The other source's identity with the field and the length."""
        return f"windows:{self.length}:{self.field}:{self.source.identity()}"


@lru_cache(maxsize=8)
def _joined_bytes(source: Source, name: str) -> np.ndarray:
    documents = []
    for index in range(len(source)):
        example = source[index]
        if name not in example:
            raise ConfigError(f"Windows: {type(source).__name__} has no field {name!r}{nearest(name, example)}")
        text = example[name]
        documents.append(text.encode() if isinstance(text, str) else text)
    return np.frombuffer(b"\0".join(documents), np.uint8)
