"""Config values made of frozen dataclasses: types checked, saved as JSON and loaded back, flattened, compared.

Not here: what the values mean. Loading runs no code of a run folder.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.files import digest
from jaxtrain.base.ranges import check_field
from jaxtrain.base.registry import find_kind, name_of

T = TypeVar("T")

NOT_IN_FINGERPRINT = {"in_fingerprint": False}
"""Metadata of a dataclass field that changes how something is computed but not what is computed."""

IN_MEMORY = {"in_fingerprint": False, "in_memory": True}
"""Metadata of a field whose object is not saved; its dataclass's `identity()` is saved instead."""


def in_fingerprint(field: dataclasses.Field) -> bool:
    """Whether the value of a dataclass field is part of the fingerprint; by default it is."""
    return field.metadata.get("in_fingerprint", True)


def check_types(value: Any, path: str = "") -> None:
    """Raises ConfigError where a dataclass, or one inside it, holds a value of another type than its field's, or a
    number out of its range.
    """
    for name, part in _parts(value):
        where = f"{path}.{name}".lstrip(".")
        if dataclasses.is_dataclass(value):
            check_field(value, name, where)
        check_types(part, where)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(value):
        yield from ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    elif isinstance(value, Mapping):
        yield from ((str(name), part) for name, part in value.items())
    elif isinstance(value, tuple):
        yield from ((str(number), part) for number, part in enumerate(value))


def find(value: Any, kind: type[T]) -> Iterator[T]:
    """Every instance of `kind` inside a value, at any depth."""
    if isinstance(value, kind):
        yield value
    for _, part in _parts(value):
        yield from find(part, kind)


def changed(value: Any, kind: type[T], change: Callable[[T], T]) -> Any:
    """The same value with every instance of `kind` inside it, at any depth, replaced by what `change` makes of it."""
    if isinstance(value, kind):
        return change(value)
    old = dict(_parts(value))
    new = {name: changed(part, kind, change) for name, part in old.items()}
    other = {name: part for name, part in new.items() if part is not old[name]}
    if not other:
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **other)
    return tuple(new.values()) if isinstance(value, tuple) else {**value, **other}


def to_json(value: Any) -> Any:
    """JSON of a value made of dataclasses, mappings, tuples, numbers, strings, booleans and None.

    Of arrays only a hash is saved, of other objects in memory their identity. Raises ConfigError for any other type.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: _in_memory(value, f.name) if f.metadata.get("in_memory") else to_json(getattr(value, f.name))
            for f in dataclasses.fields(value)
        }
        return {"$kind": name_of(type(value)), **fields}
    if isinstance(value, Mapping):
        return {str(name): to_json(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(entry) for entry in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        content = repr(value.tolist()).encode() if value.dtype == object else value.tobytes()
        return {"$array": f"{value.dtype}{list(value.shape)}", "sha256": digest(content)}
    raise ConfigError(f"a {type(value).__name__} cannot be part of an experiment that is saved: {value!r}")


def _in_memory(value: Any, name: str) -> dict[str, str]:
    return {"$array": type(getattr(value, name)).__name__, "identity": value.identity()}


def from_json(value: Any, memory: Any = None) -> Any:
    """The value that `to_json` saved.

    memory: a value of the same structure, which the objects in memory that were not saved are taken from.

    Raises ConfigError for a class that is not imported, an unknown field, and an object in memory that is missing or
    differs.
    """
    if isinstance(value, dict) and "$kind" in value:
        kind = find_kind(value["$kind"])
        known = {f.name for f in dataclasses.fields(kind)}
        for name in value.keys() - known - {"$kind"}:
            raise ConfigError(
                f"{value['$kind']} has no field {name!r}{nearest(name, known)}: it was saved by another version"
            )
        given = memory if isinstance(memory, kind) else None
        fields = {
            name: _object(entry, given, name)
            if isinstance(entry, dict) and "identity" in entry and "$array" in entry
            else from_json(entry, getattr(given, name, None))
            for name, entry in value.items()
            if name != "$kind"
        }
        return kind(**fields)
    if isinstance(value, dict) and "$array" in value:
        if not isinstance(memory, np.ndarray) or to_json(memory) != value:
            raise _not_saved(value, memory)
        return memory
    if isinstance(value, dict):
        parts = memory if isinstance(memory, Mapping) else {}
        return {name: from_json(entry, parts.get(name)) for name, entry in value.items()}
    if isinstance(value, list):
        parts = memory if isinstance(memory, tuple | list) and len(memory) == len(value) else [None] * len(value)
        return tuple(from_json(entry, part) for entry, part in zip(value, parts, strict=True))
    return value


def _object(saved: Mapping[str, str], given: Any, name: str) -> Any:
    if given is None or _in_memory(given, name) != saved:
        raise _not_saved(saved, given)
    return getattr(given, name)


def _not_saved(saved: Mapping[str, str], given: Any) -> ConfigError:
    if given is not None:
        return ConfigError(f"the data in memory ({saved['$array']}) are not those that the run was trained on")
    return ConfigError(
        f"data in memory ({saved['$array']}) are not saved in the run folder: name the experiment that makes them with "
        "--code FILE[:function], in Python with Run(folder, experiment=…)"
    )


def flatten(value: Any) -> dict[str, Any]:
    """The fields in the fingerprint and the identities, as dotted paths and JSON values."""
    return dict(_flat(value, ""))


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield f"{path}.kind".lstrip("."), type(value).__qualname__
        if identity := getattr(value, "identity", None):
            yield f"{path}.identity", identity()
        for f in dataclasses.fields(value):
            if in_fingerprint(f):
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
    """One line for every path at which two flattened values differ."""
    paths = sorted(path for path in {*old, *new} if old.get(path, "—") != new.get(path, "—"))
    return "\n".join(f"  {path}: {old.get(path, '—')} → {new.get(path, '—')}" for path in paths)
