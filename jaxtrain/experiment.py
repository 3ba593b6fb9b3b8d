"""An experiment: what is learned, from what, how, for how long, and where the arrays live.

Not here: anything that runs. An experiment is a value: replaced with `dataclasses.replace`, saved as JSON, and loaded
back without running any code of the run that saved it.
"""

import dataclasses
import hashlib
import importlib
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal, get_type_hints

import numpy as np
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

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
        try:
            check_type(part, hints.get(name, Any), collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        except TypeCheckError as error:
            wanted = inspect.formatannotation(hints[name])
            kind = type(part).__name__
            raise ConfigError(f"{where}: {part!r} is a value of type {kind}, not {wanted}") from error
        check_types(part, where)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(value):
        yield from ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    elif isinstance(value, Mapping):
        yield from ((str(name), part) for name, part in value.items())
    elif isinstance(value, tuple):
        yield from ((str(number), part) for number, part in enumerate(value))


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
