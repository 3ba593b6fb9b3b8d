"""What a compiled step promises and no number shows: what it donates, where the optimizer's state lies, what is logged."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_explain
import tiny
from flax import nnx
from jax.sharding import PartitionSpec as P

from jaxtrain import ZERO1, Experiment, Layout, Program, eval_step, init_state, predict_step, train_step
from jaxtrain.data import Arrays, Pipeline
from jaxtrain.experiment.validate import replicated_leaves
from jaxtrain.models import Model
from jaxtrain.models.variables import Context
from jaxtrain.optimizers import SGD, AdamW, ConstantRate, Muon, Optimizer, Standard, averaged
from jaxtrain.sharding.layout import plain
from jaxtrain.tasks import Regression
from jaxtrain.train import train


def first_batch(program: Program) -> Mapping[str, jax.Array]:
    batches = program.batches(program.experiment.data)
    batch = next(batches)
    batches.close()
    return batch


@pytest.mark.parametrize(("layout", "devices"), [(Layout(), 1), (Layout({"fsdp": 2}), 2)], ids=["one device", "fsdp"])
@pytest.mark.slow
def test_a_step_gives_the_memory_of_every_leaf_of_the_old_state_back(layout, devices):
    program = Program(replace(tiny.main(), layout=layout), jax.devices()[:devices])
    state, batch = program.init(), first_batch(program)
    after, _ = program.step(state, batch)
    kept = [path for path, leaf in jax.tree_util.tree_leaves_with_path(state) if not leaf.is_deleted()]
    assert kept == []
    assert not any(leaf.is_deleted() for leaf in (*jax.tree.leaves(after), *batch.values()))


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_evaluating_and_predicting_leave_the_state_and_the_batch_as_they_are(verb):
    program = Program(tiny.main(), jax.devices()[:1])
    state, batch = program.init(), first_batch(program)
    for _ in range(2):
        getattr(program, verb)(state, batch)
    assert not any(leaf.is_deleted() for leaf in (*jax.tree.leaves(state), *batch.values()))


@dataclass(frozen=True, kw_only=True)
class Built(Standard):
    """An optimizer around any transformation."""

    make: Callable[[], optax.GradientTransformation]

    def scale(self) -> optax.GradientTransformation:
        return self.make()


@dataclass(frozen=True, kw_only=True)
class Factored(Standard):
    """Adafactor's second moments: of a matrix only the means of its rows and of its columns."""

    def scale(self) -> optax.GradientTransformation:
        return optax.scale_by_factored_rms(min_dim_size_to_factor=32)


def history() -> optax.GradientTransformation:
    """Something that is kept for no single parameter."""
    return optax.GradientTransformation(
        lambda params: jnp.zeros(1024), lambda updates, state, params=None: (updates, state)
    )


def kernels() -> optax.GradientTransformation:
    """Adam for kernels alone."""
    return optax.masked(optax.scale_by_adam(), lambda tree: jax.tree_util.tree_map_with_path(is_kernel, tree))


def is_kernel(path: Any, leaf: Any) -> bool:
    return jax.tree_util.keystr(path).endswith("['kernel']")


def with_optimizer(optimizer: Optimizer, layout: Layout) -> Experiment:
    one = tiny.main()
    model = replace(one.task.model, vocab=1024)
    return replace(one, task=replace(one.task, model=model), optimizer=optimizer, layout=layout)


def specs(experiment: Experiment, devices: int, ending: str) -> list[P]:
    """The partition specs of what the optimizer keeps under paths with this ending."""
    leaves = jax.tree_util.tree_leaves_with_path(Program(experiment, jax.devices()[:devices]).state.opt_state)
    named = [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]
    return [leaf.sharding.spec for path, leaf in named if path.endswith(ending)]


@pytest.mark.parametrize(
    ("optimizer", "of_kernel", "of_table"),
    [
        (AdamW(weight_decay=0.1), 2, 2),  # both moments
        (AdamW(ema=0.9), 3, 3),
        (SGD(ema=0.9, clip=None), 2, 2),
        (Muon(ema=0.9, weight_decay=0.1), 2, 3),  # of kernels one momentum, of the rest Adam's two moments
        (Built(make=kernels), 2, 0),
        (Built(make=lambda: optax.chain(optax.trace(0.0), Muon(ema=0.9).build(3))), 3, 4),
    ],
    ids=["AdamW", "AdamW and average", "SGD", "Muon", "masked", "chain of chains"],
)
@pytest.mark.slow
def test_what_is_kept_for_a_parameter_lies_as_it_does_through_chains_masks_and_partitions(
    optimizer, of_kernel, of_table
):
    experiment = with_optimizer(optimizer, Layout({"fsdp": 2, "tensor": 2}))
    assert specs(experiment, 4, "gate/kernel") == of_kernel * [P(None, "fsdp", "tensor")]
    assert specs(experiment, 4, "down/kernel") == of_kernel * [P(None, "tensor", "fsdp")]
    assert specs(experiment, 4, "embedding/table") == of_table * [P("tensor", "fsdp")]
    assert set(specs(experiment, 4, "count")) == {P()}


