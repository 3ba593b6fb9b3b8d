"""A layer scanned over time whose kernels and rows are both split: XLA's gradients, and those of `shard_map_rows`."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtrain import Experiment, Layout, Program
from jaxtrain.analysis.hlo import Collective, collectives
from jaxtrain.analysis.verify import verify
from jaxtrain.data import Arrays, Pipeline
from jaxtrain.models import Model, Precision
from jaxtrain.models.base import Shaped
from jaxtrain.models.layers import Linear
from jaxtrain.models.variables import Context
from jaxtrain.optimizers import SGD, ConstantRate
from jaxtrain.sharding import shard, shard_map_rows
from jaxtrain.tasks import Regression

ALL = {"data": 2, "fsdp": 2, "tensor": 2}
WIDTH, LENGTH = 64, 8

RIGHT = (
    f"jax {jax.__version__} has the gradients of a loop over time right: say so in the docstring of `shard_map_rows` and "
    "in docs/extending.md, and turn this test around"
)

BARE = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding as N, PartitionSpec as P

mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
keys = jax.random.split(jax.random.key(0), 3)
kernels = [jax.random.normal(key, (64, 192)) / 8 for key in keys[:2]]
x = jax.random.normal(keys[2], (64, 8, 64))

def loss(kernels, x):
    def step(h, x):
        (xr, xz, xn), (hr, hz, hn) = jnp.split(x, 3, -1), jnp.split(h @ kernels[1], 3, -1)
        z = jax.nn.sigmoid(xz + hz)
        h = (1 - z) * jnp.tanh(xn + jax.nn.sigmoid(xr + hr) * hn) + z * h
        return h, h
    h, hs = jax.lax.scan(step, jnp.zeros((64, 64)), (x @ kernels[0]).swapaxes(0, 1))
    return jnp.square(jax.lax.scan(step, h, hs @ kernels[0])[1]).sum()

split = N(mesh, P("fsdp", "tensor"))
gradient = jax.jit(jax.grad(loss), out_shardings=[split, split])
many = gradient(jax.device_put(kernels, split), jax.device_put(x, N(mesh, P(("data", "fsdp")))))
for one, other in zip(jax.grad(loss)(kernels, x), many):
    print("off by", float(jnp.linalg.norm(one - jax.device_get(other)) / jnp.linalg.norm(one)))
"""
"""A GRU in bare jax: two passes over time with the same kernels."""


