"""Measures how long each stage of the data pipeline and the train step take."""

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import jax

from jaxtrain.analysis.databench.report import READING, Measurement, Report, StageTime, milliseconds
from jaxtrain.analysis.databench.stopwatch import TIMES, timed_batches
from jaxtrain.base.errors import ConfigError
from jaxtrain.data.pipeline import Pipeline
from jaxtrain.data.reading import to_device
from jaxtrain.data.sources.base import HostBatch
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.program import Program
from jaxtrain.sharding.feed import local_rows, put_rows


def bench(experiment: Experiment, steps: int = 20, tune: bool = False, step_seconds: float | None = None) -> Report:
    """Measure the stages of `steps` batches of an experiment, first one stage after another and then overlapped.

    A step begins when its batch is on the device and the previous step has ended, so `wait` is the idle time of the
    device. `tune` also tries other threads, workers and prefetch. `step_seconds` replaces the step by a sleep, as if on
    an accelerator, which leaves the CPU to reading; then nothing is compiled. Raises ConfigError for fewer than 2
    steps, a negative sleep, and errors in the experiment.
    """
    if steps < 2:
        raise ConfigError(f"steps must be at least 2, to see one after another, got {steps}")
    if step_seconds is not None and step_seconds < 0:
        raise ConfigError(f"step_seconds must not be negative, got {step_seconds}")
    if step_seconds is None:
        program = Program(experiment)
        mesh, device = program.mesh, _Device(program)
        devices = f"{mesh.size} {mesh.devices.flat[0].device_kind}"
    else:
        mesh, device = experiment.layout.make_mesh(), _Sleeping(step_seconds)
        devices = f"a sleep of {milliseconds(step_seconds)}, which stands for an accelerator"
    shared = step_seconds is None and mesh.devices.flat[0].platform == "cpu"
    sharding = experiment.layout.batch_sharding(mesh, experiment.data.batch_size)
    offset = itertools.count(0, steps + 100)  # each measurement reads batches that none before it has read

    def measure(data: Pipeline, overlap: bool = True) -> Measurement:
        return _measure(data, sharding, device, steps, next(offset), overlap)

    data = experiment.data
    sequential = measure(replace(data, threads=0, workers=0, prefetch=1), overlap=False)
    overlapped = measure(data)
    tried = tuple(_trials(data, measure)) if tune else ()
    return Report(len(local_rows(sharding, data.batch_size)), devices, shared, sequential, overlapped, tried)


def _trials(data: Pipeline, measure: Callable[[Pipeline], Measurement]) -> Iterator[Measurement]:
    """Other threads, then workers, then prefetch with the fastest of these."""
    ways = [(threads, 0) for threads in (0, 1, 2, 4)] + [(1, workers) for workers in (1, 2)]
    found = [measure(replace(data, threads=t, workers=w, prefetch=max(2, t))) for t, w in ways]
    yield from found
    best = min(found, key=lambda one: one.seconds)
    for prefetch in (2 * best.prefetch, 4 * best.prefetch):
        yield measure(replace(data, threads=best.threads, workers=best.workers, prefetch=prefetch))


class _Device:
    """Runs training steps. One thread launches them, another waits until they end."""

    def __init__(self, program: Program) -> None:
        self._program, self._state = program, program.init()

    def launch(self, batch: dict[str, jax.Array]) -> Any:
        self._state, metrics = self._program.step(self._state, batch)
        return metrics

    def ended(self, launched: Any, begin: float) -> float:
        jax.block_until_ready(launched)
        return time.perf_counter()


class _Sleeping:
    """A device whose steps take a fixed time and no CPU. Like a real one, it begins the next step by itself."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def launch(self, batch: dict[str, jax.Array]) -> None:
        pass

    def ended(self, launched: None, begin: float) -> float:
        end = begin + self._seconds
        time.sleep(max(0.0, end - time.perf_counter()))
        return end


def _measure(
    data: Pipeline,
    sharding: jax.sharding.NamedSharding,
    device: _Device | _Sleeping,
    steps: int,
    start: int,
    overlap: bool,
) -> Measurement:
    rows = local_rows(sharding, data.batch_size)
    first = 2 + max(1, data.workers)  # batches before this one fill the buffers and open the files
    intervals: list[StageTime] = []
    numbers = itertools.count()

    def put(batch: HostBatch) -> dict[str, jax.Array]:
        number, times = next(numbers), batch.pop(TIMES)
        for stage, (begin, used), (end, until) in zip(READING, times[:-1], times[1:], strict=True):
            intervals.append(StageTime(stage, number, float(begin), float(end), float(until - used)))
        begin, used = time.perf_counter(), time.thread_time()
        arrays = put_rows(sharding, batch, rows, data.batch_size)
        if not overlap:
            jax.block_until_ready(arrays)
        intervals.append(StageTime("transfer", number, begin, time.perf_counter(), time.thread_time() - used))
        return arrays

    end = 0.0

    def watch(number: int, begin: float, batch: dict[str, Any], launched: Any) -> None:
        nonlocal end
        if not all(array.is_ready() for array in batch.values()):
            jax.block_until_ready(batch)
            begin = time.perf_counter()
        begin = max(begin, end)
        end = device.ended(launched, begin)
        intervals.append(StageTime("step", number, begin, end, 0.0))

    batches = to_device(timed_batches(data, rows.tolist(), start), put, depth=2 if overlap else 1)
    running: deque[Future[None]] = deque()
    with contextlib.closing(batches), ThreadPoolExecutor(1) as watcher:
        for number, batch in zip(range(first + steps), batches, strict=False):
            running.append(watcher.submit(watch, number, time.perf_counter(), batch, device.launch(batch)))
            # Overlapped, one step runs and the next is queued while this thread gets the batch after those.
            while len(running) > overlap:
                running.popleft().result()
        for last in running:
            last.result()
    kept = tuple(one for one in intervals if first <= one.batch < first + steps)
    return Measurement(data.threads, data.workers, data.prefetch, kept)
