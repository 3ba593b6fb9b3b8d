"""Classification into one of C classes. Shapes: B batch, C classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxtrain.base.errors import ConfigError
from jaxtrain.tasks.base import Batch, batch_field, cross_entropy
from jaxtrain.tasks.supervised import Supervised


@dataclass(frozen=True, kw_only=True)
class Classification(Supervised):
    """Trains a model with one logit a class by cross-entropy in nats."""

    classes: tuple[str, ...]
    """The names of the classes, in the order of their numbers."""
    label: str = "label"
    """The field of a batch with the class number, i[B]."""

    def rows(self, outputs: jax.Array, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The cross-entropy, and `accuracy` from 0 to 1."""
        label_B = batch_field(batch, self.label, "Classification.label")
        logits_BC = outputs
        if logits_BC.shape[-1] != len(self.classes):
            raise ConfigError(f"task.classes: {len(self.classes)} names for a model of {logits_BC.shape[-1]} outputs")
        return cross_entropy(logits_BC, label_B), {"accuracy": (logits_BC.argmax(-1) == label_B).astype(jnp.float32)}

    def prediction(self, outputs: jax.Array) -> dict[str, jax.Array]:
        """`probabilities` f32[B, C]."""
        return {"probabilities": jax.nn.softmax(outputs, axis=-1)}

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """The classes with their probabilities, largest first."""
        pairs = sorted(zip(prediction["probabilities"], self.classes, strict=True), reverse=True)
        return "  ".join(f"{name} {probability:.2f}" for probability, name in pairs)
