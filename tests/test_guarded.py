"""Guards around optimizers: what they skip changes nothing, and what they let through is as without them."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from test_batch_norm import TASK as NORMALISED

from jaxtrain import ConfigError, Layout, Program, init_state, train_step
from jaxtrain.optimizers import (
    SGD,
    AdamW,
    ConstantRate,
    Frozen,
    Groups,
    Guarded,
    Optimizer,
    Policy,
    Rewind,
    Skip,
    SkipAndShrink,
    SkipSpikes,
    averaged,
)

PARAMS = {"w": jnp.asarray([1.0, -0.0, 3.0])}
POLICIES = (Skip(), SkipAndShrink(factor=0.3), SkipSpikes(), Rewind())
ADAM = AdamW(schedule=ConstantRate(peak=0.1), weight_decay=0.1, decayed=("w",), ema=0.9)


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(jax.device_get(tree))]


def steps(optimizer: Optimizer, losses: list[float], grads: list[float], params: Any = PARAMS) -> tuple[Any, Any]:
    """Parameters and optimizer state after these steps, whose gradients have one number everywhere."""
    built = optimizer.transformation(100, params)
    update, state = optax.with_extra_args_support(built).update, built.init(params)
    for loss, grad in zip(losses, grads, strict=True):
        gradient = jax.tree.map(lambda x, grad=grad: jnp.full(x.shape, grad), params)
        updates, state = update(gradient, state, params, value=jnp.float32(loss))
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_guard_lets_through_is_as_without_it_to_the_last_bit(policy: Policy, dtype: str) -> None:
    params = {"w": PARAMS["w"].astype(dtype)}
    losses, grads = [3.0, 2.0, 1.0], [0.5, -0.3, 0.2]
    after, state = steps(Guarded(ADAM, policy), losses, grads, params)
    expected, inner = steps(ADAM, losses, grads, params)
    assert bits((after, state.inner)) == bits((expected, inner))


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
@pytest.mark.parametrize(
    ("loss", "grad"), [(np.nan, 0.1), (np.inf, 0.1), (1.0, np.nan), (1.0, -np.inf), (-np.inf, np.nan)]
)
def test_a_step_that_is_not_finite_changes_no_bit_of_parameters_moments_and_average(
    policy: Policy, loss: float, grad: float
) -> None:
    before, kept = steps(Guarded(ADAM, policy), [3.0], [0.5])
    after, state = steps(Guarded(ADAM, policy), [3.0, loss], [0.5, grad])
    assert bool(state.skipped)
    assert not bool(kept.skipped)
    assert bits((after, state.inner)) == bits((before, kept.inner))


@dataclass(frozen=True, kw_only=True)
class Own(Optimizer):
    """A user's own transformation, without extra arguments; its updates are its gradients."""

    scale: float = -1.0

    def build(self, steps: int) -> optax.GradientTransformation:
        return optax.GradientTransformation(
            lambda params: (), lambda updates, state, params=None: (self.scaled(updates), state)
        )

    def scaled(self, updates: Any) -> Any:
        return jax.tree.map(lambda x: self.scale * x, updates)


def test_an_update_that_overflows_is_skipped_though_loss_and_gradient_are_finite() -> None:
    params, state = steps(Guarded(Own(scale=-1e30)), [1.0], [1e10])
    assert bool(state.skipped)
    assert bits(params) == bits(PARAMS)


