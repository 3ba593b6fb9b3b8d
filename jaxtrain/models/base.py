"""The base class of models: a frozen config that builds a Flax NNX module, which is then used as a pure function.

Not here: any architecture.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
from flax import nnx

from jaxtrain.base.ranges import Checked
from jaxtrain.models.checks import call_module, check_module
from jaxtrain.models.params import Axes, Params, graph_of, name_axes, named_params, with_params
from jaxtrain.models.sizes import Activations

Shaped = jax.Array | jax.ShapeDtypeStruct


@dataclass(frozen=True)
class Model(Checked, ABC):
    """The config of an architecture. Its fields are its hyperparameters."""

    param_axes: ClassVar[Mapping[str, Axes]] = {}
    """The names of parameters' dims by path pattern, for layers that give none themselves, such as Flax's own:
    `{"hidden/kernel": ("embed", "mlp")}`. Parameters whose dims have no names are replicated.
    """

    @abstractmethod
    def build(self, rngs: nnx.Rngs, inputs: Shaped) -> nnx.Module:
        """The module, with parameters drawn from `rngs`. Of `inputs` only shape and dtype matter.

        It is called as `module(inputs, keys_B)`, where `keys_B` are PRNG keys for dropout, one a row, or None for no
        dropout. A model of sequences may also take `segments_BL` i[B, L], the document of each position. It returns
        its outputs, or `(outputs, aux_losses)` with a dict of auxiliary losses f32[B] that are added to the loss of
        each row. A layer of Flax's, `nnx.Sequential` for one, is called with `inputs` alone.

        All its variables are `nnx.Param`; a list of layers is an `nnx.List`. Where parameters are split, constrain
        activations too, with `jaxtrain.sharding.shard`: what XLA chooses without may be slow or even wrong (a gradient
        of a convolution, in jaxlib 0.10.2). `jaxtrain verify` finds both.
        """

    def init(self, key: jax.Array, inputs: jax.Array) -> Params:
        """New parameters, `AxisNamed` by the names of their dims. Raises ConfigError for other variables than these."""
        return named_params(self._build(nnx.Rngs(key), inputs), self.param_axes, type(self).__name__)

    def module(self, params: Params, inputs: Shaped) -> nnx.Module:
        """The module with these parameters (plain arrays), for inputs with these dims after the first."""
        leaves, structure = jax.tree.flatten(inputs)
        shapes = tuple(jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for x in leaves)
        return with_params(graph_of(self._build, structure, shapes), params)

    def apply(
        self, params: Params, inputs: jax.Array, keys_B: jax.Array | None = None, **more: jax.Array
    ) -> tuple[Any, dict[str, jax.Array]]:
        """The outputs for these parameters (plain arrays), and the auxiliary losses by name, f32[B] each.

        more: further arguments of the module, by name. Raises ConfigError where the module does not take them, and
        where it returns something else.
        """
        module, rows = self.module(params, inputs), jax.tree.leaves(inputs)[0].shape[0]
        given = (inputs,) if type(module).__module__.startswith("flax.") else (inputs, keys_B)
        return call_module(module, given, more, rows, type(self).__name__)

    def shrunk(self, devices: int) -> Self:
        """A small version of this model for `jaxtrain verify`, in f32; itself by default.

        Sizes keep their common divisors with `devices`, so that the same meshes fit: see `smaller`.
        """
        return self

    def describe(self, inputs: Shaped) -> Activations | None:
        """The sizes of the activations for a batch like `inputs`. None is unknown: `jaxtrain verify` then judges what
        is sent for parameters and gradients alone.
        """
        return None

    def _build(self, rngs: nnx.Rngs, inputs: Shaped) -> nnx.Module:
        with nnx.use_eager_sharding(False):  # else Flax takes the names of dims for mesh axes
            module = self.build(rngs, inputs)
        check_module(module, type(self).__name__)
        return name_axes(module)
