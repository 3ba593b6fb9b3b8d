import re
import sys
import threading
import time
from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest
import tiny

from jaxtrain.analysis.databench import advise, draw, measure, stopwatch
from jaxtrain.analysis.databench.advise import advice
from jaxtrain.analysis.databench.draw import timeline
from jaxtrain.analysis.databench.measure import bench
from jaxtrain.analysis.databench.report import STAGES, Measurement, Report, StageTime
from jaxtrain.analysis.databench.stopwatch import TIMES, timed_batches
from jaxtrain.base.errors import ConfigError
from jaxtrain.data import BatchTransform, Pipeline, Shift, Source, Transform


@dataclass(frozen=True)
class Images(Source):
    """Small images, each of which takes some seconds to read."""

    seconds: float = 0.0
    fail_at: int = -1

    def __len__(self):
        return 50

    def __getitem__(self, index):
        time.sleep(self.seconds)
        if index == self.fail_at:
            raise LookupError(f"image {index} is broken")
        return {"image": np.full((4, 4, 1), index, np.float32)}

    def identity(self):
        return f"images:{self.seconds}"


SLOW = replace(tiny.main(), data=Pipeline(Images(0.002), batch_size=4, threads=1))


def measured(threads=1, workers=0, prefetch=2, wait=0.0, batches=3, **milliseconds):
    """Batches whose stages follow one another and take so many ms; `wait` ms lie between steps."""
    intervals, now = [], 0.0
    for batch in range(batches):
        for stage in STAGES:
            end = now + milliseconds.get(stage, 0.0) / 1e3
            intervals.append(StageTime(stage, batch, now, end, cpu=end - now))
            now = end
        now += wait / 1e3
    return Measurement(threads, workers, prefetch, tuple(intervals))


def report(overlapped, shared=False, tried=(), idle=(), **milliseconds):
    """A report of made-up numbers; `idle` stages wait instead of computing."""
    one = measured(**milliseconds)
    one = replace(one, intervals=tuple(replace(s, cpu=0.0) if s.stage in idle else s for s in one.intervals))
    return Report(8, "of chalk", shared, one, overlapped, tuple(tried))


@dataclass(frozen=True)
class Reversed(BatchTransform):
    """Images of other rows, and another random number in each batch."""

    def __call__(self, batch, rng):
        return {**batch, "image": batch["image"][::-1] + rng.random()}


@pytest.mark.parametrize("changes", [(), (Reversed(),)])
def test_timing_changes_no_batch(changes):
    pipeline = Pipeline(Images(), (Shift(1),), batch_size=7, seed=5, batch_transforms=changes)
    timed = timed_batches(pipeline, [5, 1], start=9)
    plain = pipeline.batches([5, 1], start=9)
    for _ in range(12):
        batch, expected = next(timed), next(plain)
        assert batch.keys() - expected.keys() == {TIMES}
        for name in expected:
            np.testing.assert_array_equal(batch[name], expected[name])
    timed.close()
    plain.close()


class Seconds:
    """A clock that moves only when a test moves it; a thread uses CPU for half of the time."""

    now = 0.0

    def perf_counter(self):
        return self.now

    def thread_time(self):
        return self.now / 2


CLOCK = Seconds()


@dataclass(frozen=True)
class Slow(Source):
    """Fetching a batch takes 1 s, decoding a row 10 s."""

    def __len__(self):
        return 50

    def __getitem__(self, index):
        return self.decode(self.fetch([index])[0])

    def fetch(self, indices):
        CLOCK.now += 1
        return list(indices)

    def decode(self, stored):
        CLOCK.now += 10
        return {"x": np.int32(stored)}

    def identity(self):
        return "slow"


@dataclass(frozen=True)
class Slower(Transform):
    """Takes 100 s a row."""

    def __call__(self, example, rng):
        CLOCK.now += 100
        return example


@dataclass(frozen=True)
class Slowest(BatchTransform):
    """Takes 1000 s a batch."""

    def __call__(self, batch, rng):
        CLOCK.now += 1000
        return batch


