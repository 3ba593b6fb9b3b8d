"""The time account of a run equals a count by hand, and sums to the wall-clock time."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timed
from launch import environment

from jaxtrain.reports.time_account import AGAIN, DOWN, START, STEPS, UNKNOWN, account_of, time_account


def event(kind: str, at: float, step: int, **fields: Any) -> dict[str, Any]:
    """An event `at` seconds after midnight."""
    clock = f"{int(at // 3600):02}:{int(at // 60 % 60):02}:{at % 60:06.3f}"
    return {"time": f"2026-01-01T{clock}+00:00", "kind": kind, "step": step, **fields}


def spent(**seconds: float) -> dict[str, Any]:
    return {"seconds_by_phase": seconds}


def line(at: int, **seconds: float) -> dict[str, Any]:
    return {"step": at, "split": "train", **{f"seconds_{phase}": x for phase, x in seconds.items()}}


def test_a_run_without_kills_has_no_time_but_that_of_its_clock():
    events = [
        event("begun", 110, 0, startup=6.0, **spent(compile=4)),
        event("ended", 150, 10, **spent(compile=10, data=2, step=20, eval=8, save=3, other=1)),
    ]
    found = account_of(events, [], {})
    assert found.total == 50  # from 100, at which the process started
    assert (found.seconds[STEPS], found.seconds[START], found.seconds["compiling"]) == (20, 6, 10)
    assert (found.seconds[AGAIN], found.seconds[DOWN], found.seconds[UNKNOWN]) == (0, 0, 0)
    assert found.goodput == 20 / 50
    assert "goodput 40.0%" in found.text


def test_steps_after_the_last_checkpoint_of_a_killed_session_are_not_goodput():
    events = [
        event("begun", 10, 0, startup=5.0, **spent(compile=5)),
        event("saving", 40, 20, **spent(compile=10, step=20)),
        # killed at about 60, when it had trained 30 steps in 32 seconds by its last line
        event(
            "begun",
            110,
            20,
            startup=5.0,
            before={"step": 30, "seconds": {"compile": 10, "step": 32}, "alive": "2026-01-01T00:00:58+00:00"},
            **spent(compile=5),
        ),
        event("ended", 150, 40, **spent(compile=10, step=28, save=7)),
    ]
    found = account_of(events, [], {})
    assert found.total == 150  # from 0 to 150
    assert found.seconds[STEPS] == 20 + 28
    assert found.seconds[AGAIN] == 32 - 20
    assert found.seconds[START] == 10
    assert found.seconds[DOWN] == 100 - 58  # from the last sign of life to the next process
    assert found.seconds[UNKNOWN] == pytest.approx(58 - 5 - 42)
    assert sum(found.seconds.values()) == pytest.approx(found.total)
    assert [each.kept for each in found.sessions] == [20, 40]
    assert not found.sessions[0].ended


def test_a_session_that_went_back_further_than_the_one_before_it_began_takes_its_steps_too():
    events = [
        event("begun", 0, 0, **spent()),
        event("saving", 10, 10, **spent(step=10)),
        event("saving", 20, 20, **spent(step=20)),
        event("ended", 20, 20, **spent(step=20)),
        event("begun", 20, 20, **spent()),
        event("ended", 30, 30, **spent(step=10)),
        event("begun", 30, 10, **spent()),  # the checkpoints of 20 and 30 were damaged
        event("ended", 60, 40, **spent(step=30)),
    ]
    found = account_of(events, [], {})
    assert (found.seconds[STEPS], found.seconds[AGAIN]) == (10 + 30, 10 + 10)
    assert found.goodput == 40 / 60


def test_a_session_that_was_killed_before_its_first_line_does_not_get_the_line_of_the_one_before():
    left = {"step": 20, "seconds": {"step": 20}, "alive": "2026-01-01T00:00:20+00:00"}
    events = [
        event("begun", 0, 0, **spent()),
        event("saving", 20, 20, **spent(step=20)),
        event("begun", 30, 20, before=left, **spent(compile=5)),
        event("begun", 50, 20, before=left, **spent()),
        event("ended", 60, 30, **spent(step=10)),
    ]
    found = account_of(events, [line(20, step=20)], {})
    assert (found.seconds[STEPS], found.seconds[AGAIN], found.seconds["compiling"]) == (30, 0, 5)


def test_a_checkpoint_whose_time_is_not_known_is_placed_between_the_lines_around_it():
    events = [
        event("begun", 0, 0, **spent()),
        event("begun", 100, 15, before={"step": 20, "seconds": {"step": 40}, "alive": "2026-01-01T00:01:00+00:00"}),
        event("ended", 100, 15, **spent()),
    ]
    found = account_of(events, [line(10, step=20)], {})
    assert found.seconds[STEPS] == pytest.approx(30)
    assert found.seconds[AGAIN] == pytest.approx(10)


def test_damaged_foreign_and_old_events_are_accounted_for_as_far_as_they_go():
    old = [event("begun", 5, 0), event("ended", 15, 10)]
    found = account_of([{}, {"kind": "begun", "time": "noon"}, *old, {"kind": 3, "time": None}], [], {})
    assert (found.total, found.seconds[UNKNOWN], found.complete) == (10, 10, False)
    odd = event("begun", 0, 0, startup="long", seconds_by_phase={"step": float("nan"), "x": 1}, before=[1])
    assert account_of([odd], [{"split": "train", "step": "x"}], {"alive": 3}).total == 0
    assert account_of([], [], {}).total == 0


def counted_by_hand(steps: list[tuple[float, ...]]) -> float:
    """Seconds of the steps that no later process trained again: each until the next one begins, or until its own end
    where something else follows.
    """
    last = {int(step): number for number, (step, *_) in enumerate(steps)}
    total = 0.0
    for step, number in last.items():
        until = steps[number + 1][1] if (step + 1) % 8 else steps[number][2]
        total += until - steps[number][1]
    return total


@pytest.mark.slow
def test_the_account_of_a_run_with_two_kills_equals_a_count_by_hand(tmp_path: Path):
    run, log = tmp_path / "run", tmp_path / "steps"
    command = [sys.executable, "-m", "jaxtrain", "train", timed.__file__, "--run", str(run)]
    began, codes = time.time(), []
    while not codes or codes[-1] == -9:
        with (tmp_path / "steps.sessions").open("a") as file:
            file.write("begun\n")
        codes.append(subprocess.run(command, env={**environment(), "STEPS": str(log)}, check=False).returncode)
    wall = time.time() - began
    assert codes == [-9, -9, 0]
    steps = [tuple(map(float, text.split())) for text in log.read_text().splitlines()]
    assert [int(step) for step, *_ in steps] == [*range(13), *range(8, 21), *range(16, 24)]
    counted = counted_by_hand(steps)
    found = time_account(run)
    assert found.seconds[STEPS] == pytest.approx(counted, rel=0.1)
    assert found.goodput == pytest.approx(counted / wall, rel=0.1)
    ended = (run / "events.jsonl").stat().st_mtime  # after that the process only ends
    assert found.total == pytest.approx(ended - began, rel=0.01)
    assert sum(found.seconds.values()) == pytest.approx(found.total)
    # Two clocks, whose readings are rounded to a millisecond, make it less than 0 by a little.
    assert -0.1 < found.seconds[UNKNOWN] < 0.01 * found.total + 4 * timed.PAUSE  # two steps after the last line, twice
    assert found.seconds[AGAIN] > 2 * 4 * timed.PAUSE
    assert [(each.first, each.kept, each.ended) for each in found.sessions] == [
        (0, 8, False),
        (8, 16, False),
        (16, 24, True),
    ]
