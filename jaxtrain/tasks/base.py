"""The base class of tasks: how variables are initialised, what their loss on a batch is, and what they predict.

Not here: the update, the mesh, or where batches come from.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxtrain.base.allowed import Allowed
from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.lines import prediction_line
from jaxtrain.base.ranges import Checked
from jaxtrain.models.base import Model
from jaxtrain.models.variables import Context, Extras, Variables
from jaxtrain.tasks.metrics import Mean, Metric

Batch = Mapping[str, Any]
"""Arrays by name, rows on dim 0; `mask` bool[B] is False at rows that only fill up the batch."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Loss:
    """What a batch comes to. All of it are sums over rows, so that two of them merge by adding their arrays."""

    mean: Mean
    """What is minimised."""
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    """What is logged beside it, by name."""
    statistics: Any = field(default_factory=dict)
    """What `Task.advance` gets, once a step, for the whole batch."""

    @classmethod
    def of(cls, mean: Mean, metrics: Mapping[str, Metric], extras: Extras, weight_B: jax.Array) -> "Loss":
        """With a model's extras: its auxiliary losses are added to the mean, and each is a metric as is the mean
        without them, `main_loss`.

        weight_B: the weight of each row in the mean.
        """
        if extras.aux_losses:
            added = {name: Mean.of(losses_B, weight_B) for name, losses_B in extras.aux_losses.items()}
            if twice := metrics.keys() & {"main_loss", *added}:
                raise ConfigError(f"the metric {min(twice)!r} has the name of an auxiliary loss: choose another")
            metrics = {"main_loss": mean, **metrics, **added}
            mean = Mean(mean.total + sum(each.total for each in added.values()), mean.weight)
        return cls(mean, dict(metrics), extras.statistics)


@dataclass(frozen=True, kw_only=True)
class Task(Checked, ABC):
    """A model and what it is trained for."""

    model: Model
    inputs: str | tuple[str, ...]
    """The field of a batch that the model reads, or several, which it then gets as a dict."""
    whole_batch: ClassVar[bool] = False
    """Whether the loss of a row depends on other rows, as in contrastive learning. Microbatches and pipeline stages are
    then refused, since they would change it.
    """
    not_exported: ClassVar[str] = ""
    """Why a bundle of this task makes no sense, such as that of a GAN; empty where it does."""

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        """New variables, `AxisNamed` arrays in nested dicts; only the shapes in `batch` matter."""
        return self.model.init(key, self.read(batch))

    def count(self, variables: Variables, batch: Batch, counts: Any = None) -> Any:
        """What `fit` needs to know of the training split: `counts`, None before its first batch, and those of a batch.

        Sums over rows, so that they are the same on any mesh. None, as by default, if nothing is fitted.
        """
        return None

    def fit(self, variables: Variables, batch: Batch, counts: Any) -> Any:
        """The state that training begins with, from the counts of the training split; by default by the model's `fit`.
        Of `batch` only the shapes matter.
        """
        return self.model.fit(variables, self.read(batch), counts)

    @abstractmethod
    def loss(self, variables: Variables, batch: Batch, context: Context) -> Loss:
        """The loss of a batch, its metrics and statistics, over the rows that `mask` marks; a pure function."""

    def advance(self, variables: Variables, statistics: Any) -> Any:
        """The state after a step, from the `Loss.statistics` of its whole batch; by default that of the model.

        variables: the parameters after the step, so that a teacher can follow them, and the state before it.
        """
        return self.model.advance(variables, statistics)

    @abstractmethod
    def predict(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        """The predictions by name, rows on dim 0, for a batch without labels and mask."""

    def allowed(self) -> Mapping[str, Allowed]:
        """The range of the numbers in each field of a batch; by default `Model.allowed`, for all inputs."""
        numbers, inputs = self.model.allowed(), (self.inputs,) if isinstance(self.inputs, str) else self.inputs
        return {name: numbers for name in inputs if numbers is not None}

    def fields_of(self) -> Mapping[str, str]:
        """The predictions that estimate a field of the batch: the name of each, and the field. They are given in the
        units of the data: the field's transforms are undone. By default none.
        """
        return {}

    def describe(self, prediction: Mapping[str, Any]) -> str:
        """One row of a prediction (numpy values) as a line of text."""
        return prediction_line(prediction, {name: self.classes_of(name, x.shape) for name, x in prediction.items()})

    def classes_of(self, output: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        """What each number of a row of an output is about: the task's classes, of probabilities of these."""
        classes = getattr(self, "classes", ())
        return tuple(classes) if output == "probabilities" and shape == (len(classes),) else ()

    def read(self, batch: Batch) -> Any:
        """The model's input, an array or a dict of arrays. Raises ConfigError if the batch has no such field."""
        setting = f"{type(self).__name__}.inputs"
        if isinstance(self.inputs, str):
            return batch_field(batch, self.inputs, setting)
        if not self.inputs:
            raise ConfigError(f"{setting}: name a field of the batch for the model to read; known: {', '.join(batch)}")
        return {name: batch_field(batch, name, setting) for name in self.inputs}


def batch_field(batch: Batch, name: str, setting: str) -> jax.Array:
    """`batch[name]`. Raises ConfigError, naming the setting that holds `name`, if the batch has no such field."""
    if name not in batch:
        raise ConfigError(f"{setting}: the batch has no field {name!r}{nearest(name, batch)}")
    return batch[name]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[labels] in nats: f32[..., C] and i[...] to f32[...]."""
    # Not by indexing: XLA aborts where a dim split over devices is indexed inside a shard_map over another mesh axis.
    right = jnp.arange(logits.shape[-1]) == labels[..., None]
    return jax.nn.logsumexp(logits, axis=-1) - jnp.where(right, logits, 0).sum(-1)
