"""Where each value of an experiment came from: the command line, the experiment's file, Python, the data, or nowhere,
which makes it a default. Not here: the flags themselves (`cli/flags.py`), and where this is shown.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING
from typing import Any

from jaxtrain.base.config import to_json
from jaxtrain.base.errors import ConfigError
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.experiment.override import full_path

COMMAND_LINE, FILE, PYTHON, DERIVED, DEFAULT = "command line", "file", "python", "derived", "default"
"""`DERIVED`: fitted to the data, or the horizon of a schedule."""


def given_paths(experiment: Experiment, words: Sequence[str]) -> tuple[str, ...]:
    """The paths of the fields whose flags are among the words of a command line; flags of a verb are left out."""
    found = []
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name = word[2:].partition("=")[0]
            for path in (name, ".".join(part.removeprefix("no-") for part in name.split("."))):
                try:
                    found.append(full_path(experiment, path))
                    break
                except ConfigError:  # a flag of the verb, such as --run; tyro refuses what is neither
                    continue
    return tuple(dict.fromkeys(found))


def origins(
    experiment: Experiment, saved: Mapping[str, Any], given: Mapping[str, Any], flags: Sequence[str], other: str
) -> dict[str, str]:
    """The origin of each value that is no default, by its dotted path as in `json_paths`.

    saved, given: JSON of the experiment, now and before it was fitted and its schedules got their horizon.
    flags: the paths of `given_paths`. other: `FILE` or `PYTHON`, of what is neither from there nor a default.
    """
    now, before = json_paths(saved), json_paths(given)
    defaults = {path for path, is_default in _values(experiment, saved, MISSING, "") if is_default}
    found: dict[str, str] = {}
    for path, value in now.items():
        if "fitted" in path.split("."):  # the field of a transform that is fitted to the training split
            found[path] = DERIVED
        elif any(path == flag or path.startswith(f"{flag}.") for flag in flags):
            found[path] = COMMAND_LINE
        elif path not in before or before[path] != value:
            found[path] = DERIVED
        elif path not in defaults:
            found[path] = other
    return {path: origin for path, origin in found.items() if path != "kind"}


def kept_origins(found: Mapping[str, str], saved: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, str]:
    """The origins of a run that resumes: those of values that have not changed stay.

    found: the origins now. saved: JSON of the experiment now. before: the experiment.json that the run began with.
    """
    if not isinstance(before.get("origins"), dict):
        return dict(found)
    now, then, known = json_paths(saved), json_paths(before["experiment"]), read_origins(before)
    stay = {path for path, value in now.items() if path in then and then[path] == value}
    chosen = {path: known.get(path, DEFAULT) if path in stay else found.get(path, DEFAULT) for path in now}
    return {path: origin for path, origin in chosen.items() if origin != DEFAULT}


def read_origins(saved: Mapping[str, Any]) -> dict[str, str]:
    """The origins in the content of an experiment.json; a value that is not named is a default. {} for a run of an
    earlier version, which recorded none.
    """
    known = saved.get("origins")
    return {path: each for path, each in known.items() if isinstance(each, str)} if isinstance(known, dict) else {}


def json_paths(value: Any, path: str = "") -> dict[str, Any]:
    """The values in the JSON of an experiment by dotted path; the name of a class is at `kind`."""
    return dict(_flat(value, path))


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        parts = [(name.replace("$", ""), part) for name, part in value.items()]
    elif isinstance(value, list) and any(isinstance(part, dict | list) for part in value):
        parts = [(str(place), part) for place, part in enumerate(value)]
    else:
        yield path.removeprefix("."), value
        return
    for name, part in parts:
        yield from _flat(part, f"{path}.{name}")


def _values(value: Any, saved: Any, default: Any, path: str) -> Iterator[tuple[str, bool]]:
    """Each path below a value, whose JSON is `saved`, and whether the value there is that of the class."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and "$kind" in saved:
        same = type(default) is type(value)
        yield f"{path}.kind".removeprefix("."), same
        for field in dataclasses.fields(value):
            part = getattr(default, field.name) if same else _default(field)
            yield from _values(getattr(value, field.name), saved[field.name], part, f"{path}.{field.name}")
    elif isinstance(value, Mapping) and value and isinstance(saved, dict):
        for name, part in value.items():
            inner = default.get(name, MISSING) if isinstance(default, Mapping) else MISSING
            yield from _values(part, saved.get(str(name)), inner, f"{path}.{name}")
    elif isinstance(value, tuple | list) and isinstance(saved, list) and any(isinstance(x, dict | list) for x in saved):
        for place, (part, inner) in enumerate(zip(value, saved, strict=True)):
            known = isinstance(default, tuple | list) and place < len(default)
            yield from _values(part, inner, default[place] if known else MISSING, f"{path}.{place}")
    else:
        is_default = default is not MISSING and _is_equal(default, saved)
        yield from ((each, is_default) for each in json_paths(saved, path))


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _is_equal(default: Any, saved: Any) -> bool:
    try:
        return to_json(default) == saved
    except ConfigError:  # a default that no file can hold
        return False
