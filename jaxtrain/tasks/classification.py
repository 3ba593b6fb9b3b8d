"""Classification into one of C classes. Shapes: B batch, C classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxtrain.base.errors import ConfigError
from jaxtrain.models.base import Params
from jaxtrain.tasks.base import Batch, Task, add_aux_losses, cross_entropy, field
from jaxtrain.tasks.metrics import Mean, Metric


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """Trains a model with one logit a class by cross-entropy in nats."""

    classes: tuple[str, ...]
    """The names of the classes, in the order of their numbers."""
    label: str = "label"
    """The field of a batch with the class number, i[B]."""

    def loss(self, params: Params, batch: Batch, keys_B: jax.Array | None) -> tuple[Mean, Mapping[str, Metric]]:
        """The cross-entropy, and `accuracy` from 0 to 1."""
        label_B = field(batch, self.label, "Classification.label")
        logits_BC, aux_losses = self.model.apply(params, self.read(batch), keys_B)
        if logits_BC.shape[-1] != len(self.classes):
            raise ConfigError(f"task.classes: {len(self.classes)} names for a model of {logits_BC.shape[-1]} outputs")
        losses_B = cross_entropy(logits_BC, label_B)
        right_B = (logits_BC.argmax(-1) == label_B).astype(jnp.float32)
        metrics = {"accuracy": Mean.of_finite(right_B, batch["mask"])}
        return add_aux_losses(Mean.of_finite(losses_B, batch["mask"]), metrics, aux_losses, batch["mask"])

    def predict(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """`probabilities` f32[B, C]."""
        return {"probabilities": jax.nn.softmax(self.model.apply(params, self.read(batch))[0], axis=-1)}

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """The classes with their probabilities, largest first."""
        pairs = sorted(zip(prediction["probabilities"], self.classes, strict=True), reverse=True)
        return "  ".join(f"{name} {probability:.2f}" for probability, name in pairs)
