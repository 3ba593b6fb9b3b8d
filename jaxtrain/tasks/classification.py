"""Classification into one or several of C classes. Shapes: B batch, C classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from jaxtrain.base.allowed import Allowed
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import FractionBelow1, NonNegative, Range
from jaxtrain.models.checks import kind_of
from jaxtrain.models.variables import Variables
from jaxtrain.tasks.base import Batch, batch_field, cross_entropy
from jaxtrain.tasks.checks import outputs_of
from jaxtrain.tasks.supervised import Supervised


@dataclass(frozen=True, kw_only=True)
class Classification(Supervised):
    """Trains a model with one logit a class by cross-entropy in nats."""

    classes: tuple[str, ...]
    """The names of the classes, in the order of their numbers."""
    label: str = "label"
    """The field of a batch with the class number, i[B]; with `soft`, the probability of each class, f[B, C]."""
    soft: bool = False
    """The labels are probabilities, as those of a teacher or of annotators who differ."""
    ignore: Annotated[int, Range(at_least=-(2**31), at_most=2**31 - 1, hint="labels are i32")] | None = None
    """A class number that stands for no label: such rows count for nothing."""
    smoothing: FractionBelow1 = 0.0
    """The share of each label that is spread over all classes (Szegedy et al. 2016, arXiv:1512.00567)."""
    class_weights: tuple[NonNegative, ...] = ()
    """The weight of the rows of each class in loss and metrics; empty weighs all alike."""

    def __post_init__(self) -> None:
        """Raises ConfigError for fewer than two classes or one twice, for class weights that are not one a class or all
        0, and for `soft` with `ignore`.
        """
        check_classes(self, 2)
        if self.class_weights and len(self.class_weights) != len(self.classes):
            raise ConfigError(
                f"Classification.class_weights: {len(self.class_weights)} weights for {len(self.classes)} classes"
            )
        if self.class_weights and not any(self.class_weights):
            raise ConfigError("Classification.class_weights: all are 0, so that no row counts: leave them out")
        if self.soft and self.ignore is not None:
            raise ConfigError("Classification.ignore: soft labels have no number: leave out rows by `weights`")

    def rows(self, outputs: jax.Array, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The cross-entropy, and `accuracy` from 0 to 1."""
        label = self._labels(batch)
        logits_BC = outputs_of(outputs, "[B, C]", len(batch["mask"]), self)
        if logits_BC.shape[-1] != len(self.classes):
            raise ConfigError(f"task.classes: {len(self.classes)} names for a model of {logits_BC.shape[-1]} outputs")
        if self.soft:
            label_B, losses_B = label.argmax(-1), optax.softmax_cross_entropy(logits_BC, label)
        else:
            label_B, losses_B = label, cross_entropy(logits_BC, label)
        if self.smoothing:
            uniform_B = -jax.nn.log_softmax(logits_BC).mean(-1)
            losses_B = (1 - self.smoothing) * losses_B + self.smoothing * uniform_B
        return losses_B, {"accuracy": (logits_BC.argmax(-1) == label_B).astype(jnp.float32)}

    def weigh(self, batch: Batch) -> jax.Array:
        """Also by class, and 0 for labels to ignore."""
        weight_B, label = super().weigh(batch), self._labels(batch)
        if self.class_weights:
            of_class_C = jnp.array(self.class_weights)
            weight_B = weight_B * (label @ of_class_C if self.soft else of_class_C[label])
        return weight_B if self.ignore is None else weight_B * (label != self.ignore)

    def count(self, variables: Variables, batch: Batch, counts: Any = None) -> Any:
        """By the model's `count`, of the rows whose weight is not 0."""
        label = self._labels(batch)
        labels_BC = label if self.soft else jax.nn.one_hot(label, len(self.classes))
        labels_BC = jnp.where((self.weigh(batch) > 0)[:, None], labels_BC, 0)
        return self.model.count(variables, self.read(batch), labels_BC, counts)

    def allowed(self) -> Mapping[str, Allowed]:
        """Class numbers, or probabilities."""
        count = len(self.classes)
        if self.soft:
            numbers = Allowed(0, 1, why="soft labels are probabilities of all classes", total=1)
            return {**super().allowed(), self.label: numbers}
        why = f"there are {count} classes" + (
            "" if self.ignore is not None else "; `ignore` leaves out one number more"
        )
        return {**super().allowed(), self.label: Allowed(0, count - 1, self.ignore, why)}

    def prediction(self, outputs: jax.Array) -> dict[str, jax.Array]:
        """`probabilities` f32[B, C]."""
        return {"probabilities": jax.nn.softmax(outputs, axis=-1)}

    def _labels(self, batch: Batch) -> jax.Array:
        """Raises ConfigError for labels of another shape or dtype than `soft` asks for."""
        label, kind = batch_field(batch, self.label, "Classification.label"), "f" if self.soft else "iu"
        wanted = (batch["mask"].shape[0], len(self.classes)) if self.soft else batch["mask"].shape
        if label.shape != wanted or jnp.dtype(label.dtype).kind not in kind:
            what = f"probabilities, float{list(wanted)}" if self.soft else f"class numbers, int{list(wanted)}"
            found = f"{self.label!r} is {kind_of(label)}"
            raise ConfigError(f"Classification.label: {found}, but labels are {what}: {self._advice(label)}")
        return label if self.soft else label.astype(jnp.int32)  # in u8, an `ignore` of -255 would be 1

    def _advice(self, label: jax.Array) -> str:
        kind, one_hot = jnp.dtype(label.dtype).kind, label.ndim == 2 and label.shape[1] == len(self.classes)
        if self.soft:
            return "cast one-hot labels to float32" if one_hot else "leave out soft=True for class numbers"
        if one_hot and kind != "f":
            return "take the argmax of one-hot labels, or cast them to float32 and set soft=True"
        if one_hot:
            return "set soft=True for one-hot labels"
        return (
            "drop the last dim" if label.ndim > 1 else f"cast {'them to int32' if kind == 'b' else 'numbers to int32'}"
        )


