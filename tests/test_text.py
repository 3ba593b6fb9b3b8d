"""Numbers and durations as text."""

import math

from jaxtrain.base.text import duration, number


def test_numbers_have_four_digits_and_large_ones_are_whole() -> None:
    shown = [number(value) for value in (0.412345, 12345.6, 1.5e-5, 3, 2.5e12, math.nan)]
    assert shown == ["0.4123", "12346", "1.5e-05", "3", "2.5e+12", "nan"]


def test_durations_have_their_two_largest_units() -> None:
    assert [duration(s) for s in (9, 59.7, 70, 7500, 273600)] == ["9s", "1m00s", "1m10s", "2h05m", "3d04h"]
