"""Confusion, AUC and Calibration against scikit-learn, ranks, and numbers worked by hand."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from jaxtrain.tasks import AUC, Calibration, Confusion
from jaxtrain.tasks.metrics import Metric, merge

LABELS = np.array([0, 0, 0, 1, 1, 3, 3, 0])
PREDICTED = np.array([0, 0, 1, 1, 1, 1, 4, 2])
"""Class 2 is predicted and never occurs, 3 occurs and is never predicted, 4 is predicted once, 5 neither."""


def merged(*metrics: Metric) -> Any:
    return merge([{"m": jax.device_get(metric)} for metric in metrics])["m"]


def test_a_confusion_matrix_counts_labels_by_predictions():
    found = Confusion.of(jnp.array([0, 0, 1, 2, 2]), jnp.array([0, 1, 1, 0, 2]), 3, jnp.array([1, 2, 1, 1, 0]))
    assert found.counts.tolist() == [[1, 2, 0], [0, 1, 0], [1, 0, 0]]
    outside = Confusion.of(jnp.array([-100, 3, 1]), jnp.array([0, 0, 1]), 3)
    assert outside.counts.sum() == 1


def test_accuracy_precision_recall_and_f1_of_two_classes_by_hand():
    value = Confusion(np.array([[5, 1], [2, 2]])).value()
    assert value == pytest.approx(
        {
            "accuracy": 0.7,
            "precision_macro": (5 / 7 + 2 / 3) / 2,
            "precision_micro": 0.7,
            "recall_macro": (5 / 6 + 1 / 2) / 2,
            "recall_micro": 0.7,
            "f1_macro": (10 / 13 + 4 / 7) / 2,
            "f1_micro": 0.7,
            "precision/class_0": 5 / 7,
            "precision/class_1": 2 / 3,
            "recall/class_0": 5 / 6,
            "recall/class_1": 1 / 2,
            "f1/class_0": 10 / 13,
            "f1/class_1": 4 / 7,
        }
    )


@pytest.mark.parametrize("average", ["macro", "micro", None])
def test_classes_that_never_occur_or_are_never_predicted_count_as_in_scikit_learn(average: Any):
    halves = [Confusion.of(jnp.array(LABELS[part]), jnp.array(PREDICTED[part]), 6) for part in (slice(3), slice(3, 8))]
    value = merged(*halves).value()
    expected = precision_recall_fscore_support(LABELS, PREDICTED, average=average, zero_division=0)
    for name, numbers in zip(("precision", "recall", "f1"), expected[:3], strict=True):
        if average:
            assert value[f"{name}_{average}"] == pytest.approx(numbers, rel=1e-12)
        else:
            assert [value[f"{name}/class_{number}"] for number in range(5)] == pytest.approx(list(numbers), rel=1e-12)
            assert math.isnan(value[f"{name}/class_5"])
    assert value["accuracy"] == 0.5


def test_nothing_counted_is_nan():
    confusion, calibration = Confusion(np.zeros((2, 2))).value(), Calibration(*np.zeros((3, 4))).value()
    assert all(math.isnan(number) for number in [*confusion.values(), *calibration.values()])
    assert math.isnan(AUC(np.zeros(4), np.ones(4)).value())


def scored(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.random(rows) < 0.3
    return np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1).astype(np.float32), labels


@pytest.mark.parametrize("bins", [4, 32, 512])
def test_an_auc_is_within_its_bound_of_the_exact_rank_statistic(bins: int):
    scores, labels = scored(400, seed=bins)
    exact = roc_auc_score(labels, scores)
    pairs = scores[labels][:, None] - scores[~labels][None]
    assert exact == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean())
    parts = [AUC.of(jnp.array(scores[i::3]), jnp.array(labels[i::3]), bins=bins) for i in range(3)]
    found = merged(*parts)
    assert abs(found.value() - exact) <= found.error_bound() + 1e-9
    assert found.error_bound() < 2 / bins


def test_the_bound_of_an_auc_is_met_by_the_worst_case():
    found = AUC.of(jnp.array([0.1, 0.2, 0.9]), jnp.array([0, 1, 1]), bins=2)  # exactly 1; one pair of two within a bin
    assert (found.value(), found.error_bound()) == (0.75, 0.25)
    reversed_ = AUC.of(jnp.array([0.2, 0.1, 0.9]), jnp.array([0, 1, 1]), bins=2)  # exactly 0.5
    assert reversed_.value() == 0.75


def test_an_auc_with_weights_is_that_of_repeated_rows():
    scores, labels, weights = [0.1, 0.4, 0.35, 0.8], [False, False, True, True], [1, 3, 2, 1]
    found = AUC.of(jnp.array(scores), jnp.array(labels), jnp.array(weights))
    exact = roc_auc_score(np.repeat(labels, weights), np.repeat(scores, weights))
    assert found.value() == pytest.approx(exact)  # every score has a bin of its own
    assert exact == pytest.approx((2 * 1 + 1 * 4) / 12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1.5, -0.5])
def test_a_score_that_is_no_probability_makes_the_value_nan_unless_it_is_masked(bad: float):
    scores, right = jnp.array([0.2, 0.9, bad]), jnp.array([0, 1, 1])
    mask = jnp.array([True, True, False])
    assert AUC.of(scores, right, mask).value() == 1
    assert math.isnan(AUC.of(scores, right).value())
    assert Calibration.of(scores, right, mask).value()["ece"] == pytest.approx(0.15)  # (|0.2 - 0| + |0.9 - 1|) / 2
    assert math.isnan(Calibration.of(scores, right).value()["ece"])


def test_the_calibration_error_and_the_reliability_table_by_hand():
    confidences, right = [0.5, 0.3, 0.6, 0.9, 1.0], [True, False, True, True, False]
    parts = [Calibration.of(jnp.array(confidences[i::2]), jnp.array(right[i::2]), bins=2) for i in (0, 1)]
    value = merged(*parts).value()
    # (0, 0.5]: 0.5 and 0.3, one of two right. (0.5, 1]: 0.6, 0.9 and 1, two of three right.
    assert value == pytest.approx(
        {
            "ece": 0.4 * abs(0.4 - 0.5) + 0.6 * abs(2.5 / 3 - 2 / 3),
            "share/bin_0": 0.4,
            "share/bin_1": 0.6,
            "confidence/bin_0": 0.4,
            "confidence/bin_1": 2.5 / 3,
            "accuracy/bin_0": 0.5,
            "accuracy/bin_1": 2 / 3,
        },
        rel=1e-6,
    )


def test_an_empty_bin_is_nan_and_adds_no_error():
    value = Calibration.of(jnp.array([1.0, 1.0]), jnp.array([True, True]), bins=3).value()
    assert (value["ece"], value["share/bin_0"], value["accuracy/bin_2"]) == (0, 0, 1)
    assert math.isnan(value["accuracy/bin_0"])


def test_a_label_of_a_masked_row_may_be_anything():
    mask = jnp.array([True, False])
    assert Confusion.of(jnp.array([1, 99]), jnp.array([1, 0]), 2, mask).value()["accuracy"] == 1
    right = jnp.array([1.0, jnp.nan])
    assert Calibration.of(jnp.array([1.0, 0.5]), right, mask).value()["ece"] == 0
