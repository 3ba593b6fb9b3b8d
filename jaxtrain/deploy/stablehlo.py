"""The graph of a bundle as serialised StableHLO: made, read and run by jax."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import export

from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.base.text import cut
from jaxtrain.deploy.predictor import Predictor
from jaxtrain.deploy.signature import Signature
from jaxtrain.tasks.checks import TRACED, traced_error

PLATFORMS = ("cpu", "cuda", "tpu")


def lowered(predictor: Predictor) -> export.Exported:
    """The predictor's function for any number of rows and for all platforms; only the shapes of its weights matter.

    Raises ConfigError, with the reason, where it cannot be.
    """
    (rows,) = export.symbolic_shape("batch")
    tensors = {each.name: jax.ShapeDtypeStruct((rows, *each.shape), each.dtype) for each in predictor.tensors}
    weights = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in predictor.weights.items()}
    who = f"{type(predictor.task).__name__}.predict cannot be exported"
    try:
        return export.export(jax.jit(predictor.function), platforms=PLATFORMS)(weights, tensors)
    except TRACED as error:
        raise traced_error(error, who) from error
    except (TypeError, ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"{who} for any number of rows and for {', '.join(PLATFORMS)}: {why[0]}") from error


class StableHlo:
    """A graph and its weights on the default device of jax. It runs on any number of rows."""

    def __init__(self, graph: bytes, weights: Mapping[str, np.ndarray], signature: Signature, file: str) -> None:
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
        self._weights, self._file = jax.device_put(dict(weights)), file
        self._call = jax.jit(exported.call)

    def run(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name. It is compiled for numbers of rows that are powers of two, and filled up to the next."""
        rows = len(next(iter(tensors.values())))
        filled = 1 << math.ceil(math.log2(rows))
        padded = {name: np.concatenate([x, np.repeat(x[-1:], filled - rows, axis=0)]) for name, x in tensors.items()}
        try:
            outputs: Any = jax.device_get(self._call(self._weights, padded))
        except jax.errors.JaxRuntimeError as error:
            if "deserialize" not in str(error):
                raise
            raise Damaged(
                self._file, None, f"it is no StableHLO that this jax reads ({cut(str(error), 200)})"
            ) from error
        return {name: np.asarray(x)[:rows] for name, x in outputs.items()}


def _of(tensors: Any) -> dict[str, tuple[tuple[Any, ...], str]]:
    return {each.name: (("batch", *each.shape), each.dtype) for each in tensors}


def _sizes(shape: Any) -> tuple[Any, ...]:
    return tuple(size if isinstance(size, int) else "batch" for size in shape)
