"""The train step as a pure function, and `Program`: the only place where jit, shardings and donation meet.

Not here: any loop, file or clock. In a notebook `init_state` and `train_step` need neither mesh nor jit nor folder.
"""

import functools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtrain.data.pipeline import Pipeline
from jaxtrain.experiment import Experiment
from jaxtrain.fitting import check_sizes, check_used
from jaxtrain.layout import local_rows, plain, put_rows
from jaxtrain.metrics import Mean
from jaxtrain.models.base import Params
from jaxtrain.optimizers import averaged, map_kept
from jaxtrain.tasks.base import Batch, Task

Gradients = Callable[[Task, Params, Batch, jax.Array], tuple[Params, Mean, dict[str, Mean]]]
"""From a task, parameters, a batch and one key a row to the gradient of the *summed* loss, the loss and the metrics."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that training changes: plain arrays in plain nested dicts, and what optax keeps."""

    params: Params
    opt_state: Any
    step: jax.Array
    """Updates done, i32[]."""
    key: jax.Array
    """The key that every step's randomness is folded from; it never changes."""


def init_state(task: Task, optimizer: optax.GradientTransformation, key: jax.Array, batch: Batch) -> TrainState:
    """The state before the first step; of `batch` only the shapes matter."""
    init_key, step_key = jax.random.split(key)
    params = plain(task.init(init_key, batch))
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), step_key)


def full_batch(task: Task, params: Params, batch: Batch, keys_B: jax.Array) -> tuple[Params, Mean, dict[str, Mean]]:
    """The gradient of the summed loss over a whole batch at once."""

    def summed(params: Params) -> tuple[jax.Array, tuple[Mean, dict[str, Mean]]]:
        loss, metrics = task.loss(params, batch, keys_B)
        return loss.total, (loss, metrics)

    grads, (loss, metrics) = jax.grad(summed, has_aux=True)(params)
    return grads, loss, metrics


def microbatched(count: int, axes: tuple[str, ...] = ()) -> Gradients:
    """The same in `count` parts, one after another, for a batch whose activations do not fit.

    Along the mesh `axes`, which split rows alone, every device adds up its own parts first, and devices are summed
    once, at the end.
    """

    def local(task: Task, params: Params, batch: Batch, keys_B: jax.Array) -> Any:
        # Strided, so that the rows of a part lie on every device as the rows of the batch do.
        parts = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), (dict(batch), keys_B))
        add = functools.partial(jax.tree.map, jnp.add)
        shapes = jax.eval_shape(lambda: full_batch(task, params, *jax.tree.map(lambda x: x[0], parts)))
        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        sums, _ = jax.lax.scan(lambda sums, part: (add(sums, full_batch(task, params, *part)), None), zeros, parts)
        return jax.lax.psum(sums, axes) if axes else sums

    def gradients(task: Task, params: Params, batch: Batch, keys_B: jax.Array) -> Any:
        if not axes:
            return local(task, params, batch, keys_B)
        split = jax.shard_map(
            functools.partial(local, task),
            in_specs=(P(), P(axes), P(axes)),
            out_specs=P(),
            axis_names=set(axes),
            check_vma=False,  # else the sum over devices would be put inside the loop, once a part
        )
        return split(params, dict(batch), keys_B)

    return gradients


def train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    gradients: Gradients = full_batch,
) -> tuple[TrainState, dict[str, Mean]]:
    """One update, and the metrics of the batch before it. Pure: all randomness comes from the state's key and step."""
    keys_B = jax.random.split(jax.random.fold_in(state.key, state.step), batch["mask"].shape[0])
    summed, loss, metrics = gradients(task, state.params, batch, keys_B)
    grads = jax.tree.map(lambda grad: (grad / loss.weight).astype(grad.dtype), summed)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    norm = Mean.of(optax.tree.norm(grads))
    return TrainState(params, opt_state, state.step + 1, state.key), {
        "loss": loss,
        **metrics,
        "gradient_norm": norm,
    }


def eval_step(task: Task, state: TrainState, batch: Batch) -> dict[str, Mean]:
    """The metrics of a batch, without dropout, under the averaged parameters where the optimizer keeps them."""
    loss, metrics = task.loss(averaged(state.params, state.opt_state), batch, None)
    return {"loss": loss, **metrics}


def predict_step(task: Task, state: TrainState, batch: Batch) -> dict[str, jax.Array]:
    """The task's predictions under the same parameters as `eval_step`."""
    return task.predict(averaged(state.params, state.opt_state), batch)