@pytest.mark.slow
def test_a_factored_optimizer_trains_and_of_its_state_only_what_has_a_parameters_shape_is_split():
    experiment = with_optimizer(Factored(), Layout({"fsdp": 2}))
    assert specs(experiment, 2, "v_row/embedding/table") == specs(experiment, 2, "v_col/embedding/table") == [P()]
    # The norms of two layers of width 32 are not factored, and no rule splits them.
    assert specs(experiment, 2, "v/blocks/block/norm_mlp/scale") == [P(None, None)]
    program = Program(experiment, jax.devices()[:2])
    state = program.init()
    for _ in range(2):
        state, metrics = program.step(state, first_batch(program))
    assert np.isfinite(float(metrics["loss"]))


@pytest.mark.parametrize(
    ("optimizer", "layout", "found"),
    [
        # Of the table f32[1024, 32] the means of rows are f32[1024]; those of columns, and of the blocks' kernels
        # f32[2, 32, 64], are too small to count.
        (Factored(), Layout({"fsdp": 2}), {"opt_state/1/v_col/embedding/table": 4096}),
        (Factored(), Layout({"data": 2}, optimizer_rules=ZERO1), {"opt_state/1/v_col/embedding/table": 4096}),
        (Factored(), Layout({"data": 2}), {}),  # here the parameters are whole as well
        (AdamW(), Layout({"fsdp": 2}), {}),
        (Built(make=history), Layout({"fsdp": 2}), {"opt_state/1": 4096}),
        (Built(make=history), Layout({"data": 2}), {}),
    ],
    ids=["factored", "factored, ZeRO", "factored, whole", "Adam", "for no parameter", "for no parameter, whole"],
)
def test_what_is_replicated_although_its_parameter_is_split_is_named_with_its_bytes(optimizer, layout, found):
    experiment = with_optimizer(optimizer, layout)
    assert replicated_leaves(experiment, Program(experiment, jax.devices()[:2]).state) == found


@pytest.mark.slow
def test_a_run_and_its_explanation_say_what_is_replicated_although_its_parameter_is_split(tmp_path: Path):
    experiment = replace(with_optimizer(Factored(), Layout({"fsdp": 8})), steps=1)
    train(experiment, tmp_path / "run")
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    said = [{name: event[name] for name in ("leaves", "bytes")} for event in events if event["kind"] == "replicated"]
    assert said == [{"leaves": ["opt_state/1/v_col/embedding/table"], "bytes": 4096}]
    explained = test_explain.explain(experiment, 8)
    assert "\n  opt_state/1/v_col/embedding/table  4 KiB\n" in explained
    assert "opt_state" not in test_explain.explain(replace(experiment, optimizer=AdamW()), 8)


@dataclass(frozen=True)
class Line(Model):
    """f32[B, F] to f32[B, 1]: one weight a feature."""

    dtype: str = "float32"

    def build(self, rngs: nnx.Rngs, inputs: Any) -> nnx.Module:
        return LineModule(rngs, inputs.shape[-1], self.dtype)


