"""The graph of a bundle as serialised StableHLO: read and run by jax alone. Not here: making it."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import export

from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.base.text import cut
from jaxtrain.deploy.generation import StepGraph
from jaxtrain.deploy.signature import Signature


class StableHlo:
    """A graph and its weights on the default device of jax. It runs on any number of rows."""

    def __init__(self, graph: bytes, weights: Mapping[str, Any], signature: Signature | StepGraph, file: str) -> None:
        """Raises Damaged where the graph is none, or takes other arrays than the signature and weights are."""
        try:
            exported = export.deserialize(bytearray(graph))
            (given, tensors), named = jax.tree.unflatten(exported.in_tree, exported.in_avals)
            outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
        except Exception as error:  # of flatbuffers and of jax, of any kind
            raise Damaged(file, None, f"it is no StableHLO that this jax reads ({cut(str(error), 200)})") from error
        wanted = (
            ({path: (x.shape, x.dtype.name) for path, x in weights.items()}, given, "the weights"),
            (_of(signature.tensors), tensors, "the tensors of the signature"),
            (_of(signature.outputs), outputs, "the outputs of the signature"),
        )
        for ours, theirs, what in wanted:
            shapes = {name: (_sizes(x.shape), x.dtype.name) for name, x in dict(theirs).items()}
            if named or shapes != ours:
                names = sorted(name for name in {*shapes, *ours} if shapes.get(name) != ours.get(name))
                raise Damaged(file, None, f"it was not made for {what}: {', '.join(names[:5])}")
        platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
        if platform not in exported.platforms:
            raise ConfigError(f"{file} runs on {', '.join(exported.platforms)}, and here is {platform}")
        self._file = file
        self.weights: Mapping[str, jax.Array] = jax.device_put(dict(weights))
        """On the device, for other graphs too."""

        def call(weights: Any, tensors: Mapping[str, Any], donated: Mapping[str, Any]) -> Any:
            return exported.call(weights, {**tensors, **donated})

        self._call = jax.jit(call, donate_argnames="donated")

    def run(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name. It is compiled for numbers of rows that are powers of two, and filled up to the next."""
        rows = len(next(iter(tensors.values())))
        filled = 1 << math.ceil(math.log2(rows))
        padded = {name: np.concatenate([x, np.repeat(x[-1:], filled - rows, axis=0)]) for name, x in tensors.items()}
        outputs: Any = jax.device_get(self._called(padded, {}))
        return {name: np.asarray(x)[:rows] for name, x in outputs.items()}

    def step(self, tensors: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The outputs on the device, for just these rows. Tensors that are there already, a cache, are donated."""
        donated = {name: x for name, x in tensors.items() if isinstance(x, jax.Array)}
        return self._called({name: x for name, x in tensors.items() if name not in donated}, donated)

    def _called(self, tensors: Mapping[str, Any], donated: Mapping[str, jax.Array]) -> Any:
        try:
            return self._call(self.weights, tensors, donated)
        except jax.errors.JaxRuntimeError as error:
            if "deserialize" not in str(error):
                raise
            why = f"it is no StableHLO that this jax reads ({cut(str(error), 200)})"
            raise Damaged(self._file, None, why) from error


def _of(tensors: Any) -> dict[str, tuple[tuple[Any, ...], str]]:
    return {each.name: (("batch", *each.shape), each.dtype) for each in tensors}


def _sizes(shape: Any) -> tuple[Any, ...]:
    return tuple(size if isinstance(size, int) else "batch" for size in shape)
