"""Measures and draws when a training reads and when it steps, without and with reading ahead.

Not here: the other pictures (pictures.py), and measuring a pipeline of one's own (`jaxtrain data bench`).
"""

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean

from svg import COLOURS, Drawing

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Timeline:
    """When reading and steps began and ended, in seconds from the first step's wait on."""

    reads: Mapping[int, Sequence[tuple[float, float]]]
    """Of each thread that reads, by a number from 0 on: the batches."""
    waits: Sequence[tuple[float, float]]
    steps: Sequence[tuple[float, float]]

    @property
    def step_ms(self) -> float:
        """Milliseconds of wall-clock a step."""
        return 1000 * (self.steps[-1][1] - self.waits[0][0]) / len(self.steps)

    @property
    def waiting(self) -> float:
        """The share of the time that waits for data."""
        return sum(end - start for start, end in self.waits) / (self.steps[-1][1] - self.waits[0][0])


READERS = 4
FETCH = 0.0005
"""Seconds that an image takes to fetch, as from a disk elsewhere."""


def measure_timelines(rounds: int = 4, steps: int = 40, warm: int = 6) -> tuple[Timeline, Timeline]:
    """Trains a small network on images that are slow to fetch: without and with reading ahead, in turns.

    Of each the quickest round counts, since other programs only make one slower.
    """
    import jax

    from jaxtrain import Program, load
    from jaxtrain.data import Source

    log: list[tuple[int, float, float]] = []

    @dataclass(frozen=True)
    class Far(Source):
        source: Source

        def __len__(self) -> int:
            return len(self.source)

        def __getitem__(self, index: int) -> dict:
            start = time.perf_counter()
            time.sleep(FETCH)
            example = self.source[index]
            log.append((threading.get_ident(), start, time.perf_counter()))
            return example

        def identity(self) -> str:
            return self.source.identity()

    experiment, _ = load(str(ROOT / "experiments" / "digits.py"))
    pipeline = replace(experiment.data, source=Far(experiment.data.source), transforms=())
    program = Program(replace(experiment, data=pipeline, evals={}))
    state = program.init()
    found: dict[int, list[Timeline]] = {0: [], READERS: []}
    for threads in [*found] * rounds:
        log.clear()
        batches = program.batches(replace(pipeline, threads=threads))
        waits, done = [], []
        for number in range(warm + steps):
            start = time.perf_counter()
            batch = next(batches)
            ready = time.perf_counter()
            state, metrics = program.step(state, batch)
            jax.block_until_ready((state, metrics))
            if number >= warm:
                waits.append((start, ready))
                done.append((ready, time.perf_counter()))
        batches.close()
        found[threads].append(timeline_of(log, waits, done, pipeline.batch_size))
    quickest = [min(each, key=lambda timeline: timeline.step_ms) for each in found.values()]
    return quickest[0], quickest[1]


def timeline_of(
    log: Sequence[tuple[int, float, float]],
    waits: Sequence[tuple[float, float]],
    steps: Sequence[tuple[float, float]],
    rows: int,
) -> Timeline:
    """From when each example was read (thread, start, end), `rows` of a thread in a row being a batch."""
    origin, end = waits[0][0], steps[-1][1]
    reads: dict[int, list[tuple[float, float]]] = {}
    for thread in sorted({thread for thread, *_ in log}):
        own = [(start, stop) for each, start, stop in log if each == thread]
        whole = [(own[at][0], own[min(at + rows, len(own)) - 1][1]) for at in range(0, len(own), rows)]
        if shown := [(start - origin, stop - origin) for start, stop in whole if stop >= origin and start <= end]:
            reads[len(reads)] = shown
    return Timeline(reads, *([(start - origin, stop - origin) for start, stop in each] for each in (waits, steps)))


def draw_timeline(without: Timeline, ahead: Timeline, note: str) -> str:
    """Reading and steps on one axis of time, first read when needed and then read ahead."""
    shown, left = min(6 * without.step_ms, *(1000 * each.steps[-1][1] for each in (without, ahead))), 130
    scale = 800 / shown
    rows = [1 + len(each.reads) for each in (without, ahead)]
    drawing = Drawing(
        960,
        150 + 34 * sum(rows) + 60,
        "The timeline of training steps, without and with reading ahead",
        f"Without reading ahead a step takes {without.step_ms:.1f} ms and {without.waiting:.0%} of the time waits for "
        f"data; with it {ahead.step_ms:.1f} ms and {ahead.waiting:.0%}. {note}",
    )
    y = 24.0
    for title, each in (("read when needed: threads=0", without), ("read ahead: threads=4", ahead)):
        drawing.text(20, y, title, size=15, bold=True, anchor="start")
        numbers = f"{each.step_ms:.1f} ms a step, of which {each.waiting:.0%} waits for data"
        drawing.text(940, y, numbers, size=14, bold=True, anchor="end")
        y += 14
        for number, batches in each.reads.items():
            label = "reading" if len(each.reads) == 1 else f"reader {number + 1}"
            drawing.text(left - 10, y + 18, label, size=13, anchor="end")
            drawing.spans(left, y, scale, shown, batches, COLOURS[1], "#c3cbd4")
            y += 34
        drawing.text(left - 10, y + 18, "step", size=13, anchor="end")
        drawing.spans(left, y, scale, shown, each.steps, COLOURS[2], "#c3cbd4")
        y += 34 + 34
    y -= 24
    tick = max(each for each in (5, 10, 20, 50, 100, 200, 500, 1000) if each <= max(5.0, shown / 5))
    for number in range(int(shown // tick) + 1):
        x = left + scale * tick * number
        drawing.line(x, y, x, y + 6)
        drawing.text(x, y + 22, f"{tick * number} ms", size=12)
    drawing.text(20, y + 50, note, size=12.5, anchor="start")
    drawing.height = y + 64
    return drawing.svg()


def note_of(ahead: Timeline) -> str:
    """Where and how it was measured."""
    alone = 1000 * fmean(end - start for start, end in ahead.steps)
    return (
        f"Measured on {os.cpu_count()} CPU cores on {datetime.now(UTC):%d %B %Y}, the quickest of 4 rounds: digits.py, "
        f"64 rows; an image takes {1000 * FETCH} ms to fetch, a step {alone:.0f} ms."
    )
