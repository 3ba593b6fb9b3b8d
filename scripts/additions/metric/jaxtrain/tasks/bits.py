"""A language model that also reports its loss in bits."""

import math
from dataclasses import dataclass, replace

from jaxtrain.models.variables import Context, Variables
from jaxtrain.tasks.base import Batch, Loss
from jaxtrain.tasks.language import LanguageModel
from jaxtrain.tasks.metrics import Mean


@dataclass(frozen=True, kw_only=True)
class BitsModel(LanguageModel):
    """`LanguageModel` with the metric `bits`: cross-entropy in bits a token."""

    def loss(self, variables: Variables, batch: Batch, context: Context) -> Loss:
        """Cross-entropy in nats, and in bits."""
        loss = super().loss(variables, batch, context)
        bits = Mean(loss.mean.total / math.log(2), loss.mean.weight)
        return replace(loss, metrics={**loss.metrics, "bits": bits})
