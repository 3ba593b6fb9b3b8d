import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtrain import ConfigError, eval_step, init_state, train_step
from jaxtrain.models import NGrams
from jaxtrain.models.base import PREDICTION
from jaxtrain.optimizers import (
    SGD,
    WSD,
    AdamW,
    ConstantRate,
    CosineDecay,
    Frozen,
    Groups,
    LinearDecay,
    Lion,
    Muon,
    averaged,
    with_horizon,
)
from jaxtrain.tasks import Regression, Variables

TASK = Regression(model=NGrams(outputs=1, buckets=32, words=4, width=4), inputs="text")
BATCH = {
    "text": np.random.default_rng(0).integers(97, 103, (8, 12), np.uint8),
    "target": np.linspace(0, 1, 8, dtype=np.float32),
    "mask": np.ones(8, bool),
}
PARAMS = {
    "block": {"kernel": jnp.full((2, 3), 2.0), "scale": jnp.full(3, 2.0)},
    "stacked": {"kernel": jnp.full((4, 3, 3), 2.0)},
}
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)


def update(optimizer, grads, params=PARAMS, steps=10, times=1):
    """The last of some updates with the same gradients, and the state after it."""
    built = optimizer.build(steps)

    @jax.jit
    def run(grads, params):
        state = built.init(params)
        for _ in range(times):
            updates, state = built.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return updates, state, params

    return run(grads, params)


def rates(schedule, steps):
    return [float(schedule.build(steps)(step)) for step in range(steps + 1)]


def test_a_warm_up_rises_in_a_line_to_the_peak():
    assert rates(ConstantRate(peak=8.0, warmup=4), 6) == [0, 2, 4, 6, 8, 8, 8]
    assert rates(ConstantRate(peak=8.0), 2) == [8, 8, 8]


def test_a_cosine_falls_from_the_peak_to_its_floor():
    expected = [0, 0.5, 1, 0.1 + 0.9 * (1 + 2**-0.5) / 2, 0.55, 0.1 + 0.9 * (1 - 2**-0.5) / 2, 0.1]
    np.testing.assert_allclose(rates(CosineDecay(peak=1.0, warmup=2, floor=0.1), 6), expected, rtol=1e-6)


def test_a_line_falls_from_the_peak_to_its_floor():
    np.testing.assert_allclose(
        rates(LinearDecay(peak=1.0, warmup=1, floor=0.2), 5), [0, 1, 0.8, 0.6, 0.4, 0.2], rtol=1e-6
    )


def test_wsd_stays_at_the_peak_and_falls_in_the_last_part():
    expected = [0, 0.5, 1, 1, 1, 1, 1, 1, 1, 0.5, 0]
    np.testing.assert_allclose(rates(WSD(peak=1.0, warmup=2, decay=0.25), 10), expected, rtol=1e-6)


def test_the_first_update_uses_the_first_rate_and_a_run_sees_as_many_rates_as_steps():
    # A warm-up from 0: the first update changes nothing, the last but one step of two has half the peak.
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    optimizer = SGD(schedule=ConstantRate(peak=1.0, warmup=2), momentum=0.0, clip=None)
    assert jnp.all(update(optimizer, grads, steps=2)[0]["block"]["scale"] == 0)
    assert jnp.all(update(optimizer, grads, steps=2, times=2)[0]["block"]["scale"] == -0.5)


def test_a_warm_up_may_begin_above_zero_at_a_fraction_of_the_peak():
    assert rates(ConstantRate(peak=8.0, warmup=4, start=0.5), 5) == [4, 5, 6, 7, 8, 8]
    assert rates(ConstantRate(peak=8.0, warmup=2, start=1.0), 3) == [8, 8, 8, 8]


def test_a_horizon_of_its_own_stands_whatever_the_steps_and_the_rate_stays_at_its_end_value_after_it():
    schedules = {
        "cosine": CosineDecay(peak=1.0, floor=0.5, steps=2),
        "line": LinearDecay(peak=1.0, floor=0.5, steps=2),
        "wsd": WSD(peak=1.0, decay=1.0, floor=0.5, steps=2),
    }
    found = {name: rates(schedule, 4) for name, schedule in schedules.items()}
    assert found == {name: [1, 0.75, 0.5, 0.5, 0.5] for name in schedules}
    assert rates(LinearDecay(peak=1.0, steps=4), 2) == [1, 0.75, 0.5]


