"""Parameter groups, frozen parameters, and parameters of narrow dtypes, by updates computed by hand."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_layouts import FAST

from jaxtrain import ConfigError, Experiment, Layout, Program, init_state, train_step
from jaxtrain.analysis.explain import explain
from jaxtrain.data import Arrays, Pipeline
from jaxtrain.models import Blocks, Transformer
from jaxtrain.optimizers import SGD, AdamW, ConstantRate, Frozen, Groups, LinearDecay, Optimizer, averaged
from jaxtrain.optimizers.state import MasterState, master_weights
from jaxtrain.sharding.layout import named_leaves, path_name
from jaxtrain.tasks import LanguageModel

TASK = LanguageModel(model=Transformer(vocab=32, tied=False, blocks=Blocks(width=16, layers=2, heads=2, mlp=16)))
TOKENS = np.random.default_rng(0).integers(0, 32, (8, 9)).astype(np.int32)
BATCH = {"tokens": TOKENS, "mask": np.ones(8, bool)}


def sgd(rate: float, **changes: Any) -> SGD:
    return SGD(schedule=ConstantRate(peak=rate), momentum=0.0, clip=None, **changes)


def paths(tree: Any) -> set[str]:
    return {path_name(path) for path, _ in named_leaves(tree)}


def experiment(optimizer: Optimizer, mesh: Mapping[str, int] | None = None) -> Experiment:
    data = Pipeline(Arrays({"tokens": TOKENS}), batch_size=8, shuffle=False, threads=0)
    return Experiment(task=TASK, data=data, optimizer=optimizer, steps=4, layout=Layout(mesh or {}))


def run(program: Program, steps: int = 3) -> tuple[Any, Any]:
    state = program.init()
    step, batches = program.lower().compile(compiler_options=FAST), program.batches(program.experiment.data)
    first = jax.device_get((state.params, state.frozen))
    for _ in range(steps):
        state, _ = step(state, next(batches))
    batches.close()
    return first, state


def close_trees(one: Any, other: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5), one, other)


@pytest.mark.slow
def test_every_group_moves_by_its_own_rate_and_a_frozen_one_not_at_all() -> None:
    groups = Groups(groups={"head/*": sgd(0.5), "embedding/*": Frozen(), "*": sgd(0.25)})
    program = Program(experiment(groups), jax.devices()[:1])
    before, state = run(program, steps=1)
    plain = Program(experiment(sgd(1.0)), jax.devices()[:1])
    whole, other = run(plain, steps=1)
    # A step of rate 1 goes by the whole gradient.
    gradient = jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), whole[0], jax.device_get(other.params))
    params = jax.device_get(state.params)
    assert paths(state.frozen) == {"embedding/table"}
    assert "embedding" not in params
    np.testing.assert_array_equal(state.frozen["embedding"]["table"], whole[0]["embedding"]["table"])
    for path, rate in (("head", 0.5), ("blocks", 0.25), ("norm", 0.25)):
        jax.tree.map(
            lambda new, old, grad, rate=rate: np.testing.assert_allclose(new, old - rate * grad, rtol=1e-5, atol=1e-7),
            params[path],
            before[0][path],
            gradient[path],
        )


def test_a_frozen_group_costs_neither_optimizer_memory_nor_a_gradient() -> None:
    groups = Groups(groups={"head/*": AdamW(), "*": Frozen()})
    program = Program(experiment(groups), jax.devices()[:1])
    assert paths(program.state.params) == {"head/kernel"}
    held = sum(leaf.size for leaf in jax.tree.leaves(program.state.opt_state) if leaf.ndim)
    assert held == 2 * 16 * 32
    shown = explain(program.experiment, 1)
    assert "frozen parameters" in shown
    assert re.search(r"^parameters +512 +2\.0+ KiB|^parameters +512 +2 KiB", shown, re.M), shown
    assert re.search(r"^optimizer state +1,02[0-9] ", shown, re.M), shown  # two moments, and the count of updates
    text = program.lower().as_text()
    without = Program(experiment(AdamW()), jax.devices()[:1]).lower().as_text()
    assert text.count("dot_general") < without.count("dot_general")


def test_a_notebook_freezes_by_one_argument() -> None:
    optimizer = optax.sgd(0.1)
    state = init_state(TASK, optimizer, jax.random.key(0), BATCH, frozen=["blocks/*", "norm/*"])
    assert paths(state.params) == {"embedding/table", "head/kernel"}
    after, _ = jax.jit(lambda state: train_step(TASK, optimizer, state, BATCH))(state)
    jax.tree.map(np.testing.assert_array_equal, after.frozen, state.frozen)
    assert not np.array_equal(after.params["head"]["kernel"], state.params["head"]["kernel"])
    with pytest.raises(ConfigError, match=r"frozen: no parameter matches 'hed/\*'; did you mean"):
        init_state(TASK, optimizer, jax.random.key(0), BATCH, frozen=["hed/*"])


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ({"hed/*": AdamW(), "*": Frozen()}, "optimizer.groups: 'hed/*' gets no parameter; did you mean"),
        ({"*": AdamW(), "head/*": Frozen()}, "'head/*' gets no parameter: those it matches are of groups before it"),
        ({"head/*": AdamW()}, "optimizer.groups: no pattern matches the parameter "),
        ({"*": Frozen()}, "optimizer.groups: all groups are Frozen(): nothing is left to train"),
    ],
)
def test_groups_that_do_not_part_the_parameters_are_refused(groups: Mapping[str, Optimizer], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        Program(experiment(Groups(groups=groups)), jax.devices()[:1])
    assert says in str(error.value)


def test_frozen_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Frozen\(\) trains nothing"):
        Program(experiment(Frozen()), jax.devices()[:1])


def test_the_rates_of_all_groups_are_logged_with_their_patterns() -> None:
    optimizer = Groups(
        groups={
            "head/*": AdamW(schedule=ConstantRate(peak=0.5)),
            "embedding/*": Frozen(),
            "*": SGD(schedule=LinearDecay(peak=1.0)),
        }
    )
    rates = {name: float(np.asarray(rate(2))) for name, rate in optimizer.rates(4).items()}
    assert rates == {"learning_rate/head/*": 0.5, "learning_rate/*": 0.5}


@pytest.mark.slow
def test_each_group_has_its_own_average_and_evaluation_uses_those_there_are() -> None:
    groups = Groups(groups={"head/*": sgd(0.5, ema=0.9), "*": sgd(0.25)})
    before, state = run(Program(experiment(groups), jax.devices()[:1]), steps=1)
    mixed = jax.device_get(averaged(state.params, state.opt_state))
    now = jax.device_get(state.params)
    weight = 1 / 10  # of the first update, by (1 + n) / (10 + n) with n = 0
    old = before[0]["head"]["kernel"]
    np.testing.assert_allclose(mixed["head"]["kernel"], weight * old + (1 - weight) * now["head"]["kernel"], rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, mixed["blocks"], now["blocks"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [{"fsdp": 8}, pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, marks=pytest.mark.slow)],
    ids=str,
)
def test_groups_train_on_a_mesh_as_on_one_device(mesh: Mapping[str, int]) -> None:
    groups = Groups(groups={"head/*": AdamW(ema=0.9), "embedding/*": Frozen(), "*": sgd(0.1)})
    _, alone = run(Program(experiment(groups), jax.devices()[:1]))
    _, split = run(Program(experiment(groups, mesh), jax.devices()))
    close_trees(*jax.device_get(((split.params, split.frozen), (alone.params, alone.frozen))))


# Parameters of narrow dtypes.


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_bf16_parameters_move_by_updates_smaller_than_their_rounding(kind: str) -> None:
    params = {"kernel": jnp.ones(4, jnp.bfloat16), "scale": jnp.ones(2, jnp.float32)}
    optimizer = master_weights(optax.sgd(1e-4) if kind == "sgd" else optax.adam(1e-4))
    state = optimizer.init(params)
    grads = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, jnp.float32), params)
    update = jax.jit(optimizer.update)
    apply: Any = optax.apply_updates
    for _ in range(200):
        updates, state = update(grads, state, params)
        params = apply(params, updates)
    # 1 - 200 · 1e-4: of a gradient of 1 Adam makes steps of the learning rate too.
    assert isinstance(state, MasterState)
    np.testing.assert_allclose(state.master["kernel"], 0.98, rtol=1e-5)
    assert isinstance(state.master["scale"], optax.MaskedNode)  # wide enough by itself
    np.testing.assert_allclose(params["scale"], 0.98, rtol=1e-5)
    np.testing.assert_array_equal(params["kernel"], jnp.full(4, 0.98, jnp.bfloat16))
    assert params["kernel"].dtype == jnp.bfloat16


def test_moments_of_bf16_parameters_are_those_of_f32() -> None:
    params, grads = {"kernel": jnp.ones(3, jnp.bfloat16)}, {"kernel": jnp.array([1.0, 2.0, 1e-3], jnp.bfloat16)}
    optimizer = master_weights(optax.adam(1e-3, b2=0.999))
    state = optimizer.init(params)
    for _ in range(3):
        _, state = optimizer.update(grads, state, params)
    wide = np.asarray(grads["kernel"], np.float64)
    moments = optax.tree.get(state, "nu")["kernel"]
    np.testing.assert_allclose(moments, np.square(wide) * (1 - 0.999**3), rtol=1e-5)
