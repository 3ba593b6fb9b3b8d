"""Reads the folder of a sweep, which is untrusted input: what it varies, and what became of each trial.

    sweep.json            the experiment, what varies, and what the trials are judged by
    asked/0001.json       the values of a trial, written before it begins
    trials/0001/          its run folder
    results/0001.json     how it ended, written once it has
    evaluations/0001.json its evaluations, where the experiment has the observer `Prune`
    logs/0001.log         what it printed
    claims/, drivers/     which driver runs which trial
    study.log             the journal of Optuna, of an adaptive search

Not here: writing it (`launch/sweep`), and drawing it.
"""

import contextlib
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.files import read_json
from jaxtrain.base.text import cut
from jaxtrain.reports.sweep.space import Space, as_values, space_of
from jaxtrain.runs.owner import parsed

SWEEP_FILE = "sweep.json"

ENDINGS = ("finished", "pruned", "failed")
"""The states of a trial that is not run again."""

SEED = "seed"
"""The path of the field that makes repetitions of one setting, and is no setting of its own."""

LARGEST_LOCK = 4096
"""Bytes of a lock file that are read."""


@dataclass(frozen=True)
class Trial:
    """One training of a sweep."""

    number: int
    """From 1 on."""
    folder: Path
    """The run folder, which may not exist yet."""
    values: Mapping[str, Any]
    """By the path of the field."""
    state: str
    """`finished`, `pruned`, `failed`, `running`, or `unfinished`: begun, and run by nobody now."""
    value: float | None = None
    """The metric by which the sweep is judged; None unless it finished."""
    why: str = ""
    """Why it was pruned or failed."""
    step: int = 0
    """The step of the value."""


@dataclass(frozen=True)
class Setting:
    """Trials that differ in nothing but the seed."""

    values: Mapping[str, Any]
    """Without the seed."""
    trials: tuple[Trial, ...]

    @property
    def numbers(self) -> list[float]:
        """The values of its trials that finished, by seed."""
        return [trial.value for trial in self.trials if trial.state == "finished" and trial.value is not None]

    @property
    def mean(self) -> float:
        """The mean over seeds; NaN without a trial that finished."""
        return statistics.fmean(self.numbers) if self.numbers else math.nan


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder as it is now."""

    folder: Path
    experiment: str
    """file.py:function."""
    flags: tuple[str, ...]
    """The flags that all trials have."""
    fixed: Mapping[str, Any]
    """The values that those flags change, by path."""
    space: Space
    metric: str
    """split/name."""
    mode: str
    """`min` or `max`."""
    best: bool
    """Whether a trial's value is that of its best evaluation, and not of its last."""
    config: Mapping[str, Any]
    """The experiment without its data's identities, flattened."""
    trials: tuple[Trial, ...] = field(default=())
    """Those that were begun, by number."""

    def settings(self) -> list[Setting]:
        """The settings, from the best mean on; those without a trial that finished come last."""
        groups: dict[str, list[Trial]] = {}
        for trial in self.trials:
            kept = {path: value for path, value in trial.values.items() if path != SEED}
            groups.setdefault(repr(sorted(kept.items(), key=str)), []).append(trial)
        found = [
            Setting({path: value for path, value in each[0].values.items() if path != SEED}, tuple(each))
            for each in groups.values()
        ]
        return sorted(found, key=lambda one: self.badness(one.mean))

    def badness(self, value: float) -> float:
        """A key to sort values by, from the best on; NaN is the last."""
        return math.inf if math.isnan(value) else (-value if self.mode == "max" else value)

    def winner(self) -> Setting | None:
        """The setting with the best mean over its seeds; of settings with fewer seeds than others, none wins unless all
        have as few. None where no trial finished.
        """
        found = [one for one in self.settings() if one.numbers]
        most = max((len(one.numbers) for one in found), default=0)
        return next((one for one in found if len(one.numbers) == most), None)


def read_sweep(folder: Path | str) -> Sweep:
    """The sweep in a folder. Nothing is written. Raises ConfigError where sweep.json is missing or damaged; a damaged
    file of a trial makes that trial `failed`.
    """
    folder = Path(folder)
    if not (folder / SWEEP_FILE).is_file():
        raise ConfigError(f"{folder} is not a sweep: it has no {SWEEP_FILE}")
    saved = read_json(folder / SWEEP_FILE)
    try:
        head = _head(folder, saved)
    except ConfigError as error:
        raise ConfigError(f"{folder / SWEEP_FILE}: {error}") from error
    names = {path.stem for place in ("asked", "results") for path in (folder / place).glob("*.json")}
    numbers = sorted(int(name) for name in names if re.fullmatch(r"\d{4,9}", name))
    return Sweep(**head, trials=tuple(_trial(folder, number) for number in numbers))


def label(number: int) -> str:
    """The name of a trial's folder and files."""
    return f"{number:04d}"


def _head(folder: Path, saved: Any) -> dict[str, Any]:
    kinds = {"experiment": str, "flags": list, "fixed": dict, "space": dict, "metric": str, "mode": str, "best": bool}
    kinds["config"] = dict
    if not isinstance(saved, dict):
        raise ConfigError("it is not an object")
    for name, kind in kinds.items():
        if not isinstance(saved.get(name), kind):
            raise ConfigError(f"{name}: {cut(repr(saved.get(name)))} is not what a sweep wrote there")
    if saved["mode"] not in ("min", "max") or not all(isinstance(flag, str) for flag in saved["flags"]):
        raise ConfigError("mode or flags are not what a sweep wrote there")
    found = {name: saved[name] for name in kinds}
    changed = {"flags": tuple(saved["flags"]), "fixed": as_values(saved["fixed"]), "space": space_of(saved["space"])}
    return {"folder": folder, **found, **changed}


def _trial(folder: Path, number: int) -> Trial:
    """A trial by its files."""
    run = folder / "trials" / label(number)
    asked, result = (folder / place / f"{label(number)}.json" for place in ("asked", "results"))
    try:
        values = as_values(_object(read_json(asked)).get("values", {})) if asked.is_file() else {}
        if not result.is_file():
            return Trial(number, run, _object(values), "running" if _is_held(run) else "unfinished")
        ended = _object(read_json(result))
        state, why, step, value = (ended.get(name) for name in ("state", "why", "step", "value"))
        if state not in ENDINGS or not isinstance(why, str) or type(step) is not int:
            raise ConfigError(f"{result}: no sweep wrote such a result")
        found = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
        return Trial(number, run, _object(values), state, found, why, step)
    except (ConfigError, OSError, ValueError) as error:
        return Trial(number, run, {}, "failed", why=f"its files are damaged: {error}")


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{cut(repr(value))} is not an object")
    return value


def _is_held(run: Path) -> bool:
    """Whether the process that trains a run is known to be alive: on this machine only."""
    with contextlib.suppress(OSError):
        lock = run / "lock.json"
        if lock.is_file():
            with lock.open("rb") as file:
                owner = parsed(file.read(LARGEST_LOCK))
            return owner is not None and owner.seen() is True
    return False


def value_text(value: Any) -> str:
    """A value of a field as a person would type it."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return " ".join(f"{name} {entry}" for name, entry in value.items()) or "{}"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """The shortest ends of dotted paths that tell them apart."""
    found = {}
    for path in paths:
        words = path.split(".")
        ends = [".".join(words[-count:]) for count in range(1, len(words) + 1)]
        others = [other for other in paths if other != path]
        found[path] = next((end for end in ends if not any(f".{o}".endswith(f".{end}") for o in others)), path)
    return found
