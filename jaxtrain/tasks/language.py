"""Predicting the next token. Shapes: B batch, L length, V vocabulary."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxtrain.models.base import Params
from jaxtrain.tasks.base import Batch, Task, cross_entropy, penalised
from jaxtrain.tasks.metrics import Mean


@dataclass(frozen=True, kw_only=True)
class LanguageModel(Task):
    """A causal model over rows of L + 1 tokens, trained by cross-entropy in nats a token.

    Where a batch has `segments` i[B, L + 1], several documents share a row: none of them sees another, and none is
    asked for the first token of the next. Segment 0 is padding.
    """

    inputs: str = "tokens"

    def read(self, batch: Batch) -> jax.Array:
        """All tokens of a row but the last."""
        return super().read(batch)[:, :-1]

    def loss(self, params: Params, batch: Batch, keys_B: jax.Array | None) -> tuple[Mean, dict[str, Mean]]:
        """Cross-entropy, and how often the likeliest token is the right one."""
        targets_BL = batch[self.inputs][:, 1:]
        weight_BL = jnp.broadcast_to(batch["mask"][:, None], targets_BL.shape)
        more = {}
        if "segments" in batch:
            segments = batch["segments"]
            more = {"segments_BL": segments[:, :-1]}
            weight_BL &= (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        logits_BLV, penalties = self.model.apply_with_aux(params, self.read(batch), keys_B, **more)
        losses_BL = cross_entropy(logits_BLV, targets_BL)
        right_BL = (logits_BLV.argmax(-1) == targets_BL).astype(jnp.float32)
        loss, metrics = Mean.of(losses_BL, weight_BL), {"accuracy": Mean.of(right_BL, weight_BL)}
        return penalised(loss, metrics, penalties, weight_BL.sum(1))

    def predict(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """`log_probabilities` f32[B, V] of the token after each row, of which none is left out."""
        logits_BLV = self.model.apply(params, batch[self.inputs])
        return {"log_probabilities": jax.nn.log_softmax(logits_BLV[:, -1], axis=-1)}

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """The five likeliest next tokens, bytes shown as characters."""
        order = prediction["log_probabilities"].argsort()[::-1][:5]
        shown = (f"{bytes([token])!r}" if token < 256 else str(token) for token in order)
        chances = (f"{jnp.exp(prediction['log_probabilities'][token]):.2f}" for token in order)
        return "next: " + "  ".join(f"{token} {chance}" for token, chance in zip(shown, chances, strict=True))
