"""What goes into a model and comes out of it besides inputs and outputs. Not here: how a module is called."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from flax import nnx


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Variables:
    """The arrays of a model, as nested dicts; from `init`, of `AxisNamed` arrays."""

    params: Any
    """What gradients are taken of."""
    state: Any = field(default_factory=dict)
    """What else training changes: running statistics, the parameters of a teacher. Empty for most models."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Context:
    """What a loss may depend on besides variables and batch."""

    step: Any = None
    """Updates done before this one, i32[]. None in predictions, which depend on no step."""
    keys_B: Any = None
    """One PRNG key a row in training. None in evaluation and prediction."""
    mask_B: Any = None
    """bool[B], False at rows that only fill up the batch; None is True for all."""

    @property
    def training(self) -> bool:
        """Whether dropout and statistics of the batch are used."""
        return self.keys_B is not None


class Sums(nnx.Variable):
    """Sums over the rows of a batch, which a layer leaves in its attribute `sums` while training, for its `advance`."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["sums"], meta_fields=["graph"])
@dataclass(frozen=True)
class Statistics:
    """What the layers of a module add up over the rows of a batch. It merges by adding its arrays."""

    sums: Mapping[str, Any]
    """The `Sums` of each layer, as nested dicts by its path."""
    graph: Any
    """The module's `Graph`."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Extras:
    """What a model returns besides its outputs."""

    aux_losses: Mapping[str, jax.Array] = field(default_factory=dict)
    """Auxiliary losses by name, f32[B], added to the loss of each row."""
    statistics: Any = field(default_factory=dict)
    """Sums over the rows of the batch, a pytree, which `advance` folds into the state; {} for a model without state and
    outside of training.
    """
