"""The account of wall-clock time, by a clock that only the test moves."""

import contextlib

import pytest

from jaxtrain.runs.clock import Clock


class Time:
    """A time in seconds that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


def test_only_the_innermost_phase_is_charged_and_all_sum_to_the_total() -> None:
    time = Time()
    clock = Clock(time)
    time.passes(1)
    with clock("step"):
        time.passes(2)
        with clock("data"):
            time.passes(4)
        time.passes(8)
        inside = clock.account()
        with contextlib.suppress(ValueError), clock("eval"):
            time.passes(16)
            raise ValueError
    time.passes(32)
    assert inside == dict(compile=0, data=4, step=10, restore=0, eval=0, save=0, other=1, total=15)
    assert clock.account() == dict(compile=0, data=4, step=10, restore=0, eval=16, save=0, other=33, total=63)


def test_the_phase_is_the_innermost_one_and_other_outside_of_any() -> None:
    clock = Clock(Time())
    phases = [clock.phase]
    with clock("step"):
        phases.append(clock.phase)
        with clock("data"):
            phases.append(clock.phase)
        phases.append(clock.phase)
    phases.append(clock.phase)
    assert phases == ["other", "step", "data", "step", "other"]


def test_an_unknown_phase_is_an_error_of_the_program_not_of_the_user() -> None:
    with pytest.raises(ValueError, match="no phase 'compiling', only compile, restore, data, ") as error:
        Clock()("compiling")
    assert type(error.value) is ValueError
