"""How long each stage of reading takes beside the step that it feeds."""

import contextlib
import itertools
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.text import table
from jaxtrain.data.pipeline import Pipeline, _Steps
from jaxtrain.data.reading import to_device
from jaxtrain.data.sources.base import Batch, Indexed
from jaxtrain.experiment.experiment import Experiment
from jaxtrain.program import Program
from jaxtrain.sharding.feed import local_rows, put_rows

STAGES = ("read", "decode", "transform", "batch", "transfer", "step")
"""Records as they are stored; as examples; transformed; stacked; on the devices; trained on."""


_READING = STAGES[:4]


_MARKS = "$marks"


_CORES = "but takes cores from the step, which on an accelerator it would not."


_ENOUGH = 0.01  # a share of the time that a step may wait for data


@dataclass(frozen=True)
class Span:
    """One stage of one batch: when it began and ended (seconds of one clock), and the seconds of CPU that it took."""

    stage: str
    batch: int
    begin: float
    end: float
    cpu: float


@dataclass(frozen=True)
class Chain:
    """Consecutive batches, measured from source to step, and the values that they were read with."""

    threads: int
    workers: int
    prefetch: int
    spans: tuple[Span, ...]

    @property
    def seconds(self) -> float:
        """From the end of one step to the end of the next, on average."""
        steps = self.of("step")
        return (steps[-1].end - steps[0].end) / (len(steps) - 1)

    @property
    def wait(self) -> float:
        """The share of that time in which no step runs, because its batch is not there."""
        gaps = [after.begin - before.end for before, after in itertools.pairwise(self.of("step"))]
        return statistics.mean(gaps) / self.seconds

    @property
    def flags(self) -> str:
        """What sets these values on the command line."""
        return f"--data.threads {self.threads} --data.workers {self.workers} --data.prefetch {self.prefetch}"

    def of(self, stage: str) -> list[Span]:
        """The stage's spans, in the order in which they began."""
        return sorted((span for span in self.spans if span.stage == stage), key=lambda span: span.begin)


