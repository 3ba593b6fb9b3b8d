"""The results of a benchmark of the data pipeline. Not here: measuring, and advice."""

import itertools
import statistics
from dataclasses import dataclass

from jaxtrain.base.text import table

READING = ("read", "decode", "transform", "batch")
"""Stages on the host: records are read, decoded to examples, transformed, and stacked to a batch."""

STAGES = (*READING, "transfer", "step")
"""All stages: after those on the host, the batch is copied to the devices and trained on."""

ENOUGH = 0.01
"""The fraction of the time that steps may wait for data before reading counts as the bottleneck."""


@dataclass(frozen=True)
class StageTime:
    """One stage of one batch: begin and end in seconds, and the CPU seconds that its thread used."""

    stage: str
    batch: int
    begin: float
    end: float
    cpu: float


@dataclass(frozen=True)
class Measurement:
    """The stages of consecutive batches, and the settings of the pipeline that read them."""

    threads: int
    workers: int
    prefetch: int
    intervals: tuple[StageTime, ...]

    @property
    def seconds(self) -> float:
        """Mean time from the end of one step to the end of the next."""
        steps = self.of("step")
        return (steps[-1].end - steps[0].end) / (len(steps) - 1)

    @property
    def wait(self) -> float:
        """The fraction of that time in which no step runs, since its batch is not on the device yet."""
        gaps = [after.begin - before.end for before, after in itertools.pairwise(self.of("step"))]
        return statistics.mean(gaps) / self.seconds

    @property
    def flags(self) -> str:
        """The command-line flags for these settings."""
        return f"--data.threads {self.threads} --data.workers {self.workers} --data.prefetch {self.prefetch}"

    def of(self, stage: str) -> list[StageTime]:
        """The intervals of a stage, sorted by their beginning."""
        return sorted((one for one in self.intervals if one.stage == stage), key=lambda one: one.begin)


@dataclass(frozen=True)
class Report:
    """The result of `bench`. `str(report)` is two tables and the bottleneck."""

    rows: int
    """Rows of the global batch that this process reads."""
    device: str
    """A description of the devices that run the steps."""
    shared: bool
    """Whether steps run on the CPU cores that also read."""
    sequential: Measurement
    """One stage after another, without overlap."""
    overlapped: Measurement
    """With the experiment's own threads, workers and prefetch."""
    tried: tuple[Measurement, ...] = ()

    def seconds(self, stage: str) -> float:
        """Median seconds of a stage for one batch, from the sequential measurement."""
        return statistics.median(one.end - one.begin for one in self.sequential.of(stage))

    def waiting(self, stage: str) -> float:
        """The fraction of a stage's time in which its thread uses no CPU."""
        intervals = self.sequential.of(stage)
        used, passed = sum(one.cpu for one in intervals), sum(one.end - one.begin for one in intervals)
        return max(0.0, 1 - used / max(1e-9, passed))

    @property
    def load(self) -> float:
        """Seconds of all stages before the step for one batch."""
        return sum(map(self.seconds, STAGES[:-1]))

    @property
    def compute(self) -> float:
        """Seconds of a step whose batch is on the device."""
        return self.seconds("step")

    @property
    def best(self) -> Measurement | None:
        """The fastest of those tried; of equally fast ones (within 2 %) the first, which has the fewest readers."""
        least = min((one.seconds for one in self.tried), default=0)
        return next((one for one in self.tried if one.seconds <= 1.02 * least), None)

    @property
    def bottleneck(self) -> str:
        """The step if it does not wait, else the longest stage before it."""
        return "step" if self.overlapped.wait < ENOUGH else max(STAGES[:-1], key=self.seconds)

    def __str__(self) -> str:
        stages = [("stage", "ms a batch", "examples/s", "waiting")]
        for stage in STAGES:
            seconds = self.seconds(stage)
            # For a stage of microseconds the clocks are too coarse to tell waiting from computing.
            waiting = f"{self.waiting(stage):.0%}" if stage in READING and seconds > 1e-4 else ""
            stages.append((stage, f"{seconds * 1e3:.2f}", f"{self.rows / max(seconds, 1e-9):,.0f}", waiting))
        one, two = self.sequential, self.overlapped
        ways = [
            ("", "expected", "measured", "the step waits", "values"),
            _way("one after another", one, milliseconds(self.load + self.compute), "load + step"),
            _way("overlapped", two, milliseconds(max(self.load, self.compute)), two.flags),
            *(_way("tried", one, "", one.flags) for one in self.tried),
        ]
        head = f"{self.rows} rows a batch, {len(one.of('step'))} batches each way; steps: {self.device}"
        found = self.bottleneck
        verdict = "the step" if found == "step" else f"{found} ({milliseconds(self.seconds(found))})"
        return f"{head}\n\n{table(stages)}\n\n{table(ways)}\n\nBottleneck: {verdict}."


def _way(name: str, one: Measurement, expected: str, values: str) -> tuple[str, ...]:
    return name, expected, milliseconds(one.seconds), f"{one.wait:.1%}", values


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds with three digits."""
    return f"{seconds * 1e3:.3g} ms"
