"""An experiment: what is learned, from what, how, for how long, and where the arrays live.

Not here: anything that runs. An experiment is a value: replaced with `dataclasses.replace`, saved as JSON, and loaded
back without running any code of the run that saved it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from jaxtrain.base.config import HARMLESS, check_types, meaning
from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.data.pipeline import Pipeline
from jaxtrain.optimizers import Optimizer
from jaxtrain.sharding.layout import Layout
from jaxtrain.tasks.base import Task


@dataclass(frozen=True)
class Keep:
    """A checkpoint stays while any of these wants it.

    last: the newest this many, at least 1.
    every: also each step that this number divides, for ever.
    best: also the best one by this metric, e.g. `"validation/accuracy"`, of those saved with a finite value.
    mode: whether the best is the lowest or the highest.

    Raises `ConfigError` for numbers below 1 and another mode.
    """

    last: int = 2
    every: int | None = None
    best: str | None = None
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        check_types(self)
        if self.last < 1:
            raise ConfigError(f"Keep(last={self.last}): at least the newest checkpoint has to stay")
        if self.every is not None and self.every < 1:
            raise ConfigError(f"Keep(every={self.every}): give a number of steps of at least 1, or None")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The decisions that make a run."""

    task: Task
    data: Pipeline
    optimizer: Optimizer
    steps: int = field(metadata=HARMLESS)
    """Updates to do."""
    evals: Mapping[str, Pipeline] = field(default_factory=dict)
    """What is evaluated, by the name of its split."""
    layout: Layout = field(default_factory=Layout, metadata=HARMLESS)
    microbatches: int = 1
    """Parts that a batch is worked through in, for less memory; the update is the same."""
    log_every: int = field(default=50, metadata=HARMLESS)
    eval_every: int = field(default=500, metadata=HARMLESS)
    save_every: int = field(default=500, metadata=HARMLESS)
    keep: Keep = field(default_factory=Keep, metadata=HARMLESS)
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ConfigError for values of another type than their field's, and for counts that cannot be."""
        check_types(self)
        for name in ("steps", "microbatches", "log_every", "eval_every", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} must be at least 1")
        split = (self.keep.best or "").partition("/")[0]
        if split and split not in self.evals:
            raise ConfigError(f"keep.best: {self.keep.best!r} is of no split in evals{nearest(split, self.evals)}")


def asked(experiment: Experiment, file: Path) -> dict[str, Any]:
    """All that every process of a run must have been asked for: what is computed, its harmless fields, and its file."""
    harmless = {f.name: getattr(experiment, f.name) for f in fields(experiment) if f.metadata == HARMLESS}
    text = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    more = {path.lstrip("."): value for path, value in meaning(harmless).items()}
    return {**meaning(experiment), **more, file.name: text}


def fingerprint(experiment: Experiment) -> str:
    """A hash of what a run computes: equal for experiments that differ only in harmless fields."""
    return hashlib.sha256(json.dumps(meaning(experiment), sort_keys=True).encode()).hexdigest()[:16]
