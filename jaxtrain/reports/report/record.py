"""What a run's folder holds, read once for a report: all that can be read, and what cannot, in words.

The folder is untrusted: files may be damaged, cut off, links or pipes. Not here: what is shown of it.
"""

import itertools
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.base.files import read_json
from jaxtrain.base.provenance import read_environment
from jaxtrain.base.text import size
from jaxtrain.experiment.run_file import RUN_FILE, read_saved
from jaxtrain.runs.json_lines import scan_lines
from jaxtrain.runs.metrics_log import line_check
from jaxtrain.runs.steps_log import HEADER, RECORD, STEP_COLUMNS, read_steps

LARGEST_FILE = 512 << 20
"""Bytes of a file that a report reads."""

RATES = ("examples_per_second", "tokens_per_second", "mfu")
"""Beside learning rates and seconds, what lines of training hold that is no metric."""

_OURS = (RUN_FILE, "metrics.jsonl", "events.jsonl")

_MOST_CARDS = 20


@dataclass
class RunRecord:
    """The files of a run. What is missing or damaged is empty, and `wrong` says so."""

    folder: Path
    saved: dict[str, Any] = field(default_factory=dict)
    """experiment.json."""
    lines: list[dict[str, Any]] = field(default_factory=list)
    """metrics.jsonl; NaN and infinities are strings."""
    events: list[dict[str, Any]] = field(default_factory=list)
    steps: dict[str, np.ndarray] = field(default_factory=dict)
    """The columns of steps.bin, up to the first damaged record."""
    environment: dict[str, Any] = field(default_factory=dict)
    cards: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The cards of built datasets by file name."""
    flight: dict[str, Any] = field(default_factory=dict)
    """flight.json, which a failing run leaves."""
    wrong: list[str] = field(default_factory=list)

    @property
    def batch_size(self) -> int:
        """Rows of a batch; 0 where it is not known."""
        found = self.saved.get("config", {}).get("data.batch_size", 0)
        return found if isinstance(found, int) else 0

    @property
    def of(self) -> int:
        """The steps that the run was to take, as it was last begun; 0 where it is not known."""
        begun = [event.get("of") for event in self.events if event.get("kind") == "begun"]
        known = [each for each in [*begun, self.saved.get("experiment", {}).get("steps")] if isinstance(each, int)]
        return known[len(begun) - 1 if begun and isinstance(begun[-1], int) else -1] if known else 0

    @property
    def last_step(self) -> int:
        """The last step that any file knows of."""
        logged = [line["step"] for line in self.lines[-1:]]
        logged += self.steps["step"][-1:].tolist() if self.steps else []
        told = [event["step"] for event in self.events if _is_step(event.get("step"))]
        return max([*logged, *told], default=0)

    @cached_property
    def splits(self) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
        """Steps i64[n] and values f64[n] of each metric by split, `train` first."""
        alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for line in self.lines:  # lines with the same names are turned into columns together, which is quicker
            alike.setdefault((line["split"], *line), []).append(line)
        parts: dict[str, dict[str, list[tuple[np.ndarray, np.ndarray]]]] = {"train": {}}
        for (split, *names), lines in alike.items():
            steps, metrics = _steps_of(lines), parts.setdefault(split, {})
            for name in names:
                if name not in ("step", "split"):
                    values = np.fromiter((float(line[name]) for line in lines), np.float64, len(lines))
                    metrics.setdefault(name, []).append((steps, values))
        return {
            split: {name: _ordered(columns) for name, columns in metrics.items()} for split, metrics in parts.items()
        }

    @cached_property
    def _clock(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Steps, seconds and tokens until then, of the lines of training; the clock of a run that is resumed begins
        again, so its sessions are put one after another.
        """
        none = (np.zeros(0, np.int64), np.zeros(0))
        train = self.splits["train"]
        steps, seconds = train.get("seconds_total", none)
        again = np.diff(seconds, prepend=0.0) < 0
        before = np.cumsum(np.where(again, np.roll(seconds, 1), 0.0))
        of_rate, rates = train.get("examples_per_second", none)
        of_tokens, tokens = train.get("tokens_per_second", none)
        total = np.zeros(0)
        if len(of_tokens) and np.array_equal(of_tokens, of_rate):
            with np.errstate(divide="ignore", invalid="ignore"):
                each = np.nan_to_num(tokens / rates * self.batch_size, posinf=0.0, neginf=0.0)
            total = np.cumsum(each * np.diff(of_tokens, prepend=0))
        return steps, seconds + before, np.interp(steps, of_tokens, total) if len(total) else total

    def axes(self, steps: Any) -> dict[str, np.ndarray]:
        """Other x axes of these steps: examples, tokens, and seconds of running, as far as they are known."""
        found = {"examples": np.asarray(steps) * self.batch_size} if self.batch_size else {}
        at, seconds, tokens = self._clock
        if len(at):
            at = np.concatenate([[0], at])
            found |= {"tokens": np.interp(steps, at, np.concatenate([[0.0], tokens]))} if len(tokens) else {}
            found["seconds"] = np.interp(steps, at, np.concatenate([[0.0], seconds]))
        return found


