import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain import Mean
from jaxtrain.tasks.metrics import merge

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
