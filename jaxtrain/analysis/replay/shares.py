"""The contribution of each example of a batch to its loss and gradient.

Shapes: B batch.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtrain.models.variables import Context
from jaxtrain.step import TrainState, full_batch
from jaxtrain.tasks.base import Batch, Task

MOST_ROWS = 64
"""The most rows whose gradients are computed, those with the largest loss; all rows if a number is not finite."""


@dataclass(frozen=True)
class Share:
    """The contribution of one row of a batch."""

    row: int
    loss: float
    """Its term in the summed loss."""
    of_loss: float
    """The same as a fraction of the sum."""
    gradient: float
    """The norm of its gradient."""
    of_gradient: float
    """The projection of its gradient on the batch's gradient, as a fraction of that one's norm. Over all rows these sum
    to 1.
    """

    @property
    def finite(self) -> bool:
        """Whether its loss and its gradient are finite."""
        return bool(np.isfinite([self.loss, self.gradient]).all())


@dataclass(frozen=True)
class Shares:
    """The rows of a batch: first rows that are not finite, then the others by their share, largest first."""

    rows: tuple[Share, ...]
    note: str = ""
    """A caveat, where rows depend on each other; else empty."""


def shares(task: Task, state: TrainState, batch: Batch) -> Shares:
    """Compute the loss and gradient of every row by itself, on one device. Where rows depend on each other, as in batch
    norm, that is a different loss, which the note says.
    """
    keys_B = jax.random.split(jax.random.fold_in(state.key, state.step), batch["mask"].shape[0])

    def taken(rows: Batch, keys: jax.Array) -> tuple[Any, jax.Array]:
        grads, loss = full_batch(task, state.params, state.fixed, rows, Context(state.step, keys, rows["mask"]))
        return grads, loss.mean.total

    def alone(row: jax.Array) -> tuple[Any, jax.Array]:
        own = {name: jax.lax.dynamic_slice_in_dim(x, row, 1) for name, x in batch.items()}
        return taken(own, jax.lax.dynamic_slice_in_dim(keys_B, row, 1))

    def products(row: jax.Array) -> tuple[jax.Array, jax.Array]:
        own = alone(row)[0]
        return optax.tree.norm(own), jnp.asarray(optax.tree.vdot(own, grads))

    grads, total = jax.jit(taken)(batch, keys_B)
    losses = jax.jit(lambda rows: jax.lax.map(lambda row: alone(row)[1], rows))(jnp.arange(len(keys_B)))
    losses_B, length = np.asarray(losses, np.float64), float(optax.tree.norm(grads)) ** 2
    order = np.argsort(-np.where(np.isfinite(losses_B), np.abs(losses_B), np.inf), kind="stable")
    chosen = order[:MOST_ROWS] if np.isfinite([*losses_B, length]).all() else order
    norms, parts = jax.jit(lambda rows: jax.lax.map(products, rows))(jnp.asarray(chosen))
    summed = losses_B.sum()
    rows = [
        Share(row, float(losses_B[row]), _fraction(losses_B[row], summed), float(norm), _fraction(part, length))
        for row, norm, part in zip(chosen.tolist(), norms, parts, strict=True)
    ]
    rows.sort(key=lambda each: (each.finite, -np.nan_to_num(max(abs(each.of_gradient), abs(each.of_loss)))))
    return Shares(tuple(rows), _note(task, losses_B, float(total)))


def _fraction(value: Any, whole: float) -> float:
    return float(value) / whole if whole and np.isfinite(whole) else 0.0


def _note(task: Task, losses_B: np.ndarray, total: float) -> str:
    name = type(task).__name__
    if task.whole_batch:
        return f"{name} compares the rows of a batch with each other: each row is shown as if it were alone"
    if np.isfinite(total) and np.isfinite(losses_B).all() and not np.isclose(losses_B.sum(), total, rtol=1e-3):
        return "rows depend on each other, as in batch norm: each row is shown as if it were alone"
    return ""