def test_a_horizon_is_given_to_the_schedules_that_have_none_in_groups_too():
    own, none = LinearDecay(peak=1.0, steps=2), LinearDecay(peak=1.0)
    optimizer = Groups(groups={"head": SGD(schedule=own), "body": SGD(schedule=none), "*": Frozen()})
    assert with_horizon(optimizer, 8) == Groups(
        groups={"head": SGD(schedule=own), "body": SGD(schedule=LinearDecay(peak=1.0, steps=8)), "*": Frozen()}
    )
    assert with_horizon(with_horizon(optimizer, 8), 16) == with_horizon(optimizer, 8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start": 0.1}, "schedule.start: 0.1 is where a warm-up begins, but warmup is 0"),
    ],
)
def test_a_horizon_and_a_first_rate_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        WSD(**fields)


def test_a_warm_up_that_does_not_fit_into_the_horizon_is_refused():
    with pytest.raises(
        ConfigError, match=r"schedule.warmup: 5 steps do not fit in a run of 4, which is the schedule's own"
    ):
        ConstantRate(warmup=5, steps=4).build(10)


def test_a_warm_up_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"schedule\.warmup: 11 steps do not fit in a run of 10"):
        AdamW(schedule=ConstantRate(warmup=11)).build(10)


def test_gradients_are_clipped_by_their_global_norm():
    grads = {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}
    plain = SGD(schedule=ConstantRate(peak=1.0), momentum=0.0, clip=2.5)
    updates, _, _ = update(plain, grads, params=jax.tree.map(jnp.zeros_like, grads))
    np.testing.assert_allclose([updates["a"][0], updates["b"][0, 0]], [-1.5, -2.0], rtol=1e-6)
    for clip in (None, 6.0):
        updates, _, _ = update(SGD(schedule=ConstantRate(peak=1.0), momentum=0.0, clip=clip), grads, params=grads)
        assert (float(updates["a"][0]), float(updates["b"][0, 0])) == (-3, -4)


@pytest.mark.parametrize("kind", [AdamW, SGD, Lion, Muon])
def test_only_kernels_decay_stacked_ones_too_and_by_the_learning_rate(kind):
    updates, _, _ = update(kind(schedule=ConstantRate(peak=0.5), weight_decay=0.1), ZEROS)
    np.testing.assert_allclose(updates["block"]["kernel"], -0.5 * 0.1 * 2.0, rtol=1e-6)
    np.testing.assert_allclose(updates["stacked"]["kernel"], -0.5 * 0.1 * 2.0, rtol=1e-6)
    np.testing.assert_array_equal(updates["block"]["scale"], 0)


def test_other_parameters_decay_if_they_are_named():
    updates, _, _ = update(SGD(schedule=ConstantRate(peak=1.0), weight_decay=0.1, decayed=("scale",)), ZEROS)
    np.testing.assert_allclose(updates["block"]["scale"], -0.2, rtol=1e-6)
    np.testing.assert_array_equal(updates["block"]["kernel"], 0)


def test_a_decayed_name_that_matches_no_parameter_is_refused():
    with pytest.raises(ConfigError, match=r"optimizer.decayed: no parameter is named 'kernal'; known: kernel, scale"):
        AdamW(weight_decay=0.1, decayed=("kernal",)).build(3).init(PARAMS)


def test_adams_first_updates_are_those_computed_by_hand():
    grads = {"kernel": jnp.array([[0.5, -2.0]])}
    params = {"kernel": jnp.array([[1.0, 3.0]])}
    optimizer = AdamW(schedule=ConstantRate(peak=0.1), clip=None, weight_decay=0.01, b1=0.9, b2=0.99, epsilon=0.5)
    # Bias correction makes the first moments those of the gradient itself: g / (|g| + ε), then decay, then the rate.
    expected = [-0.1 * (0.5 / 1.0 + 0.01 * 1.0), -0.1 * (-2.0 / 2.5 + 0.01 * 3.0)]
    np.testing.assert_allclose(update(optimizer, grads, params)[0]["kernel"][0], expected, rtol=1e-6)
    # With the same gradient again the corrected moments stay, only the decayed parameters have moved.
    again = [-0.1 * (0.5 / 1.0 + 0.01 * (1.0 + expected[0])), -0.1 * (-2.0 / 2.5 + 0.01 * (3.0 + expected[1]))]
    np.testing.assert_allclose(update(optimizer, grads, params, times=2)[0]["kernel"][0], again, rtol=1e-5)