@dataclass(frozen=True)
class Report:
    """What `bench` measured; `str()` of it says so in words."""

    rows: int
    """Of the global batch, in this process."""
    computing: str
    """What takes the steps."""
    shared: bool
    """Whether steps run on the cores that read."""
    sequential: Chain
    """One stage after another; every stage is waited for."""
    overlapped: Chain
    """With the experiment's own threads, workers and prefetch."""
    tried: tuple[Chain, ...] = ()

    def seconds(self, stage: str) -> float:
        """Median seconds a batch of a stage alone."""
        return statistics.median(span.end - span.begin for span in self.sequential.of(stage))

    @property
    def load(self) -> float:
        """Seconds a batch of all stages before the step."""
        return sum(map(self.seconds, STAGES[:-1]))

    @property
    def compute(self) -> float:
        """Seconds of a step whose batch is there."""
        return self.seconds("step")

    @property
    def best(self) -> Chain | None:
        """The fastest of those tried; of equals (to 2 %) the first, which asks for least."""
        least = min((chain.seconds for chain in self.tried), default=0)
        return next((chain for chain in self.tried if chain.seconds <= 1.02 * least), None)

    @property
    def bottleneck(self) -> str:
        """The step, where it does not wait; else the longest stage before it."""
        return "step" if self.overlapped.wait < _ENOUGH else max(STAGES[:-1], key=self.seconds)

    @property
    def advice(self) -> str:
        """Which value to change, in a sentence or two."""
        now = self.overlapped
        if self.best:
            gain = now.seconds / self.best.seconds
            found = f"Fastest of those tried ({gain:.2f} times as fast as now): {self.best.flags}"
            return found if gain > 1.05 else "Nothing that was tried is faster."
        if self.bottleneck == "step":
            slowed = self.shared and now.seconds > 1.05 * self.compute
            return "Reading keeps up" + (f", {_CORES}" if slowed else ": nothing to change.")
        if not now.threads and not now.workers:
            return "Nothing is read ahead: --data.threads 1"
        readers = min(max(1, now.threads), now.prefetch) * max(1, now.workers)
        if self.load < self.compute * readers:
            if self.shared:
                return f"Reading is quick enough, {_CORES}"
            return f"Reading is quick enough on average, but not always: --data.prefetch {2 * now.prefetch}"
        return self._quicker(self.bottleneck)

    def _quicker(self, stage: str) -> str:
        wanted, cores = min(99, int(np.ceil(1.1 * self.load / max(self.compute, 1e-9)))), os.cpu_count() or 1
        waiting = 1 - self._busy(stage)
        threads = f"--data.threads {wanted} --data.prefetch {max(wanted, self.overlapped.prefetch)}"
        many = f"{wanted} readers would keep up with the step"
        once = {
            "read": "Or keep the records nearer: InMemory(source) if they fit, else Stored(source) on a local disk.",
            "decode": "Or decode once: InMemory(source) if examples fit in memory, else Stored(source).",
            "transform": "Or do it once: transforms without chance in InMemory(Mapped(source, transforms)), or when "
            "data are built (tokens).",
            "batch": "Give examples fewer bytes, such as uint8 images that the model turns into floats.",
            "transfer": "Give batches fewer bytes: smaller dtypes, or only the fields that the task reads (Select).",
        }[stage]
        if stage in ("batch", "transfer"):
            return once
        if waiting > 0.5:  # for a disk or a network, which threads do together
            return f"It waits {waiting:.0%} of its time, which threads can do together: {threads}. {once}"
        if wanted > cores:
            return f"It computes, and {many}, but there are {cores} cores. {once}"
        return f"It computes; {many}: {threads}, or --data.workers {wanted} if it holds the GIL. {once}"

    def _busy(self, stage: str) -> float:
        spans = self.sequential.of(stage)
        return sum(span.cpu for span in spans) / max(1e-9, sum(span.end - span.begin for span in spans))

    def __str__(self) -> str:
        rows = [("stage", "ms a batch", "examples/s", "waiting")]
        for stage in STAGES:
            seconds = self.seconds(stage)
            # A stage of microseconds says little about where they went.
            waiting = f"{max(0, 1 - self._busy(stage)):.0%}" if stage in _READING and seconds > 1e-4 else ""
            rows.append((stage, f"{seconds * 1e3:.2f}", f"{self.rows / max(seconds, 1e-9):,.0f}", waiting))
        one, two = self.sequential, self.overlapped
        ways = [
            ("", "expected", "measured", "the step waits", "values"),
            (
                "one after another",
                milliseconds(self.load + self.compute),
                milliseconds(one.seconds),
                f"{one.wait:.1%}",
                "load + step",
            ),
            (
                "overlapped",
                milliseconds(max(self.load, self.compute)),
                milliseconds(two.seconds),
                f"{two.wait:.1%}",
                two.flags,
            ),
            *(("tried", "", milliseconds(chain.seconds), f"{chain.wait:.1%}", chain.flags) for chain in self.tried),
        ]
        verdict = (
            "the step"
            if self.bottleneck == "step"
            else f"{self.bottleneck} ({milliseconds(self.seconds(self.bottleneck))})"
        )
        head = f"{self.rows} rows a batch, {len(one.of('step'))} batches each way; steps: {self.computing}"
        return f"{head}\n\n{table(rows)}\n\n{table(ways)}\n\nBottleneck: {verdict}. {self.advice}"


