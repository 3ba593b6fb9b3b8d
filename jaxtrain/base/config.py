"""Values made of frozen dataclasses: their types checked, to JSON and back without running any code of a run.

Not here: what any of them means.
"""

import dataclasses
import hashlib
import importlib
import inspect
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, TypeVar, get_type_hints

import numpy as np
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from jaxtrain.base.errors import ConfigError, nearest

T = TypeVar("T")

HARMLESS = {"meaning": False}
"""Marks a dataclass's fields that change how something is computed but not what: a fingerprint leaves these out."""


IN_MEMORY = {"meaning": False, "in_memory": True}
"""Marks a field that holds an object which only its dataclass's `identity` can tell from another."""


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


def within(value: Any, kind: type[T]) -> Iterator[T]:
    """Every value of a kind in a value."""
    if isinstance(value, kind):
        yield value
    for _, part in _parts(value):
        yield from within(part, kind)


def to_json(value: Any) -> Any:
    """JSON of a value made of dataclasses, mappings, tuples, numbers, strings, booleans and None.

    Of arrays in memory it holds only what tells them apart.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        if "<locals>" in kind.__qualname__:
            raise ConfigError(f"{kind.__qualname__} cannot be found again: define it at the top of its file")
        fields = {
            f.name: _in_memory(value, f.name) if f.metadata == IN_MEMORY else to_json(getattr(value, f.name))
            for f in dataclasses.fields(value)
        }
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


def _in_memory(value: Any, name: str) -> dict[str, str]:
    return {"$array": type(getattr(value, name)).__name__, "identity": value.identity()}


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
            f"what was in memory ({value['$array']}) is not in the run's folder: give the experiment itself, "
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


def meaning(value: Any) -> dict[str, Any]:
    """What a value says, flat: dotted path to plain value; without harmless fields, but with identities."""
    return dict(_flat(value, ""))


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield f"{path}.kind".lstrip("."), type(value).__qualname__
        if identity := getattr(value, "identity", None):
            yield f"{path}.identity", identity()
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


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """One line for every path whose value differs between two `meaning`s."""
    paths = sorted(path for path in {*old, *new} if old.get(path, "—") != new.get(path, "—"))
    return "\n".join(f"  {path}: {old.get(path, '—')} → {new.get(path, '—')}" for path in paths)