@pytest.mark.parametrize(
    ("transforms", "changes", "seconds"),
    [
        ((), (), [1, 30, 0, 0]),
        ((Slower(),), (), [1, 30, 300, 0]),
        ((Slower(), Slower()), (Slowest(),), [1, 30, 600, 1000]),
    ],
)
def test_each_second_is_counted_in_the_stage_that_takes_it(monkeypatch, transforms, changes, seconds):
    monkeypatch.setattr(stopwatch, "time", CLOCK)
    pipeline = Pipeline(Slow(), transforms, batch_size=3, threads=0, batch_transforms=changes)
    batches = timed_batches(pipeline)
    for _ in range(2):
        times = next(batches)[TIMES]
        assert np.diff(times[:, 0]).tolist() == seconds
        assert np.diff(times[:, 1]).tolist() == [second / 2 for second in seconds]
    batches.close()


@pytest.mark.slow
def test_every_stage_of_every_batch_is_measured_and_one_follows_the_other():
    found = bench(replace(tiny.data(), data=replace(tiny.data().data, threads=2)), steps=3)
    assert (found.rows, found.device, found.shared) == (16, f"8 {jax.devices()[0].device_kind}", True)
    for one in (found.sequential, found.overlapped):
        assert [len(one.of(stage)) for stage in STAGES] == [3] * len(STAGES)
        for batch in {span.batch for span in one.intervals}:
            spans = [span for stage in STAGES for span in one.of(stage) if span.batch == batch]
            times = [time for span in spans for time in (span.begin, span.end)]
            assert times == sorted(times)
    assert all(stage in str(found) for stage in STAGES)


def test_one_after_another_takes_the_sum_and_overlapped_the_larger():
    found = bench(SLOW, steps=8, step_seconds=0.02)
    assert found.seconds("read") >= 4 * 0.002
    assert found.sequential.seconds >= 0.028
    assert found.sequential.wait > 0.2
    assert round(found.compute, 6) >= 0.02  # a difference of two readings of the clock
    assert found.overlapped.seconds < 0.9 * found.sequential.seconds
    assert not found.shared
    assert "a sleep of 20 ms, which stands for an accelerator" in str(found)


def test_a_device_whose_batches_are_there_does_not_wait_for_the_host():
    found = bench(replace(SLOW, data=Pipeline(Images(), batch_size=4, threads=1)), steps=6, step_seconds=0.05)
    steps = found.overlapped.of("step")
    np.testing.assert_allclose([span.end - span.begin for span in steps], 0.05)
    assert found.overlapped.wait == pytest.approx(0, abs=1e-6)
    assert "nothing to change" in advice(found)


def test_a_bench_leaves_no_thread_and_says_what_the_source_says():
    before = threading.active_count()
    bench(SLOW, steps=2, step_seconds=0.0)
    broken = replace(SLOW, data=Pipeline(Images(fail_at=3), batch_size=4, threads=2))
    with pytest.raises(LookupError, match="image 3 is broken"):
        bench(broken, steps=30, step_seconds=0.0)
    until = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_too_few_steps_and_a_negative_sleep_are_refused():
    with pytest.raises(ConfigError, match="steps must be at least 2"):
        bench(SLOW, steps=1)
    with pytest.raises(ConfigError, match="must not be negative"):
        bench(SLOW, step_seconds=-1.0)


def test_a_measurement_counts_seconds_from_step_to_step_and_the_gaps_between():
    one = measured(read=3, step=6, wait=1)
    assert one.seconds == pytest.approx(0.010)
    assert one.wait == pytest.approx(0.4)


def test_stages_are_medians_and_the_load_is_all_but_the_step():
    found = report(measured(step=5), read=4, decode=1, transform=2, batch=0.5, transfer=0.25, step=9)
    odd = StageTime("read", 99, 0.0, 60.0, 0.0)
    found = replace(found, sequential=replace(found.sequential, intervals=(*found.sequential.intervals, odd)))
    assert found.load == pytest.approx(7.75e-3)
    assert found.compute == pytest.approx(9e-3)


WAITING = measured(read=5, step=5)


