"""The train step as a pure function: state in, state and metrics out.

Not here: jit, mesh, loop, file or clock. A notebook calls `init_state` and `train_step` without any of them.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from jaxtrain.base.display import Displayed
from jaxtrain.base.errors import ConfigError
from jaxtrain.models.params import Params, merged, parted
from jaxtrain.models.variables import Context, Variables
from jaxtrain.optimizers.state import averaged, guard_of, widened
from jaxtrain.sharding.layout import plain
from jaxtrain.tasks.base import Batch, Loss, Task
from jaxtrain.tasks.checks import loss_of, prediction_of
from jaxtrain.tasks.metrics import Mean, Metric, Sum

Gradients = Callable[[Task, Params, Variables, Batch, Context], tuple[Params, Loss]]
"""From a task, the parameters to differentiate by, all other variables, a batch and its context to the gradient of the
*summed* loss, in f32 at least, and the loss.
"""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState(Displayed):
    """All that training changes: plain arrays in plain nested dicts, and what optax keeps."""

    params: Params
    """The parameters that are trained."""
    opt_state: Any
    step: jax.Array
    """Updates done, i32[]."""
    key: jax.Array
    """The key that every step's randomness is folded from; it never changes."""
    frozen: Params = field(default_factory=dict)
    """The parameters that are not trained: they have neither gradients nor optimizer state."""
    model_state: Any = field(default_factory=dict)
    """`Variables.state`."""

    @property
    def fixed(self) -> Variables:
        """What gradients are not taken of."""
        return Variables(self.frozen, self.model_state)

    @property
    def evaluated(self) -> Variables:
        """What is evaluated: with the averaged parameters where the optimizer keeps them."""
        return with_params(averaged(self.params, self.opt_state), self.fixed)


def with_params(params: Params, fixed: Variables) -> Variables:
    """All variables of a task: these parameters and the fixed ones."""
    return Variables(merged(params, fixed.params), fixed.state)


def init_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    batch: Batch,
    frozen: Sequence[str] = (),
) -> TrainState:
    """The state before the first step; of `batch` only the shapes matter.

    frozen: path patterns of the parameters that are not trained. Raises ConfigError where one matches nothing, and
        where they match everything.
    """
    init_key, step_key = jax.random.split(key)
    variables = plain(task.init(init_key, batch))
    params, fixed = parted(variables.params, frozen, "frozen")
    if not params:
        why = "all parameters are frozen" if fixed else f"{type(task.model).__name__} has no parameters"
        raise ConfigError(f"nothing is left to train: {why}")
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), step_key, fixed, variables.state)


def full_batch(task: Task, params: Params, fixed: Variables, batch: Batch, context: Context) -> tuple[Params, Loss]:
    """The gradient of the summed loss over a whole batch at once."""

    def summed(params: Params) -> tuple[jax.Array, Loss]:
        loss = loss_of(task, with_params(params, fixed), without_gaps(batch), context)
        return loss.mean.total, loss

    grads, loss = jax.grad(summed, has_aux=True)(params)
    return jax.tree.map(widened, grads), loss


def without_gaps(batch: Batch) -> Batch:
    """The batch with zeros in the rows that the mask leaves out: a NaN there would be one in every gradient."""

    def filled(x: jax.Array) -> jax.Array:
        mask = batch["mask"].reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.where(mask, x, 0) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return {name: filled(x) for name, x in batch.items()}


def microbatched(count: int, axes: tuple[str, ...] = ()) -> Gradients:
    """Gradient accumulation over `count` microbatches, for a batch whose activations do not fit.

    Along the mesh `axes`, which split rows alone, every device adds up its own microbatches first; devices are summed
    once, at the end.
    """

    def local(task: Task, params: Params, fixed: Variables, batch: Batch, context: Context) -> tuple[Params, Loss]:
        def gradients(part: tuple[Batch, jax.Array]) -> tuple[Params, Loss]:
            rows, keys_B = part
            return full_batch(task, params, fixed, rows, Context(context.step, keys_B, rows["mask"]))

        # Strided, so that the rows of a microbatch are sharded as the rows of the batch are.
        parts = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), (dict(batch), context.keys_B))
        add = functools.partial(jax.tree.map, jnp.add)
        shapes = jax.eval_shape(lambda: gradients(jax.tree.map(lambda x: x[0], parts)))
        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        sums, _ = jax.lax.scan(lambda sums, part: (add(sums, gradients(part)), None), zeros, parts)
        return jax.lax.psum(sums, axes) if axes else sums

    if not axes:
        return local

    def over_devices(task: Task, params: Params, fixed: Variables, batch: Batch, context: Context) -> Any:
        split = jax.shard_map(
            functools.partial(local, task),
            in_specs=(P(), P(), P(axes), Context(P(), P(axes), P(axes))),
            out_specs=P(),
            axis_names=set(axes),
            check_vma=False,  # else the sum over devices would be put inside the loop, once a microbatch
        )
        return split(params, fixed, dict(batch), context)

    return over_devices


def train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    gradients: Gradients = full_batch,
) -> tuple[TrainState, dict[str, Metric]]:
    """One update, and the metrics of the batch before it. Pure: all randomness comes from the state's key and step."""
    keys_B = jax.random.split(jax.random.fold_in(state.key, state.step), batch["mask"].shape[0])
    context = Context(state.step, keys_B, batch["mask"])
    summed, loss = gradients(task, state.params, state.fixed, batch, context)
    counts = loss.mean.weight != 0
    grads = jax.tree.map(lambda grad: grad / loss.mean.weight, summed)
    update, value = optax.with_extra_args_support(optimizer).update, loss.mean.total / loss.mean.weight
    updates, opt_state = update(grads, state.opt_state, state.params, value=value)
    params = optax.apply_updates(state.params, updates)
    model_state = task.advance(with_params(params, state.fixed), loss.statistics)
    after = unless_skipped(replace(state, params=params, opt_state=opt_state, model_state=model_state), state)
    state = jax.tree.map(functools.partial(jnp.where, counts), after, state)  # a batch of weight 0 changes nothing
    metrics = {"loss": loss.mean, **loss.metrics, "gradient_norm": Mean.of(optax.tree.norm(grads), counts)}
    return replace(state, step=state.step + 1), metrics | skips(opt_state, counts)


def unless_skipped(after: TrainState, before: TrainState) -> TrainState:
    """`after`, but `before` where a guard of the optimizer skipped the update; the guard keeps its account of it."""
    guard = guard_of(after.opt_state)
    if guard is None:
        return after
    kept = replace(before, opt_state=after.opt_state)
    return jax.tree.map(functools.partial(jnp.where, guard.skipped), kept, after)


def skips(opt_state: Any, counts: jax.Array) -> dict[str, Metric]:
    """What a guard of the optimizer adds to the metrics of a step: whether it skipped the update, and `rate_scale`."""
    guard = guard_of(opt_state)
    if guard is None:
        return {}
    used = {name: Mean.of(value, counts) for name, value in guard.arguments.items()}
    return {"skipped": Sum.of(guard.skipped, counts), **used}


def eval_step(task: Task, state: TrainState, batch: Batch) -> dict[str, Metric]:
    """The metrics of a batch, without dropout, under the averaged parameters where the optimizer keeps them."""
    loss = loss_of(task, state.evaluated, batch, Context(state.step, None, batch["mask"]))
    return {"loss": loss.mean, **loss.metrics}


def predict_step(task: Task, state: TrainState, batch: Batch) -> dict[str, jax.Array]:
    """The task's predictions under the same parameters as `eval_step`."""
    return prediction_of(task, state.evaluated, batch)
