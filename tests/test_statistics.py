"""Statistics of comparisons: intervals cover what they claim, and differences are not claimed where there are none."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats

from jaxtrain.base.errors import ConfigError
from jaxtrain.reports.statistics import (
    FEWEST,
    RESAMPLES,
    ConfidenceSequence,
    Interval,
    PairedDifference,
    difference_of_seeds,
    holm,
    mean_of_seeds,
    paired_difference,
    t_interval,
    told_apart,
)
from jaxtrain.reports.student import t_quantile, t_tail

Pairs = tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray] | None, float]
"""Sums [N, K] of both systems, how values follow from them, and the true difference of each of the pairs."""


def accuracies(better: float, accuracy: float = 0.8) -> Callable[[np.random.Generator, int, int], Pairs]:
    """Right or wrong, of two systems that err on much the same examples."""

    def made(generator: np.random.Generator, examples: int, pairs: int) -> Pairs:
        common = 0.8 * generator.standard_normal((examples, pairs))
        one, two = (common + 0.6 * generator.standard_normal((examples, pairs)) for _ in range(2))
        right = [scipy.stats.norm.ppf(each) for each in (accuracy, accuracy + better)]
        return (one < right[0]).astype(float), (two < right[1]).astype(float), None, better

    return made


def heavy(better: float) -> Callable[[np.random.Generator, int, int], Pairs]:
    """Losses that a few hard examples dominate: log-normal, and so are their ratios."""

    def made(generator: np.random.Generator, examples: int, pairs: int) -> Pairs:
        hardness = generator.lognormal(0, 1, (examples, pairs))
        one, two = (hardness * generator.lognormal(0, 0.5, (examples, pairs)) for _ in range(2))
        return one, two + better, None, better

    return made


def perplexities(better: float) -> Callable[[np.random.Generator, int, int], Pairs]:
    """exp of nats a token, of documents of different lengths and difficulties."""

    def made(generator: np.random.Generator, examples: int, pairs: int) -> Pairs:
        length = 10.0 + generator.geometric(1 / 30, (examples, pairs))
        nats = generator.gamma(16, 1 / 8, (examples, pairs))  # 2 on average
        one, two = (
            length * (nats + change) + np.sqrt(length) * generator.standard_normal((examples, pairs))
            for change in (0, better)
        )

        def value(sums: np.ndarray) -> np.ndarray:
            return np.exp(sums[:, :pairs] / sums[:, pairs:])

        return np.hstack([one, length]), np.hstack([two, length]), value, math.exp(2 + better) - math.exp(2)

    return made


SETTINGS = {
    "accuracies": accuracies(0.03),
    "equal accuracies": accuracies(0.0),
    "few errors": accuracies(0.02, 0.97),
    "heavy losses": heavy(0.1),
    "equal heavy losses": heavy(0.0),
    "perplexities": perplexities(-0.02),
    "equal perplexities": perplexities(0.0),
}


def simulated(setting: str, examples: int, pairs: int) -> tuple[float, float]:
    """The share of the pairs whose interval covers the true difference, and of those that are told apart."""
    one, two, value, true = SETTINGS[setting](np.random.default_rng(examples), examples, pairs)
    found = paired_difference(one, two, value)
    assert len(found) == pairs
    covered = [not each.interval.excludes(true) for each in found]
    return float(np.mean(covered)), float(np.mean([told_apart([each])[0] for each in found]))


@pytest.mark.parametrize("setting", SETTINGS)
def test_intervals_cover_as_often_as_they_say(setting):
    covered, told = simulated(setting, 100, 400)
    assert 0.92 <= covered <= (1 if setting == "few errors" else 0.98)
    assert not setting.startswith("equal") or told <= 0.065


@pytest.mark.slow
@pytest.mark.parametrize("examples", [50, 200, 2000])
def test_intervals_cover_in_93_to_97_percent_of_1000_pairs_and_better_is_said_wrongly_in_5_at_most(examples):
    found = {setting: simulated(setting, examples, 1000) for setting in SETTINGS}
    print(examples, found)
    few, _ = found.pop("few errors")
    assert few >= 0.93
    assert all(0.93 <= covered <= 0.97 for covered, _ in found.values()), found
    assert all(told <= 0.05 for setting, (_, told) in found.items() if setting.startswith("equal")), found


@pytest.mark.slow
def test_of_three_comparisons_without_a_difference_one_is_told_apart_in_5_percent_at_most():
    generator = np.random.default_rng(0)
    hardness = generator.lognormal(0, 1, (200, 1000))
    first, *others = (hardness * generator.lognormal(0, 0.5, hardness.shape) for _ in range(4))
    alone = [paired_difference(first, each) for each in others]
    together = [paired_difference(first, each, comparisons=3) for each in others]
    families = list(zip(*alone, strict=True))
    assert np.mean([any(told_apart([each])[0] for each in family) for family in families]) > 0.07
    assert np.mean([any(told_apart(family)) for family in families]) <= 0.05
    misses = [any(each.interval.excludes(0) for each in family) for family in zip(*together, strict=True)]
    assert 0.02 < np.mean(misses) <= 0.055


def test_the_interval_is_the_formula_of_the_docs_computed_by_hand():
    generator = np.random.default_rng(3)
    one, two = generator.random(60), generator.random(60) + 0.1
    two[:20] = one[:20]
    found = paired_difference(one, two)[0]
    rows = np.random.default_rng(0).integers(0, 60, (RESAMPLES, 60))
    error = (two - one)[rows].mean(1).std() * math.sqrt(41 / 40 * 60 / 61 * 60 / 59)
    margin = scipy.stats.t.ppf(0.975, 59) * error
    assert found.interval.value == pytest.approx((two - one).mean(), rel=1e-12)
    assert found.interval.margin == pytest.approx(margin, rel=1e-9)
    assert (found.differ, found.of) == (40, 60)
    by_scipy = scipy.stats.permutation_test(
        (one, two), lambda a, b: np.mean(b) - np.mean(a), permutation_type="samples", n_resamples=20_000, rng=0
    )
    by_t = 2 * scipy.stats.t.sf((two - one).mean() / error, 59)
    assert found.p == pytest.approx(max(float(by_scipy.pvalue), by_t), abs=0.015)


def test_the_error_of_the_bootstrap_is_that_of_the_mean():
    one, two = np.random.default_rng(4).standard_normal((2, 500))
    found = paired_difference(one, two)[0].interval
    by_hand = scipy.stats.ttest_rel(two, one).confidence_interval(0.95)
    assert found.low == pytest.approx(by_hand.low, rel=0.03)
    assert found.high == pytest.approx(by_hand.high, rel=0.03)


def test_with_few_examples_that_differ_nothing_is_claimed_and_then_as_by_the_exact_test_of_mcnemar():
    """Five examples, all in favour of one, are 1/16 likely by chance, though a bootstrap excludes 0."""
    for differ, claimed in ((5, False), (6, True), (8, True)):
        one, two = np.zeros(1000), np.zeros(1000)
        two[:differ] = 1
        found = paired_difference(one, two)[0]
        assert math.isinf(found.interval.high) == (differ < FEWEST == 6)
        assert told_apart([found]) == [claimed]
        assert found.p >= 0.8 * scipy.stats.binomtest(0, differ).pvalue
        one[:differ] = np.arange(differ) % 2
        two[:differ] = 1 - one[:differ]
        assert paired_difference(one, two)[0].p == 1


def test_equal_systems_are_not_told_apart_and_nothing_is_nan():
    same = np.random.default_rng(0).random((30, 2))
    for value in (None, lambda sums: sums[:, 0] / sums[:, 1], lambda sums: sums[:, 0] / 0.0):
        for found in paired_difference(same, same.copy(), value):
            assert (found.interval, found.p, found.differ) == (Interval(0, -math.inf, math.inf, 0.95), 1, 0)
            assert told_apart([found]) == [False]


def test_what_nothing_bounds_is_unbounded_and_not_told_apart():
    alone = paired_difference(np.array([1.0]), np.array([2.0]))[0]
    assert alone.interval == Interval(1, -math.inf, math.inf, 0.95)
    none = paired_difference(np.ones(9), np.zeros(9), lambda sums: np.where(sums[:, 0] > 5, 1.0, np.nan))[0]
    assert none.interval == Interval(0, -math.inf, math.inf, 0.95)
    assert told_apart([alone, none]) == [False, False]


def test_more_comparisons_make_intervals_wider_by_the_quantile_of_bonferroni():
    one, two = np.random.default_rng(0).random((2, 40))
    single, of_five = (paired_difference(one, two, comparisons=count)[0].interval for count in (1, 5))
    ratio = scipy.stats.t.ppf(1 - 0.05 / 10, 39) / scipy.stats.t.ppf(0.975, 39)
    assert of_five.margin / single.margin == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("one", "two", "level"),
    [
        (np.ones(3), np.ones(4), 0.95),
        (np.ones(0), np.ones(0), 0.95),
        (np.array([1, np.nan]), np.ones(2), 0.95),
        (np.ones(2), np.array([np.inf, 1]), 0.95),
        (np.ones(2), np.ones(2), 95),
    ],
)
def test_what_cannot_be_paired_is_refused(one, two, level):
    with pytest.raises(ConfigError):
        paired_difference(one, two, level=level)


def test_quantiles_and_tails_of_t_are_those_of_scipy():
    for freedom, probability in itertools.product((1, 2, 2.7, 9, 49, 9999), (0.1, 0.5, 0.9, 0.975, 0.9999)):
        expected = scipy.stats.t.ppf(probability, freedom)
        assert t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    for freedom, t in itertools.product((1, 2.7, 49, 9999), (0.0, 0.3, 2.0, 8.0)):
        assert t_tail(t, freedom) == pytest.approx(scipy.stats.t.sf(t, freedom), rel=1e-9)


def test_intervals_over_seeds_are_those_of_scipy():
    one, two = [0.81, 0.83, 0.80], [0.85, 0.84, 0.88, 0.86]
    found = t_interval(two)
    by_scipy = scipy.stats.ttest_1samp(two, 0)
    assert (found.low, found.high) == pytest.approx(tuple(by_scipy.confidence_interval()))
    assert mean_of_seeds(two)[1] == pytest.approx(by_scipy.pvalue)
    welch = scipy.stats.ttest_ind(two, one, equal_var=False)
    interval, p = difference_of_seeds(one, two)
    assert (interval.low, interval.high) == pytest.approx(tuple(welch.confidence_interval()))
    assert p == pytest.approx(welch.pvalue)


def test_seeds_that_do_not_vary_or_are_alone_bound_nothing():
    for interval, p in (
        mean_of_seeds([0.5]),
        mean_of_seeds([0.5, 0.5]),
        difference_of_seeds([0.5], [0.6, 0.7]),
        difference_of_seeds([0.5, 0.5], [0.6, 0.6]),
    ):
        assert (interval.low, interval.high, p) == (-math.inf, math.inf, 1)
    assert mean_of_seeds([0, 0, 0]) == (Interval(0, 0, 0, 0.95), 1)
    assert difference_of_seeds([1, 1], [1, 1]) == (Interval(0, 0, 0, 0.95), 1)
    with pytest.raises(ConfigError, match="no NaN"):
        t_interval([1, math.nan])
    with pytest.raises(ConfigError, match="at least one number"):
        t_interval([])


def test_holm_adjusts_as_in_a_worked_example():
    """0.01 × 4, 0.013 × 3, 0.014 × 2 and 0.19, none smaller than one before it."""
    assert holm([0.19, 0.01, 0.013, 0.014]) == pytest.approx([0.19, 0.04, 0.04, 0.04])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_differences_are_corrected_together():
    close = PairedDifference(Interval(1, 0.1, 1.9, 0.95), 0.03, 9, 9)
    assert told_apart([close]) == [True]
    assert told_apart([close, close]) == [False, False]
    assert told_apart([PairedDifference(Interval(1, -0.1, 2.1, 0.95), 0.001, 9, 9)]) == [False]


def by_formula(x: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Theorem 2 of Waudby-Smith and Ramdas for streams [streams, T] of numbers from 0 to 1, in their notation."""
    alpha, t = 1 - level, np.arange(1, x.shape[1] + 1)
    mu = (0.5 + np.cumsum(x, 1)) / (t + 1)
    sigma2 = (0.25 + np.cumsum((x - mu) ** 2, 1)) / (t + 1)
    earlier = [np.column_stack([np.full(len(x), first), each[:, :-1]]) for first, each in ((0.5, mu), (0.25, sigma2))]
    lam = np.minimum(np.sqrt(2 * np.log(2 / alpha) / (earlier[1] * t * np.log(1 + t))), 0.5)
    v, psi = 4 * (x - earlier[0]) ** 2, (-np.log(1 - lam) - lam) / 4
    centre = np.cumsum(lam * x, 1) / np.cumsum(lam, 1)
    width = (np.log(2 / alpha) + np.cumsum(v * psi, 1)) / np.cumsum(lam, 1)
    return np.maximum.accumulate(centre - width, 1), np.minimum.accumulate(centre + width, 1)


