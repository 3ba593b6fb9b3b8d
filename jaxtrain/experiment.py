"""An experiment: what is learned, from what, how, for how long, and where the arrays live.

Not here: anything that runs. An experiment is a value: replaced with `dataclasses.replace`, saved as JSON, and loaded
back without running any code of the run that saved it.
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import FrameType, ModuleType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from jaxtrain.data.pipeline import HARMLESS, Pipeline
from jaxtrain.data.sources import Source
from jaxtrain.errors import ConfigError, nearest
from jaxtrain.layout import Layout
from jaxtrain.optimizers import Optimizer
from jaxtrain.tasks.base import Task


@dataclass(frozen=True)
class Keep:
    """A checkpoint stays while any of these wants it.

    last: the newest this many, at least 1.
    every: also each step that this number divides, for ever.
    best: also the best one by this metric, e.g. `"validation/accuracy"`, of those saved with a finite value.
    mode: whether the best is the lowest or the highest.

    Raises `ConfigError` for numbers below 1 and another mode.
    """

    last: int = 2
    every: int | None = None
    best: str | None = None
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ConfigError(f"Keep(last={self.last}): at least the newest checkpoint has to stay")
        if self.every is not None and self.every < 1:
            raise ConfigError(f"Keep(every={self.every}): give a number of steps of at least 1, or None")
        if self.mode not in ("min", "max"):
            raise ConfigError(f"Keep(mode={self.mode!r}): use 'min' or 'max'")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The decisions that make a run."""

    task: Task
    data: Pipeline
    optimizer: Optimizer
    steps: int = field(metadata=HARMLESS)
    """Updates to do."""
    evals: Mapping[str, Pipeline] = field(default_factory=dict)
    """What is evaluated, by the name of its split."""
    layout: Layout = field(default_factory=Layout, metadata=HARMLESS)
    microbatches: int = 1
    """Parts that a batch is worked through in, for less memory; the update is the same."""
    log_every: int = field(default=50, metadata=HARMLESS)
    eval_every: int = field(default=500, metadata=HARMLESS)
    save_every: int = field(default=500, metadata=HARMLESS)
    keep: Keep = field(default_factory=Keep, metadata=HARMLESS)
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ConfigError for values of another type than their field's, and for counts that cannot be."""
        check_types(self)
        for name in ("steps", "microbatches", "log_every", "eval_every", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 1")
        split = (self.keep.best or "").partition("/")[0]
        if split and split not in self.evals:
            raise ConfigError(f"keep.best: {self.keep.best!r} is of no split in evals{nearest(split, self.evals)}")


def check_types(value: Any, path: str = "") -> None:
    """Raises ConfigError where a dataclass, or one inside it, holds a value of another type than its field's."""
    hints = get_type_hints(type(value)) if dataclasses.is_dataclass(value) else {}
    for name, part in _parts(value):
        where = f"{path}.{name}".lstrip(".")
        if name in hints and not _fits(part, hints[name]):
            wanted = inspect.formatannotation(hints[name])
            raise ConfigError(f"{where}: {part!r} is a value of type {type(part).__name__}, not {wanted}")
        check_types(part, where)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(value):
        yield from ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    elif isinstance(value, Mapping):
        yield from ((str(name), part) for name, part in value.items())
    elif isinstance(value, tuple):
        yield from ((str(number), part) for number, part in enumerate(value))


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, as far as the kinds of annotations that configs use can say."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return _fits(value, inner[0])
    if kind in (Union, UnionType):
        return any(_fits(value, choice) for choice in inner)
    if kind is Literal:
        return value in inner
    if kind is tuple and isinstance(value, tuple):
        each = (inner[0],) * len(value) if inner[-1:] == (...,) else inner
        return len(value) == len(each) and all(map(_fits, value, each))
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(_fits(entry, inner[1]) for entry in value.values())
    if isinstance(kind, type):
        return isinstance(value, kind)
    if hint is float:
        return isinstance(value, int | float)
    plain = isinstance(hint, type) and hint is not Any and not getattr(hint, "_is_protocol", False)
    return not plain or isinstance(value, hint)


def to_json(value: Any) -> Any:
    """JSON of a value made of dataclasses, mappings, tuples, numbers, strings, booleans and None.

    Of arrays in memory it holds only what tells them apart.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        if "<locals>" in kind.__qualname__:
            raise ConfigError(f"{kind.__qualname__} cannot be found again: define it at the top of its file")
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"$kind": f"{kind.__module__}:{kind.__qualname__}", **fields}
    if isinstance(value, Mapping):
        return {str(name): to_json(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(entry) for entry in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        content = repr(value.tolist()).encode() if value.dtype == object else value.tobytes()
        return {"$array": f"{value.dtype}{list(value.shape)}", "sha256": hashlib.sha256(content).hexdigest()[:32]}
    raise ConfigError(f"a {type(value).__name__} cannot be part of an experiment that is saved: {value!r}")


def from_json(value: Any, code: ModuleType | None = None) -> Any:
    """The value again. Its kinds must be dataclasses of this package, or of the experiment file loaded as `code`."""
    if isinstance(value, dict) and "$kind" in value:
        kind = _kind(value["$kind"], code)
        known = {f.name for f in dataclasses.fields(kind)}
        for name in value.keys() - known - {"$kind"}:
            raise ConfigError(
                f"{value['$kind']} has no field {name!r}{nearest(name, known)}: it was saved by another version"
            )
        return kind(**{name: from_json(entry, code) for name, entry in value.items() if name != "$kind"})
    if isinstance(value, dict) and "$array" in value:
        raise ConfigError(
            f"an array {value['$array']} was in memory and is not in the run's folder: give the experiment itself, "
            "Run(folder, experiment=…), or train from files"
        )
    if isinstance(value, dict):
        return {name: from_json(entry, code) for name, entry in value.items()}
    return tuple(from_json(entry, code) for entry in value) if isinstance(value, list) else value


def _kind(name: str, code: ModuleType | None) -> Any:
    module_name, _, path = name.partition(":")
    own = module_name == "jaxtrain" or module_name.startswith("jaxtrain.")
    if not own and (code is None or code.__name__ != module_name):
        raise ConfigError(
            f"{path} comes from the experiment file {module_name!r}, which is not loaded: give it with --code FILE"
        )
    module: Any = importlib.import_module(module_name) if own else code
    for part in path.split("."):
        module = getattr(module, part, None)
    if not (isinstance(module, type) and dataclasses.is_dataclass(module)):
        raise ConfigError(f"{name} is not a dataclass of {'this version of jaxtrain' if own else module_name}")
    return module


def meaning(experiment: Experiment) -> dict[str, Any]:
    """What a run computes, flat: dotted path to plain value, without the harmless fields, with the data's identity."""
    return dict(_flat(experiment, ""))


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield f"{path}.kind".lstrip("."), type(value).__qualname__
        if isinstance(value, Source):
            yield f"{path}.identity", value.identity()
        for f in dataclasses.fields(value):
            if f.metadata.get("meaning", True):
                yield from _flat(getattr(value, f.name), f"{path}.{f.name}".lstrip("."))
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _flat(entry, f"{path}.{name}")
    elif isinstance(value, tuple | list) and any(dataclasses.is_dataclass(entry) for entry in value):
        for number, entry in enumerate(value):
            yield from _flat(entry, f"{path}.{number}")
    else:
        yield path, to_json(value)


def fingerprint(experiment: Experiment) -> str:
    """A hash of what a run computes: equal for experiments that differ only in harmless fields."""
    return hashlib.sha256(json.dumps(meaning(experiment), sort_keys=True).encode()).hexdigest()[:16]


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """One line for every path whose value differs between two `meaning`s."""
    paths = sorted(path for path in {*old, *new} if old.get(path, "—") != new.get(path, "—"))
    return "\n".join(f"  {path}: {old.get(path, '—')} → {new.get(path, '—')}" for path in paths)


@dataclass(frozen=True)
class Origin:
    """Where an experiment came from."""

    file: Path
    function: str


def load(where: str) -> tuple[Experiment, Origin]:
    """The experiment that `file.py:function` names; without a function, the file's `main`, else its first."""
    name, _, function = where.partition(":")
    module = load_code(Path(name))
    makers = experiments(module)
    if not makers:
        raise ConfigError(f"{name} has no function annotated `-> Experiment`")
    function = function or ("main" if "main" in makers else next(iter(makers)))
    if function not in makers:
        raise ConfigError(f"{name} has no experiment named {function!r}{nearest(function, makers)}")
    made = _call(makers[function], name)
    if not isinstance(made, Experiment):
        raise ConfigError(f"{name}: {function} returned a {type(made).__name__}, not an Experiment")
    return made, Origin(Path(name), function)


class _Loader(SourceFileLoader):
    """Marks the modules that are experiment files."""


def load_code(file: Path) -> ModuleType:
    """The experiment file as a module. Raises ConfigError if it is not there or fails, saying at which line."""
    if not file.is_file():
        near = nearest(file.name, (other.name for other in file.parent.glob("*.py"))) if file.parent.is_dir() else ""
        raise ConfigError(f"there is no experiment file {file}{near}")
    taken = sys.modules.get(file.stem)
    if taken is not None and not isinstance(getattr(taken.__spec__, "loader", None), _Loader):
        raise ConfigError(f"{file}: there is a Python module {file.stem!r} already: give the file another name")
    loader = _Loader(file.stem, str(file))
    module = importlib.util.module_from_spec(ModuleSpec(file.stem, loader, origin=str(file)))
    sys.modules[file.stem] = module  # dataclasses look their module up by name
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # worker processes import by name, and begin with this path
    _call(lambda: loader.exec_module(module), str(file))
    return module


def experiments(module: ModuleType) -> dict[str, Callable[[], Experiment]]:
    """The functions of an experiment file that return an experiment, in the order of the file."""
    own = inspect.getmembers(module, lambda x: inspect.isfunction(x) and x.__module__ == module.__name__)
    found = {name: f for name, f in own if f.__annotations__.get("return") in (Experiment, "Experiment")}
    return dict(sorted(found.items(), key=lambda item: item[1].__code__.co_firstlineno))


def _call(function: Callable[[], Any], name: str) -> Any:
    """What a function of the file `name` returns; whatever it raises becomes a ConfigError that says at which line."""
    try:
        return function()
    except Exception as error:  # the user's code may raise anything
        trace = list(traceback.walk_tb(error.__traceback__))
        lines = [line for frame, line in trace if Path(frame.f_code.co_filename).name == Path(name).name]
        lines += [error.lineno] if isinstance(error, SyntaxError) and error.lineno else []
        where = f"{name}, line {lines[-1]}" if lines else name
        raise ConfigError(f"{where}: {_explained(error, [frame for frame, _ in trace])}") from error


def _explained(error: Exception, frames: Sequence[FrameType]) -> str:
    if isinstance(error, ConfigError):
        return str(error)
    for frame in frames:
        if frame.f_code.co_name == "__post_init__":  # it may have met a value that is not of its field's type
            try:
                check_types(frame.f_locals["self"], type(frame.f_locals["self"]).__name__)
            except ConfigError as wrong:
                return str(wrong)
    return f"{type(error).__name__}: {error}{_near(error, frames)}"


def _near(error: Exception, frames: Sequence[FrameType]) -> str:
    """The name that was probably meant, where an error is about a name that is not there."""
    seen = {name: value for frame in frames for name, value in (*frame.f_globals.items(), *frame.f_locals.items())}
    if isinstance(error, NameError):
        return nearest(error.name or "", seen, listed=False)
    if isinstance(error, AttributeError):
        return nearest(error.name or "", dir(error.obj), listed=False)
    if found := re.match(r"cannot import name '(\w+)'", str(error)):
        module = sys.modules.get(getattr(error, "name", None) or "")
        return nearest(found[1], getattr(module, "__all__", dir(module)), listed=False)
    if found := re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)):
        kinds = (value if isinstance(value, type) else type(value) for value in seen.values())
        kind = next((kind for kind in kinds if kind.__name__ == found[1]), None)
        return nearest(found[2], inspect.signature(kind).parameters) if kind else ""
    return ""
