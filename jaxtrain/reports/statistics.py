"""Intervals and corrections: of paired differences by the bootstrap, of means over seeds, at every moment of a stream.

Numpy alone. How each was chosen, and what it covers in simulations, is in docs/compare.md. Not here: where the numbers
come from, and the words in which a result is said.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.reports.student import t_quantile, t_tail

RESAMPLES = 4000
"""How often rows are drawn, and how often pairs are swapped, for one paired difference."""

FEWEST = 6
"""The two have to differ on so many examples for an interval: of 5 coins, all fall alike with probability 1/16, so that
no test at 5 % tells them apart.
"""

ValueOfSums = Callable[[np.ndarray], np.ndarray]
"""From sums f64[R, K] of R samples to the values [R, V] that follow from each row of sums."""

_BLOCK = 4_000_000  # counts that are in memory at once


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval that covers the true value with probability `level`; infinite where nothing bounds
    it, never NaN.
    """

    value: float
    low: float
    high: float
    level: float

    @property
    def margin(self) -> float:
        """Half of the width."""
        return (self.high - self.low) / 2

    def excludes(self, number: float) -> bool:
        """Whether a number is outside."""
        return not self.low <= number <= self.high


@dataclass(frozen=True)
class PairedDifference:
    """How much larger a value is for the second of two systems on the same examples."""

    interval: Interval
    p: float
    """The probability of a difference as large if the two were alike: the larger one of a t-test with the bootstrap's
    standard error and of a test that swaps the two at random in each example.
    """
    differ: int
    """On how many examples the two differ at all."""
    of: int
    """The number of examples."""


def paired_difference(
    one: np.ndarray, two: np.ndarray, value: ValueOfSums | None = None, level: float = 0.95, comparisons: int = 1
) -> list[PairedDifference]:
    """How much larger each value of `two` is than that of `one`, from the same N examples in the same order.

    one, two: f64[N, K], the sums that each example adds; [N] for a plain mean.
    value: from summed rows to values, such as a ratio; default: the mean of each column.
    comparisons: the intervals of so many comparisons all cover with probability `level` (Bonferroni).

    An interval is the estimate ± a quantile of Student's t times the standard error of a paired bootstrap of the
    examples. The error counts one example more than was seen on which the two differ: where these are few, they alone
    say too little about its size. It is unbounded where they are fewer than `FEWEST`, and where a resample has no
    finite value. Of systems that are equal on all examples p is 1.

    Raises ConfigError for other shapes, sums that are not finite, and a level outside of 0 to 1.
    """
    a, b = (np.asarray(each, np.float64) for each in (one, two))
    a, b = (each[:, None] if each.ndim == 1 else each for each in (a, b))
    if a.shape != b.shape or a.ndim != 2 or not len(a):
        raise ConfigError(f"paired sums have the shapes {list(a.shape)} and {list(b.shape)}, not one [N, K], N above 0")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ConfigError("paired sums hold NaN or infinity: a mean of these says nothing")
    _check_level(level)
    count, columns = a.shape
    of_columns = value is None
    value = value or (lambda sums: sums / count)
    both, other = np.concatenate([a, b], 1), a != b

    def differences(sums: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):  # what has no value is told by NaN
            return _as_rows(value(sums[:, columns:])) - _as_rows(value(sums[:, :columns]))

    estimates = differences(both.sum(0, keepdims=True))[0]
    drawn = np.concatenate([differences(counts @ both) for counts in _resamples(count)])
    swapped = np.concatenate([differences(sums) for sums in _swapped(a, b)])
    differ = np.broadcast_to(other.sum(0) if of_columns else other.any(1).sum(), estimates.shape)
    ratio = (differ + 1) / np.maximum(differ, 1) * count / (count + 1) * count / max(count - 1, 1)
    errors = drawn.std(0) * np.sqrt(ratio)
    # Of equal sums in another order the last digits differ.
    as_large = np.abs(swapped) >= np.abs(estimates) * (1 - 1e-9)
    p_swapped = (1 + as_large.sum(0)) / (1 + len(swapped))
    found = []
    for estimate, error, p, on in zip(*(each.tolist() for each in (estimates, errors, p_swapped, differ)), strict=True):
        error = error if on >= FEWEST else math.nan
        interval, p_t = _by_t(estimate if on else 0.0, error, count - 1, level, comparisons)
        found.append(PairedDifference(interval, max(p, p_t), on, count))
    return found


