"""A user's own optax transformation: one class with one method."""

import json
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from conftest import FAST

from jaxtrain import ConfigError, Layout, Program, Run
from jaxtrain.optimizers import SGD, Groups, Optimizer, Schedule
from jaxtrain.train import train


@dataclass(frozen=True, kw_only=True)
class Adan(Optimizer):
    rate: float = 1e-2

    def build(self, steps: int) -> optax.GradientTransformation:
        return optax.adan(optax.linear_schedule(self.rate, 0.0, steps))


@dataclass(frozen=True, kw_only=True)
class LineToZero(Optimizer):
    def build(self, steps: int) -> optax.GradientTransformation:
        return optax.sgd(optax.linear_schedule(1.0, 0.0, steps))


OWN = replace(tiny.main(), optimizer=Adan(), steps=4)


def losses(layout: Layout, devices: int) -> tuple[Program, list[float]]:
    program = Program(replace(OWN, layout=layout), jax.devices()[:devices])
    step, state, found = program.lower().compile(compiler_options=FAST), program.init(), []
    rows = layout.batch_sharding(program.mesh, OWN.data.batch_size)
    for _, batch in zip(range(OWN.steps), OWN.data.batches(), strict=False):
        state, metrics = step(state, jax.device_put(dict(batch), rows))
        found.append(float(metrics["loss"]))
    return program, found


@pytest.mark.slow
def test_an_optax_transformation_of_ones_own_trains_fully_sharded_as_on_one_device():
    program, found = losses(Layout({"fsdp": 8}), 8)
    np.testing.assert_allclose(found, losses(Layout(), 1)[1], rtol=2e-5)
    [(_, mu)] = [(path, leaf) for path, leaf in optax.tree.get_all_with_path(program.state.opt_state, "m")]
    specs = [jax.tree.map(lambda leaf: leaf.sharding.spec, tree) for tree in (mu, program.state.params)]
    assert specs[0] == specs[1]


@dataclass(frozen=True, kw_only=True)
class Descent(Optimizer):
    def build(self, steps: int) -> optax.GradientTransformation:
        return optax.sgd(1.0)


@pytest.mark.slow
def test_nothing_is_added_to_the_transformation():
    program = Program(replace(OWN, optimizer=Descent()), jax.devices()[:1])
    before = jax.device_get(program.init().params)
    batch = next(OWN.data.batches())
    state, metrics = program.step(program.init(), jax.device_put(dict(batch), program.mesh.devices.flat[0]))
    moved = [np.linalg.norm(x - y) for x, y in zip(*map(jax.tree.leaves, (state.params, before)), strict=True)]
    assert float(metrics["gradient_norm"]) > 1  # what other optimizers clip at
    assert np.linalg.norm(moved) == pytest.approx(float(metrics["gradient_norm"]), rel=1e-4)


@pytest.mark.slow
def test_a_run_with_it_can_be_saved_and_logs_no_rate_that_it_does_not_know(tmp_path):
    train(replace(OWN, evals={}), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert not any("learning_rate" in line for line in lines)
    assert Run(tmp_path / "run").experiment.optimizer == Adan()


@pytest.mark.slow
def test_it_is_built_for_the_horizon_of_its_run_when_that_is_resumed_with_other_steps(tmp_path):
    experiment = replace(OWN, optimizer=LineToZero(), steps=2, evals={})
    train(experiment, tmp_path / "run")
    run, state = train(replace(experiment, steps=4), tmp_path / "run")
    done = run.restore(2, devices=jax.devices()[:1]).state.params
    # At the horizon the rate is 0: nothing moves after step 2.
    same = [np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (state.params, done)), strict=True)]
    assert all(same)


def test_a_standard_optimizer_logs_its_schedule():
    rate = tiny.main().optimizer.rates(12)["learning_rate"]
    assert [np.asarray(rate(step)).item() for step in (0, 1, 2)] == pytest.approx([0.0, 0.005, 0.01])


