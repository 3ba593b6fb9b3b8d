import math
import operator
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain import ConfigError, Mean, Metric
from jaxtrain.tasks import Perplexity, Sum
from jaxtrain.tasks.metrics import merge, values_by_name

VALUES = np.arange(12.0, dtype=np.float32).reshape(3, 4)
WEIGHTS = np.array([[1, 0, 2, 1], [0, 0, 0, 3], [1, 1, 1, 1]], np.float32)


def same(one, two):
    return float(one.total) == float(two.total) and float(one.weight) == float(two.weight)


def test_a_mean_is_weighted():
    mean = Mean.of(jnp.asarray(VALUES), jnp.asarray(WEIGHTS))
    assert float(mean) == np.average(VALUES, weights=WEIGHTS)
    assert float(Mean.of(jnp.asarray(VALUES))) == VALUES.mean()


def test_merging_parts_of_any_size_in_any_order_gives_the_whole():
    whole = Mean.of(jnp.asarray(VALUES), jnp.asarray(WEIGHTS))
    a, b, c = (Mean.of(jnp.asarray(v), jnp.asarray(w)) for v, w in zip(VALUES, WEIGHTS, strict=True))
    assert same((a + b) + c, whole)
    assert same(a + (b + c), whole)
    assert same(c + a + b, whole)
    uneven = Mean.of(jnp.asarray(VALUES[:1]), jnp.asarray(WEIGHTS[:1])) + Mean.of(
        jnp.asarray(VALUES[1:]), jnp.asarray(WEIGHTS[1:])
    )
    assert float(uneven) == float(whole)


def test_rows_that_only_fill_up_count_for_nothing():
    mask = jnp.array([True, False, True])
    full = Mean.of(jnp.array([1.0, 100.0, 3.0]), mask)
    assert (float(full.total), float(full.weight), float(full)) == (4, 2, 2)


def test_a_mean_of_nothing_is_nan_and_changes_no_other():
    nothing = Mean.of(jnp.array([5.0]), jnp.array([False]))
    assert np.isnan(float(nothing))
    assert float(nothing + Mean.of(jnp.array([2.0]))) == 2


def test_dicts_merge_by_name():
    parts = [{"loss": Mean.of(jnp.array([x])), "right": Mean.of(jnp.array([x > 1]))} for x in (1.0, 2.0, 6.0)]
    merged = {name: float(mean) for name, mean in merge(parts).items()}
    assert merged == {"loss": 3, "right": np.float32(2 / 3)}
    assert merge([]) == {}


def test_a_mean_passes_through_jit_and_scan():
    means = jax.jit(jax.vmap(Mean.of))(jnp.asarray(VALUES), jnp.asarray(WEIGHTS))
    total, _ = jax.lax.scan(lambda sums, mean: (sums + mean, None), Mean(jnp.zeros(()), jnp.zeros(())), means)
    assert same(total, Mean.of(jnp.asarray(VALUES), jnp.asarray(WEIGHTS)))


@dataclass(frozen=True)
class Rate(Metric):
    """A metric as a user writes one."""

    hits: Any
    rows: Any

    @classmethod
    def of(cls, right_B: Any, mask_B: Any) -> "Rate":
        return cls((right_B * mask_B).sum(), mask_B.sum())

    def value(self) -> dict[str, float]:
        return {"rate": self.hits / self.rows, "misses": self.rows - self.hits}


def test_a_metric_of_a_user_is_a_pytree_that_adds_up():
    masks = jnp.array([[True, True], [True, False], [False, False]])
    right = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    rates = jax.jit(jax.vmap(Rate.of))(right, masks)
    total, _ = jax.lax.scan(lambda sums, rate: (sums + rate, None), Rate(jnp.zeros(()), jnp.zeros((), int)), rates)
    assert (float(total.hits), int(total.rows)) == (2, 3)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(total)]
    assert paths == [".hits", ".rows"]


def test_several_values_of_a_metric_have_its_name_before_theirs():
    metrics: dict[str, Metric] = {"loss": Mean(6.0, 4.0), "seen": Rate(np.float64(3), np.float64(4))}
    assert values_by_name(metrics) == {"loss": 1.5, "seen/rate": 0.75, "seen/misses": 1}
    with pytest.raises(TypeError, match="a Rate has several values: rate, misses"):
        float(metrics["seen"])