def test_a_shrunk_rate_recovers_by_the_rule_written_out() -> None:
    losses = [1.0, np.nan, 1.0, 1.0, np.nan, np.nan, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    policy = SkipAndShrink(factor=0.5, recover_after=2)
    params, state = steps(Guarded(Own(), policy), losses, [1.0] * len(losses))
    #        1         1/2   1/2   then 1; two NaN: 1/4   1/4   1/2   1/2   1   1
    moved = 1 + 0 + 0.5 + 0.5 + 0 + 0 + 0.25 + 0.25 + 0.5 + 0.5 + 1 + 1
    np.testing.assert_array_equal(params["w"], PARAMS["w"] - moved)
    assert float(state.arguments["rate_scale"]) == 1.0


def test_the_average_follows_the_parameters_that_a_shrunk_rate_leads_to() -> None:
    sgd = SGD(schedule=ConstantRate(peak=1.0), momentum=0.0, clip=None, ema=0.5)
    params, state = steps(Guarded(sgd, SkipAndShrink()), [np.nan, 1.0], [1.0, 1.0])
    np.testing.assert_allclose(params["w"], PARAMS["w"] - 0.5)
    np.testing.assert_allclose(averaged(params, state)["w"], 0.1 * PARAMS["w"] + 0.9 * (PARAMS["w"] - 0.5), rtol=1e-6)


def test_spikes_are_those_of_a_loop_in_numpy_and_are_not_in_the_statistic() -> None:
    rng = np.random.default_rng(0)
    losses = np.abs(rng.normal(2.0, 0.3, 200)).astype(np.float32)
    losses[[5, 30, 120, 199]] = [9.0, 9.0, 30.0, 30.0]
    policy = SkipSpikes(threshold=4.0, decay=0.9, warmup=10)
    seen: list[float] = []
    expected, found = [], []
    account = policy.begin()
    for step, loss in enumerate(losses):
        # The mean and variance of all losses so far, each of which weighs as the recursion says: from the weights.
        weights = np.ones(0)
        for count in range(1, len(seen) + 1):
            new = max(1 - 0.9, 1 / count)
            weights = np.append(weights * (1 - new), new)
        mean = (weights * seen).sum() if seen else 0.0
        deviation = np.sqrt((weights * (np.array(seen) - mean) ** 2).sum()) if seen else 0.0
        spike = len(seen) >= 10 and loss > mean + 4.0 * deviation
        skipped = policy.spike(account, jnp.float32(loss))
        account = policy.counted(account, jnp.float32(loss), skipped)
        expected += [step] if spike else []
        found += [step] if skipped else []
        seen += [] if spike else [float(loss)]
    assert found == expected
    assert {30, 120, 199} <= set(found)
    assert 5 not in found  # of the warm-up
    np.testing.assert_allclose(float(account["mean"]), mean, rtol=1e-5)  # the last loss is a spike


CASES = [({}, 1), ({"data": 2}, 2), ({"fsdp": 2}, 1), ({"tensor": 2}, 1), ({"data": 2, "fsdp": 2}, 2)]


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "microbatches"), CASES, ids=str)
def test_on_every_mesh_a_skipped_batch_is_as_a_batch_without_rows(mesh: dict[str, int], microbatches: int) -> None:
    """`threshold` is so low that some step is a spike; in the second run the mask of its batch is False everywhere.

    The loss is also that of a run without a guard, but for the rounding of another program.
    """
    plain = replace(tiny.main(), evals={}, layout=Layout(mesh), microbatches=microbatches)
    guarded = replace(plain, optimizer=Guarded(plain.optimizer, SkipSpikes(threshold=1e-6, warmup=1)))
    devices = jax.devices()[: int(np.prod([*mesh.values(), 1]))]
    one, two = Program(guarded, devices), Program(plain, devices)
    state, masked, other = one.init(), one.init(), two.init()
    rows = plain.layout.batch_sharding(one.mesh, plain.data.batch_size)
    skips = []
    for step in range(4):
        batch: Any = dict(plain.data.steps()[step])
        state, metrics = one.step(state, jax.device_put(batch, rows))
        skips.append(bool(float(metrics["skipped"])))
        batch["mask"] = batch["mask"] & (not skips[-1])
        masked, _ = one.step(masked, jax.device_put(batch, rows))
        other, expected = two.step(other, jax.device_put(batch, rows))
        if not skips[-1]:
            assert float(metrics["loss"]) == pytest.approx(float(expected["loss"]), rel=2e-5)
    assert any(skips)
    assert not all(skips)
    parts = [(each.params, each.opt_state.inner, each.step) for each in (state, masked)]
    assert bits(parts[0]) == bits(parts[1])
    states = (one.state.opt_state.inner, two.state.opt_state)
    specs = [jax.tree.map(lambda leaf: leaf.sharding.spec, each) for each in states]
    assert specs[0] == specs[1]


def test_batch_statistics_are_those_before_a_skipped_batch() -> None:
    image = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32)
    image[3, 2, 1, 0] = np.nan
    batch = {"image": image, "label": np.zeros(8, np.int32), "mask": np.ones(8, bool)}
    optimizer = Guarded(SGD()).build(10)
    state = init_state(NORMALISED, optimizer, jax.random.key(0), batch)
    after, metrics = jax.jit(lambda state: train_step(NORMALISED, optimizer, state, batch))(state)
    assert jax.tree.leaves(state.model_state)
    assert float(metrics["skipped"]) == 1
    assert bits(after.model_state) == bits(state.model_state)
    assert bits(after.params) == bits(state.params)
    assert int(after.step) == 1


def test_groups_and_frozen_parameters_work_inside_a_guard_and_guards_are_refused_in_groups() -> None:
    inner = Groups(groups={"a": AdamW(), "b": Frozen(), "*": SGD()})
    guarded = Guarded(inner)
    assert guarded.frozen(["a", "b", "c"]) == ["b"]
    assert set(guarded.rates(10)) == {"learning_rate/a", "learning_rate/*"}
    with pytest.raises(ConfigError, match="'\\*' is Guarded: a guard judges whole steps"):
        Groups(groups={"*": Guarded(AdamW())})
    with pytest.raises(ConfigError, match="is Guarded itself"):
        Guarded(Guarded(AdamW()))
    with pytest.raises(ConfigError, match="give Skip"):
        Rewind(when=SkipAndShrink())
