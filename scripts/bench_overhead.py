"""Measures what a run's guards cost a step, in CPU time: `python scripts/bench_overhead.py [char_lm] [sentiment] [digits]`.

Each part is called by itself, many times in a row; CPU time is all that the process used, XLA's threads too, and the
least of several rounds counts, so that the figures mean something on a machine that does other work too.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from bench_step import ROOT

from jaxtrain.cluster.stop import StopSignal
from jaxtrain.experiment import Experiment, Runtime
from jaxtrain.experiment.files import load
from jaxtrain.experiment.fit import fit
from jaxtrain.program import Program
from jaxtrain.runs.lock import Lock
from jaxtrain.runs.observers import Observers
from jaxtrain.runs.recorder import Recorder
from jaxtrain.runs.skipped import StepFaults
from jaxtrain.tasks.metrics import Metric

EXPERIMENTS = ("char_lm", "sentiment", "digits")
PERIOD = 10
"""Steps of which the metrics are fetched, logged and checked together."""


def cpu_seconds(times: int, act: Callable[[], Any]) -> float:
    """CPU seconds of a call, of so many in a row."""
    start = time.process_time()
    for _ in range(times):
        last = act()
    jax.block_until_ready(last)
    return (time.process_time() - start) / times


def stepper(program: Program) -> tuple[Callable[[], Any], Callable[[], Any], Any]:
    """Takes one more step each time it is called; the state after it; and the batch that it takes."""
    experiment = program.experiment
    state, batch = program.init(), next(program.batches(experiment.data))

    def step() -> Any:
        nonlocal state
        state, metrics = program.step(state, batch)
        return metrics

    for _ in range(3):
        step()
    return step, lambda: state, batch


def measured(experiment: Experiment, folder: Path) -> dict[str, float]:
    """CPU seconds a step, by part; "step" is the step itself."""
    program = Program(experiment)
    step, state_of, batch = stepper(program)
    whole = [cpu_seconds(3, step) for _ in range(25)]
    run = Observers(folder, experiment, 0, StopSignal())
    recorder, faults, lock, done = Recorder(folder, 64), StepFaults(folder, experiment), Lock(1.0), 0
    metrics = step()
    own = {name: metric for name, metric in metrics.items() if isinstance(metric, Metric)}
    state = state_of()
    kept = program.record(state, batch)
    sums = kept["batch"]

    def record() -> Any:
        nonlocal done
        done += 1
        recorder.stepped(run, done, {**metrics, **kept})
        return sums

    def end_period() -> Any:
        found, checksums = jax.device_get(([own] * PERIOD, [sums] * PERIOD))
        recorder.append(1, [{**each, "batch": one} for each, one in zip(found, checksums, strict=True)])
        faults.fault(1, found)
        faults.after(found)
        return sums

    def least(times: int, act: Callable[[], Any]) -> float:
        return min(cpu_seconds(times, act) for _ in range(5))

    with lock:
        lock.take(folder)
        return {
            "step": statistics.median(whole),
            "checksum of the batch, sample of the parameters": least(100, lambda: program.record(state, batch)),
            "flight recorder": least(100, record),
            "steps.bin and the checks for finite numbers": least(20, end_period) / PERIOD,
            "lock": least(1000, lambda: lock.check() or sums),
        }


def main() -> None:
    print(f"{os.cpu_count()} cores, {jax.devices()[0].platform}, jax {jax.__version__}")
    for name in sys.argv[1:] or EXPERIMENTS:
        experiment, _ = load(str(ROOT / "experiments" / f"{name}.py"))
        experiment = fit(replace(experiment, evals={}, runtime=Runtime()), None)
        with tempfile.TemporaryDirectory() as folder:
            found = measured(experiment, Path(folder))
        step = found.pop("step")
        for part, seconds in {**found, "all": sum(found.values())}.items():
            print(
                f"| {name}, {1e3 * step:.1f} ms | {part} | {1e6 * seconds:.0f} µs | {seconds / step:+.2%} |", flush=True
            )


if __name__ == "__main__":
    main()
