"""Language modelling: prediction of the next token. Shapes: B batch, L length, V vocabulary."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxtrain.models.base import Params
from jaxtrain.tasks.base import Batch, Task, add_aux_losses, cross_entropy
from jaxtrain.tasks.metrics import Mean, Metric


@dataclass(frozen=True, kw_only=True)
class LanguageModel(Task):
    """Trains a causal model on rows of L + 1 tokens by cross-entropy in nats a token.

    Where a batch has `segments` i[B, L + 1], several documents are packed into a row: positions attend only to their
    own document, and the first token of a document is no target. Segment 0 is padding.
    """

    inputs: str = "tokens"

    def read(self, batch: Batch) -> jax.Array:
        """All tokens of a row but the last, i[B, L]."""
        return super().read(batch)[:, :-1]

    def loss(self, params: Params, batch: Batch, keys_B: jax.Array | None) -> tuple[Mean, Mapping[str, Metric]]:
        """The cross-entropy, and `accuracy` of the likeliest token."""
        targets_BL = batch[self.inputs][:, 1:]
        weight_BL = jnp.broadcast_to(batch["mask"][:, None], targets_BL.shape)
        more = {}
        if "segments" in batch:
            segments = batch["segments"]
            more = {"segments_BL": segments[:, :-1]}
            weight_BL &= (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        logits_BLV, aux_losses = self.model.apply(params, self.read(batch), keys_B, **more)
        losses_BL = cross_entropy(logits_BLV, targets_BL)
        right_BL = (logits_BLV.argmax(-1) == targets_BL).astype(jnp.float32)
        loss, metrics = Mean.of_finite(losses_BL, weight_BL), {"accuracy": Mean.of_finite(right_BL, weight_BL)}
        return add_aux_losses(loss, metrics, aux_losses, weight_BL.sum(1))

    def predict(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """`log_probabilities` f32[B, V] of the token that follows each row; here a row is read to its last token."""
        logits_BLV, _ = self.model.apply(params, batch[self.inputs])
        return {"log_probabilities": jax.nn.log_softmax(logits_BLV[:, -1], axis=-1)}

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """The five likeliest next tokens with their probabilities; ids below 256 are shown as bytes."""
        order = prediction["log_probabilities"].argsort()[::-1][:5]
        shown = (f"{bytes([token])!r}" if token < 256 else str(token) for token in order)
        chances = (f"{jnp.exp(prediction['log_probabilities'][token]):.2f}" for token in order)
        return "next: " + "  ".join(f"{token} {chance}" for token, chance in zip(shown, chances, strict=True))
