"""Reads and checks the experiment.json of a run folder, which is untrusted input.

Not here: writing it (`runs/begin.py`), and building the experiment from it.
"""

import functools
import importlib.metadata
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from jaxtrain.base.config import flatten, to_json
from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.files import digest, plain_json, read_json
from jaxtrain.base.text import cut
from jaxtrain.experiment.experiment import Experiment

RUN_FILE = "experiment.json"

KEYS: dict[str, tuple[type, ...]] = {
    "version": (str,),
    "fingerprint": (str,),
    "horizon": (int,),
    "origin": (str, NoneType),
    "origins": (dict,),
    "config": (dict,),
    "experiment": (dict,),
    "inputs": (dict, NoneType),
    "folder": (str,),
}
"""The keys of the file and the types of their values."""

REQUIRED = ("version", "fingerprint", "config", "experiment")
"""The keys that every version has written."""

_AS_WRITTEN = "put back the file as the run wrote it, or train a new run"


def read_saved(folder: Path) -> dict[str, Any]:
    """The content of a run's experiment.json.

    Raises ConfigError, naming the file and the dotted path, where something is missing, unknown or of the wrong type,
    and where the fingerprint does not match the config. A file of a newer version of jaxtrain is logged.
    """
    path = folder / RUN_FILE
    saved = read_json(path)
    try:
        _check_content(saved)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}{newer(saved)}") from None
    if hint := newer(saved):
        _log_newer(str(path), hint)
    return saved


def newer(saved: Any) -> str:
    """The end of an error message where a newer version of jaxtrain saved the run; else ""."""
    version = saved.get("version") if isinstance(saved, dict) else None
    own = importlib.metadata.version("jaxtrain")
    if not isinstance(version, str) or _version_numbers(version) <= _version_numbers(own):
        return ""
    return f"; it was saved by jaxtrain {cut(version)}, which is newer than this {own}"


def check_unedited(saved: Mapping[str, Any], experiment: Experiment, but: tuple[str, ...] = ()) -> None:
    """Raises ConfigError where an experiment that was built from the file differs from the config in the file.

    but: prefixes of the paths that are not compared.
    """
    now = plain_json(to_json(flatten(experiment, identities=False)))
    for name, value in now.items():
        recorded = saved["config"].get(name, value)
        if recorded != value and not name.startswith(but) and not name.endswith("kind"):
            raise ConfigError(
                f"experiment.{name}: it is {cut(repr(value))}, but {cut(repr(recorded))} in config: one of them was "
                f"edited; {_AS_WRITTEN}"
            )


def _check_content(saved: Any) -> None:
    _check_type(saved, (dict,), "the whole file")
    for name in REQUIRED:
        if name not in saved:
            raise ConfigError(f"it has no {name!r}")
    for name, value in saved.items():
        if name in KEYS:
            _check_type(value, KEYS[name], name)
        elif not newer(saved):
            raise ConfigError(f"it has a key {cut(repr(name))} that no version wrote{nearest(name, KEYS)}")
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})*([.+-]?[a-z0-9]+)*", saved["version"]):
        raise ConfigError(f"version: {cut(repr(saved['version']))} is not a version")
    if not 1 <= saved.get("horizon", 1) < 2**31:
        raise ConfigError(f"horizon: {cut(str(saved['horizon']))} is not a number of steps")
    experiment = saved["experiment"]
    for place, kinds in (
        ("$kind", (str,)),
        ("steps", (int,)),
        ("evals", (dict,)),
        ("data", (dict,)),
        ("data.transforms", (list,)),
        ("runtime", (dict,)),
        ("runtime.keep", (dict,)),
    ):
        _check_type(_at(experiment, place), kinds, f"experiment.{place}")
    if experiment["$kind"] != "Experiment":
        raise ConfigError(f"experiment.$kind: {cut(repr(experiment['$kind']))} is not Experiment")
    for number, transform in enumerate(experiment["data"]["transforms"]):
        _check_type(transform, (dict,), f"experiment.data.transforms.{number}")
        _check_type(transform.get("$kind"), (str,), f"experiment.data.transforms.{number}.$kind")
    if saved["fingerprint"] not in (_fingerprint(saved["config"]), _fingerprint(_with_infinities(saved["config"]))):
        raise ConfigError(f"fingerprint: it is not that of config, so one of them was edited; {_AS_WRITTEN}")


def _at(value: Any, place: str) -> Any:
    for name in place.split("."):
        value = value.get(name)
    return value


def _check_type(value: Any, kinds: tuple[type, ...], place: str) -> None:
    if not isinstance(value, kinds) or isinstance(value, bool):
        words = " or ".join({dict: "an object", list: "a list", NoneType: "null"}.get(k, k.__name__) for k in kinds)
        raise ConfigError(f"{place}: {cut(repr(value))} is not {words}")


def _fingerprint(config: Any) -> str:
    return digest(json.dumps(config, sort_keys=True), length=16)


def _with_infinities(value: Any) -> Any:
    """The value with infinities as floats: JSON has none, so they are saved as strings."""
    if isinstance(value, dict):
        return {name: _with_infinities(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_with_infinities(part) for part in value]
    return float(value) if value in ("inf", "-inf") else value


def _version_numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d{1,9}", version.partition("+")[0])[:3]]


@functools.lru_cache(maxsize=64)
def _log_newer(path: str, hint: str) -> None:
    """Logs it once in a process."""
    logging.getLogger("jaxtrain").warning("%s%s: what it has and this version lacks would be refused", path, hint)
