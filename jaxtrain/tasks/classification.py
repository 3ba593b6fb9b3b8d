"""Choosing one of several classes. Shapes: B batch, C classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxtrain.base.errors import ConfigError
from jaxtrain.models.base import Params
from jaxtrain.tasks.base import Batch, Task, cross_entropy, field, penalised
from jaxtrain.tasks.metrics import Mean


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """A model with one output a class, trained by cross-entropy in nats."""

    classes: tuple[str, ...]
    """The classes' names, in the order of their numbers."""
    label: str = "label"
    """The field of a batch with the class number, i[B]."""

    def loss(self, params: Params, batch: Batch, keys_B: jax.Array | None) -> tuple[Mean, dict[str, Mean]]:
        """Cross-entropy, and accuracy in 0…1."""
        label_B = field(batch, self.label, "Classification.label")
        logits_BC, penalties = self.model.apply_with_aux(params, self.read(batch), keys_B)
        if logits_BC.shape[-1] != len(self.classes):
            raise ConfigError(f"task.classes: {len(self.classes)} names for a model of {logits_BC.shape[-1]} outputs")
        losses_B = cross_entropy(logits_BC, label_B)
        right_B = (logits_BC.argmax(-1) == label_B).astype(jnp.float32)
        metrics = {"accuracy": Mean.of(right_B, batch["mask"])}
        return penalised(Mean.of(losses_B, batch["mask"]), metrics, penalties, batch["mask"])

    def predict(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """`probabilities` f32[B, C]."""
        return {"probabilities": jax.nn.softmax(self.model.apply(params, self.read(batch)), axis=-1)}

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """The classes by falling probability."""
        pairs = sorted(zip(prediction["probabilities"], self.classes, strict=True), reverse=True)
        return "  ".join(f"{name} {probability:.2f}" for probability, name in pairs)
