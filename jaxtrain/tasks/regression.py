"""Predicting numbers. Shapes: B batch, O outputs."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxtrain.models.base import Params
from jaxtrain.tasks.base import Batch, Task, field, penalised
from jaxtrain.tasks.metrics import Mean


@dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """A model with one output a number, trained by squared error."""

    target: str = "target"
    """The field of a batch with the numbers, f32[B] or f32[B, O]."""

    def loss(self, params: Params, batch: Batch, keys_B: jax.Array | None) -> tuple[Mean, dict[str, Mean]]:
        """Squared error, summed over outputs, and absolute error likewise."""
        target = field(batch, self.target, "Regression.target")
        values_BO, penalties = self.model.apply_with_aux(params, self.read(batch), keys_B)
        error_BO = values_BO - target.reshape(target.shape[0], -1)
        absolute_B = jnp.abs(error_BO).sum(-1)
        loss, metrics = (Mean.of(x, batch["mask"]) for x in (jnp.square(error_BO).sum(-1), absolute_B))
        return penalised(loss, {"absolute_error": metrics}, penalties, batch["mask"])

    def predict(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """`values` f32[B, O]."""
        return {"values": self.model.apply(params, self.read(batch))}
