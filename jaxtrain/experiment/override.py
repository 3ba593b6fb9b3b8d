"""Changes an experiment by the dotted paths of its fields, as the flags of the command line do.

Not here: the flags themselves, which tyro parses (`cli/flags.py`).
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

import numpy as np

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.ranges import annotations, check_value
from jaxtrain.data.transforms.fitted import FittedTransform
from jaxtrain.experiment.experiment import Experiment


def override(experiment: Experiment, path: str, value: object) -> Experiment:
    """The experiment with one field changed: `override(experiment, "optimizer.schedule.peak", 1e-3)`.

    path: as the command line names it, with dots between the names: fields, the keys of mappings (`evals.test`) and
        numbers of entries of tuples (`data.transforms.0`); dashes may stand for underscores, and fields of `runtime`
        need no prefix (`log_every`).
    value: a whole number is taken for a float where the field is a float, a scalar of numpy for one of Python.

    Raises ConfigError for a path that is none, with the nearest one, and for a value of the wrong type or out of range.
    """
    return override_all(experiment, {path: value})


def override_all(experiment: Experiment, values: Mapping[str, object]) -> Experiment:
    """`override` for several fields at once, so that values which only fit together may be given in any order."""
    changes = {full_path(experiment, path): value for path, value in values.items()}
    if len(changes) < len(values):
        raise ConfigError(f"{', '.join(values)}: one field is given twice")
    return _changed(experiment, {tuple(path.split(".")): value for path, value in changes.items()}, "")


def full_path(experiment: Experiment, path: str) -> str:
    """A path as the fields are named in Python, from the root: `log-every` is `runtime.log_every`.

    Raises ConfigError for a path that leads to no field, with the nearest one.
    """
    names, value, found = path.split("."), experiment, []
    first = names[0].replace("-", "_")
    if first not in _names(experiment) and first in _names(experiment.runtime):
        names = ["runtime", *names]
    for name in names:
        known = _names(value)
        if name not in known and (name := name.replace("-", "_")) not in known:  # the key of a mapping may have dashes
            raise _unknown(experiment, path)
        found.append(name)
        value = _part(value, name)
    return ".".join(found)


def value_at(experiment: Experiment, path: str) -> Any:
    """The value at a path. Raises ConfigError for one that leads to no field."""
    value: Any = experiment
    for name in full_path(experiment, path).split("."):
        value = _part(value, name)
    return value


def settings(value: Any, path: str = "") -> dict[str, Any]:
    """Every value that `override` and the flags can set, by its full path: numbers, texts, mappings, tuples …"""
    return dict(_settings(value, path))


def flag_words(experiment: Experiment, path: str, value: Any) -> list[str]:
    """The words of a command line that set a field to a value: `["--optimizer.schedule.peak=0.001"]`."""
    full = full_path(experiment, path)
    *before, last = full.removeprefix("runtime.").replace("_", "-").split(".")
    if isinstance(value, bool) and _annotation(experiment, full) is bool:
        return [f"--{'.'.join([*before, last if value else f'no-{last}'])}"]
    flag = f"--{'.'.join([*before, last])}"
    if isinstance(value, Mapping):
        return [flag, *(str(word) for pair in value.items() for word in pair)]
    if isinstance(value, tuple | list):
        return [flag, *map(str, value)]
    return [f"{flag}={value}"]


def _settings(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    names = _names(value)
    if dataclasses.is_dataclass(value) or any(dataclasses.is_dataclass(_part(value, name)) for name in names):
        for name in names:
            yield from _settings(_part(value, name), f"{path}.{name}".lstrip("."))
    else:
        yield path, value


def _names(value: Any) -> list[str]:
    """The names of the parts of a value that can be set."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hidden = {"fitted"} if isinstance(value, FittedTransform) else set()
        fields = (f for f in dataclasses.fields(value) if f.init and not f.metadata.get("in_memory"))
        return [f.name for f in fields if f.name not in hidden]
    if isinstance(value, Mapping):
        return [str(name) for name in value]
    return [str(number) for number in range(len(value))] if isinstance(value, tuple) else []


def _part(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return next(entry for key, entry in value.items() if str(key) == name)
    return value[int(name)] if isinstance(value, tuple) else getattr(value, name)


def _unknown(experiment: Experiment, path: str) -> ConfigError:
    known = [name.removeprefix("runtime.") for name in settings(experiment)]
    return ConfigError(f"there is no field {path!r} in this experiment{nearest(path, known, listed=False)}")


def _changed(value: Any, changes: Mapping[tuple[str, ...], Any], path: str) -> Any:
    """The value with changes by the path that is left to them."""
    parts: dict[str, dict[tuple[str, ...], Any]] = {}
    for (name, *rest), new in changes.items():
        parts.setdefault(name, {})[tuple(rest)] = new
    made = {}
    for name, inner in parts.items():
        where = f"{path}.{name}".lstrip(".")
        if () in inner and len(inner) > 1:
            raise ConfigError(f"{where} is given, and a part of it too: give one of them")
        new = _fitting(value, name, inner[()]) if () in inner else _changed(_part(value, name), inner, where)
        if dataclasses.is_dataclass(value):
            check_value(type(value), name, new, where)
        made[name] = new
    if isinstance(value, Mapping):
        return {key: made.get(str(key), entry) for key, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(made.get(str(number), entry) for number, entry in enumerate(value))
    return dataclasses.replace(value, **made)


def _fitting(owner: Any, name: str, value: Any) -> Any:
    """The value as the flag would give it, so that the fingerprint is the same."""
    if isinstance(value, np.generic):
        value = value.item()
    before = _part(owner, name)
    wanted = annotations(type(owner)).get(name, Any) if dataclasses.is_dataclass(owner) else type(before)
    if type(value) is int and float in (kinds := set(_plain(wanted))) and int not in kinds:
        return float(value)
    return value


def _plain(annotation: Any) -> Iterator[Any]:
    """The members of a union, without ranges."""
    if get_origin(annotation) is Annotated:
        yield from _plain(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, type(int | None)):
        for arm in get_args(annotation):
            yield from _plain(arm)
    else:
        yield annotation


def _annotation(experiment: Experiment, full: str) -> Any:
    *names, last = full.split(".")
    owner = functools.reduce(_part, names, experiment)
    return annotations(type(owner)).get(last, Any) if dataclasses.is_dataclass(owner) else type(_part(owner, last))
