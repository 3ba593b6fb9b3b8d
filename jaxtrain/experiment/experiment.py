"""An experiment: what is learned, from what, how, for how long, and where the arrays live.

Not here: anything that runs. An experiment is a value: replaced with `dataclasses.replace`, saved as JSON, and loaded
back without running any code of the run that saved it.
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
    """A checkpoint stays while any of these wants it.

    last: the newest this many, at least 1.
    every: also each step that this number divides, for ever.
    best: also the best one by this metric, e.g. `"validation/accuracy"`, of those saved at a step that was evaluated,
        with a finite value.
    mode: whether the best is the lowest or the highest.
    save_best: whether an evaluation that is better than all that are saved saves at its step, whatever `save_every`
        is, so that the best is the best of all evaluations.

    Raises `ConfigError` for numbers below 1 and another mode.
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
    """Seconds after which a phase of a run counts as hung; 0 for none. Then the stacks of all threads of all processes
    are in the run folder, and the run ends with code 75.

    Generous, since what takes long and ends well must never be ended. Each step and each batch of an evaluation counts
    anew.
    """

    lock: NonNegativeInt = 30
    """Until another process that writes the run folder has ended: a job that was requeued may be there too early."""
    join: NonNegativeInt = 300
    """Until all processes have joined; JAXTRAIN_JOIN_SECONDS goes before it."""
    compile: NonNegativeInt = 4 * 3600
    """Fitting the experiment to its data, tracing and compiling the step."""
    restore: NonNegativeInt = 2 * 3600
    """Restoring a checkpoint, or making the first state."""
    data: NonNegativeInt = 1800
    """Waiting for one batch."""
    step: NonNegativeInt = 1800
    """One step."""
    eval: NonNegativeInt = 3600
    """One batch of an evaluation, whose first one is compiled."""
    save: NonNegativeInt = 2 * 3600
    """Waiting for the save before, and for the last one to be durable."""
    other: NonNegativeInt = 4 * 3600
    """Anything else: beginning the run, observers, waiting for other processes at the end."""

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, kw_only=True)
class Runtime(Checked):
    """How a run runs, never what it computes. On the command line its flags have no prefix: `--log-every`.

    Raises `ConfigError` for intervals below 1 step and a negative deadline.
    """

    log_every: PositiveInt = 50
    """Steps between two lines of metrics."""
    eval_every: PositiveInt = 500
    """Steps between two evaluations; the last step is evaluated too."""
    save_every: PositiveInt = 500
    """Steps between two checkpoints; the last step is saved too."""
    keep: Retention = field(default_factory=Retention)
    """Which checkpoints stay."""
    checkpoints: str | None = None
    """Where each checkpoint is copied to, and fetched from where the run folder has no good one: a URL of fsspec, such
    as "s3://bucket/prefix", of this run alone.
    """
    verify_bytes: NonNegativeInt | None = None
    """On restore, files and arrays of more bytes than this are compared by size only; None reads all."""
    deadline: NonNegativeInt = 60
    """Of several processes, all end within this many seconds of the loss of one; 0 leaves that to jax."""
    deadlines: Deadlines = field(default_factory=Deadlines)
    """Of each phase: what takes longer hangs."""
    flight: NonNegativeInt = 64
    """The last steps of a run that fails, kept for flight.json; 0 keeps none."""
    compiler_options: Mapping[str, str | bool] = field(default_factory=dict)
    """Options of XLA for the train step, beside XLA_FLAGS."""
    profile: str | None = None
    """Steps to trace, both included, such as "100:110"; the run folder then has the trace in profile/."""

    @property
    def profiled(self) -> range:
        """The steps to trace; none without `profile`. Raises ConfigError for what is no range of steps."""
        if self.profile is None:
            return range(0)
        first, colon, last = self.profile.partition(":")
        if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
            raise ConfigError(f"profile: {self.profile!r} is no range of steps from 1 on, such as 100:110")
        return range(int(first), int(last) + 1)

    def __post_init__(self) -> None:
        check_types(self)
        if self.checkpoints is not None and not all(self.checkpoints.partition("://")):
            raise ConfigError(f"checkpoints: {self.checkpoints!r} is no URL such as s3://bucket/prefix")
        _ = self.profiled


@dataclass(frozen=True, kw_only=True)
class Experiment(Checked):
    """The decisions that make a run."""

    task: Task
    data: Pipeline
    optimizer: Optimizer
    steps: Steps = field(metadata=NOT_IN_FINGERPRINT)
    """Updates to do."""
    evals: Mapping[str, Pipeline] = field(default_factory=dict)
    """What is evaluated, by the name of its split."""
    host_metrics: Mapping[str, HostMetric] = field(default_factory=dict, metadata=NOT_IN_FINGERPRINT)
    """Metrics of evaluations that are no sums over rows, by name, such as `{"spearman": Spearman()}`."""
    start: Start | None = None
    """Where the first parameters come from; None draws them."""
    layout: Layout = field(default_factory=Layout, metadata=NOT_IN_FINGERPRINT)
    microbatches: PositiveInt = 1
    """How many microbatches a batch is cut into to save memory: gradients are accumulated, the update is the same."""
    observers: tuple[Observer, ...] = field(default=(), metadata=NOT_IN_FINGERPRINT)
    """What watches the run, and may end it early: `EarlyStopping()` and your own."""
    seed: Seed = 0
    runtime: Runtime = field(default_factory=Runtime, metadata=NOT_IN_FINGERPRINT)

    def __post_init__(self) -> None:
        """Raises ConfigError for values of another type than their field's, and for a best metric of no split."""
        check_types(self)
        best = self.runtime.keep.best
        split = (best or "").partition("/")[0]
        if split and split not in self.evals:
            raise ConfigError(f"keep.best: {best!r} is of no split in evals{nearest(split, self.evals)}")


def config_facts(experiment: Experiment, file: Path) -> dict[str, Any]:
    """What must be equal in every process of a run: all fields of its experiment, and a hash of the experiment file."""
    others = {f.name: getattr(experiment, f.name) for f in fields(experiment) if not in_fingerprint(f)}
    text = digest(file.read_bytes(), length=16)
    more = {path.lstrip("."): value for path, value in flatten(others).items()}
    return {**flatten(experiment), **more, file.name: text}


def fingerprint(experiment: Experiment) -> str:
    """A hash of what a run computes: equal for experiments that differ only in fields marked NOT_IN_FINGERPRINT."""
    return digest(json.dumps(flatten(experiment), sort_keys=True), length=16)
