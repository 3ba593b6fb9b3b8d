"""Compares steps that were run again with the run's records, bit for bit, and lists differences of the environment."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.provenance import environment, read_environment
from jaxtrain.runs.metrics_log import read_metrics
from jaxtrain.runs.steps_log import read_steps
from jaxtrain.sharding.checksum import as_number
from jaxtrain.tasks.metrics import Metric, merge, values_by_name

COMPARED = ("batch", "loss", "gradient_norm")
"""The columns that are compared: the data first, since other data give other numbers."""

DECISIVE = ("jax", "jaxlib", "flax", "optax", "numpy", "jaxtrain")
"""Packages whose version may change bits."""


@dataclass(frozen=True)
class Reproduced:
    """The result of comparing steps with the run's records."""

    steps: tuple[int, ...]
    """The steps that were compared."""
    file: str
    """The file that they were compared with; empty if the run has recorded none of them."""
    difference: str = ""
    """The first difference; empty if all steps are equal, bit for bit."""
    step: int | None = None
    """The step of the first difference."""
    causes: tuple[str, ...] = ()
    """How the environment differs from the run's, such as by the version of jax."""

    @property
    def exactly(self) -> bool:
        """Whether any steps were compared, and all are equal."""
        return bool(self.steps) and not self.difference


def reproduced(folder: Path, metrics: Mapping[int, Mapping[str, Any]]) -> Reproduced:
    """Compare steps with the run's steps.bin or, where that has none of them, with periods of its metrics.jsonl."""
    columns = read_steps(folder) if (folder / "steps.bin").is_file() else {"step": np.zeros(0, np.int64)}
    record = {int(step): number for number, step in enumerate(columns["step"])}
    compared = tuple(step for step in sorted(metrics) if step in record)
    if not compared:
        return _by_periods(folder, metrics)
    for step in compared:
        now = columns_of(metrics[step])
        for name in COMPARED:
            if now[name].tobytes() != (was := columns[name][record[step]]).tobytes():
                return Reproduced(compared, "steps.bin", _said(name, was, now[name]), step, differences(folder))
    return Reproduced(compared, "steps.bin")


def columns_of(metrics: Mapping[str, Any]) -> dict[str, np.generic]:
    """The metrics of a step as the columns of steps.bin."""
    found: dict[str, np.generic] = {name: np.float32(float(metrics[name])) for name in ("loss", "gradient_norm")}
    return {"batch": np.uint64(as_number(metrics["batch"])), **found}


def _said(name: str, was: Any, now: Any) -> str:
    if name == "batch":
        return f"the data differ: the batch's checksum was {int(was):016x} and is {int(now):016x}"
    return f"the numbers differ: {name} was {float(was)!r} and is {float(now)!r}"


def _by_periods(folder: Path, metrics: Mapping[int, Mapping[str, Any]]) -> Reproduced:
    compared, last = list[int](), 0
    for line in read_metrics(folder):
        if line.get("split") != "train":
            continue
        steps, last = range(last + 1, line["step"] + 1), line["step"]
        if not all(step in metrics for step in steps):
            continue
        compared += steps
        values = values_by_name(merge([_metrics(metrics[step]) for step in steps]))
        for name in ("loss", "gradient_norm"):
            if name in line and not np.array_equal(values[name], line[name], equal_nan=True):
                words = _said(name, line[name], values[name])
                return Reproduced(tuple(compared), "metrics.jsonl", words, steps[-1], differences(folder))
    return Reproduced(tuple(compared), "metrics.jsonl" if compared else "")


def _metrics(found: Mapping[str, Any]) -> dict[str, Metric]:
    return {name: each for name, each in found.items() if isinstance(each, Metric)}


def differences(folder: Path) -> tuple[str, ...]:
    """What of the environment is not as it was when the run was last trained, in words."""
    try:
        was, now, found = read_environment(folder), environment(), list[str]()
    except ConfigError as error:
        return (str(error),)
    for group, names in (("packages", DECISIVE), ("variables", None), ("hardware", None), ("", ("python", "platform"))):
        before, here = (one.get(group, {}) if group else one for one in (was, now))
        for name in names or sorted({*before, *here} - {"memory_bytes"}):
            if before.get(name) != here.get(name):
                found.append(f"{name} was {before.get(name, 'not set')} and is {here.get(name, 'not set')}")
    revisions = [(one.get("git") or {}).get(part) for one in (was, now) for part in ("revision", "diff")]
    if revisions[:2] != revisions[2:]:
        found.append(f"the code was {_revision(*revisions[:2])} and is {_revision(*revisions[2:])}")
    return tuple(found)


def _revision(revision: str | None, diff: str | None) -> str:
    return "of no git revision" if revision is None else f"git {revision[:9]}" + (" with changes" if diff else "")
