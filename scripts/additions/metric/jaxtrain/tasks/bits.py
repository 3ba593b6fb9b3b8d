"""A language model that also reports its loss in bits."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax

from jaxtrain.models.base import Params
from jaxtrain.tasks.base import Batch
from jaxtrain.tasks.language import LanguageModel
from jaxtrain.tasks.metrics import Mean, Metric


@dataclass(frozen=True, kw_only=True)
class BitsModel(LanguageModel):
    """`LanguageModel` with the metric `bits`: cross-entropy in bits a token."""

    def loss(self, params: Params, batch: Batch, keys_B: jax.Array | None) -> tuple[Mean, Mapping[str, Metric]]:
        """Cross-entropy in nats, and in bits."""
        loss, metrics = super().loss(params, batch, keys_B)
        return loss, {**metrics, "bits": Mean(loss.total / math.log(2), loss.weight)}
