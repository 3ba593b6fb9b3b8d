"""What a comparison reads of a run folder, which may be half-written, damaged, old or foreign: what cannot be read is
said, and the rest is compared.

Not here: comparing.
"""

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxtrain.base.errors import ConfigError, Damaged, nearest
from jaxtrain.base.provenance import read_environment
from jaxtrain.base.text import cut, printable
from jaxtrain.experiment.origins import DEFAULT, read_origins
from jaxtrain.experiment.run_file import RUN_FILE, read_saved
from jaxtrain.runs.metrics_log import read_metrics
from jaxtrain.runs.steps_log import read_steps

T = TypeVar("T")

LARGEST_READ = {"steps.bin": 300_000_000, "metrics.jsonl": 1_000_000_000}
"""Bytes of a file that is read: ten million steps. Larger ones are said to be too large."""

LARGEST_CODE = 1_000_000
"""Bytes of an experiment's file that is compared."""


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run. Empty or None where it is not."""

    name: str
    """What the comparison calls it."""
    folder: Path
    saved: Mapping[str, Any]
    """experiment.json."""
    config: Mapping[str, Any]
    """Every field of the experiment by its dotted path, with the identities of data."""
    origins: Mapping[str, str]
    """Where the value of each field came from."""
    environment: Mapping[str, Any]
    file: tuple[str, str] | None
    """Name and text of the experiment's file."""
    steps: Mapping[str, np.ndarray] | None
    """The columns of steps.bin, by ascending step, the last record of each."""
    lines: Sequence[Mapping[str, Any]]
    """The lines of metrics.jsonl."""
    wrong: tuple[str, ...]
    """What could not be read, and why."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that were evaluated."""
        return tuple(dict.fromkeys(line["split"] for line in self.lines if line["split"] != "train"))

    @property
    def last_step(self) -> int | None:
        """The last step that is known to be done."""
        known = [int(self.steps["step"][-1])] if self.steps is not None and len(self.steps["step"]) else []
        known += [line["step"] for line in self.lines[-1:]]
        return max(known, default=None)

    def final(self, split: str) -> Mapping[str, Any]:
        """The line of the last evaluation of a split; {} without any."""
        return next((line for line in reversed(self.lines) if line["split"] == split), {})


def read_facts(folders: Sequence[Path]) -> list[RunFacts]:
    """The facts of some runs, named by their folders. Raises ConfigError where a folder is not that of a run."""
    return [_read(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path; as many parts as tell all apart, and a number for a folder that is named twice."""
    paths = [Path(os.path.abspath(folder)).parts for folder in folders]
    for length in range(1, max(map(len, paths)) + 1):
        names = [printable("/".join(parts[-length:])) for parts in paths]
        if len({*names}) == len({*paths}):
            break
    return [
        f"{name} ({names[:place].count(name) + 1})" if name in names[:place] else name
        for place, name in enumerate(names)
    ]


def _read(folder: Path, name: str) -> RunFacts:
    if not os.path.lexists(folder / RUN_FILE):
        near = sorted(str(path.parent) for path in folder.glob("*/experiment.json")) if folder.is_dir() else []
        below = f"; runs below it: {', '.join(near[-5:])}" if near else ""
        others = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        hint = below or ("" if folder.is_dir() else nearest(folder.name, others, listed=False))
        raise ConfigError(f"{folder} is not a run: it has no {RUN_FILE}{hint}")
    wrong: list[str] = []

    def part(file: str, read: Callable[[Path], T], empty: T, needed: bool = True) -> T:
        try:
            check_file(folder / file, LARGEST_READ.get(file, LARGEST_CODE * 100))
            return read(folder)
        except FileNotFoundError:
            wrong.extend([f"{name}: it has no {file}"] if needed else [])
        except (ConfigError, Damaged, OSError) as error:
            wrong.append(f"{name}: {printable(str(error))}")
        return empty

    empty: dict[str, Any] = {}
    saved = part(RUN_FILE, read_saved, empty)
    experiment = dict(_flat(saved.get("experiment"), ""))
    origin = saved.get("origin")
    file_name = Path(origin.rpartition(":")[0]).name if isinstance(origin, str) else ""
    text = part(file_name, lambda folder: _code(folder / file_name), "") if file_name else ""
    return RunFacts(
        name=name,
        folder=folder,
        saved=saved,
        config={**experiment, **saved.get("config", {})},
        origins=_origins(saved, experiment),
        environment=part("environment.json", read_environment, empty),
        file=(file_name, text) if text else None,
        steps=part("steps.bin", _steps, None),
        lines=part("metrics.jsonl", read_metrics, []),
        wrong=tuple(wrong),
    )


def _origins(saved: Mapping[str, Any], experiment: Mapping[str, Any]) -> dict[str, str]:
    """Where each value came from; {} for a run of a version that did not record it."""
    known = read_origins(saved)
    if not known:
        return {}
    return {path: known.get(path, known.get(f"{path}.sha256", DEFAULT)) for path in experiment}


def check_file(path: Path, most: int) -> None:
    """Raises FileNotFoundError where there is no file, ConfigError for what is no file of its own, such as a link or a
    pipe, and for one of more bytes.
    """
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path} is no file, but a link, a pipe or a folder: it is not read")
    if found.st_size > most:
        raise ConfigError(f"{path} has {found.st_size:,} bytes, more than the {most:,} that are read")


def _code(path: Path) -> str:
    check_file(path, LARGEST_CODE)
    return path.read_text(encoding="utf-8", errors="replace")


def _steps(folder: Path) -> Mapping[str, np.ndarray]:
    found = read_steps(folder)
    # A step that was trained again after a kill may be there twice: the later record is that of the run.
    steps, last = np.unique(found["step"][::-1], return_index=True)
    order = len(found["step"]) - 1 - last
    return {name: column[order] for name, column in found.items()} | {"step": steps}


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The JSON of an experiment by dotted path, as `flatten` gives those of its values that are in the fingerprint."""
    if isinstance(value, dict) and "$array" not in value:
        for name, part in value.items():
            yield from _flat(part, f"{path}.{'kind' if name == '$kind' else name}".lstrip("."))
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        for number, part in enumerate(value):
            yield from _flat(part, f"{path}.{number}")
    elif path:
        yield path, value


def shown_value(value: Any, length: int = 60) -> str:
    """A value of a config on one line."""
    if isinstance(value, dict) and "$array" in value:
        value = f"{value['$array']} {str(value.get('sha256', value.get('identity', '')))[:12]}"
    return printable(cut(value if isinstance(value, str) else repr(value), length))
