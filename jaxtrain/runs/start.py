"""The initial state of a run, whose parameters may come from another run or a file, read directly into their shards.

Not here: resuming a run, for which the whole state is restored.
"""

import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.base.config import difference, find, flatten
from jaxtrain.base.errors import ConfigError, Damaged, nearest
from jaxtrain.base.tensors import DTYPES, StoredTensor, stored_tensors
from jaxtrain.base.text import array_type
from jaxtrain.experiment.start import Start, is_hugging_face, saved_step
from jaxtrain.models.huggingface.reading import Folder
from jaxtrain.models.params import insert
from jaxtrain.program import Program
from jaxtrain.sharding.feed import check_numbers, put_slices
from jaxtrain.sharding.layout import path_name
from jaxtrain.step import TrainState

PARTS = ("params", "frozen", "model_state")
"""The parts of a state that a start sets."""

FREE = ("blocks.dropout", "blocks.precision", "outputs", "pooling", "padding")
"""Settings of a model that may be others than those of the weights."""

AVERAGE = re.compile(r"opt_state/(?:.*/)?average/(?P<path>.+)")
"""The paths of averaged parameters in a checkpoint."""


@dataclass(frozen=True)
class Found:
    """An array of the source."""

    key: str
    kind: str
    """Dtype and shape, such as `float32[8,4]`."""


class FirstState:
    """The state that a run begins with. Until `make` is called, only names and shapes are read."""

    def __init__(self, program: Program) -> None:
        """Raises ConfigError where the source of `experiment.start` lacks an array, or has another shape or dtype."""
        self._program, self._start = program, program.experiment.start
        self.facts: dict[str, Any] = {}
        """For the log: the number of arrays that are set, and the names of those initialised at random, unused or cast.
        """
        if self._start is not None:
            self._source = source_of(self._start)
            self._chosen, self.facts = matched(self._start, self._source.arrays, targets(program.state))
            if isinstance(self._source, FolderSource) and (
                lines := self._source.other_settings(program.experiment.task)
            ):
                self.facts["other_settings"] = lines

    def make(self, log: Callable[..., None] | None = None) -> TrainState:
        """The state on its devices. `log(kind, **facts)` is called if parameters come from elsewhere."""
        state = self._program.init()
        if self._start is None:
            return state
        if log is not None:
            log("started", **self.facts)
        arrays = self._source.read({found.key: leaf for found, leaf in self._chosen.values()})
        parts = jax.tree.map(lambda leaf: leaf, {name: getattr(state, name) for name in PARTS})  # copies of the dicts
        for path, (found, leaf) in self._chosen.items():
            value = arrays[found.key]
            cast = value if value.dtype == leaf.dtype else jax.device_put(value.astype(leaf.dtype), leaf.sharding)
            check_numbers(path, cast, self._start.source)
            insert(parts, path.split("/"), cast)
        return self._program.begun(replace(state, **parts))


def targets(state: TrainState) -> dict[str, jax.ShapeDtypeStruct]:
    """The leaves that a start may set, by `part/path`."""
    leaves = jax.tree_util.tree_leaves_with_path({name: getattr(state, name) for name in PARTS})
    return {path_name(path): leaf for path, leaf in leaves}


def matched(
    start: Start, arrays: Mapping[str, Found], leaves: Mapping[str, jax.ShapeDtypeStruct]
) -> tuple[dict[str, tuple[Found, jax.ShapeDtypeStruct]], dict[str, Any]]:
    """The source array of each leaf that is set, by the leaf's path, and the facts for the log. Raises ConfigError."""
    by_path = {path: path.partition("/")[2] for path in leaves}
    check_matches(start, arrays, by_path.values())
    found = with_names_of_here(start, arrays)
    wanted = {path: name for path, name in by_path.items() if any(fnmatchcase(name, each) for each in start.only)}
    wrong, cast = [], []
    for path, name in wanted.items():
        kind = array_type(leaves[path])
        if name not in found:
            wrong.append(f"  {name}: wanted {kind}, not found{nearest(name, found, listed=False)}")
        elif not is_alike(found[name], leaves[path]):
            wrong.append(f"  {name}: wanted {kind}, found {found[name].kind}")
        elif found[name].kind != kind:
            cast.append(f"{name}: {found[name].kind} to {kind}")
    if cast and not start.cast:
        wrong += [f"  {line}: set start.cast to allow it" for line in cast]
    if wrong:
        more = [f"  and {len(wrong) - 20} more"] if len(wrong) > 20 else []
        head = f"start: {start.source} does not fit (choose by start.only what to set):"
        raise ConfigError("\n".join([head, *wrong[:20], *more]))
    chosen = {path: (found[name], leaves[path]) for path, name in wanted.items()}
    facts = {
        "source": start.source,
        "arrays": len(chosen),
        "drawn": sorted(set(by_path.values()) - set(wanted.values())),
        "unused": sorted(found.keys() - set(wanted.values())),
        "cast": cast,
    }
    return chosen, {name: value for name, value in facts.items() if value}


