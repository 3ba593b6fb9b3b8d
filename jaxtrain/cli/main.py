"""The command line: verbs, thin. Every field of an experiment is a flag that tyro makes from its type.

Not here: anything that the verbs do.
"""

import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import jax
import tyro

from jaxtrain.base.cache import cache
from jaxtrain.base.errors import ConfigError, Damaged, nearest
from jaxtrain.experiment.experiment import Experiment, config_facts
from jaxtrain.experiment.files import Origin, load

USAGE = """\
jaxtrain train EXPERIMENT [--run DIR] [--FIELD VALUE …]   train file.py[:function]; go on if DIR holds its run
jaxtrain explain EXPERIMENT [--devices N] [--FIELD …]     where every array would live on N devices
jaxtrain verify EXPERIMENT [--devices N] [--meshes M …]   that it trains alike, and sends no more, on every mesh
jaxtrain evaluate RUN [--step N] [--split S]              metrics of a saved step
jaxtrain predict RUN TEXT|FILE … [--step N]               what the trained model says
jaxtrain data build|card|check|diff|bench …               data sets with cards; how fast they are read
jaxtrain launch slurm|k8s|tpu|local EXPERIMENT …          the same on many machines, or in many processes

jaxtrain VERB --help says more; `train EXPERIMENT --help` lists every field. --debug shows tracebacks."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Metrics of a saved step of a run."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    step: int | None = None
    """The saved step; the latest by default."""
    split: str | None = None
    """One split; all by default."""
    code: str | None = None
    """file.py[:function] of the experiment, if it holds classes that are not jaxtrain's, or data in memory."""


@dataclass(frozen=True, kw_only=True)
class Predict:
    """What a trained model says of texts or files."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Texts, or files of images."""
    step: int | None = None
    """The saved step; the latest by default."""
    code: str | None = None
    """file.py[:function] of the experiment, if it holds classes that are not jaxtrain's, or data in memory."""


Flags = Annotated[Experiment, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train an experiment, or go on with its run."""

    experiment: Flags
    run: Path | None = None
    """The run's folder; a new one under runs/ by default."""


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Where every array of an experiment would live."""

    experiment: Flags
    devices: int | None = None
    """How many devices to think of; those that are here by default."""


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Train an experiment, made small, on every mesh of simulated devices, and compare with one device."""

    experiment: Flags
    devices: int = 8
    """How many devices to simulate."""
    meshes: tuple[str, ...] = ()
    """Meshes such as `"data 2 tensor 4"`, or `fsdp` alone for all devices; every one that fits by default."""


Verb = TypeVar("Verb", Train, Explain, Verify)


def train(arguments: Sequence[str]) -> None:
    """`jaxtrain train`."""
    from jaxtrain.cluster.processes import join_processes
    from jaxtrain.train import train

    given, origin = _given(Train, arguments, "train")
    with join_processes(
        lambda: config_facts(given.experiment, origin.file), given.experiment.runtime.deadline, _told
    ) as stop:
        run, state = train(given.experiment, given.run, origin, stop)
    if int(state.step) < given.experiment.steps:
        flags = [] if given.run else ["--run", str(run.folder)]
        again = shlex.join(["jaxtrain", "train", *arguments, *flags])
        print(f"stopped after step {int(state.step)} of {given.experiment.steps}; go on with:\n{again}")
        sys.exit(stop.code)


def explain(arguments: Sequence[str]) -> None:
    """`jaxtrain explain`."""
    given, _ = _given(Explain, arguments, "explain")
    if given.devices is not None and given.devices < 1:
        raise ConfigError(f"--devices {given.devices}: give a number of devices, at least 1")
    from jaxtrain.analysis.explain import explain

    print(explain(given.experiment, given.devices or jax.device_count()))


def verify(arguments: Sequence[str]) -> None:
    """`jaxtrain verify`."""
    given, _ = _given(Verify, arguments, "verify")
    from jaxtrain.analysis.verify import read_mesh, simulate, verify

    meshes = [read_mesh(words, given.devices) for words in given.meshes]
    if not verify(given.experiment, simulate(given.devices), meshes):
        sys.exit(1)


def evaluate(arguments: Sequence[str]) -> None:
    """`jaxtrain evaluate`."""
    given = tyro.cli(Evaluate, args=list(arguments), prog="jaxtrain evaluate")
    from jaxtrain.base.text import number
    from jaxtrain.evaluate import evaluate_run
    from jaxtrain.runs.folder import Run

    run = Run(given.run, given.code)
    for split, values in evaluate_run(run, given.step, given.split).items():
        print(split, *(f"{name} {number(value)}" for name, value in values.items()), sep="  ")


def predict(arguments: Sequence[str]) -> None:
    """`jaxtrain predict`."""
    given = tyro.cli(Predict, args=list(arguments), prog="jaxtrain predict")
    if not given.inputs:
        raise ConfigError("predict: give at least one text or file after the run")
    from jaxtrain.evaluate import predict_run
    from jaxtrain.runs.folder import Run

    run = Run(given.run, given.code)
    for text, line in zip(given.inputs, predict_run(run, given.inputs, given.step), strict=True):
        print(f"{line}  {text}")


def data(arguments: Sequence[str]) -> None:
    """`jaxtrain data`."""
    from jaxtrain.cli.data import data

    data(arguments)


def launch(arguments: Sequence[str]) -> None:
    """`jaxtrain launch`."""
    from jaxtrain.cli.launch import launch

    launch(arguments, lambda words: _given(Train, words, "train")[0].experiment)


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train,
    "explain": explain,
    "verify": verify,
    "evaluate": evaluate,
    "predict": predict,
    "data": data,
    "launch": launch,
}


def main() -> None:
    """Run the verb that was asked for. Exits with a message: 2 for a mistake in what was asked, 1 for damaged data.

    A run that stopped before its last step ends with 75 (run the same command again), after Ctrl-C with 130.
    """
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return
    _cache_programs()
    try:
        if arguments[0] not in VERBS:
            raise ConfigError(f"there is no verb {arguments[0]!r}{nearest(arguments[0], VERBS)}\n\n{USAGE}")
        VERBS[arguments[0]](arguments[1:])
    except (ConfigError, Damaged) as error:
        if "--debug" in sys.argv:
            raise
        sys.exit(_told(error))


def _told(error: BaseException) -> int:
    """Say an error to a person; the exit code."""
    if isinstance(error, ConfigError | Damaged) and "--debug" not in sys.argv:
        print(f"jaxtrain: {'damaged data: ' * isinstance(error, Damaged)}{error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    if isinstance(error, Damaged):
        print(
            "`jaxtrain data check` names all damage of a built data set; the source Tolerant(source, limit) goes on "
            "without up to so many records",
            file=sys.stderr,
        )
    return 2 if isinstance(error, ConfigError) else 130 if isinstance(error, KeyboardInterrupt) else 1


def _cache_programs() -> None:
    # Compiled programs are kept between runs, so that a second launch starts in seconds.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache("programs")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _given(kind: type[Verb], arguments: Sequence[str], verb: str) -> tuple[Verb, Origin]:
    """The flags of a verb that takes an experiment, whose name comes first."""
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError(f"{verb}: name an experiment first: jaxtrain {verb} experiments/sentiment.py\n\n{USAGE}")
    experiment, origin = load(arguments[0])
    default = kind(experiment=experiment)
    return tyro.cli(kind, default=default, args=list(arguments[1:]), prog=f"jaxtrain {verb} {arguments[0]}"), origin
