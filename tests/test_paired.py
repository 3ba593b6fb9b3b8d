"""Metrics of two evaluations on the same examples, and what is said of them."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from jaxtrain.reports.compare.verdicts import amount, direction, judged
from jaxtrain.reports.paired import pairs
from jaxtrain.reports.statistics import Interval, paired_difference
from jaxtrain.runs.rows import RowsOf
from jaxtrain.tasks.classification_metrics import Confusion
from jaxtrain.tasks.metrics import Mean, Metric, Perplexity

GENERATOR = np.random.default_rng(0)


def rows(ids: Sequence[int], metrics: Mapping[str, Metric], labels: Mapping[str, np.ndarray] | None = None) -> RowsOf:
    count = len(ids)
    return RowsOf("test", 5, count, count, np.array(ids, np.uint64), np.arange(count), {}, labels or {}, metrics)


def mean(values: np.ndarray, weights: np.ndarray | float = 1.0) -> Mean:
    return Mean(np.asarray(values) * weights, np.broadcast_to(weights, np.shape(values)))


def test_examples_are_paired_by_their_ids_and_not_by_their_order():
    values, order = GENERATOR.random((2, 40)), GENERATOR.permutation(40)
    one, two = rows(range(40), {"loss": mean(values[0])}), rows(order.tolist(), {"loss": mean(values[1][order])})
    found = pairs(one, two)
    assert (found.same, found.alone) == (40, (0, 0))
    assert found.differences["loss"] == paired_difference(*values)[0]
    assert found.values["loss"] == pytest.approx((values[0].mean(), values[1].mean()))


def test_only_examples_that_both_have_count():
    values = GENERATOR.random((2, 50))
    one = rows(range(50), {"loss": mean(values[0])})
    two = rows(range(10, 60), {"loss": mean(np.concatenate([values[1][10:], np.full(10, 99.0)]))})
    found = pairs(one, two)
    assert (found.same, found.alone) == (40, (10, 10))
    assert found.values["loss"] == pytest.approx((values[0][10:].mean(), values[1][10:].mean()))
    assert pairs(one, rows(range(100, 150), {"loss": mean(values[1])})).same == 0


def test_rows_of_one_example_are_one_and_another_number_of_them_is_left_out():
    one = rows([1, 1, *range(2, 12), 20, 20], {"loss": mean(np.arange(14.0))})
    two = rows([1, 1, *range(2, 12), 20], {"loss": mean(np.arange(13.0) + 1)})
    found = pairs(one, two)
    assert (found.same, found.differences["loss"].of, found.alone) == (11, 11, (1, 1))
    assert found.values["loss"] == pytest.approx((np.arange(12).mean(), np.arange(12).mean() + 1))


def test_a_ratio_of_sums_is_resampled_as_a_ratio():
    nats, tokens = GENERATOR.gamma(4, 0.5, (2, 60)), GENERATOR.integers(1, 50, 60).astype(float)
    one, two = (
        rows(range(60), {"perplexity": Perplexity(each * tokens, tokens), "loss": Mean(each * tokens, tokens)})
        for each in nats
    )
    found = pairs(one, two)
    by_hand = [np.exp((each * tokens).sum() / tokens.sum()) for each in nats]
    assert found.values["perplexity"] == pytest.approx(tuple(by_hand))
    assert found.differences["perplexity"].interval.value == pytest.approx(by_hand[1] - by_hand[0])
    drawn = np.random.default_rng(0).integers(0, 60, (4000, 60))
    ratios = [np.exp((each * tokens)[drawn].sum(1) / tokens[drawn].sum(1)) for each in nats]
    error = (ratios[1] - ratios[0]).std() * math.sqrt(61 / 60 * 60 / 61 * 60 / 59)
    assert found.differences["perplexity"].interval.margin == pytest.approx(2.000995 * error, rel=1e-5)


def test_a_metric_of_several_values_gives_a_difference_for_each():
    labels, guesses = GENERATOR.integers(0, 3, 80), GENERATOR.integers(0, 3, (2, 80))
    one, two = (
        rows(range(80), {"classes": Confusion(np.eye(3)[labels][:, :, None] * np.eye(3)[each][:, None])})
        for each in guesses
    )
    found = pairs(one, two)
    right = (guesses == labels).mean(1)
    assert found.differences["classes/accuracy"].interval.value == pytest.approx(right[1] - right[0])
    assert "classes/recall/class_2" in found.differences


ONES, LABELS = mean(np.ones(20)), np.zeros(20, int)


@pytest.mark.parametrize(
    ("loss", "labels", "why"),
    [
        (mean(np.ones(20), 2.0), LABELS, "weighed otherwise"),
        (mean(np.where(np.arange(20) == 3, np.nan, 1.0)), LABELS, "not finite on 1 examples"),
        (Perplexity(np.ones(20), np.ones(20)), LABELS, "another metric"),
        (ONES, np.array([0] * 17 + [1] * 3), "the labels 'label' of 3 of the same examples differ"),
        (ONES, np.zeros((20, 2)), "another shape"),
    ],
)
def test_what_is_another_quantity_is_not_compared(loss, labels, why):
    found = pairs(
        rows(range(20), {"loss": ONES}, {"label": LABELS}), rows(range(20), {"loss": loss}, {"label": labels})
    )
    assert why in found.refused["loss"]
    assert found.differences == {}


def test_the_better_direction_is_known_by_name_or_by_what_a_run_keeps():
    assert [direction(name) for name in ("loss", "absolute_error", "perplexity")] == ["lower"] * 3
    assert [direction(name) for name in ("accuracy", "classes/f1_macro", "spearman")] == ["higher"] * 3
    assert [direction(name) for name in ("length", "reward", "lossless")] == [""] * 3
    kept = {"runtime": {"keep": {"best": "test/reward", "mode": "max"}}}
    assert direction("reward", kept, "test") == "higher"
    assert direction("reward", kept, "other") == ""


@pytest.mark.parametrize(
    ("metric", "value", "margin", "told", "words"),
    [
        ("accuracy", 0.008, 0.003, True, "b is better by 0.80 ± 0.30 points (95 %) on it"),
        ("accuracy", -0.008, 0.003, True, "b is worse by 0.80 ± 0.30 points (95 %) on it"),
        ("loss", -0.5, 0.1234, True, "b is better by 0.50 ± 0.12 (95 %) on it"),
        ("length", 25.0, 11.0, True, "b is higher by 25 ± 11 (95 %) on it"),
        ("length", -25.0, 11.0, True, "b is lower by 25 ± 11 (95 %) on it"),
        ("loss", 0.5, 0.9, False, "not told apart: +0.50 ± 0.90 (95 %) on it"),
        ("loss", 0.5, 0.4, False, "not told apart: +0.50 ± 0.40 (95 %) on it, after the correction for several"),
        ("loss", 1e-7, 1e-8, True, "not told apart: equal within rounding on it"),
        ("loss", 0.5, math.inf, False, "not told apart: 0.5 on it, with no interval"),
    ],
)
def test_a_verdict_says_how_much_how_sure_and_on_what(metric, value, margin, told, words):
    interval = Interval(value, value - margin, value + margin, 0.95)
    found = judged("b", metric, direction(metric), interval, told, "on it", 1.0)
    assert found.words.startswith(words)
    assert found.words.startswith("not told apart") == (found.kind == "not told apart")


def test_amounts_have_the_digits_that_the_margin_allows():
    assert amount("loss", 0.0012345, 0.0004321) == "0.00123 ± 0.00043"
    assert amount("loss", 1234.5, 432.1) == "1234 ± 432"
    assert amount("accuracy", -0.0123) == "1.23 points"
