"""The train step as a pure function: state in, state and metrics out.

Not here: jit, mesh, loop, file or clock. A notebook calls `init_state` and `train_step` without any of them.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from jaxtrain.models.base import Params
from jaxtrain.optimizers import averaged
from jaxtrain.sharding.layout import plain
from jaxtrain.tasks.base import Batch, Task
from jaxtrain.tasks.checks import loss_of, prediction_of
from jaxtrain.tasks.metrics import Mean, Metric

Gradients = Callable[[Task, Params, Batch, jax.Array], tuple[Params, Mean, dict[str, Metric]]]
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


def full_batch(task: Task, params: Params, batch: Batch, keys_B: jax.Array) -> tuple[Params, Mean, dict[str, Metric]]:
    """The gradient of the summed loss over a whole batch at once."""

    def summed(params: Params) -> tuple[jax.Array, tuple[Mean, dict[str, Metric]]]:
        loss, metrics = loss_of(task, params, batch, keys_B)
        return loss.total, (loss, metrics)

    grads, (loss, metrics) = jax.grad(summed, has_aux=True)(params)
    return grads, loss, metrics


def microbatched(count: int, axes: tuple[str, ...] = ()) -> Gradients:
    """Gradient accumulation over `count` microbatches, for a batch whose activations do not fit.

    Along the mesh `axes`, which split rows alone, every device adds up its own microbatches first; devices are summed
    once, at the end.
    """

    def local(task: Task, params: Params, batch: Batch, keys_B: jax.Array) -> Any:
        # Strided, so that the rows of a microbatch are sharded as the rows of the batch are.
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
            check_vma=False,  # else the sum over devices would be put inside the loop, once a microbatch
        )
        return split(params, dict(batch), keys_B)

    return gradients


def train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    gradients: Gradients = full_batch,
) -> tuple[TrainState, dict[str, Metric]]:
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


def eval_step(task: Task, state: TrainState, batch: Batch) -> dict[str, Metric]:
    """The metrics of a batch, without dropout, under the averaged parameters where the optimizer keeps them."""
    loss, metrics = loss_of(task, averaged(state.params, state.opt_state), batch, None)
    return {"loss": loss, **metrics}


def predict_step(task: Task, state: TrainState, batch: Batch) -> dict[str, jax.Array]:
    """The task's predictions under the same parameters as `eval_step`."""
    return prediction_of(task, averaged(state.params, state.opt_state), batch)
