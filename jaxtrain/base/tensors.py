"""Files of tensors in the safetensors format, read slice by slice and written tensor by tensor.

The format is a u64 length, that many bytes of JSON with dtype, shape and place of each tensor, and their bytes; it
holds no code. Not here: what the tensors are for.
"""

import contextlib
import io
import itertools
import json
import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.base.files import atomic_write, unique_keys
from jaxtrain.base.text import cut

DTYPES: Mapping[str, np.dtype] = {
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    **{f"I{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BOOL": np.dtype(bool),
}
"""The format's names of dtypes. It has others, of 8 bits and less, which are not read."""

MOST_HEADER = 100_000_000
"""Bytes of JSON that a file may begin with; the format's own limit."""

ALIGNED = 8
"""The first tensor's bytes begin at a multiple of this."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file."""

    file: Path
    name: str
    dtype: str
    """One of `DTYPES`, or another that cannot be read."""
    shape: tuple[int, ...]
    offset: int
    """Where its bytes begin in the file."""

    @property
    def kind(self) -> np.dtype:
        """The dtype. Raises ConfigError for one that cannot be read."""
        if self.dtype not in DTYPES:
            raise ConfigError(f"{self.file}: {self.name} has dtype {self.dtype}; those known are {', '.join(DTYPES)}")
        return DTYPES[self.dtype]

    def read(self, index: Sequence[slice] = ()) -> np.ndarray:
        """A slice of it, one `slice` of step 1 a dim; of nothing else bytes are read.

        Raises Damaged where the file ends before.
        """
        ranges = [slice(*part.indices(size)) for part, size in zip(index, self.shape, strict=False)]
        ranges += [slice(0, size) for size in self.shape[len(ranges) :]]
        out = np.empty([part.stop - part.start for part in ranges], self.kind)
        if not out.size:
            return out
        # Dims that are read whole make one run of bytes with the last dim before them.
        cut = [dim for dim, part in enumerate(ranges) if part.stop - part.start < self.shape[dim]]
        outer = max(cut, default=0)
        runs = out.reshape(math.prod(out.shape[:outer]), -1).view(np.uint8)
        with open(self.file, "rb", buffering=0) as file:
            places = itertools.product(*(range(part.start, part.stop) for part in ranges[:outer]))
            for run, place in zip(runs, places, strict=True):
                first = (*place, *(part.start for part in ranges[outer:]))
                entry = int(np.ravel_multi_index(first, self.shape)) if first else 0
                self._fill(file.fileno(), memoryview(run), self.offset + entry * self.kind.itemsize)
        return out

    def _fill(self, file: int, run: memoryview, offset: int) -> None:
        while run:
            count = os.preadv(file, [run], offset)
            if not count:
                raise Damaged(str(self.file), None, f"it ends within {self.name}")
            run, offset = run[count:], offset + count


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a file, by name. Raises Damaged for one that is not of this format, or not whole."""
    with _damaged(file), file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        return {tensor.name: tensor for tensor in _checked(file, *_header(opened, size), size)}


def tensors_of(content: bytes, file: Path) -> dict[str, np.ndarray]:
    """The tensors in the content of a file, by name, as views of it. Raises Damaged as `stored_tensors` does, and for a
    dtype that cannot be read.
    """
    found = {}
    with _damaged(file):
        for tensor in [*_checked(file, *_header(io.BytesIO(content), len(content)), len(content))]:
            count, dtype = math.prod(tensor.shape), tensor.kind
            found[tensor.name] = np.frombuffer(content, dtype, count, tensor.offset).reshape(tensor.shape)
    return found


@contextlib.contextmanager
def _damaged(file: Path) -> Generator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else error
        raise Damaged(str(file), None, f"it is not a .safetensors ({cut(str(why), 300)})") from error


def _header(opened: BinaryIO, size: int) -> tuple[Mapping[str, Any], int]:
    """The JSON, and where the tensors' bytes begin, of a file of `size` bytes."""
    length = int.from_bytes(opened.read(8), "little")
    if length > min(MOST_HEADER, size - 8):
        raise ValueError(f"its header would have {length:,} bytes, of {size:,} in the file")
    return json.loads(opened.read(length), object_pairs_hook=unique_keys), 8 + length


def _checked(file: Path, header: Mapping[str, Any], start: int, size: int) -> Iterator[StoredTensor]:
    """The tensors in the order of their bytes, which are to follow each other without a gap."""
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    end = start
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        (begin, after), shape, dtype = entry["data_offsets"], tuple(entry["shape"]), entry["dtype"]
        if not all(type(number) is int and number >= 0 for number in (*shape, begin, after)):
            raise ValueError(f"{name} has shape {list(shape)} and bytes {begin} to {after}")
        wanted = math.prod(shape) * DTYPES[dtype].itemsize if dtype in DTYPES else after - begin
        if start + begin != end or after - begin != wanted:
            raise ValueError(f"{name}, {dtype} {list(shape)}, has bytes {begin} to {after}")
        end = start + after
        yield StoredTensor(file, name, dtype, shape, start + begin)
    if end != size:
        raise ValueError(f"its tensors end at byte {end:,}, the file at {size:,}")


def write_tensors(file: Path, kinds: Mapping[str, Any], value: Callable[[str], np.ndarray]) -> None:
    """Write a file of the tensors `value(name)`, which is called once for each in turn.

    kinds: a thing with the shape and the dtype of each, by name. Raises ConfigError for a dtype that the format lacks.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    order = sorted(kinds, key=lambda name: (-np.dtype(kinds[name].dtype).itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # other libraries refuse files without it
    end = 0
    for name in order:
        dtype, shape = np.dtype(kinds[name].dtype), kinds[name].shape
        if dtype not in names:
            raise ConfigError(f"{file}: {name} has dtype {dtype}, which the format lacks; it has {', '.join(DTYPES)}")
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    content += b" " * (-len(content) % ALIGNED)
    with atomic_write(file) as temporary, temporary.open("wb") as opened:
        opened.write(len(content).to_bytes(8, "little") + content)
        for name in order:
            array = np.asarray(value(name), order="C")
            assert (array.dtype, array.shape) == (kinds[name].dtype, tuple(kinds[name].shape)), name
            opened.write(array.reshape(-1).view(np.uint8).data)