def test_momentum_and_signs_are_those_computed_by_hand():
    grads, params = {"x": jnp.array([0.5, -2.0])}, {"x": jnp.zeros(2)}
    sgd = SGD(schedule=ConstantRate(peak=1.0), clip=None, momentum=0.9)
    np.testing.assert_allclose(update(sgd, grads, params, times=2)[0]["x"], [-0.95, 3.8], rtol=1e-6)
    lion = Lion(schedule=ConstantRate(peak=0.1), clip=None)
    np.testing.assert_allclose(update(lion, grads, params)[0]["x"], [-0.1, 0.1], rtol=1e-6)


def test_muons_update_of_every_layer_of_a_stacked_kernel_is_orthogonal():
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.zeros((3, 4, 8)), "scale": jnp.zeros(8)}
    grads = {"kernel": jnp.asarray(rng.normal(size=(3, 4, 8)), jnp.float32), "scale": jnp.full(8, 3.0)}
    optimizer = Muon(schedule=ConstantRate(peak=1.0), clip=None)
    updates, _, _ = update(optimizer, grads, params)
    for layer, grad in zip(updates["kernel"], grads["kernel"], strict=True):
        singular = np.linalg.svd(layer, compute_uv=False) / (0.2 * 8**0.5)
        np.testing.assert_allclose(singular, 1, atol=0.35)  # five Newton–Schulz steps bring them to 0.7…1.2
        u, _, v = np.linalg.svd(grad, full_matrices=False)
        assert np.corrcoef(-(u @ v).ravel(), np.ravel(layer))[0, 1] > 0.95
    alone, _, _ = update(optimizer, jax.tree.map(lambda x: x[1:2], grads), jax.tree.map(lambda x: x[1:2], params))
    np.testing.assert_allclose(alone["kernel"][0], updates["kernel"][1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(updates["scale"], -1, rtol=1e-5)  # Adam's first update


@pytest.mark.parametrize(
    "optimizer",
    [
        AdamW(schedule=ConstantRate(peak=0.05)),
        SGD(schedule=ConstantRate(peak=0.05)),
        Lion(schedule=ConstantRate(peak=0.01)),
        Muon(schedule=ConstantRate(peak=0.05)),
    ],
    ids=lambda optimizer: type(optimizer).__name__,
)
def test_every_optimizer_lowers_a_loss(optimizer):
    built = optimizer.build(20)
    state = init_state(TASK, built, jax.random.key(0), BATCH)
    step = jax.jit(lambda state: train_step(TASK, built, state, BATCH))
    losses = []
    for _ in range(20):
        state, metrics = step(state)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]


def test_the_average_of_parameters_is_that_computed_by_hand():
    grads, params = {"x": jnp.array([1.0])}, {"x": jnp.array([10.0])}
    optimizer = SGD(schedule=ConstantRate(peak=1.0), clip=None, momentum=0.0, ema=0.15)
    # The parameters go 10, 9, 8, 7; the decay is 1/10, then 2/11 and 3/12, but at most 0.15.
    first = 0.1 * 10 + 0.9 * 9
    second = 0.15 * first + 0.85 * 8
    third = 0.15 * second + 0.85 * 7
    for times, expected in ((1, first), (2, second), (3, third)):
        _, state, now = update(optimizer, grads, params, times=times)
        assert float(averaged(now, state)["x"][0]) == pytest.approx(expected, rel=1e-6)
        assert float(now["x"][0]) == 10 - times


def test_without_an_average_the_parameters_are_used():
    _, state, now = update(AdamW(), ZEROS)
    assert averaged(now, state) is now


def test_evaluation_uses_the_average():
    built = SGD(schedule=ConstantRate(peak=0.5), ema=0.9).build(3)
    state = init_state(TASK, built, jax.random.key(0), BATCH)
    step = jax.jit(lambda state: train_step(TASK, built, state, BATCH)[0])
    for _ in range(3):
        state = step(state)
    loss = jax.jit(lambda params: TASK.loss(Variables(params), BATCH, PREDICTION).mean)
    found = float(jax.jit(lambda state: eval_step(TASK, state, BATCH)["loss"])(state))
    assert found == pytest.approx(float(loss(averaged(state.params, state.opt_state))), rel=1e-6)
    assert found != pytest.approx(float(loss(state.params)), rel=1e-3)
