"""Measures what a run's guards cost a step, in CPU time: `python scripts/bench_overhead.py [--rounds 7] [--check]`.

`train` with all of them and without each, in turn in every round, in one process; the table has the median of the
rounds' ratios and their quartiles. CPU time is all that the process used, its readers and XLA's threads too.
"""

import argparse
import contextlib
import os
import statistics
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from bench_step import ROOT, training

from jaxtrain.cluster.watchdog import Watchdog
from jaxtrain.experiment import Experiment, Runtime
from jaxtrain.experiment.files import Origin, load
from jaxtrain.optimizers import Standard
from jaxtrain.optimizers.recorded import Sampled
from jaxtrain.program import Program
from jaxtrain.runs.lock import Lock
from jaxtrain.runs.recorder import Recorder
from jaxtrain.runs.skipped import StepFaults

AIM = 0.01
"""The most that all guards together may add to the CPU time of a step."""

EXPERIMENTS: tuple[tuple[str, str, int | None, int], ...] = (
    ("char_lm", "char_lm.py", None, 40),
    ("sentiment", "sentiment.py", None, 150),
    ("digits", "digits.py", None, 60),
)
"""Name, file, batch size (None is its own), steps."""


def _nothing(*_: Any) -> None:
    return None


@contextlib.contextmanager
def _without(owner: Any, **methods: Callable[..., Any]) -> Generator[None]:
    with contextlib.ExitStack() as stack:
        for name, method in methods.items():
            stack.enter_context(mock.patch.object(owner, name, method))
        yield


@contextlib.contextmanager
def without_recorder() -> Generator[None]:
    with (
        _without(Recorder, stepped=_nothing, append=_nothing),
        mock.patch("jaxtrain.program.recorded", return_value=Sampled(np.zeros(1, np.float32), ())),
    ):
        yield


@contextlib.contextmanager
def without_checksum() -> Generator[None]:
    zeros = jnp.zeros(2, jnp.uint32)
    with _without(Program, checksum=lambda self, batch: zeros):
        yield


@contextlib.contextmanager
def without_finite_checks() -> Generator[None]:
    with _without(StepFaults, fault=_nothing), _without(Program, infinite=lambda self, state: []):
        yield


@contextlib.contextmanager
def without_lock() -> Generator[None]:
    with _without(Lock, take=_nothing, check=_nothing, release=_nothing):
        yield


@contextlib.contextmanager
def without_watchdog() -> Generator[None]:
    with _without(Watchdog, start=_nothing, join=_nothing):
        yield


GUARDS: Mapping[str, Callable[[], AbstractContextManager[None]]] = {
    "flight recorder": without_recorder,
    "checksum of the batch": without_checksum,
    "finite checks": without_finite_checks,
    "lock": without_lock,
    "watchdog": without_watchdog,
}


def cpu_seconds(experiment: Experiment, origin: Origin, off: Sequence[str]) -> float:
    """CPU seconds a step of `train` without these guards."""
    with contextlib.ExitStack() as stack:
        for guard in off:
            stack.enter_context(GUARDS[guard]())
        stack.enter_context(Watchdog({"step": 3600.0, "join": 3600.0}, lambda: (0, "step")))
        return training(experiment, origin, experiment.steps // 5)[1]


def measured(
    file: str, size: int | None, steps: int, rounds: int, guards: Sequence[str]
) -> tuple[float, dict[str, list[float]]]:
    """CPU seconds a step, and what guards add to it, as a part of it, by guard, of each round."""
    experiment, origin = load(str(ROOT / "experiments" / file))
    optimizer = experiment.optimizer
    assert isinstance(optimizer, Standard)
    experiment = replace(
        experiment,
        data=replace(experiment.data, batch_size=size or experiment.data.batch_size),
        evals={},
        steps=steps,
        optimizer=replace(optimizer, schedule=replace(optimizer.schedule, warmup=0)),
        runtime=Runtime(log_every=steps // 5, save_every=10**9, eval_every=10**9),
    )
    variants = {"all": tuple(GUARDS), **{guard: (guard,) for guard in guards}}
    added: dict[str, list[float]] = {name: [] for name in variants}
    whole = []
    cpu_seconds(experiment, origin, ())  # what is imported and compiled once
    cpu_seconds(experiment, origin, tuple(GUARDS))
    for number in range(rounds):
        for name in variants if number % 2 else reversed(variants):
            found = {
                off: cpu_seconds(experiment, origin, off) for off in ((), variants[name])[:: -1 if number % 2 else 1]
            }
            whole.append(found[()])
            added[name].append(found[()] / found[variants[name]] - 1)
    return statistics.median(whole), added


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--check", action="store_true", help="exit code 1 where all together add more than 1 %%")
    parser.add_argument("--only", nargs="+", default=[name for name, *_ in EXPERIMENTS])
    parser.add_argument(
        "--guards", nargs="*", choices=list(GUARDS), default=list(GUARDS), help="those measured alone too"
    )
    flags = parser.parse_args()
    print(f"{os.cpu_count()} cores, {jax.devices()[0].platform}, jax {jax.__version__}, {flags.rounds} rounds")
    missed = False
    for name, file, size, steps in EXPERIMENTS:
        if name not in flags.only:
            continue
        seconds, added = measured(file, size, steps, flags.rounds, flags.guards)
        for guard, found in added.items():
            low, middle, high = statistics.quantiles(found, n=4)
            line = f"| {name}, {1e3 * seconds:.1f} ms of CPU a step | {guard} | {middle:+.2%} ({low:+.2%} to {high:+.2%}) |"
            print(line, flush=True)
        missed |= statistics.median(added["all"]) > AIM
    if flags.check and missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
