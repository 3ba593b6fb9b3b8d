"""Logged learning rates, of runs of any length."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from jaxtrain.cluster.stop import StopSignal
from jaxtrain.optimizers import WSD, AdamW, ConstantRate, CosineDecay, LinearDecay, Schedule
from jaxtrain.runs.clock import Clock
from jaxtrain.runs.journal import RATES_AT_ONCE, Journal
from jaxtrain.runs.observers import Observers


def journal(folder: Path, schedule: Schedule, steps: int) -> Journal:
    """The account of a run that was begun with this schedule."""
    experiment = replace(tiny.main(), optimizer=AdamW(schedule=schedule), steps=steps)
    return Journal(Observers(folder, experiment, 0, StopSignal()), Clock())


def test_a_run_of_a_thousand_million_steps_needs_no_memory_for_its_rates(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        rate = journal(tmp_path, LinearDecay(peak=1.0), 10**9)._rates["learning_rate"]
        assert [rate(step) for step in (0, 250_000_000, 999_999_999)] == pytest.approx([1.0, 0.75, 0.0], abs=1e-6)
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()


def test_the_rates_of_the_longest_run_are_there_to_its_end(tmp_path: Path) -> None:
    rate = journal(tmp_path, LinearDecay(peak=1.0), 2**31 - 1)._rates["learning_rate"]
    assert [rate(step) for step in (2**30, 2**31 - 2)] == pytest.approx([0.5, 0.0], abs=1e-6)


def test_logged_rates_are_those_of_a_table_of_all_steps_to_the_last_bit(tmp_path: Path) -> None:
    steps = 2 * RATES_AT_ONCE + 100
    for schedule in (CosineDecay(peak=3e-4, warmup=100), WSD(peak=0.37, warmup=13, floor=0.05)):
        table = np.asarray(jax.vmap(schedule.build(steps))(np.arange(steps)))
        rate = journal(tmp_path, schedule, steps)._rates["learning_rate"]
        assert [rate(step) for step in range(0, steps, 7)] == [float(each) for each in table[::7]]


def test_a_warm_up_is_logged_step_by_step_over_blocks_and_back(tmp_path: Path) -> None:
    rate = journal(tmp_path, ConstantRate(peak=4096.0, warmup=4096), 5000)._rates["learning_rate"]
    seen = [0, 1, 1023, 1024, 3000, 4096, 4999, 2]
    assert [rate(step) for step in seen] == [0, 1, 1023, 1024, 3000, 4096, 4096, 2]