@dataclass(frozen=True, kw_only=True)
class MultiLabel(Supervised):
    """Trains a model with one logit a class to say of each class whether a row is of it, by binary cross-entropy."""

    classes: tuple[str, ...]
    """The names of the classes, in the order of the labels."""
    label: str = "label"
    """The field of a batch with 1 for every class that a row is of and 0 for others, [B, C]."""

    def __post_init__(self) -> None:
        """Raises ConfigError for no class, and for one twice."""
        check_classes(self, 1)

    def rows(self, outputs: jax.Array, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The cross-entropy in nats summed over classes, `accuracy` over classes, `exact` where all are right."""
        label_BC = batch_field(batch, self.label, "MultiLabel.label")
        outputs = outputs_of(outputs, "[B, C]", len(batch["mask"]), self)
        wanted = (outputs.shape[0], len(self.classes))
        if not outputs.shape == label_BC.shape == wanted:
            raise ConfigError(
                f"MultiLabel.label: {self.label!r} is {kind_of(label_BC)} and the outputs are {kind_of(outputs)}, but "
                f"{len(self.classes)} classes need {list(wanted)} of both"
            )
        right_BC = (outputs > 0) == (label_BC > 0.5)
        losses_B = optax.sigmoid_binary_cross_entropy(outputs, label_BC.astype(jnp.float32)).sum(-1)
        return losses_B, {"accuracy": right_BC.mean(-1), "exact": right_BC.all(-1).astype(jnp.float32)}

    def allowed(self) -> Mapping[str, Allowed]:
        """0 to 1."""
        return {**super().allowed(), self.label: Allowed(0, 1, why="a row is of a class (1) or not (0)")}

    def prediction(self, outputs: jax.Array) -> dict[str, jax.Array]:
        """`probabilities` f32[B, C], each by itself."""
        return {"probabilities": jax.nn.sigmoid(outputs)}


def check_classes(task: Classification | MultiLabel, least: int) -> None:
    """Raises ConfigError for fewer names of classes than `least`, for one twice, and for a label among the inputs."""
    setting, classes = f"{type(task).__name__}.classes", task.classes
    if len(classes) < least:
        why = "with one class every loss is 0; for yes or no give two names" if classes else "name the classes"
        raise ConfigError(f"{setting}: {len(classes)} given: {why}")
    if twice := [name for name in classes if classes.count(name) > 1]:
        raise ConfigError(f"{setting}: {twice[0]!r} is there twice, as numbers that metrics could not tell apart")
    if task.label in ((task.inputs,) if isinstance(task.inputs, str) else task.inputs):
        kind = type(task).__name__
        raise ConfigError(f"{kind}.inputs: {task.label!r} is the label: the model would read what it is to learn")
