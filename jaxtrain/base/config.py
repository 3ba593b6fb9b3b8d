"""Config values made of frozen dataclasses: types checked, saved as JSON and loaded back, flattened, compared.

Loading runs no code from a run folder. Not here: what the values mean.
"""

import dataclasses
import functools
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.files import digest
from jaxtrain.base.ranges import annotations, check_field, check_value
from jaxtrain.base.registry import find_kind, name_of
from jaxtrain.base.text import cut

T = TypeVar("T")

NOT_IN_FINGERPRINT = {"in_fingerprint": False}
"""Metadata of a dataclass field that changes how something is computed but not the result."""

IN_MEMORY = {"in_fingerprint": False, "in_memory": True}
"""Metadata of a field that holds an object in memory: in its place the `identity()` of its dataclass is saved."""


def in_fingerprint(field: dataclasses.Field) -> bool:
    """Whether the value of a dataclass field is part of the fingerprint: True unless its metadata say otherwise."""
    return field.metadata.get("in_fingerprint", True)


def check_types(value: Any, path: str = "") -> None:
    """Raises ConfigError where a field of a dataclass, or of one inside it, holds a value of the wrong type or a number
    out of its range.
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
    """The value with `change` applied to every instance of `kind` inside it, at any depth."""
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

    An array is saved as a hash, another object in memory as its identity. Raises ConfigError for any other type.
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


def from_json(value: Any, memory: Any = None, wanted: Any = Any, path: str = "") -> Any:
    """The value that `to_json` saved.

    memory: a value of the same structure; objects in memory, which were not saved, are taken from it.
    wanted: the annotation of the field that the value is for; a class that does not fit it is not instantiated.
    path: the dotted path of that field, for messages.

    Raises ConfigError for a class that is not imported or does not fit, an unknown or missing field, a value of the
    wrong type or out of range, and an object in memory that is missing or differs.
    """
    if isinstance(value, dict) and "$kind" in value:
        return _instance(value, memory, wanted, path)
    if isinstance(value, dict) and "$array" in value:
        if not isinstance(memory, np.ndarray) or to_json(memory) != value:
            raise _not_saved(value, memory)
        return memory
    if isinstance(value, dict):
        parts = memory if isinstance(memory, Mapping) else {}
        inner = _inner_annotation(wanted, None)
        return {name: from_json(entry, parts.get(name), inner, f"{path}.{name}") for name, entry in value.items()}
    if isinstance(value, list):
        parts = memory if isinstance(memory, tuple | list) and len(memory) == len(value) else [None] * len(value)
        return tuple(
            from_json(entry, part, _inner_annotation(wanted, number), f"{path}.{number}")
            for number, (entry, part) in enumerate(zip(value, parts, strict=True))
        )
    return value


def _instance(value: Mapping[str, Any], memory: Any, wanted: Any, path: str) -> Any:
    """The dataclass instance of a value with a `$kind`. All fields are checked before any code of the class runs."""
    place = path.lstrip(".")
    kind, entries = _saved_kind(value["$kind"], wanted, place), {**value}
    name = entries.pop("$kind")
    _check_names(kind, entries, f"{place}: {name}".lstrip(": "))
    given, hints = memory if isinstance(memory, kind) else None, annotations(kind)
    fields = {}
    for field, entry in entries.items():
        if isinstance(entry, dict) and "identity" in entry and "$array" in entry:
            fields[field] = _same_in_memory(entry, given, field)
        else:
            fields[field] = from_json(entry, getattr(given, field, None), hints.get(field, Any), f"{path}.{field}")
    for field, part in fields.items():
        check_value(kind, field, part, f"{path}.{field}".lstrip("."))
    try:
        return kind(**fields)
    except (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        why = str(error) if isinstance(error, ConfigError) else f"it cannot be made: {type(error).__name__}: {error}"
        raise ConfigError(f"{place}: {name}: {why}" if place else why) from error


def _saved_kind(name: Any, wanted: Any, place: str) -> Any:
    """The class of a saved name. Raises ConfigError where there is none, or where it does not fit the annotation."""
    if not isinstance(name, str):
        raise ConfigError(f"{place or 'the value'}: {cut(repr(name))} is not the name of a class")
    try:
        kind = find_kind(name)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}" if place else str(error)) from None
    if not _belongs(kind, wanted):
        raise ConfigError(f"{place}: {name} is of another kind than belongs there, {inspect.formatannotation(wanted)}")
    return kind


def _check_names(kind: Any, entries: Mapping[str, Any], what: str) -> None:
    """Raises ConfigError for a field that the class does not have, and for a missing one without a default."""
    known = {f.name: f for f in dataclasses.fields(kind) if f.init}
    for field in entries.keys() - known.keys():
        raise ConfigError(f"{what} has no field {field!r}{nearest(field, known)}: it was saved by another version")
    for field, one in known.items():
        if field not in entries and one.default is one.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{what} lacks its field {field!r}")


def _arms(annotation: Any) -> Iterator[Any]:
    """The members of a union, without their ranges; of any other annotation, itself."""
    if get_origin(annotation) is Annotated:
        yield from _arms(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for arm in get_args(annotation):
            yield from _arms(arm)
    else:
        yield annotation


def _inner_annotation(annotation: Any, number: int | None) -> Any:
    """The annotation of the values inside one: of a mapping if `number` is None, else of a tuple at this index."""
    found = []
    for arm in _arms(annotation):
        arguments, mapping = get_args(arm), isinstance(origin := get_origin(arm), type) and issubclass(origin, Mapping)
        if number is None and mapping:
            found.append(arguments[1])
        elif number is not None and arguments and not mapping:
            same = origin is not tuple or arguments[1:] == (...,)
            found += arguments[:1] if same else arguments[number : number + 1]
    return functools.reduce(operator.or_, found) if found else Any


def _belongs(kind: type, annotation: Any) -> bool:
    """Whether an annotation admits instances of a class. True where that cannot be decided, as for protocols."""
    classes = [arm if isinstance(arm, type) else get_origin(arm) for arm in _arms(annotation)]
    classes = [one for one in classes if one is not Literal]
    if any(one is Any or not isinstance(one, type) or getattr(one, "_is_protocol", False) for one in classes):
        return True
    return any(issubclass(kind, one) for one in classes)


def _same_in_memory(saved: Mapping[str, str], given: Any, name: str) -> Any:
    """The object in memory in a field of `given`. Raises ConfigError where it is not the one that was saved."""
    if given is None or _in_memory(given, name) != saved:
        raise _not_saved(saved, given)
    return getattr(given, name)


def _not_saved(saved: Mapping[str, str], given: Any) -> ConfigError:
    if given is not None:
        return ConfigError(f"the data in memory ({saved['$array']}) differ from those that the run was trained on")
    return ConfigError(
        f"data in memory ({saved['$array']}) are not saved in the run folder: name the experiment that makes them with "
        "--code FILE[:function], in Python with Run(folder, experiment=…)"
    )


def flatten(value: Any, identities: bool = True) -> dict[str, Any]:
    """The fields that are in the fingerprint, and the identities, as JSON values by dotted path.

    identities: False leaves out the identities; computing them reads data.
    """
    return dict(_flat(value, "", identities))


def _flat(value: Any, path: str, identities: bool) -> Iterator[tuple[str, Any]]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield f"{path}.kind".lstrip("."), type(value).__qualname__
        if identities and (identity := getattr(value, "identity", None)):
            yield f"{path}.identity", identity()
        for f in dataclasses.fields(value):
            if in_fingerprint(f):
                yield from _flat(getattr(value, f.name), f"{path}.{f.name}".lstrip("."), identities)
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield from _flat(entry, f"{path}.{name}", identities)
    elif isinstance(value, tuple | list) and any(dataclasses.is_dataclass(entry) for entry in value):
        for number, entry in enumerate(value):
            yield from _flat(entry, f"{path}.{number}", identities)
    else:
        yield path, to_json(value)


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """One line for each path at which two flattened values differ."""
    paths = sorted(path for path in {*old, *new} if old.get(path, "—") != new.get(path, "—"))
    return "\n".join(f"  {path}: {old.get(path, '—')} → {new.get(path, '—')}" for path in paths)
