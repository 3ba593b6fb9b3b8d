"""The base class of tasks: how parameters are initialised, what their loss on a batch is, and what they predict.

Not here: the update, the mesh, or where batches come from.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.ranges import Checked
from jaxtrain.models.base import Model, Params
from jaxtrain.tasks.metrics import Mean

Batch = Mapping[str, Any]
"""Arrays by name, rows on dim 0; `mask` bool[B] is False at rows that only fill up the batch."""


@dataclass(frozen=True, kw_only=True)
class Task(Checked, ABC):
    """A model and what it is trained for."""

    model: Model
    inputs: str
    """The field of a batch that the model reads."""

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """New parameters as nested dicts of `AxisNamed` arrays; only the shapes in `batch` matter."""
        return self.model.init(key, self.read(batch))

    @abstractmethod
    def loss(self, params: Params, batch: Batch, keys_B: jax.Array | None) -> tuple[Mean, dict[str, Mean]]:
        """The loss of a batch and its metrics by name, each a `Mean` over the rows that `mask` marks; a pure function.

        keys_B: one PRNG key a row for dropout; None is evaluation, without dropout.
        """

    @abstractmethod
    def predict(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """The predictions by name, rows on dim 0, for a batch without labels and mask."""

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """One row of a prediction (numpy values) as a line of text."""
        return "  ".join(f"{name} {value}" for name, value in prediction.items())

    def read(self, batch: Batch) -> jax.Array:
        """The model's input. Raises ConfigError if the batch has no such field."""
        return field(batch, self.inputs, f"{type(self).__name__}.inputs")


def field(batch: Batch, name: str, setting: str) -> jax.Array:
    """`batch[name]`. Raises ConfigError, naming the setting that holds `name`, if the batch has no such field."""
    if name not in batch:
        raise ConfigError(f"{setting}: the batch has no field {name!r}{nearest(name, batch)}")
    return batch[name]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[labels] in nats: f32[..., C] and i[...] to f32[...]."""
    # Not by indexing: XLA aborts where a dim split over devices is indexed inside a shard_map over another mesh axis.
    right = jnp.arange(logits.shape[-1]) == labels[..., None]
    return jax.nn.logsumexp(logits, axis=-1) - jnp.where(right, logits, 0).sum(-1)


def add_aux_losses(
    loss: Mean, metrics: dict[str, Mean], aux_losses: Mapping[str, jax.Array], weight_B: jax.Array
) -> tuple[Mean, dict[str, Mean]]:
    """The loss plus the model's auxiliary losses f32[B], and the metrics plus each of them and the loss without them.

    weight_B: the weight of each row in the loss.
    """
    if not aux_losses:
        return loss, metrics
    added = {name: Mean.of(losses_B, weight_B) for name, losses_B in aux_losses.items()}
    whole = Mean(loss.total + sum(mean.total for mean in added.values()), loss.weight)
    return whole, {"main_loss": loss, **metrics, **added}
