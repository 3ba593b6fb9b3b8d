"""Prefill and decode as functions from arrays by name to arrays by name, which `jax.export` serialises.

Shapes: B batch, L tokens of a padded prompt, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jax.sharding import AbstractMesh

from jaxtrain.models.base import Model
from jaxtrain.models.params import insert
from jaxtrain.models.variables import Variables
from jaxtrain.sharding.constraints import scope
from jaxtrain.sharding.layout import Layout

Tensors = Mapping[str, Any]
Function = Callable[[Tensors, Tensors], dict[str, jax.Array]]
"""`f(weights, tensors) -> outputs`; weights by path, such as `params/embedding/table`."""


def prefill_function(model: Model, length: int) -> Function:
    """From `tokens` i32[B, L], padded at the end, and `lengths` i32[B] to `logits` f32[B, V] of the token that follows
    each prompt, and the arrays of the cache, which has room for `length` tokens a row.
    """

    def prefill(weights: Tensors, tensors: Tensors) -> dict[str, jax.Array]:
        with _one_device():
            logits_BV, cache = model.prefill(variables_of(weights), tensors["tokens"], tensors["lengths"], length)
        return {"logits": logits_BV, **cache}

    return prefill


def decode_function(model: Model) -> Function:
    """From `token` i32[B] and the arrays of the cache to `logits` f32[B, V] of the next token, and the arrays of the
    cache after it.
    """

    def decode(weights: Tensors, tensors: Tensors) -> dict[str, jax.Array]:
        cache = {name: x for name, x in tensors.items() if name != "token"}
        with _one_device():
            logits_BV, cache = model.decode(variables_of(weights), tensors["token"], cache)
        return {"logits": logits_BV, **cache}

    return decode


def export_generation(
    model: Model, weights: Tensors, prompt: int, length: int, platforms: Sequence[str] = ("cpu", "cuda", "tpu")
) -> tuple[export.Exported, export.Exported]:
    """Prefill of prompts padded to `prompt` tokens, and decode, for any number of rows."""
    (rows,) = export.symbolic_shape("batch")
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    tokens = {"tokens": jax.ShapeDtypeStruct((rows, prompt), jnp.int32)}
    row = jax.ShapeDtypeStruct((rows,), jnp.int32)
    first = jax.jit(prefill_function(model, length))
    prefill = export.export(first, platforms=platforms)(shapes, {**tokens, "lengths": row})
    made = jax.tree.unflatten(prefill.out_tree, prefill.out_avals)
    cache = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in made.items() if name != "logits"}
    decode = export.export(jax.jit(decode_function(model)), platforms=platforms)(shapes, {"token": row, **cache})
    return prefill, decode


def _one_device() -> AbstractContextManager[None]:
    """Around what is traced for one device of any platform: what a CPU computes is right everywhere."""
    return scope(Layout(), AbstractMesh((), ()), platform="cpu")


def variables_of(weights: Tensors) -> Variables:
    """The variables whose leaves these are."""
    tree: dict[str, Any] = {"params": {}, "state": {}}
    for path, x in weights.items():
        insert(tree, path.split("/"), x)
    return Variables(tree["params"], tree["state"])