def test_the_confidence_sequence_is_the_published_formula():
    x = np.random.default_rng(0).beta(2, 5, 300)
    low, high = by_formula(x[None], 0.9)
    sequence = ConfidenceSequence(-1, 3, 0.9)
    for start in range(0, 300, 70):
        found = sequence.add(4 * x[start : start + 70] - 1)
        end = min(300, start + 70) - 1
        assert (found.low, found.high) == pytest.approx((max(-1, 4 * low[0, end] - 1), min(3, 4 * high[0, end] - 1)))
        assert found.value == pytest.approx(4 * x[: end + 1].mean() - 1)
    assert not sequence.moved


def test_at_every_moment_of_95_percent_of_the_streams_the_confidence_sequence_covers():
    x = (np.random.default_rng(1).random((400, 1000)) < 0.3).astype(float)
    low, high = by_formula(x, 0.95)
    covered = ((low <= 0.3) & (high >= 0.3)).all(1).mean()
    assert covered >= 0.95
    t = np.arange(10, 1001)
    mean = np.cumsum(x, 1)[:, 9:] / t
    looked = np.abs(mean - 0.3) > 1.96 * np.sqrt(mean * (1 - mean) / t)
    assert looked.any(1).mean() > 0.2  # so often an interval for one look misses


def test_a_mean_that_moves_is_noticed_and_bounds_are_kept():
    sequence = ConfidenceSequence(0, 1)
    sequence.add(np.zeros(300))
    assert not sequence.moved
    found = sequence.add(np.ones(3000))
    assert sequence.moved
    assert found.low <= found.high
    for wrong in ([2.0], [math.nan]):
        with pytest.raises(ConfigError, match="is not from 0 to 1"):
            sequence.add(wrong)
    with pytest.raises(ConfigError, match="no bounds"):
        ConfidenceSequence(1, 1)