def check_matches(start: Start, arrays: Collection[str], names: Collection[str]) -> None:
    """Raises ConfigError for a pattern in `only` or a prefix in `rename` that matches nothing."""
    for pattern in start.only:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"start.only: no array matches {pattern!r}{nearest(pattern, names)}")
    for beginning in start.rename:
        if not any(f"{name}/".startswith(f"{beginning}/".lstrip("/")) for name in arrays):
            raise ConfigError(
                f"start.rename: {start.source} has nothing below {beginning!r}{nearest(beginning, arrays)}"
            )


def with_names_of_here(start: Start, arrays: Mapping[str, Found]) -> dict[str, Found]:
    """The arrays of the source by their path after `rename`. Raises ConfigError where two have the same."""
    found: dict[str, Found] = {}
    for name, array in arrays.items():
        here = renamed(name, start.rename)
        if here in found:
            raise ConfigError(f"start.rename: {found[here].key} and {array.key} of {start.source} would both be {here}")
        found[here] = array
    return found


def is_alike(found: Found, leaf: jax.ShapeDtypeStruct) -> bool:
    """Whether an array has the shape of a leaf, and the same dtype or, as the leaf, a float dtype."""
    dtype, _, shape = found.kind.partition("[")
    both_float = dtype.startswith(("float", "bfloat")) and jnp.issubdtype(leaf.dtype, jnp.floating)
    return array_type(leaf).partition("[")[2] == shape and (both_float or dtype == str(leaf.dtype))


def renamed(name: str, rename: Mapping[str, str]) -> str:
    """A path of the source after `rename`."""
    for beginning, new in rename.items():
        if f"{name}/".startswith(f"{beginning}/".lstrip("/")):
            return "/".join(filter(None, (new, name[len(beginning) :].strip("/"))))
    return name


class StartSource(ABC):
    """Where arrays come from."""

    arrays: Mapping[str, Found]

    @abstractmethod
    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        """Arrays by key, in these shards and, but for a folder of `transformers`, in the dtypes of the source."""

    def other_settings(self, task: Any) -> list[str]:
        """The settings in which the model of a task differs from that of the source, where this is known."""
        return []


class RunSource(StartSource):
    """A checkpoint of a run."""

    def __init__(self, folder: Path, step: int) -> None:
        from jaxtrain.runs.checkpoints import Checkpoints

        self._checkpoints, self._step = Checkpoints(folder / "checkpoints", read_only=True), step
        saved = self._checkpoints.leaves(step)
        own = {key.partition("/")[2]: Found(key, kind) for key, kind in saved.items() if key.partition("/")[0] in PARTS}
        averages = {at["path"]: Found(key, kind) for key, kind in saved.items() if (at := AVERAGE.fullmatch(key))}
        self.arrays = own | averages

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        with self._checkpoints as checkpoints:
            return checkpoints.arrays(self._step, wanted)


class FileSource(StartSource):
    """A file of arrays by name. Dots in names are read as `/`."""

    def __init__(self, path: Path) -> None:
        """Raises Damaged for a file that cannot be read, ConfigError for two names that differ by dots alone."""
        self._arrays = _read_npz(path) if path.suffix == ".npz" else stored_tensors(path)
        self.arrays = arrays = dict[str, Found]()
        for name, x in self._arrays.items():
            if (known := arrays.setdefault(name.replace(".", "/"), Found(name, _kind(x)))).key != name:
                raise ConfigError(f"start: {path} has both {known.key} and {name}, and dots in names are read as /")

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        with np.errstate(over="ignore"):  # float64 becomes float32 here, and what is beyond it is named later
            return {key: put_slices(leaf, self._slices(key)) for key, leaf in wanted.items()}

    def _slices(self, key: str) -> Callable[[tuple[slice, ...]], np.ndarray]:
        array = self._arrays[key]
        return array.read if isinstance(array, StoredTensor) else array.__getitem__


class FolderSource(StartSource):
    """A folder of Hugging Face's `transformers`, by our paths."""

    def __init__(self, path: Path) -> None:
        self._folder = Folder(path)
        self.arrays = {
            key: Found(key, array_type(jax.ShapeDtypeStruct(stored.shape, stored.tensors[0].kind)))
            for key, stored in self._folder.stored.items()
        }

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        return {key: self._folder.read(key, leaf) for key, leaf in wanted.items()}

    def other_settings(self, task: Any) -> list[str]:
        mine = flatten(self._folder.model)
        model = next(find(task, type(self._folder.model)), self._folder.model)
        lines = [line.strip() for line in difference(mine, flatten(model)).splitlines()]
        return [line for line in lines if not line.startswith(FREE)]


def source_of(start: Start) -> StartSource:
    """The source of a start. Raises ConfigError for what is neither a run nor a file of arrays."""
    path = Path(start.source)
    if is_hugging_face(path):
        return FolderSource(path)
    if path.is_dir():
        return RunSource(path, saved_step(path, start.step))
    if path.suffix not in (".npz", ".safetensors") or not path.is_file():
        raise ConfigError(f"start.source: {path} is neither a run folder nor a file .npz or .safetensors")
    return FileSource(path)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            return {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise Damaged(str(path), None, f"it is not an .npz of numbers ({error})") from error


def _kind(x: np.ndarray | StoredTensor) -> str:
    if isinstance(x, StoredTensor):
        return array_type(jax.ShapeDtypeStruct(x.shape, x.kind)) if x.dtype in DTYPES else f"{x.dtype}{list(x.shape)}"
    return array_type(x)
