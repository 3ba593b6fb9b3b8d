"""Regression. Shapes: B batch, O outputs."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxtrain.base.allowed import Allowed
from jaxtrain.base.errors import ConfigError
from jaxtrain.models.checks import kind_of
from jaxtrain.tasks.base import Batch, batch_field
from jaxtrain.tasks.checks import outputs_of
from jaxtrain.tasks.supervised import Supervised


@dataclass(frozen=True, kw_only=True)
class Regression(Supervised):
    """Trains a model with O outputs by squared error.

    Loss and metrics are in the units of the batch: after `Standardize` of the target, in its standard deviations.
    Predictions, and what host metrics compare with them, are in the units of the data.
    """

    target: str = "target"
    """The field of a batch with the targets, f[B, O], or f[B] for one output."""

    def rows(self, outputs: jax.Array, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The squared error and `absolute_error`, both summed over the outputs of a row."""
        target = batch_field(batch, self.target, "Regression.target")
        outputs = outputs_of(outputs, "[B, O]", len(batch["mask"]), self)
        if jnp.issubdtype(target.dtype, jnp.complexfloating):
            raise ConfigError(f"Regression.target: {self.target!r} is {kind_of(target)}: give real and imaginary parts")
        if target.shape not in (outputs.shape, outputs.shape[: -1 if outputs.shape[-1] == 1 else None]):
            one = " or [B]" if outputs.shape[-1] == 1 else ""
            raise ConfigError(
                f"Regression.target: {self.target!r} is {kind_of(target)}, but the model's outputs are "
                f"{kind_of(outputs)}: give targets [B, {outputs.shape[-1]}]{one}"
            )
        error_BO = outputs - target.reshape(outputs.shape)
        return jnp.square(error_BO).sum(-1), {"absolute_error": jnp.abs(error_BO).sum(-1)}

    def allowed(self) -> Mapping[str, Allowed]:
        """Finite targets."""
        return {**super().allowed(), self.target: Allowed(why="NaN and infinity have no squared error")}

    def fields_of(self) -> Mapping[str, str]:
        """The values estimate the target."""
        return {"values": self.target}

    def prediction(self, outputs: jax.Array) -> dict[str, jax.Array]:
        """`values` f32[B, O]."""
        return {"values": outputs}