def _steps_of(lines: list[dict[str, Any]]) -> np.ndarray:
    return np.fromiter((min(line["step"], 1 << 62) for line in lines), np.int64, len(lines))


def _ordered(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    steps, values = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(steps, kind="stable")
    return steps[order], values[order]


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def read_folder(folder: Path) -> RunRecord:
    """What a folder holds. Raises ConfigError for a folder that is no run's."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise ConfigError(f"{folder} {what}: give the folder of a run, such as runs/digits/20261127-120000")
    if not any(os.path.lexists(folder / name) for name in _OURS):
        near = itertools.chain(folder.glob(f"*/{RUN_FILE}"), folder.glob(f"*/*/{RUN_FILE}"))
        more = ", ".join(str(path.parent) for path in itertools.islice(near, 3))
        hint = f"; runs in it: {more}" if more else "; `jaxtrain train FILE` makes one below runs/"
        raise ConfigError(f"{folder} is no run: it has none of {', '.join(_OURS)}{hint}")
    record = RunRecord(folder)
    if _readable(record, RUN_FILE, "the experiment is not known"):
        record.saved = _tried(record, lambda: read_saved(folder), {})
    if _readable(record, "environment.json", "what it ran on is not known"):
        record.environment = _tried(record, lambda: read_environment(folder), {})
    if _readable(record, "metrics.jsonl", "no metric was logged"):
        record.lines = _lines(record, "metrics.jsonl")
    if _readable(record, "events.jsonl", "what happened is not known"):
        record.events = [event for event in _lines(record, "events.jsonl") if isinstance(event.get("kind"), str)]
    if _readable(record, "steps.bin", "there are no numbers of single steps"):
        record.steps = _steps(record)
    if os.path.lexists(folder / "flight.json") and _readable(record, "flight.json", ""):
        flight = _tried(record, lambda: read_json(folder / "flight.json"), {})
        record.flight = flight if isinstance(flight, dict) else {}
    record.cards = _cards(record)
    return record


def _readable(record: RunRecord, name: str, missing: str) -> bool:
    """Whether a file of the folder can be read without harm; else the record says why not."""
    path = record.folder / name
    try:
        found = path.stat()
    except OSError as error:
        record.wrong.append(f"{name} {'is missing' if not os.path.lexists(path) else error.strerror}: {missing}.")
        return False
    if not stat.S_ISREG(found.st_mode):
        record.wrong.append(f"{name} is no file, and was not read.")
    elif found.st_size > LARGEST_FILE:
        record.wrong.append(f"{name} has {size(found.st_size)}, more than a report reads ({size(LARGEST_FILE)}).")
    else:
        return True
    return False


def _tried(record: RunRecord, read: Any, otherwise: Any) -> Any:
    try:
        return read()
    except (ConfigError, Damaged, OSError) as error:
        record.wrong.append(f"{error}.")
        return otherwise


def _lines(record: RunRecord, name: str) -> list[dict[str, Any]]:
    check = line_check() if name == "metrics.jsonl" else None
    good, bad = _tried(record, lambda: scan_lines(record.folder / name, check), ([], []))
    record.wrong += [f"{name}, line {line.number} is left out: {line.why}." for line in bad[:3]]
    record.wrong += [f"{len(bad) - 3:,} more lines of {name} are left out."] if len(bad) > 3 else []
    return [found for _, found in good]


def _steps(record: RunRecord) -> dict[str, np.ndarray]:
    try:
        return read_steps(record.folder)
    except Damaged as error:
        if error.record is None:
            record.wrong.append(f"{error}: nothing of it is shown.")
            return {}
        data = (record.folder / "steps.bin").read_bytes()
        whole: Any = np.frombuffer(data, RECORD, error.record, offset=len(HEADER))
        last = f"up to step {whole['step'][-1]:,}, the last before it" if len(whole) else "not at all"
        record.wrong.append(f"{error}: steps.bin is shown {last}.")
        return {name: whole[name].copy() for name in STEP_COLUMNS}
    except (ConfigError, OSError) as error:
        record.wrong.append(f"{error}.")
        return {}


def _cards(record: RunRecord) -> dict[str, dict[str, Any]]:
    folder = record.folder / "data"
    names = sorted(path.name for path in folder.glob("*.json")) if folder.is_dir() and not folder.is_symlink() else []
    if len(names) > _MOST_CARDS:
        record.wrong.append(f"data/ holds {len(names):,} cards; {_MOST_CARDS} are shown.")
    found = {}
    for name in names[:_MOST_CARDS]:
        if _readable(record, f"data/{name}", "the card is not known"):
            card = _tried(record, lambda name=name: read_json(folder / name), None)
            if isinstance(card, dict):
                found[name] = card
    return found


def plotted_names(splits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The names of metrics that any split has, `loss` first, without rates and seconds."""
    names: Iterable[str] = dict.fromkeys(name for metrics in splits.values() for name in metrics)
    return sorted((name for name in names if not is_rate(name)), key=lambda name: (name != "loss", name))


def is_rate(name: str) -> bool:
    """Whether a value in a line of training is no metric."""
    return name in RATES or name.startswith(("seconds_", "learning_rate"))
