"""Quantiles and tails of Student's t, without scipy.stats, whose import takes half a second. Not here: intervals."""

import functools
import math


@functools.lru_cache(maxsize=1024)
def t_quantile(probability: float, freedom: float) -> float:
    """The quantile of Student's t with this many degrees of freedom, by bisection of `t_tail`."""
    if probability < 0.5:
        return -t_quantile(1 - probability, freedom)
    low, high = 0.0, 1.0
    while t_tail(high, freedom) > 1 - probability:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, freedom) > 1 - probability else (low, middle)
    return (low + high) / 2


def t_tail(t: float, freedom: float) -> float:
    """The probability that Student's t is above `t`, which is at least 0."""
    x = freedom / (freedom + t * t)
    return _incomplete_beta(freedom / 2, 0.5, x) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function by its continued fraction (Abramowitz and Stegun 26.5.8)."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    numerator, denominator, value = 1.0, 1.0 / (1 - (a + b) * x / (a + 1)), 1.0 / (1 - (a + b) * x / (a + 1))
    for m in range(1, 100_000):  # it ends after about √a
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            denominator, numerator = 1 / (1 + step * denominator), 1 + step / numerator
            change = denominator * numerator
            value *= change
        if abs(change - 1) < 1e-15:
            break
    return front * value / a