def abstract_state(experiment: Experiment, mesh: Mesh | AbstractMesh) -> TrainState:
    """The shape, dtype and sharding of every leaf of the state: what initialising, restoring and planning go by.

    Optimizer state of a parameter is sharded as the parameter is (by `Layout.kept`) if it has its shape; all other
    optimizer state is replicated. Needs no devices. Raises ConfigError where the layout does not fit the model.
    """
    task, layout, sizes = experiment.task, experiment.layout, mesh.shape
    batch = experiment.data.example()
    optimizer = experiment.optimizer.build(experiment.steps)
    named = jax.eval_shape(lambda: task.init(jax.random.key(0), batch))
    shapes = jax.eval_shape(lambda: init_state(task, optimizer, jax.random.key(0), batch))
    kept_in = "pinned_host" if layout.offload else None

    def place(leaf: jax.ShapeDtypeStruct, spec: P | None = None, memory: str | None = None) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, spec or P(), memory_kind=memory)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def keep(leaf: jax.ShapeDtypeStruct, param: jax.ShapeDtypeStruct, spec: P) -> jax.ShapeDtypeStruct:
        return place(leaf, spec, kept_in) if leaf.shape == param.shape else place(leaf)

    check_sizes(experiment, sizes)
    specs, kept = layout.specs(named, sizes), layout.specs(named, sizes, kept=True)
    opt_state = map_kept(optimizer, keep, shapes.opt_state, shapes.params, kept, others=place)
    return replace(jax.tree.map(place, shapes), params=jax.tree.map(place, shapes.params, specs), opt_state=opt_state)


class Program:
    """An experiment compiled for a mesh: its steps as functions of global arrays, and the way rows get there."""

    def __init__(self, experiment: Experiment, devices: Sequence[jax.Device] | None = None):
        """Traces, but puts nothing on a device. Raises ConfigError where layout, model and batch do not fit."""
        self.experiment = experiment
        self.mesh = experiment.layout.make_mesh(devices)
        self.state = abstract_state(experiment, self.mesh)
        task, optimizer = experiment.task, experiment.optimizer.build(experiment.steps)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        everywhere = NamedSharding(self.mesh, P())
        count, staged = experiment.microbatches, experiment.layout.stages(self.mesh.shape)[0] > 1
        replicas = experiment.layout.row_axes(self.mesh.shape)
        gradients = microbatched(count, replicas) if count > 1 and not staged else full_batch
        self._used: set[str] = set()
        example = experiment.data.example()
        self._init = jax.jit(
            lambda: init_state(task, optimizer, jax.random.key(experiment.seed), example),
            out_shardings=shardings,
        )
        fetch = fetched if experiment.layout.offload else lambda state: state
        self._train = jax.jit(
            lambda state, batch: train_step(task, optimizer, fetch(state), batch, gradients),
            donate_argnums=0,
            out_shardings=(shardings, everywhere),
        )
        self._evaluate = jax.jit(lambda state, batch: eval_step(task, fetch(state), batch), out_shardings=everywhere)
        self._predict = jax.jit(lambda state, batch: predict_step(task, fetch(state), batch), out_shardings=everywhere)

    def scope(self) -> Any:
        """While tracing inside, models see this program's layout."""
        return self.experiment.layout.scope(self.mesh, self.experiment.microbatches, self._used)

    def lower(self) -> jax.stages.Lowered:
        """The train step, traced for this mesh and not yet compiled. Raises ConfigError for a mesh axis without use."""
        batch = self.experiment.data.example()
        rows = self.experiment.layout.batch_sharding(self.mesh, self.experiment.data.batch_size)
        abstract = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for name, x in batch.items()}
        with self.scope():
            lowered = self._train.lower(self.state, abstract)
        check_used(self.experiment.layout, self.state, self._used)
        return lowered

    @functools.cached_property
    def step(self) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Mean]]]:
        """The compiled train step; it donates the state it is given."""
        return self.lower().compile()

    def init(self) -> TrainState:
        """The state before the first step, born on the devices where its parts belong."""
        with self.scope():
            return self._init()

    def evaluate(self, state: TrainState, batch: Batch) -> dict[str, Mean]:
        """The metrics of a global batch."""
        with self.scope():
            return self._evaluate(state, batch)

    def predict(self, state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        """The predictions for a global batch."""
        with self.scope():
            return self._predict(state, batch)

    def placed(
        self, pipeline: Pipeline, read: Callable[[Sequence[int]], Generator[dict[str, np.ndarray], None, None]]
    ) -> Generator[dict[str, jax.Array], None, None]:
        """The global batches of a pipeline, of which `read(rows)` yields the rows that this process holds."""
        from jaxtrain.data.reading import to_device

        size = pipeline.batch_size
        sharding = self.experiment.layout.batch_sharding(self.mesh, size)
        rows = local_rows(sharding, size)
        return to_device(read(rows.tolist()), lambda batch: put_rows(sharding, batch, rows, size))


def fetched(state: TrainState) -> TrainState:
    """The same, with all that the optimizer keeps in the memory of the devices."""
    return replace(state, opt_state=jax.device_put(state.opt_state, jax.memory.Space.Device))