def told_apart(differences: Sequence[PairedDifference]) -> list[bool]:
    """Which of some differences may be called so: the interval excludes 0, and so does the p-value, corrected for their
    number. Where none differs, any of them is called so with probability 1 - level at most.
    """
    adjusted = holm([each.p for each in differences])
    return [
        each.interval.excludes(0) and p <= 1 - each.interval.level
        for each, p in zip(differences, adjusted, strict=True)
    ]


def t_interval(values: Sequence[float] | np.ndarray, level: float = 0.95, comparisons: int = 1) -> Interval:
    """The mean of independent values, such as one a seed, by Student's t. Unbounded for fewer than two values, and for
    values that are equal and not 0, whose spread is not known. Raises ConfigError for no value or NaN.
    """
    return mean_of_seeds(values, level, comparisons)[0]


def mean_of_seeds(
    values: Sequence[float] | np.ndarray, level: float = 0.95, comparisons: int = 1
) -> tuple[Interval, float]:
    """`t_interval`, and the p-value of a mean of 0."""
    x = _finite(values)
    _check_level(level)
    error = x.std(ddof=1) / math.sqrt(len(x)) if len(x) > 1 else math.nan
    if error == 0 and x[0] != 0:
        error = math.nan
    return _by_t(float(x.mean()), float(error), len(x) - 1, level, comparisons)


def difference_of_seeds(
    one: Sequence[float], two: Sequence[float], level: float = 0.95, comparisons: int = 1
) -> tuple[Interval, float]:
    """How much larger the mean of `two` is, with a p-value, from values of other seeds in each: Welch's t."""
    a, b = _finite(one), _finite(two)
    _check_level(level)
    estimate = float(b.mean() - a.mean())
    if min(len(a), len(b)) < 2:
        return _by_t(estimate, math.nan, 0, level, comparisons)
    parts = [x.var(ddof=1) / len(x) for x in (a, b)]
    total = float(sum(parts))
    if total == 0:
        return _by_t(estimate, 0.0 if estimate == 0 else math.nan, 1, level, comparisons)
    freedom = total**2 / sum(part**2 / (len(x) - 1) for part, x in zip(parts, (a, b), strict=True))
    return _by_t(estimate, math.sqrt(total), freedom, level, comparisons)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979): those at most α, all told, hold with one error in 1/α at most."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, least = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        least = max(least, min(1.0, p_values[index] * (len(p_values) - place)))
        adjusted[index] = least
    return adjusted


