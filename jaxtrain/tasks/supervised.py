"""Tasks whose loss is one number a row. Shapes: B batch."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxtrain.base.allowed import Allowed
from jaxtrain.base.errors import ConfigError
from jaxtrain.models.checks import kind_of
from jaxtrain.models.variables import Context, Variables
from jaxtrain.tasks.base import Batch, Loss, Task, batch_field
from jaxtrain.tasks.checks import checked_rows
from jaxtrain.tasks.metrics import Mean, Metric


@dataclass(frozen=True, kw_only=True)
class Supervised(Task):
    """Trains a model by a loss of each row's outputs and targets. A subclass says what that is, and what a prediction
    is made of outputs:

        @dataclass(frozen=True, kw_only=True)
        class Huber(Supervised):
            def rows(self, outputs, batch):
                error_B = outputs[:, 0] - batch["target"]
                return optax.huber_loss(error_B), {"absolute_error": jnp.abs(error_B)}

            def prediction(self, outputs):
                return {"value": outputs[:, 0]}
    """

    weights: str | None = None
    """The field of a batch with a weight of each row in loss and metrics, f32[B]; None weighs all alike."""

    @abstractmethod
    def rows(self, outputs: Any, batch: Batch) -> tuple[jax.Array, Mapping[str, jax.Array | Metric]]:
        """The loss of each row f32[B], and metrics by name: any `Metric`, or numbers f32[B] to take the mean of."""

    @abstractmethod
    def prediction(self, outputs: Any) -> dict[str, jax.Array]:
        """The predictions by name, rows on dim 0."""

    def weigh(self, batch: Batch) -> jax.Array:
        """The weight of each row, [B]; 0 where the mask is False."""
        if self.weights is None:
            return batch["mask"]
        setting = f"{type(self).__name__}.weights"
        weight_B = batch_field(batch, self.weights, setting)
        if weight_B.shape != batch["mask"].shape:
            wanted = f"one number a row, {list(batch['mask'].shape)}"
            raise ConfigError(f"{setting}: {self.weights!r} is {kind_of(weight_B)}, not {wanted}")
        return batch["mask"] * weight_B

    def allowed(self) -> Mapping[str, Allowed]:
        """Also weights from 0 on."""
        numbers = Allowed(0, why="it is the weight of a row")
        return {**super().allowed(), **({self.weights: numbers} if self.weights else {})}

    def loss(self, variables: Variables, batch: Batch, context: Context) -> Loss:
        """The weighted means over rows."""
        outputs, extras = self.model.apply(variables, self.read(batch), context)
        losses_B, values = checked_rows(self.rows(outputs, batch), len(batch["mask"]), f"{type(self).__name__}.rows")
        weight_B = self.weigh(batch)
        metrics = {
            name: value if isinstance(value, Metric) else Mean.of(value, weight_B) for name, value in values.items()
        }
        return Loss.of(Mean.of(losses_B, weight_B), metrics, extras, weight_B)

    def predict(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        """What `prediction` makes of the outputs."""
        return self.prediction(self.model.apply(variables, self.read(batch))[0])
