"""The base class of models: a frozen config that builds a Flax NNX module, which is then used as a pure function.

Not here: any architecture.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
from flax import nnx

from jaxtrain.base.allowed import Allowed
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import Checked
from jaxtrain.models.checks import call_module, check_module
from jaxtrain.models.params import Axes, Graph, at, by_path, graph_of, name_axes, named_variables, with_variables
from jaxtrain.models.sizes import Activations
from jaxtrain.models.variables import Context, Extras, Statistics, Sums, Variables

Shaped = jax.Array | jax.ShapeDtypeStruct

PREDICTION = Context()
"""No step, no dropout, no statistics."""


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

        It is called as `module(inputs, context)`; `context.keys_B` are PRNG keys for dropout, one a row, or None for no
        dropout. A model of sequences may also take `segments_BL` i[B, L], the document of each position. It returns
        its outputs, or `(outputs, aux_losses)` with a dict of auxiliary losses f32[B] that are added to the loss of
        each row. A layer of Flax's, `nnx.Sequential` for one, is called with `inputs` alone.

        Its variables are `nnx.Param`, and `nnx.BatchStat` in layers that have `advance(sums)`, as `BatchNorm` has; a
        list of layers is an `nnx.List`. Where parameters are split, constrain
        activations too, with `jaxtrain.sharding.shard`: what XLA chooses without may be slow or even wrong (a gradient
        of a convolution, in jaxlib 0.10.2). `jaxtrain verify` finds both.
        """

    def init(self, key: jax.Array, inputs: Any) -> Variables:
        """New arrays, `AxisNamed` by the names of their dims. Raises ConfigError for other variables than these."""
        return named_variables(self._build(nnx.Rngs(key), inputs), self.param_axes, type(self).__name__)

    def module(self, variables: Variables, inputs: Any) -> nnx.Module:
        """The module with these (plain) arrays, for inputs with these dims after the first."""
        return with_variables(self._graph(inputs), variables)

    def apply(
        self, variables: Variables, inputs: Any, context: Context = PREDICTION, **more: jax.Array
    ) -> tuple[Any, Extras]:
        """The outputs for these (plain) arrays, and what else comes with them.

        more: further arguments of the module, by name. Raises ConfigError where the module does not take them, and
        where it returns something else.
        """
        graph, rows = self._graph(inputs), jax.tree.leaves(inputs)[0].shape[0]
        module = with_variables(graph, variables)
        given = (inputs,) if type(module).__module__.startswith("flax.") else (inputs, context)
        outputs, aux_losses = call_module(module, given, more, rows, type(self).__name__)
        sums = by_path(nnx.state(module, Sums))
        return outputs, Extras(aux_losses, Statistics(sums, graph) if sums else {})

    def advance(self, variables: Variables, statistics: Any) -> Any:
        """The state after a step, from the `Extras.statistics` of its whole batch: each layer's `advance` is called.

        variables: the parameters after the step, the state before it.
        """
        if not isinstance(statistics, Statistics):
            return variables.state
        module = with_variables(statistics.graph, variables)
        for path, layer in nnx.iter_graph(module):
            if hasattr(layer, "advance"):
                layer.advance(at(statistics.sums, path)["sums"])
        return by_path(nnx.state(module, nnx.BatchStat))

    def prefill(
        self, variables: Variables, ids_BL: jax.Array, lengths_B: jax.Array, length: int
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The logits f32[B, V] of the token that follows the first `lengths_B` i[B] tokens of each row, and a cache
        with them, which has room for `length` tokens a row. The rest of a row is padding.

        Calls the module's `empty_cache(rows, length)` and `extend(ids_BL, lengths_B, cache)`. Raises ConfigError for a
        module without.
        """
        module = self._decoder(variables, ids_BL)
        return module.extend(ids_BL, lengths_B, module.empty_cache(ids_BL.shape[0], length))

    def decode(
        self, variables: Variables, ids_B: jax.Array, cache: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The logits f32[B, V] of the token after `ids_B` i[B], which follow those of the cache, and the new cache.

        A cache without room for another token gives wrong logits: a device cannot raise.
        """
        ids_B1 = ids_B[:, None]
        return self._decoder(variables, ids_B1).extend(ids_B1, None, cache)

    def _decoder(self, variables: Variables, ids_BL: jax.Array) -> Any:
        module: Any = self.module(variables, ids_BL)
        if not (hasattr(module, "extend") and hasattr(module, "empty_cache")):
            raise ConfigError(
                f"{type(self).__name__} cannot generate, since it keeps no cache: {type(module).__name__} has no "
                "methods empty_cache(rows, length) and extend(ids_BL, lengths_B, cache)"
            )
        return module

    def count(self, variables: Variables, inputs: Any, labels_BC: jax.Array, counts: Any = None) -> Any:
        """What the module's `count(inputs, labels_BC, counts)` adds to `counts`, which are None before the first batch.

        labels_BC: f32, 1 for the class of a row; all 0 for rows that count for nothing. A module without this method
        fits nothing: None.
        """
        module: Any = self.module(variables, inputs)
        return module.count(inputs, labels_BC, counts) if hasattr(module, "count") else None

    def fit(self, variables: Variables, inputs: Any, counts: Any) -> Any:
        """The state after the module's `fit(counts)`, with the counts of the training split."""
        module: Any = self.module(variables, inputs)
        module.fit(counts)
        return by_path(nnx.state(module, nnx.BatchStat))

    def allowed(self) -> Allowed | None:
        """The numbers that the inputs may hold; finite ones by default, None is any."""
        return Allowed(why="NaN would spread to every parameter; a model that takes them overrides `allowed`")

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

    def _graph(self, inputs: Any) -> Graph:
        leaves, structure = jax.tree.flatten(inputs)
        return graph_of(self._build, structure, tuple(jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for x in leaves))

    def _build(self, rngs: nnx.Rngs, inputs: Shaped) -> nnx.Module:
        with nnx.use_eager_sharding(False):  # else Flax takes the names of dims for mesh axes
            module = self.build(rngs, inputs)
        check_module(module, type(self).__name__)
        return name_axes(module)
