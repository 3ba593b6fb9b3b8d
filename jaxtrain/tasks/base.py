"""What is learned: how parameters begin, what their loss on a batch is, and what they predict.

Not here: the update, the mesh, or where batches come from.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.models.base import Model, Params
from jaxtrain.tasks.metrics import Mean

Batch = Mapping[str, Any]
"""Arrays by name, rows on dim 0; `mask` bool[B] is False at rows that only fill up."""


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A model and what it is for; a base class, so that the command line can set the fields of its kinds."""

    model: Model
    inputs: str
    """The field of a batch that the model reads."""

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """New parameters, each `AxisNamed` by its axes; only the shapes in `batch` matter."""
        return self.model.init(key, self.read(batch))

    @abstractmethod
    def loss(self, params: Params, batch: Batch, keys_B: jax.Array | None) -> tuple[Mean, dict[str, Mean]]:
        """The loss and other metrics of a batch, as sums with weights; pure.

        `keys_B` holds one PRNG key a row for dropout; None means none (evaluation).
        """

    @abstractmethod
    def predict(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """What the trained model says of inputs, with no label or mask in the batch: what serving exports."""

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """One row of a prediction (numpy values) in words."""
        return "  ".join(f"{name} {value}" for name, value in prediction.items())

    def read(self, batch: Batch) -> jax.Array:
        """The model's input. Raises ConfigError if the batch has no such field."""
        return field(batch, self.inputs, f"{type(self).__name__}.inputs")


def field(batch: Batch, name: str, setting: str) -> jax.Array:
    """`batch[name]`, or a ConfigError that says which setting named a field that is not there."""
    if name not in batch:
        raise ConfigError(f"{setting}: the batch has no field {name!r}{nearest(name, batch)}")
    return batch[name]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[labels] in nats: f32[..., C] and i[...] to f32[...]."""
    # Not by indexing: XLA aborts where an axis split over devices is indexed within a shard_map over another axis.
    right = jnp.arange(logits.shape[-1]) == labels[..., None]
    return jax.nn.logsumexp(logits, axis=-1) - jnp.where(right, logits, 0).sum(-1)


def penalised(loss: Mean, metrics: dict[str, Mean], penalties: Mapping[str, jax.Array], weight_B: jax.Array) -> Any:
    """Loss and metrics with what the model adds to the loss of each row, f32[B], which counts as much as the row does.

    The loss without it is then one of the metrics.
    """
    if not penalties:
        return loss, metrics
    added = {name: Mean.of(penalty_B, weight_B) for name, penalty_B in penalties.items()}
    whole = Mean(loss.total + sum(mean.total for mean in added.values()), loss.weight)
    return whole, {"main_loss": loss, **metrics, **added}