@dataclass
class ConfidenceSequence:
    """Intervals for the mean of a stream of numbers in [low, high], all of which hold together with probability
    `level`: one may look after every number and stop when one likes.

    The empirical-Bernstein confidence sequence with predictable weights of Waudby-Smith and Ramdas, "Estimating means
    of bounded random variables by betting" (2024), theorem 2. Its state is a few floats. The mean has to stay: of a
    mean that moves, `moved` becomes True once no value fits all that was seen.
    """

    low: float
    high: float
    level: float = 0.95
    count: int = field(default=0, init=False)
    _sum: float = field(default=0.0, init=False)
    _squares: float = field(default=0.0, init=False)
    _weights: float = field(default=0.0, init=False)
    _weighted: float = field(default=0.0, init=False)
    _spread: float = field(default=0.0, init=False)
    _bounds: tuple[float, float] = field(default=(0.0, 1.0), init=False)

    def __post_init__(self) -> None:
        """Raises ConfigError for bounds that are none, and a level outside of 0 to 1."""
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ConfigError(f"ConfidenceSequence: {self.low} to {self.high} are no bounds of numbers")
        _check_level(self.level)

    def add(self, values: Sequence[float] | np.ndarray) -> Interval:
        """The interval after some more numbers. Raises ConfigError where one is not within the bounds."""
        x = np.asarray(values, np.float64).ravel()
        if not ((x >= self.low) & (x <= self.high)).all():
            raise ConfigError(f"ConfidenceSequence: a number is not from {self.low} to {self.high}")
        bound = math.log(2 / (1 - self.level))
        for number in ((x - self.low) / (self.high - self.low)).tolist():
            before, t = (0.5 + self._sum) / (self.count + 1), self.count + 1
            variance = (0.25 + self._squares) / t
            weight = min(0.5, math.sqrt(2 * bound / (variance * t * math.log(1 + t))))
            self.count, self._sum = t, self._sum + number
            self._squares += (number - (0.5 + self._sum) / (t + 1)) ** 2
            self._weights, self._weighted = self._weights + weight, self._weighted + weight * number
            self._spread += (number - before) ** 2 * (-math.log1p(-weight) - weight)
            middle, margin = self._weighted / self._weights, (bound + self._spread) / self._weights
            self._bounds = max(self._bounds[0], middle - margin), min(self._bounds[1], middle + margin)
        return self.interval

    @property
    def interval(self) -> Interval:
        """The mean so far, and the numbers that fit all that was seen; those between the two bounds if it `moved`."""
        scale = self.high - self.low
        low, high = sorted(self.low + scale * bound for bound in self._bounds)
        mean = self._sum / self.count if self.count else 0.5
        return Interval(self.low + scale * mean, low, high, self.level)

    @property
    def moved(self) -> bool:
        """Whether no mean fits all numbers."""
        return self._bounds[0] > self._bounds[1]


def _by_t(estimate: float, error: float, freedom: float, level: float, comparisons: int) -> tuple[Interval, float]:
    """The interval of an estimate with this standard error, and the p-value of 0; unbounded without an error."""
    if not math.isfinite(estimate) or not math.isfinite(error) or freedom <= 0:
        return Interval(estimate if math.isfinite(estimate) else 0.0, -math.inf, math.inf, level), 1.0
    if error == 0:
        return Interval(estimate, estimate, estimate, level), 1.0 if estimate == 0 else 0.0
    margin = t_quantile(1 - (1 - level) / (2 * comparisons), freedom) * error
    return Interval(estimate, estimate - margin, estimate + margin, level), 2 * t_tail(abs(estimate) / error, freedom)


def _resamples(count: int) -> Iterator[np.ndarray]:
    """How often each of `count` rows is drawn in each of `RESAMPLES` samples, f64[R, count], in blocks of samples."""
    generator = np.random.default_rng(0)
    for size in _blocks(count):
        rows = generator.integers(0, count, (size, count)) + np.arange(size)[:, None] * count
        yield np.bincount(rows.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


def _swapped(a: np.ndarray, b: np.ndarray) -> Iterator[np.ndarray]:
    """The sums [R, 2K] of both systems after they were swapped in each row at random, in blocks of samples."""
    generator, total, change = np.random.default_rng(1), np.concatenate([a.sum(0), b.sum(0)]), b - a
    for size in _blocks(len(a)):
        moved = generator.integers(0, 2, (size, len(a))).astype(np.float64) @ change
        yield total + np.concatenate([moved, -moved], 1)


def _blocks(count: int) -> Iterator[int]:
    size = max(1, min(RESAMPLES, _BLOCK // count))
    for start in range(0, RESAMPLES, size):
        yield min(size, RESAMPLES - start)


def _as_rows(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return values[:, None] if values.ndim == 1 else values


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ConfigError(f"{x.tolist()}: an interval of a mean needs at least one number, and no NaN or infinity")
    return x


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"level={level}: give a probability between 0 and 1, such as 0.95")