@dataclass(frozen=True, kw_only=True)
class Returning(Optimizer):
    """What this function returns."""

    made: Any

    def build(self, steps: int) -> Any:
        return self.made()


class Changing(NamedTuple):
    mean: Any


def growing() -> optax.GradientTransformation:
    def init(params: Any) -> Any:
        return Changing(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return updates, Changing(jax.tree.map(lambda x: x.astype(jnp.float32), state.mean))

    return optax.GradientTransformation(init, update)


def needing(updates: Any, state: Any, params: Any = None, *, hessian: Any, **others: Any) -> Any:
    return updates, state


def flattening(updates: Any, state: Any, params: Any = None) -> Any:
    return jax.tree.leaves(updates), state


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: None, "optimizer: Returning.build returned None, not an optax transformation, such as"),
        (lambda: optax.sgd, "optimizer: Returning.build returned <function sgd at "),
        (
            lambda: optax.stateless_with_tree_map(lambda u, p: jnp.sum(u)),
            "optimizer: the update that Returning returns for blocks/block/attention_out/kernel is float32[], not",
        ),
        (
            growing,
            "optimizer: the state that Returning returns for mean/blocks/block/attention_out/kernel is float32[2, 32, 32]"
            ", not bfloat16[2, 32, 32]",
        ),
        (
            lambda: optax.GradientTransformationExtraArgs(lambda params: (), cast(Any, needing)),
            "optimizer: the update of Returning fails while it is traced: it has to take gradients, state, "
            "parameters and the loss as value= alone (",
        ),
        (
            lambda: optax.GradientTransformation(lambda params: (), flattening),
            "optimizer: the update that Returning returns has another structure than that it is given",
        ),
    ],
    ids=["None", "no call", "scalar updates", "a dtype that changes", "more arguments", "another structure"],
)
def test_what_is_no_optimizer_of_the_parameters_is_named_before_training(made, says):
    with pytest.raises(ConfigError) as error:
        Program(replace(OWN, optimizer=Returning(made=made)), jax.devices()[:1])
    assert str(error.value).startswith(says)


@dataclass(frozen=True, kw_only=True)
class Bent(Schedule):
    """`peak`, and from a step on another rate."""

    bent: float
    at: int = 0

    def after(self, steps: int) -> optax.Schedule:
        return lambda step: jnp.where(jnp.asarray(step) < self.at, self.peak, self.bent)


@pytest.mark.parametrize(("bent", "at"), [(-0.5, 0), (float("nan"), 3), (float("inf"), 1)])
def test_a_schedule_of_ones_own_whose_rate_is_negative_or_not_finite_is_refused(bent, at):
    one = SGD(schedule=Bent(bent=bent, at=at))
    for optimizer, name in ((one, "learning_rate"), (Groups(groups={"*": one}), r"learning_rate/\*")):
        with pytest.raises(
            ConfigError, match=rf"^optimizer: {name} is {bent} at step {at}: a rate is finite and at least 0"
        ):
            Program(replace(OWN, optimizer=optimizer), jax.devices()[:1])
    Program(replace(OWN, optimizer=SGD(schedule=Bent(bent=0.0))), jax.devices()[:1])


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ({}, "optimizer.groups: {} has no patterns: give at least {'*': AdamW()}"),
        ([SGD()], "optimizer.groups: [SGD("),
        (
            {"*": Groups(groups={"*": SGD()})},
            "optimizer.groups: '*' has Groups: write their patterns here, in one Groups",
        ),
        (
            {"*": optax.sgd(0.1)},
            "optimizer.groups: '*' has a GradientTransformationExtraArgs, no Optimizer: for one of optax, subclass",
        ),
    ],
)
def test_groups_of_anything_but_optimizers_are_refused(groups, says):
    with pytest.raises(ConfigError) as error:
        Groups(groups=groups)
    assert str(error.value).startswith(says)