def test_the_value_of_no_rows_is_nan_without_a_warning():
    nothing: dict[str, Metric] = {"seen": Rate(0.0, 0.0), "loss": Mean(0.0, 0.0), "perplexity": Perplexity(0.0, 0.0)}
    found = values_by_name(merge([nothing]))
    assert {name for name, value in found.items() if math.isnan(value)} == {"seen/rate", "loss", "perplexity"}
    some: dict[str, Metric] = {"seen": Rate(1.0, 2.0), "loss": Mean(3.0, 2.0), "perplexity": Perplexity(0.0, 2.0)}
    assert values_by_name(merge([some, nothing])) == values_by_name(merge([some]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [Mean, Sum, Perplexity])
def test_a_masked_row_counts_for_nothing_even_if_it_is_no_number(kind: Any, bad: float):
    values, mask = jnp.array([1.0, bad, 2.0]), jnp.array([True, False, True])
    expected = {Mean: 1.5, Sum: 3.0, Perplexity: 4.4816890703}[kind]
    assert float(kind.of(values, mask)) == pytest.approx(expected, rel=1e-7)
    gradient = jax.grad(lambda values: kind.of(values, mask).total)(values)
    assert gradient.tolist() == [1, 0, 1]
    weights = jax.grad(lambda weights: kind.of(values, weights).total)(jnp.array([1.0, 0.0, 1.0]))
    assert weights.tolist() == [1, 0, 2]
    assert not math.isfinite(float(kind.of(values).total))  # what is not masked is seen


def test_a_perplexity_is_of_all_rows_and_not_the_mean_of_batches():
    parts: list[dict[str, Metric]] = [{"p": Perplexity.of(jnp.array(losses))} for losses in ([0.0, 0.0, 0.0], [4.0])]
    assert values_by_name(merge(parts)) == {
        "p": pytest.approx(math.e)
    }  # exp(4 / 4); that of the batches is (1 + e^4) / 2
    assert float(Perplexity(1e6, 1.0)) == math.inf


def test_a_sum_counts():
    counted = Sum.of(jnp.array([2.0, 3.0, 5.0]), jnp.array([True, True, False])) + Sum.of(jnp.array([1.0]))
    assert float(counted) == 6
    assert float(Sum.of(jnp.zeros(0))) == 0


def test_hosts_add_in_float64():
    big = np.float32(2**24)
    parts: list[dict[str, Metric]] = [{"n": Sum(np.float32(number))} for number in (big, 1, 1, 1)]
    assert np.float32(big + np.float32(1)) == big  # in float32 the ones would be lost
    assert values_by_name(merge(parts)) == {"n": 2**24 + 3}


def test_what_does_not_fit_together_is_not_added():
    add: Any = operator.add
    with pytest.raises(TypeError, match="unsupported operand"):
        add(Mean(1.0, 1.0), Sum(1.0))
    with pytest.raises(ValueError, match=r"Sum.total: cannot add arrays of the shapes \(2,\) and \(1,\)"):
        _ = Sum(np.zeros(2)) + Sum(np.zeros(1))
    with pytest.raises(ConfigError, match=r"weights of shape \[3\] for values of shape \[3, 1\]"):
        Mean.of(jnp.zeros((3, 1)), jnp.ones(3))


def python(code: str) -> str:
    """What a program prints that starts without any module."""
    root = Path(__file__).parent.parent
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout


def test_metrics_and_transforms_need_no_jax():
    code = """
import sys
import numpy as np
from jaxtrain.data.transforms.fields import Normalize
from jaxtrain.tasks import AUC, Confusion, Spearman
from jaxtrain.tasks.metrics import Mean, merge, values_by_name
print(float(Mean(np.float32(3), np.float32(2)) + Mean(np.float32(1), np.float32(2))))
print(values_by_name(merge([{"a": AUC(np.array([1.0, 0]), np.array([0.0, 1]))}])))
print(Confusion(np.eye(2)).value()["accuracy"], "jax" in sys.modules)
import jax
print(len(jax.tree.leaves(Mean(1.0, 2.0))))
"""
    assert python(code).splitlines() == ["1.0", "{'a': 1.0}", "1.0 False", "2"]
