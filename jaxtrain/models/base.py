"""What every model is: a frozen config that builds a Flax NNX module, used functionally.

Not here: any architecture. The module is split once into a structure that holds no arrays and a plain nested dict of
plain arrays; only that dict is ever in the training state (host time a step is then that of a dict, not of a module).
"""

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from jaxtrain.sharding.layout import AxisNamed

Shaped = jax.Array | jax.ShapeDtypeStruct
Params = Any
"""Plain nested dicts of arrays; from `init`, of `AxisNamed` arrays."""


@dataclass(frozen=True)
class Model(ABC):
    """The config of an architecture; its fields are its hyperparameters."""

    @abstractmethod
    def build(self, rngs: nnx.Rngs, inputs: Shaped) -> nnx.Module:
        """The module, with parameters drawn from `rngs`, for inputs shaped like `inputs` (shape and dtype matter only).

        Calling it takes `(inputs, keys_B)`: keys are one PRNG key a row for dropout, or None for none. A model of
        sequences may also take `segments_BL`: which document each position belongs to. It returns the outputs, and by
        name what the model itself adds to the loss of each row, f32[B]; {} for most.
        """

    def init(self, key: jax.Array, inputs: jax.Array) -> Params:
        """New parameters, each with the names of its axes."""
        return _named(self.build(nnx.Rngs(key), inputs))

    def apply(self, params: Params, inputs: jax.Array, keys_B: jax.Array | None = None, **more: jax.Array) -> jax.Array:
        """The module's output for these parameters (plain arrays); `more` are further arguments of its call."""
        return self.apply_with_aux(params, inputs, keys_B, **more)[0]

    def apply_with_aux(
        self, params: Params, inputs: jax.Array, keys_B: jax.Array | None = None, **more: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The output, and what the model adds to the loss of each row."""
        shape = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)
        return nnx.merge(_structure(self, shape), params)(inputs, keys_B, **more)


def _named(module: nnx.Module) -> Params:
    tree: dict[str, Any] = {}
    for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        *parents, name = (str(part) for part in path)
        node = functools.reduce(lambda node, parent: node.setdefault(parent, {}), parents, tree)
        node[name] = AxisNamed(variable.get_value(), variable.get_metadata("axes"))
    return tree


@functools.lru_cache
def _structure(model: Model, inputs: jax.ShapeDtypeStruct) -> Any:
    return nnx.split(nnx.eval_shape(lambda: model.build(nnx.Rngs(0), inputs)))[0]
