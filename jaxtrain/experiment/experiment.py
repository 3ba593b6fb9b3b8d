"""An experiment: task, data, optimizer, number of steps and layout, as a frozen dataclass.

An experiment is a value: changed with `dataclasses.replace`, saved as JSON, and loaded back without running code from
a run folder. Not here: anything that runs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from jaxtrain.base.config import NOT_IN_FINGERPRINT, check_types, flatten, in_fingerprint
from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.files import digest
from jaxtrain.base.ranges import Checked, NonNegativeInt, PositiveInt, Range, Seed
from jaxtrain.data.pipeline import Pipeline
from jaxtrain.experiment.observers import Observer
from jaxtrain.experiment.start import Start
from jaxtrain.optimizers import Optimizer
from jaxtrain.sharding.layout import Layout
from jaxtrain.tasks.base import Task
from jaxtrain.tasks.host_metrics import HostMetric

Steps = Annotated[int, Range(at_least=1, at_most=2**31 - 1, hint="an i32 counts the steps")]


@dataclass(frozen=True)
class Retention(Checked):
    """Which checkpoints are kept: every checkpoint that at least one of these fields selects.

    last: the newest `last` checkpoints, at least 1.
    every: also each step that is a multiple of this, permanently.
    best: also the best one by this metric, e.g. `"validation/accuracy"`, among the checkpoints of evaluated steps with
        a finite value.
    mode: whether the lowest or the highest value is the best.
    save_best: whether an evaluation that beats all saved ones saves a checkpoint at its step, whatever `save_every`
        is; then the best checkpoint is the best of all evaluations.

    Raises `ConfigError` for numbers below 1 and any other mode.
    """

    last: Annotated[int, Range(at_least=1, hint="the newest checkpoint has to stay")] = 2
    every: Annotated[int, Range(at_least=1, hint="None: none stays for ever")] | None = None
    best: str | None = None
    mode: Literal["min", "max"] = "min"
    save_best: bool = True

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, kw_only=True)
class Deadlines(Checked):
    """Seconds after which a phase of a run counts as hung; 0 is never. A hung run writes the stacks of all threads of
    all processes into its folder and ends with code 75.

    The defaults are long, so that a slow phase is not taken for a hung one. The time starts again with each step, and
    with each batch of an evaluation.
    """

    lock: NonNegativeInt = 30
    """Waiting for another process that writes the run folder to end: a requeued job may start before its predecessor
    has ended.
    """
    join: NonNegativeInt = 300
    """Waiting for all processes to join; JAXTRAIN_JOIN_SECONDS overrides it."""
    compile: NonNegativeInt = 4 * 3600
    """Fitting the experiment to its data, tracing and compiling the step."""
    restore: NonNegativeInt = 2 * 3600
    """Restoring a checkpoint, or making the first state."""
    data: NonNegativeInt = 1800
    """Waiting for one batch."""
    step: NonNegativeInt = 1800
    """One step."""
    eval: NonNegativeInt = 3600
    """One batch of an evaluation; the first one includes compiling."""
    save: NonNegativeInt = 2 * 3600
    """Waiting for the previous save, and at the end for the last one, to be durable."""
    other: NonNegativeInt = 4 * 3600
    """Everything else: starting the run, observers, waiting for other processes at the end."""

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, kw_only=True)
class Runtime(Checked):
    """How a run runs, never what it computes. On the command line its flags have no prefix: `--log-every`.

    Raises `ConfigError` for intervals below 1 step and a negative deadline.
    """

    log_every: PositiveInt = 50
    """Steps between two lines of training metrics."""
    eval_every: PositiveInt = 500
    """Steps between two evaluations; the last step is always evaluated."""
    save_every: PositiveInt = 500
    """Steps between two checkpoints; the last step is always saved."""
    keep: Retention = field(default_factory=Retention)
    """Which checkpoints are kept."""
    checkpoints: str | None = None
    """A URL of fsspec, such as "s3://bucket/prefix", for this run alone: checkpoints are copied there, and fetched from
    there where the run folder has no good one.
    """
    verify_bytes: NonNegativeInt | None = None
    """On restore, files and arrays larger than this are compared by size only; None verifies all checksums."""
    deadline: NonNegativeInt = 60
    """Seconds within which all processes end after one is lost; 0 leaves that to jax."""
    deadlines: Deadlines = field(default_factory=Deadlines)
    """For each phase, the seconds after which it counts as hung."""
    flight: NonNegativeInt = 64
    """How many of its last steps a failing run writes to flight.json; 0 for none."""
    keep_rows: NonNegativeInt = 10_000
    """How many examples of a split the last evaluation keeps with what it found for each, in rows/; 0 for none."""
    compiler_options: Mapping[str, str | bool] = field(default_factory=dict)
    """Options of XLA for the train step, in addition to XLA_FLAGS."""
    profile: str | None = None
    """First and last step to trace, such as "100:110". The trace is written to profile/ in the run folder."""

    @property
    def profiled(self) -> range:
        """The steps to trace; empty without `profile`. Raises ConfigError for a text that is not a range of steps."""
        if self.profile is None:
            return range(0)
        first, colon, last = self.profile.partition(":")
        if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
            raise ConfigError(f"profile: {self.profile!r} is not a range of steps from 1 on, such as 100:110")
        return range(int(first), int(last) + 1)

    def __post_init__(self) -> None:
        check_types(self)
        if self.checkpoints is not None and not all(self.checkpoints.partition("://")):
            raise ConfigError(f"checkpoints: {self.checkpoints!r} is not a URL such as s3://bucket/prefix")
        _ = self.profiled


@dataclass(frozen=True, kw_only=True)
class Experiment(Checked):
    """The five decisions that make a run, and how it is run."""

    task: Task
    data: Pipeline
    optimizer: Optimizer
    steps: Steps = field(metadata=NOT_IN_FINGERPRINT)
    """The number of updates."""
    evals: Mapping[str, Pipeline] = field(default_factory=dict)
    """The pipelines that are evaluated, by the name of their split."""
    host_metrics: Mapping[str, HostMetric] = field(default_factory=dict, metadata=NOT_IN_FINGERPRINT)
    """Evaluation metrics that are not sums over rows, by name, such as `{"spearman": Spearman()}`."""
    start: Start | None = None
    """A run or file to take the first parameters from; None initialises them at random."""
    layout: Layout = field(default_factory=Layout, metadata=NOT_IN_FINGERPRINT)
    microbatches: PositiveInt = 1
    """Parts that a batch is split into to save memory: gradients are accumulated, and the update is the same."""
    observers: tuple[Observer, ...] = field(default=(), metadata=NOT_IN_FINGERPRINT)
    """Objects that watch the run and may end it early: `EarlyStopping()` and your own."""
    seed: Seed = 0
    runtime: Runtime = field(default_factory=Runtime, metadata=NOT_IN_FINGERPRINT)

    def __post_init__(self) -> None:
        """Raises ConfigError for values of the wrong type, and for a `keep.best` that names no split."""
        check_types(self)
        best = self.runtime.keep.best
        split = (best or "").partition("/")[0]
        if split and split not in self.evals:
            raise ConfigError(f"keep.best: {best!r} is of no split in evals{nearest(split, self.evals)}")


def config_facts(experiment: Experiment, file: Path) -> dict[str, Any]:
    """The facts that must be equal in all processes of a run: every field of the experiment, and a hash of its file."""
    others = {f.name: getattr(experiment, f.name) for f in fields(experiment) if not in_fingerprint(f)}
    text = digest(file.read_bytes(), length=16)
    more = {path.lstrip("."): value for path, value in flatten(others).items()}
    return {**flatten(experiment), **more, file.name: text}


def fingerprint(experiment: Experiment) -> str:
    """A hash of everything that decides what a run computes: all fields but those marked NOT_IN_FINGERPRINT."""
    return digest(json.dumps(flatten(experiment), sort_keys=True), length=16)
