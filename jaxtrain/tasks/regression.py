"""Regression. Shapes: B batch, O outputs."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxtrain.models.base import Params
from jaxtrain.tasks.base import Batch, Task, add_aux_losses, field
from jaxtrain.tasks.metrics import Mean, Metric


@dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """Trains a model with O outputs by squared error."""

    target: str = "target"
    """The field of a batch with the targets, f32[B] or f32[B, O]."""

    def loss(self, params: Params, batch: Batch, keys_B: jax.Array | None) -> tuple[Mean, Mapping[str, Metric]]:
        """The squared error and `absolute_error`, both summed over the outputs of a row."""
        target = field(batch, self.target, "Regression.target")
        values_BO, aux_losses = self.model.apply(params, self.read(batch), keys_B)
        error_BO = values_BO - target.reshape(target.shape[0], -1)
        absolute_B = jnp.abs(error_BO).sum(-1)
        loss, absolute = (Mean.of_finite(x, batch["mask"]) for x in (jnp.square(error_BO).sum(-1), absolute_B))
        return add_aux_losses(loss, {"absolute_error": absolute}, aux_losses, batch["mask"])

    def predict(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """`values` f32[B, O]."""
        return {"values": self.model.apply(params, self.read(batch))[0]}