class LineModule(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, features: int, dtype: str):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (features, 1), dtype), axes=(None, "outputs"))

    def __call__(self, x_BF: jax.Array, context: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        return x_BF @ self.kernel[...], {}


TASK = Regression(model=Line(), inputs="x")
RNG = np.random.default_rng(0)
X, TARGET = RNG.normal(size=(16, 3)).astype(np.float32), RNG.normal(size=16).astype(np.float32)


def kernel(state: Any) -> np.ndarray:
    return np.asarray(state.params["kernel"], np.float64)[:, 0]


def gradient_norm(kernel_F: np.ndarray, x_BF: np.ndarray, target_B: np.ndarray) -> float:
    """The norm of the mean over rows of the gradient of (x·k - t)²."""
    error_B = x_BF.astype(np.float64) @ kernel_F - target_B
    return float(np.linalg.norm(2 * x_BF.T.astype(np.float64) @ error_B / len(error_B)))


def test_the_logged_norm_is_that_of_the_mean_gradient_over_rows_that_count_before_it_is_clipped():
    mask = np.arange(16) % 3 > 0
    batch = {"x": np.where(mask[:, None], X, 1e6), "target": TARGET, "mask": mask}
    optimizer = SGD(schedule=ConstantRate(peak=1.0), clip=1e-3, momentum=0.0).build(1)
    state = init_state(TASK, optimizer, jax.random.key(0), batch)
    after, metrics = train_step(TASK, optimizer, state, batch)
    expected = gradient_norm(kernel(state), X[mask], TARGET[mask])
    assert float(metrics["gradient_norm"]) == pytest.approx(expected, rel=1e-5)
    assert np.linalg.norm(kernel(after) - kernel(state)) == pytest.approx(1e-3, rel=1e-3)  # it was clipped
    assert expected > 1


@pytest.mark.parametrize(
    ("mesh", "microbatches"), [({}, 4), ({"data": 2}, 2), ({"data": 4}, 1)], ids=lambda value: str(value)
)
def test_microbatches_and_meshes_log_the_norm_of_the_mean_gradient_too(mesh, microbatches):
    experiment = Experiment(
        task=TASK,
        data=Pipeline(Arrays({"x": X, "target": TARGET}), batch_size=16, threads=0),
        optimizer=SGD(),
        steps=1,
        layout=Layout(mesh),
        microbatches=microbatches,
    )
    program = Program(experiment, jax.devices()[: max([*mesh.values(), 1])])
    state = program.init()
    expected = gradient_norm(kernel(state), X, TARGET)
    _, metrics = program.step(state, first_batch(program))
    assert float(metrics["gradient_norm"]) == pytest.approx(expected, rel=1e-5)


def test_evaluation_and_predictions_use_the_average_of_parameters_as_averaged_by_hand():
    batch = {"x": X, "target": TARGET, "mask": np.ones(16, bool)}
    optimizer = SGD(schedule=ConstantRate(peak=0.1), clip=None, ema=0.15).build(3)
    state = init_state(TASK, optimizer, jax.random.key(0), batch)
    average = kernel(state)
    for decay in (0.1, 0.15, 0.15):  # (1 + n) / (10 + n), at most 0.15
        state, _ = train_step(TASK, optimizer, state, batch)
        average = decay * average + (1 - decay) * kernel(state)
    values = predict_step(TASK, state, {"x": X})["values"][:, 0]
    np.testing.assert_allclose(values, X @ average, rtol=1e-5)
    loss = float(eval_step(TASK, state, batch)["loss"])
    assert loss == pytest.approx(np.square(X @ average - TARGET).mean(), rel=1e-5)
    assert np.abs(values - X @ kernel(state)).max() > 1e-2
    assert loss != pytest.approx(np.square(X @ kernel(state) - TARGET).mean(), rel=1e-3)


class Foreign(NamedTuple):
    """The state of somebody's transformation, which has nothing to do with the average of parameters."""

    average: Any


def test_a_foreign_state_with_a_field_named_average_is_not_evaluated():
    foreign = optax.GradientTransformation(
        lambda params: Foreign(jax.tree.map(jnp.zeros_like, params)),
        lambda updates, state, params=None: (updates, state),
    )
    batch = {"x": X, "target": TARGET, "mask": np.ones(16, bool)}
    for ema in (None, 0.5):
        optimizer = optax.chain(foreign, SGD(schedule=ConstantRate(peak=0.1), ema=ema).build(1))
        state, _ = train_step(TASK, optimizer, init_state(TASK, optimizer, jax.random.key(0), batch), batch)
        values = predict_step(TASK, state, {"x": X})["values"][:, 0]
        used = kernel(state) if ema is None else np.asarray(averaged(state.params, state.opt_state)["kernel"])[:, 0]
        np.testing.assert_allclose(values, X @ used, rtol=1e-5)
        assert np.abs(values).max() > 0.1


@pytest.mark.parametrize("seed", [0, 7])
def test_the_seed_of_an_experiment_is_split_into_a_key_for_parameters_and_one_for_steps(seed):
    experiment = replace(tiny.main(), seed=seed)
    state, example = Program(experiment, jax.devices()[:1]).init(), experiment.data.example()
    for_params, for_steps = jax.random.split(jax.random.key(seed))
    assert jnp.array_equal(jax.random.key_data(state.key), jax.random.key_data(for_steps))
    expected = jax.tree.leaves(plain(experiment.task.init(for_params, example).params))
    for found, one in zip(jax.tree.leaves(state.params), expected, strict=True):
        np.testing.assert_allclose(found, one, rtol=1e-6)