@pytest.mark.parametrize(
    ("found", "stage", "words"),
    [
        (report(measured(step=9), read=8, step=9), "step", "nothing to change"),
        (report(measured(step=9), shared=True, read=2, step=5), "step", "takes cores from the step"),
        (report(replace(WAITING, threads=0), read=8, step=9), "read", "--data.threads 1"),
        (report(WAITING, read=8, step=9), "read", "--data.prefetch 4"),
        (report(replace(WAITING, threads=2, prefetch=1), read=15, step=9), "read", "2 readers"),
        (report(replace(WAITING, threads=2), read=15, step=9), "read", "--data.prefetch 4"),
        (report(WAITING, shared=True, read=8, step=9), "read", "takes cores from the step"),
        (
            report(WAITING, idle=["read"], read=20, step=10),
            "read",
            r"waits 100%.*--data.threads 3 --data.prefetch 3\. .*Stored",
        ),
        (
            report(WAITING, decode=15, step=10),
            "decode",
            r"--data.threads 2 --data.prefetch 2, or --data.workers 2.*InMemory\(source\)",
        ),
        (report(WAITING, transform=15, step=10), "transform", r"--data.workers 2.*Mapped"),
        (report(WAITING, transform=900, step=10), "transform", r"99 readers .* but there are 2 cores"),
        (report(WAITING, batch=20, step=10), "batch", "fewer bytes"),
        (report(WAITING, transfer=20, step=10), "transfer", "smaller dtypes"),
    ],
)
def test_the_bottleneck_is_named_with_the_value_to_change(monkeypatch, found, stage, words):
    monkeypatch.setattr(advise.os, "cpu_count", lambda: 2)
    assert found.bottleneck == stage
    assert re.search(words, advice(found))
    assert f"Bottleneck: {stage if stage != 'step' else 'the step'}" in str(found)


def test_of_equally_fast_values_the_first_is_best():
    tried = [measured(threads=t, step=ms) for t, ms in ((0, 20), (1, 10.1), (2, 10), (4, 10.05))]
    found = report(measured(step=20), tried=tried, read=10, step=10)
    assert found.best == tried[1]
    assert "1.98 times as fast as now): --data.threads 1 --data.workers 0 --data.prefetch 2" in advice(found)
    assert report(measured(step=20), read=10, step=10).best is None
    assert advice(report(measured(step=10.1), tried=tried, read=10, step=10)) == "Nothing that was tried is faster."


def test_tuning_tries_threads_then_workers_then_prefetch_of_the_fastest(monkeypatch):
    starts = []

    def pretend(data, sharding, device, steps, start, overlap):
        starts.append(start)
        return measured(data.threads, data.workers, data.prefetch, step=10 if data.workers == 2 else 20)

    monkeypatch.setattr(measure, "_measure", pretend)
    found = bench(SLOW, steps=5, tune=True, step_seconds=0.01)
    values = [(one.threads, one.workers, one.prefetch) for one in found.tried]
    assert values == [(0, 0, 2), (1, 0, 2), (2, 0, 2), (4, 0, 4), (1, 1, 2), (1, 2, 2), (1, 2, 4), (1, 2, 8)]
    assert found.best == found.tried[5]
    assert np.diff(starts).min() > 5, "a way would read what another has read"


@pytest.mark.slow
def test_spans_come_back_from_worker_processes():
    found = bench(replace(SLOW, data=replace(SLOW.data, workers=2)), steps=4, step_seconds=0.01)
    read, steps = found.overlapped.of("read"), found.overlapped.of("step")
    assert len(read) == len(steps) == 4
    assert all(-60 < a.begin - b.begin < 0 for a, b in zip(read, steps, strict=True))


def test_a_timeline_is_a_picture_of_two_panels(tmp_path):
    from PIL import Image

    found = report(measured(step=9), read=8, transform=1, step=9)
    timeline(found, tmp_path / "a.png", batches=2)
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] == 1800
    step = np.array([int(draw._BARS["step"][1][i : i + 2], 16) for i in (1, 3, 5)])
    rows = np.flatnonzero((pixels == step).all(-1).sum(-1) > 400)
    assert len(np.flatnonzero(np.diff(rows) > 20)) == 1, "steps are drawn in each of two panels"


def test_a_timeline_without_matplotlib_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"jaxtrain\[datasets\]"):
        timeline(report(measured(step=9), read=8, step=9), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_bars_in_one_lane_do_not_cover_one_another():
    assert draw._lanes([(0, 3), (1, 2), (2, 5), (3, 4), (3, 4), (5, 6)]) == [0, 1, 1, 0, 2, 0]
