"""Numbers and durations as text."""

import math

from jaxtrain.base.text import cut, duration, number


def test_numbers_have_four_digits_and_large_ones_are_whole() -> None:
    shown = [number(value) for value in (0.412345, 12345.6, 1.5e-5, 3, 2.5e12, math.nan)]
    assert shown == ["0.4123", "12346", "1.5e-05", "3", "2.5e+12", "nan"]


def test_durations_have_their_two_largest_units() -> None:
    assert [duration(s) for s in (9, 59.7, 70, 7500, 273600)] == ["9s", "1m00s", "1m10s", "2h05m", "3d04h"]


def test_long_texts_are_cut_and_stand_on_one_line():
    assert cut("a\n  b") == "a b"
    assert cut("x" * 60) == "x" * 60
    assert cut("x" * 61) == "x" * 57 + "…"
