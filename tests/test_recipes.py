"""The recipes train: on every mesh as on one device, and to what they promise."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from test_layouts import FAST

from jaxtrain import ConfigError, Experiment, Layout, Program, load
from jaxtrain.runs.metrics_log import read_metrics
from jaxtrain.train import train

RECIPES = Path(__file__).resolve().parent.parent / "experiments" / "recipes"
NAMES = ("batch_norm", "contrastive", "gan", "linear", "mean_teacher", "multi_task", "own_metric", "own_optimizer")
NAMES += ("sequence_to_sequence", "vae", "own_observer", "teacher", "fine_tune", "fine_tune:low_rank")
MESHES = ({"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2})


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@functools.cache
def recipe(name: str) -> Experiment:
    """With few rows a batch, drawn parameters, and a model as `verify` would shrink it."""
    file, _, function = name.partition(":")
    experiment, _ = load(f"{RECIPES / file}.py:{function or 'main'}")
    model = experiment.task.model.shrunk(8)
    data = replace(experiment.data, batch_size=16, threads=0)
    task = replace(experiment.task, model=model)
    return replace(experiment, task=task, data=data, steps=300, start=None, evals={}, observers=())


@functools.cache
def trained(name: str, mesh: tuple[tuple[str, int], ...]) -> tuple[list[float], Any]:
    """The losses of three steps, and the parameters after them."""
    experiment = replace(recipe(name), layout=Layout(dict(mesh)))
    program = Program(experiment, jax.devices()[: 8 if mesh else 1])
    start = Program(recipe(name), jax.devices()[:1]).init()
    state = jax.device_put(start, jax.tree.map(lambda leaf: leaf.sharding, program.state))
    step, batches, losses = program.lower().compile(compiler_options=FAST), program.batches(experiment.data), []
    for _ in range(3):
        state, metrics = step(state, next(batches))
        losses.append(float(metrics["loss"]))
    batches.close()
    return losses, jax.device_get((state.params, state.model_state))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mesh"),
    [(name, MESHES[2]) if name in ("contrastive", "gan") else slow(name, MESHES[2]) for name in NAMES]
    + [pytest.param(name, mesh, marks=pytest.mark.full) for name in NAMES for mesh in MESHES[:2]],
)
def test_a_recipe_trains_on_a_mesh_as_on_one_device(name: str, mesh: dict[str, int]) -> None:
    (losses, arrays), (expected, alone) = trained(name, tuple(mesh.items())), trained(name, ())
    np.testing.assert_allclose(losses, expected, rtol=2e-5)

    def close(x: Any, y: Any) -> None:
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5 * max(1.0, float(np.abs(y).max())))

    # The sign of a gradient near 0 is another one on another mesh.
    if name != "own_optimizer":
        jax.tree.map(close, arrays, alone)


@pytest.mark.parametrize(("mesh", "microbatches"), [({}, 2), ({"stage": 2}, 1)], ids=str)
def test_microbatches_and_stages_are_refused_for_a_loss_over_the_whole_batch(mesh: Any, microbatches: int) -> None:
    experiment = replace(recipe("contrastive"), layout=Layout(mesh), microbatches=microbatches)
    with pytest.raises(ConfigError, match="would change the loss of Contrastive, which compares all rows of a batch"):
        Program(experiment, jax.devices()[: 2 if mesh else 1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "metric", "least"),
    [
        ("linear", "accuracy", 0.9),
        ("batch_norm", "accuracy", 0.9),
        ("contrastive", "accuracy", 0.25),  # of 64 images; by chance 0.016
        ("mean_teacher", "accuracy", 0.7),
        ("multi_task", "accuracy", 0.8),
        ("own_metric", "recall/least", 0.7),
        ("own_metric", "surest_half", 0.99),
        ("own_optimizer", "probability", 0.6),
    ],
)
def test_a_recipe_learns(name: str, metric: str, least: float, tmp_path: Path) -> None:
    experiment, _ = load(str(RECIPES / f"{name}.py"))
    run, _ = train(replace(experiment, steps=150), tmp_path / name)
    assert [line for line in read_metrics(run.folder) if line["split"] == "test"][-1][metric] >= least


@pytest.mark.slow
def test_a_variational_autoencoder_learns_and_its_divergence_is_warmed_up(tmp_path: Path) -> None:
    experiment, _ = load(str(RECIPES / "vae.py"))
    run, _ = train(replace(experiment, runtime=replace(experiment.runtime, log_every=1)), tmp_path / "vae")
    lines = [line for line in read_metrics(run.folder) if line["split"] == "train"]
    first, last = lines[0], lines[-1]
    assert first["loss"] == pytest.approx(first["reconstruction"], rel=1e-6)  # step 0: a share of 0
    assert lines[50]["loss"] == pytest.approx(lines[50]["reconstruction"] + 0.5 * lines[50]["divergence"], rel=1e-4)
    assert last["loss"] == pytest.approx(last["reconstruction"] + last["divergence"], rel=1e-4)
    assert last["reconstruction"] < 0.75 * first["reconstruction"]


@pytest.mark.slow
def test_the_losses_of_a_gan_train_their_own_network_alone() -> None:
    experiment = recipe("gan")
    task, batch = experiment.task, experiment.data.example()
    program = Program(experiment, jax.devices()[:1])
    state = program.init()
    batches = program.batches(experiment.data)
    given = next(batches)
    batches.close()

    def gradient(of: Callable[[Any], Any]) -> dict[str, float]:
        from jaxtrain.models.variables import Context, Variables

        keys = jax.random.split(jax.random.key(0), len(batch["mask"]))
        context = Context(state.step, keys, given["mask"])
        grads = jax.grad(lambda params: of(task.loss(Variables(params), given, context).metrics))(state.params)
        return {part: float(sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(tree))) for part, tree in grads.items()}

    fooled = gradient(lambda metrics: metrics["generator"].total)
    judged = gradient(lambda metrics: metrics["discriminator"].total)
    assert fooled["discriminator"] == judged["generator"] == 0
    assert fooled["generator"] > 0
    assert judged["discriminator"] > 0


@pytest.mark.full
def test_a_teacher_is_distilled_and_its_trunk_fine_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits, _ = load(f"{RECIPES.parent / 'digits.py'}:transformer")
    monkeypatch.chdir(tmp_path)
    teacher, _ = train(replace(digits, steps=150, evals={}), Path("runs/teacher"))
    for name, function, least in (
        ("teacher", "main", 0.75),
        ("fine_tune", "main", 0.7),
        ("fine_tune", "low_rank", 0.75),
    ):
        experiment, _ = load(f"{RECIPES / name}.py:{function}")
        run, state = train(replace(experiment, steps=100), Path(f"runs/{name}-{function}"))
        assert [line for line in read_metrics(run.folder) if line["split"] == "test"][-1]["accuracy"] >= least, name
        assert jax.tree.leaves(state.frozen)
    assert teacher.folder.exists()
