"""Checks, while tracing, of what a user's model builds and returns: a mistake is named with the class, what came and
what is expected.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.text import array_type


def kind_of(value: Any) -> str:
    """What a value is, in the words of an error message: `float32[8, 3]`, `a dict of a, b`."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return array_type(value).replace(",", ", ")
    if isinstance(value, tuple | list):
        return f"({', '.join(map(kind_of, value))})"
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(str, value))}" if value else "an empty dict"
    return f"a {type(value).__name__}"


def image_dims(inputs: Any, model: str) -> tuple[int, int, int]:
    """Y, X and C. Raises ConfigError for what is no array of images [B, Y, X, C]."""
    if len(getattr(inputs, "shape", ())) != 4:
        raise ConfigError(f"{model} reads images [B, Y, X, C], not {kind_of(inputs)}: gray ones have C = 1")
    return inputs.shape[1:]


def check_module(module: Any, model: str) -> None:
    """Raises ConfigError if `model.build` returned no Flax NNX module."""
    if not isinstance(module, nnx.Module):
        raise ConfigError(f"{model}.build returned {kind_of(module)}, not an nnx.Module")


def call_module(
    module: nnx.Module, given: Sequence[Any], more: Mapping[str, Any], rows: int, model: str
) -> tuple[Any, dict[str, jax.Array]]:
    """The module's outputs and its auxiliary losses, {} if it returns its outputs alone.

    Raises ConfigError where it does not take the arguments, and where it returns another tuple.
    """
    who = f"{model}: {type(module).__name__}.__call__"
    try:
        inspect.signature(type(module).__call__).bind(module, *given, **more)
    except TypeError as error:
        wanted = ", ".join([*["inputs", "context"][: len(given)], *more])
        raise ConfigError(f"{who} is called as module({wanted}): {error}") from error
    result = module(*given, **more)
    if not isinstance(result, tuple):
        return result, {}
    if len(result) != 2 or not isinstance(result[1], Mapping):
        raise ConfigError(f"{who} returned {kind_of(result)}: return outputs, or (outputs, dict of auxiliary losses)")
    for name, losses_B in result[1].items():
        if getattr(losses_B, "shape", None) != (rows,):
            raise ConfigError(f"{who}: auxiliary loss {name!r} is {kind_of(losses_B)}, not one number a row, [{rows}]")
    return result[0], dict(result[1])