def bench(experiment: Experiment, steps: int = 20, tune: bool = False, step_seconds: float | None = None) -> Report:
    """Measure the reading of an experiment's batches, `steps` of them, one stage after another and then overlapped.

    A step begins when its batch is on the device and the step before has ended, so that `wait` is the device's. `tune`
    also tries other threads, workers and prefetch (a worker takes 5 to 10 s to start). `step_seconds` puts a sleep in
    the step's place: it stands for an accelerator, which leaves the CPU to reading, and nothing is compiled. Raises
    ConfigError for fewer than 2 steps, a negative sleep, and whatever is wrong with the experiment.
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
    offset = itertools.count(0, steps + 100)  # each way reads batches that none before it has read

    def chain(data: Pipeline, overlap: bool = True) -> Chain:
        return _measured(data, sharding, device, steps, next(offset), overlap)

    data = experiment.data
    one = chain(replace(data, threads=0, workers=0, prefetch=1), overlap=False)
    two = chain(data)
    tried = tuple(_trials(data, chain)) if tune else ()
    return Report(len(local_rows(sharding, data.batch_size)), devices, shared, one, two, tried)


def _trials(data: Pipeline, chain: Callable[[Pipeline], Chain]) -> Iterator[Chain]:
    """Threads, then workers; then prefetch, for the fastest of these."""
    ways = [(threads, 0) for threads in (0, 1, 2, 4)] + [(1, workers) for workers in (1, 2)]
    found = [chain(replace(data, threads=t, workers=w, prefetch=max(2, t))) for t, w in ways]
    yield from found
    best = min(found, key=lambda one: one.seconds)
    for prefetch in (2 * best.prefetch, 4 * best.prefetch):
        yield chain(replace(data, threads=best.threads, workers=best.workers, prefetch=prefetch))


class _Device:
    """What does steps: begun by the thread that gets batches, and waited for by another."""

    def __init__(self, program: Program) -> None:
        self._program, self._state = program, program.init()

    def launch(self, batch: dict[str, jax.Array]) -> Any:
        self._state, metrics = self._program.step(self._state, batch)
        return metrics

    def ended(self, launched: Any, begin: float) -> float:
        jax.block_until_ready(launched)
        return time.perf_counter()


class _Sleeping:
    """A device whose steps take so many seconds and no CPU. Like a real one it begins the next with no help of ours."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def launch(self, batch: dict[str, jax.Array]) -> None:
        pass

    def ended(self, launched: None, begin: float) -> float:
        end = begin + self._seconds
        time.sleep(max(0.0, end - time.perf_counter()))
        return end


def _measured(
    data: Pipeline,
    sharding: jax.sharding.NamedSharding,
    device: _Device | _Sleeping,
    steps: int,
    start: int,
    overlap: bool,
) -> Chain:
    rows = local_rows(sharding, data.batch_size)
    first = 2 + max(1, data.workers)  # batches before this one fill the buffers and open the files
    spans: list[Span] = []
    numbers = itertools.count()

    def put(batch: Batch) -> dict[str, jax.Array]:
        number, marks = next(numbers), batch.pop(_MARKS)
        for stage, (begin, used), (end, until) in zip(_READING, marks[:-1], marks[1:], strict=True):
            spans.append(Span(stage, number, float(begin), float(end), float(until - used)))
        begin, used = time.perf_counter(), time.thread_time()
        arrays = put_rows(sharding, batch, rows, data.batch_size)
        if not overlap:
            jax.block_until_ready(arrays)
        spans.append(Span("transfer", number, begin, time.perf_counter(), time.thread_time() - used))
        return arrays

    end = 0.0

    def watch(number: int, begin: float, batch: dict[str, Any], launched: Any) -> None:
        nonlocal end
        if not all(array.is_ready() for array in batch.values()):
            jax.block_until_ready(batch)
            begin = time.perf_counter()
        begin = max(begin, end)
        end = device.ended(launched, begin)
        spans.append(Span("step", number, begin, end, 0.0))

    watched = _Watched(**vars(data)).batches(rows.tolist(), start)
    batches = to_device(watched, put, depth=2 if overlap else 1)
    running: deque[Future[None]] = deque()
    with contextlib.closing(batches), ThreadPoolExecutor(1) as watcher:
        for number, batch in zip(range(first + steps), batches, strict=False):
            running.append(watcher.submit(watch, number, time.perf_counter(), batch, device.launch(batch)))
            # Overlapped, the device does one step and has the next, while this thread gets the batch after those.
            while len(running) > overlap:
                running.popleft().result()
        for last in running:
            last.result()
    kept = tuple(span for span in spans if first <= span.batch < first + steps)
    return Chain(data.threads, data.workers, data.prefetch, kept)


class _Watched(Pipeline):
    """The same batches, each with the times of its stages in `_MARKS`."""

    def _read(self, steps: Indexed[Batch]) -> Any:
        return super()._read(_Timed(**vars(steps)))


_NOW = threading.local()


def _mark() -> None:
    _NOW.marks.append((time.perf_counter(), time.thread_time()))


class _Timed(_Steps):
    def __getitem__(self, index: int) -> Batch:
        _NOW.marks = []
        batch = super().__getitem__(index)
        _mark()
        return {**batch, _MARKS: np.array(_NOW.marks)}

    def _stage(self) -> None:
        _mark()


def milliseconds(seconds: float) -> str:
    """Seconds in three digits of milliseconds."""
    return f"{seconds * 1e3:.3g} ms"