def differences(**environment: str) -> list[float]:
    """How far the gradients of both kernels are off on the mesh, over their norms."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu", **environment}
    done = subprocess.run(
        [sys.executable, "-c", BARE], env={**os.environ, **flags}, capture_output=True, text=True, check=True
    )
    return [float(found) for found in re.findall(r"off by (\S+)", done.stdout)]


@pytest.mark.slow
def test_xla_still_has_wrong_gradients_of_a_loop_over_time_where_kernels_and_rows_are_split():
    found = differences()
    assert len(found) == 2
    if max(found) < 1e-5:
        pytest.fail(RIGHT)
    assert min(found) > 0.1


@pytest.mark.slow
def test_the_partitioner_before_shardy_has_them_right():
    assert max(differences(JAX_USE_SHARDY_PARTITIONER="0")) < 1e-5


class GRUModule(nnx.Module):
    def __init__(self, config: "GRU", rngs: nnx.Rngs, features: int):
        self.inputs = Linear(rngs, (features, 3 * WIDTH), ("embed", "mlp"), Precision())
        self.hidden = Linear(rngs, (WIDTH, 3 * WIDTH), ("embed", "mlp"), Precision())
        self.output = Linear(rngs, (WIDTH, 1), ("embed", None), Precision())
        self.config = config

    def __call__(self, x_BLF: jax.Array, context: Context) -> jax.Array:
        def twice(kernels: tuple[jax.Array, jax.Array], x_BLF: jax.Array) -> jax.Array:
            inputs_FH, hidden_DH = (shard(each, None, None) if self.config.mapped else each for each in kernels)

            def step(h_BD: jax.Array, x_BH: jax.Array) -> tuple[jax.Array, jax.Array]:
                (xr, xz, xn), (hr, hz, hn) = jnp.split(x_BH, 3, -1), jnp.split(h_BD @ hidden_DH, 3, -1)
                z = jax.nn.sigmoid(xz + hz)
                h_BD = (1 - z) * jnp.tanh(xn + jax.nn.sigmoid(xr + hr) * hn) + z * h_BD
                return h_BD, h_BD

            x_LBF = x_BLF.swapaxes(0, 1)
            for _ in range(2):
                _, x_LBF = jax.lax.scan(step, jnp.zeros((len(x_BLF), WIDTH)), x_LBF @ inputs_FH)
            return x_LBF.mean(0)

        run = shard_map_rows if self.config.mapped else lambda function, *given: function(*given)
        return self.output(run(twice, (self.inputs.kernel[...], self.hidden.kernel[...]), x_BLF))


@dataclass(frozen=True, kw_only=True)
class GRU(Model):
    """A GRU, twice over time, from f32[B, L, F] to f32[B, 1]: how a user would write one, with `shard_map_rows` or without it."""

    mapped: bool = True

    def build(self, rngs: nnx.Rngs, inputs: Shaped) -> nnx.Module:
        return GRUModule(self, rngs, inputs.shape[-1])


def experiment(mapped: bool, mesh: Mapping[str, int] = {}) -> Experiment:
    rng = np.random.default_rng(0)
    columns = {
        "x": rng.normal(size=(40, LENGTH, WIDTH)).astype(np.float32),
        "target": rng.normal(size=40).astype(np.float32),
    }
    return Experiment(
        task=Regression(model=GRU(mapped=mapped), inputs="x"),
        data=Pipeline(Arrays(columns), batch_size=8),
        optimizer=SGD(schedule=ConstantRate(peak=0.1)),
        steps=2,
        layout=Layout(mesh),
    )


def sent(mapped: bool) -> list[Collective]:
    """What a step sends on three axes."""
    program = Program(experiment(mapped, ALL))
    return collectives(program.lower().compile().as_text() or "", program.mesh.shape)


def test_a_parameter_of_a_loop_is_gathered_once_before_it_and_its_gradient_summed_once_after_it():
    found = sent(mapped=True)
    assert {one.times for one in found} == {1}  # none in a loop over time
    kernel = WIDTH * 3 * WIDTH * 4
    large = [one for one in found if one.bytes >= kernel // 4]
    # Of both kernels, first the shards of a device over `fsdp`, then these over `tensor`.
    gathers = [("all-gather", ("fsdp",), kernel // 2), ("all-gather", ("tensor",), kernel)] * 2
    sums = [("all-reduce", ("data", "fsdp"), kernel // 2)] * 2
    assert sorted((one.kind, one.axes, one.bytes) for one in large) == sorted(gathers + sums)


@pytest.mark.slow
def test_without_it_xla_sums_in_every_iteration():
    assert LENGTH in {one.times for one in sent(mapped=False) if one.kind == "all-reduce" and "fsdp" in one.axes}


@pytest.mark.slow
def test_a_gru_trains_as_one_device_with_it():
    assert verify(experiment(mapped=True), jax.devices(), [ALL], strict=True)


@pytest.mark.slow
def test_a_gru_without_it_does_not_and_verify_names_the_parameters_and_the_line(capsys):
    passed = verify(experiment(mapped=False), jax.devices(), [ALL])
    said = capsys.readouterr().out
    assert "most in inputs/kernel" in said, RIGHT
    assert not passed
    assert "all-reduce over fsdp of 24 KiB" in said
    assert "jnp.split(h_BD @ hidden_DH, 3, -1)" in said


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [ALL, {"fsdp": 8}], ids=str)
def test_a_gru_with_it_trains_as_one_device_in_microbatches_too(mesh):
    one, other = experiment(mapped=True), replace(experiment(mapped=True, mesh=mesh), microbatches=2)
    if "data" not in mesh:
        one, other = (replace(each, data=replace(each.data, batch_size=16)) for each in (one, other))
    losses = []
    for program in (Program(one, jax.devices()[:1]), Program(other)):
        first = Program(one, jax.devices()[:1]).init()
        state = jax.device_put(first, jax.tree.map(lambda leaf: leaf.sharding, program.state))
        with contextlib.closing(program.batches(one.data)) as batches:
            for _ in range(2):
                state, metrics = program.step(state, next(batches))
                losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses[2:], losses[:2], rtol=2e-5)
    assert losses[0] != losses[1]


def test_without_a_layout_it_is_the_function_itself():
    assert shard_map_rows(lambda params, x: (params["w"], x), {"w": 2}, jnp.arange(3))[0] == 2
