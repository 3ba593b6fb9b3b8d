"""Low-rank adaptation of linear layers (Hu et al. 2021, arXiv:2106.09685).

Shapes: D input features, F output features, R rank.
"""

import functools
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.base.allowed import Allowed
from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.ranges import NonNegative, PositiveInt
from jaxtrain.models.base import Model, Shaped
from jaxtrain.models.layers import Linear
from jaxtrain.models.params import named_variables
from jaxtrain.models.sizes import Activations
from jaxtrain.models.variables import Variables


@dataclass(frozen=True, kw_only=True)
class LoRA(Model):
    """A model whose linear layers, those with a kernel f[..., D, F], also add `scale` · (x @ in @ out) with trained
    matrices in f[..., D, R] and out f[..., R, F].

    To train these alone: `Groups(groups={"*/lora_*": AdamW(), "*": Frozen()})`. Other parameters have the names of
    those of the model itself, so that a run of it can be the start.
    """

    model: Model
    layers: tuple[str, ...]
    """Path patterns of the layers, such as `"blocks/block/query"` or `"*/block/*"`."""
    rank: PositiveInt = 8
    scale: NonNegative = 1.0
    """The factor of what is added; α / R in the paper."""

    def init(self, key: jax.Array, inputs: Any) -> Variables:
        """New arrays, with the names of dims that the model gives."""
        return named_variables(self._build(nnx.Rngs(key), inputs), self.model.param_axes, type(self.model).__name__)

    def build(self, rngs: nnx.Rngs, inputs: Shaped) -> nnx.Module:
        """The module, which at first computes what the model's does. Raises ConfigError for a pattern without layer."""
        module = self.model.build(rngs, inputs)
        if not self.layers:
            raise ConfigError("LoRA.layers: name at least one, such as 'blocks/block/query'")
        found = {"/".join(map(str, path)): layer for path, layer in nnx.iter_graph(module) if _is_linear(layer)}
        for pattern in self.layers:
            if not any(fnmatchcase(name, pattern) for name in found):
                raise ConfigError(f"LoRA.layers: no linear layer matches {pattern!r}{nearest(pattern, found)}")
        for name, layer in found.items():
            if any(fnmatchcase(name, pattern) for pattern in self.layers):
                self._adapt(layer, rngs)
        return module

    def _adapt(self, layer: Any, rngs: nnx.Rngs) -> None:
        if hasattr(layer, "lora_in"):
            raise ConfigError(
                "LoRA.model: LoRA inside of LoRA would add the same matrices twice: give the model itself"
            )
        kernel = layer.kernel.get_value()
        *stacked, D, F = kernel.shape
        axes = layer.kernel.get_metadata().get("axes") or (None,) * kernel.ndim
        drawn = jax.random.normal(rngs.params(), (*stacked, D, self.rank)) * D**-0.5
        layer.__class__ = _adapted(type(layer))
        layer.lora_in = nnx.Param(drawn, axes=(*axes[:-1], None))
        layer.lora_out = nnx.Param(jnp.zeros((*stacked, self.rank, F)), axes=(*axes[:-2], None, axes[-1]))
        layer.lora_scale = self.scale

    def merged(self, variables: Variables) -> Variables:
        """The variables of the model itself that compute the same."""
        return Variables(self._without(variables.params), variables.state)

    def _without(self, params: Any) -> Any:
        if not isinstance(params, dict):
            return params
        if "lora_in" not in params:
            return {name: self._without(node) for name, node in params.items()}
        added = self.scale * (params["lora_in"] @ params["lora_out"])
        kept = {name: leaf for name, leaf in params.items() if not name.startswith("lora_")}
        return {**kept, "kernel": (params["kernel"] + added).astype(params["kernel"].dtype)}

    def shrunk(self, devices: int) -> Self:
        """The model's, of rank 2."""
        return replace(self, model=self.model.shrunk(devices), rank=min(self.rank, 2))

    def describe(self, inputs: Shaped) -> Activations | None:
        """Those of the model."""
        return self.model.describe(inputs)

    def allowed(self) -> Allowed | None:
        """Those of the model."""
        return self.model.allowed()


def _is_linear(layer: Any) -> bool:
    """Whether it maps f[..., D] to f[..., F] by its kernel."""
    return isinstance(layer, Linear | nnx.Linear)


@functools.cache
def _adapted(kind: type[Any]) -> type[Any]:
    """The class of a layer that adds its low-rank product to what `kind` computes."""

    class Adapted(kind):
        def __call__(self, x: jax.Array) -> jax.Array:
            out = super().__call__(x)
            dtype = out.dtype
            low = x.astype(dtype) @ self.lora_in[...].astype(dtype)
            return out + self.lora_scale * (low @ self.lora_out[...].astype(dtype))

    return Adapted
