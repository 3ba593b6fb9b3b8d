"""Batch normalisation: the formula, masked rows, running statistics, and the same on every mesh and in microbatches."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_layouts import FAST

from jaxtrain import Experiment, Layout, Program, eval_step, init_state, train_step
from jaxtrain.data import Arrays, Pipeline
from jaxtrain.models import BatchNorm, ResNet
from jaxtrain.models.variables import Context
from jaxtrain.optimizers import SGD, ConstantRate
from jaxtrain.tasks import Classification

RNG = np.random.default_rng(0)
KEYS = jax.random.split(jax.random.key(0), 6)


def normalised(x: np.ndarray, rows: slice, epsilon: float = 1e-5) -> np.ndarray:
    x = x.astype(np.float64)
    others = tuple(range(x.ndim - 1))
    return (x - x[rows].mean(others)) / np.sqrt(x[rows].var(others) + epsilon)


@pytest.mark.parametrize("offset", [0.0, 1e4], ids=["near 0", "far from 0"])
def test_training_normalises_by_the_rows_that_the_mask_marks(offset: float) -> None:
    x = RNG.normal(3, 2, (6, 4, 4, 5)).astype(np.float32)
    x[4:] = np.nan  # rows that only fill up the batch may hold anything
    mask = np.arange(6) < 4
    norm = BatchNorm(5)
    norm.mean[...] = jnp.full(5, offset)
    out = norm(jnp.asarray(x + np.float32(offset)), Context(jnp.int32(0), KEYS, jnp.asarray(mask)))
    expected = normalised((x + np.float32(offset)), slice(4))
    np.testing.assert_allclose(out[:4], expected[:4], atol=2e-6 if offset == 0 else 1e-5)


def test_running_statistics_move_by_one_minus_momentum_and_are_what_evaluation_uses() -> None:
    x = RNG.normal(3, 2, (6, 5)).astype(np.float32)
    norm = BatchNorm(5, momentum=0.8)
    norm(jnp.asarray(x), Context(jnp.int32(0), KEYS))
    norm.advance(norm.sums[...])
    mean, variance = 0.2 * x.mean(0), 0.8 + 0.2 * x.var(0)
    np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-5)
    np.testing.assert_allclose(norm.variance[...], variance, rtol=1e-5)
    out = norm(jnp.asarray(x), Context())
    np.testing.assert_allclose(out, (x - mean) / np.sqrt(variance + 1e-5), rtol=1e-4, atol=1e-5)


def test_no_rows_leave_running_statistics_as_they_are() -> None:
    norm = BatchNorm(2)
    norm.mean[...] = jnp.array([1.0, 2.0])
    norm.advance(jnp.zeros((3, 2)))
    np.testing.assert_array_equal(norm.mean[...], [1, 2])
    np.testing.assert_array_equal(norm.variance[...], [1, 1])


TASK = Classification(model=ResNet(outputs=3, widths=(8, 16), blocks=1), inputs="image", classes=("a", "b", "c"))
IMAGES = RNG.normal(1, 1, (48, 8, 8, 2)).astype(np.float32)
ROWS = {"image": IMAGES, "label": RNG.integers(0, 3, 48).astype(np.int32)}


def experiment(mesh: Mapping[str, int], microbatches: int = 1) -> Experiment:
    return Experiment(
        task=TASK,
        data=Pipeline(Arrays(ROWS), batch_size=16, shuffle=False, threads=0),
        optimizer=SGD(schedule=ConstantRate(peak=0.05)),
        steps=3,
        layout=Layout(mesh),
        microbatches=microbatches,
    )


def close(one: Any, other: Any, tolerance: float = 2e-5) -> None:
    def each(x: Any, y: Any) -> None:
        x, y = np.asarray(x), np.asarray(y)
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(y).max())))

    jax.tree.map(each, one, other)


@functools.cache
def trained(mesh: tuple[tuple[str, int], ...], microbatches: int = 1, steps: int = 3) -> tuple[list[float], Any, Any]:
    """The losses, the parameters and the running statistics after some steps, in which some rows are masked."""
    program = Program(experiment(dict(mesh), microbatches), jax.devices()[: 8 if mesh else 1])
    start = Program(experiment({}), jax.devices()[:1]).init()
    state = jax.device_put(start, jax.tree.map(lambda leaf: leaf.sharding, program.state))
    step, losses = program.lower().compile(compiler_options=FAST), []
    for number in range(steps):
        rows = {name: x[16 * number : 16 * number + 16] for name, x in ROWS.items()}
        batch = {**rows, "mask": np.arange(16) % 7 != number}
        placed = jax.device_put(batch, program.experiment.layout.batch_sharding(program.mesh, 16))
        state, metrics = step(state, placed)
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params), jax.device_get(state.model_state)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param((("data", 8),), marks=pytest.mark.slow),
        pytest.param((("fsdp", 8),), marks=pytest.mark.slow),
        (("data", 2), ("fsdp", 2), ("tensor", 2)),
    ],
    ids=str,
)
@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_network_with_batch_norm_trains_on_every_mesh_as_on_one_device(mesh: Any, microbatches: int) -> None:
    for one, other in zip(trained(mesh, microbatches), trained((), microbatches), strict=True):
        close(one, other)


@pytest.mark.slow
def test_microbatches_add_up_to_the_statistics_of_the_whole_batch() -> None:
    (_, _, whole), (_, _, parts) = (trained((), count, steps=1) for count in (1, 4))
    # Only the first norm sees inputs that no other norm has changed.
    close(parts["norm"], whole["norm"], 1e-6)
    mask = np.arange(16) % 7 != 0
    stem = np.asarray(trained_stem(), np.float64)[mask]
    np.testing.assert_allclose(whole["norm"]["mean"], 0.1 * stem.mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole["norm"]["variance"], 0.9 + 0.1 * stem.var((0, 1, 2)), rtol=1e-5)


def trained_stem() -> jax.Array:
    """What the first norm is given in the first step."""
    kernel = jax.device_get(Program(experiment({}), jax.devices()[:1]).init().params)["stem"]["kernel"]
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(jnp.asarray(IMAGES[:16]), kernel, (1, 1), "SAME", dimension_numbers=dims)


@pytest.mark.slow
def test_evaluation_uses_running_statistics_so_that_a_row_does_not_depend_on_the_others() -> None:
    optimizer = SGD().build(1)
    batch = {name: x[:8] for name, x in ROWS.items()} | {"mask": np.ones(8, bool)}
    state = jax.jit(lambda: init_state(TASK, optimizer, jax.random.key(0), batch))()
    train = jax.jit(lambda state: train_step(TASK, optimizer, state, batch)[0])
    evaluate = jax.jit(lambda state, batch: eval_step(TASK, state, batch))
    for _ in range(2):
        state = train(state)
    whole = evaluate(state, batch)["loss"]
    alone = [evaluate(state, {name: x[i : i + 1] for name, x in batch.items()})["loss"] for i in range(8)]
    assert float(whole) == pytest.approx(np.mean([float(each) for each in alone]), rel=1e-5)


def test_a_norm_of_flax_is_refused_with_what_to_use() -> None:
    from jaxtrain import ConfigError
    from jaxtrain.models.params import named_variables

    module = nnx.Sequential(nnx.BatchNorm(4, rngs=nnx.Rngs(0)))
    with pytest.raises(ConfigError, match=r"Net: layers/0 is an nnx.BatchNorm.*use jaxtrain.models.BatchNorm\(width\)"):
        named_variables(module, {}, "Net")
