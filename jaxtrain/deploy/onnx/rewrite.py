"""A traced function as jax2onnx takes it: operations that it has no form of are replaced by others that compute the
same, and what is computed of weights alone is computed once, now.

Not here: operations that no others can replace.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

_SMALL = 4096  # numbers of a constant

_INSIDE = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def rewritten(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, to be traced for jax2onnx; functions that it calls are part of it."""

    def run(*arrays: jax.Array) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arrays)
        return jax.tree.unflatten(jax.tree.structure(shapes), _evaluated(closed, arrays))

    return run


def _evaluated(closed: ClosedJaxpr, arrays: Sequence[Any]) -> list[Any]:
    """The outputs of a jaxpr, operation by operation."""
    values: dict[Any, Any] = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(closed.jaxpr.invars, arrays, strict=True))

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in closed.jaxpr.eqns:
        given, params = [*map(value, equation.invars)], equation.params
        name = equation.primitive.name
        if (inside := _inlined(name, params)) is not None:
            found = _evaluated(inside, given)
        elif _is_constant(equation, given):
            with jax.ensure_compile_time_eval():
                found = _bound(equation, given)
        else:
            found = [RULES[name](*given, params)] if name in RULES else _bound(equation, given)
        values |= dict(zip(equation.outvars, found, strict=True))
    return [*map(value, closed.jaxpr.outvars)]


def _bound(equation: Any, given: Sequence[Any]) -> Sequence[Any]:
    with equation.ctx.manager:
        made = equation.primitive.bind(*given, **equation.primitive.get_bind_params(equation.params))
    return made if equation.primitive.multiple_results else [made]


def _is_constant(equation: Any, given: Sequence[Any]) -> bool:
    """Whether an operation is of weights alone, and makes nothing of them that would be longer in the file."""
    if not given or any(isinstance(x, jax.core.Tracer) for x in given) or equation.effects:
        return False
    sizes = [n for each in equation.outvars for n in each.aval.shape]
    if not all(isinstance(n, int) for n in sizes):  # of the rows
        return False
    return sum(each.aval.size for each in equation.outvars) <= max(_SMALL, sum(np.size(x) for x in given))


def _inlined(name: str, params: Mapping[str, Any]) -> ClosedJaxpr | None:
    """The function that an operation calls once, with all of its inputs; None for loops, branches and all others."""
    if name not in ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2"):
        return None
    inside = next(params[each] for each in _INSIDE if each in params)
    return inside if isinstance(inside, ClosedJaxpr) else ClosedJaxpr(inside, ())


def pad(x: jax.Array, value: jax.Array, params: Mapping[str, Any]) -> jax.Array:
    """`lax.pad` by concatenations: jax2onnx has none between entries, nor beside a dim of any size."""
    for axis, (low, high, interior) in enumerate(params["padding_config"]):
        if interior:
            x = _spread(x, value, axis, interior)
        if low < 0 or high < 0:
            x = jax.lax.slice_in_dim(x, max(-low, 0), x.shape[axis] - max(-high, 0), axis=axis)
        before, after = (_filled(x, value, axis, max(count, 0)) for count in (low, high))
        parts = [part for part in (before, x, after) if part is not None]
        x = jnp.concatenate(parts, axis) if len(parts) > 1 else x
    return x


def _filled(x: jax.Array, value: jax.Array, axis: int, count: int) -> jax.Array | None:
    """`count` entries of `value` along an axis, else as `x`; None for none."""
    return jnp.broadcast_to(value, (*x.shape[:axis], count, *x.shape[axis + 1 :])) if count else None


def _spread(x: jax.Array, value: jax.Array, axis: int, interior: int) -> jax.Array:
    """`interior` entries of `value` between any two of an axis."""
    count = x.shape[axis]
    if count < 2:
        return x
    apart = jnp.expand_dims(x, axis + 1)
    fill = jnp.broadcast_to(value, (*apart.shape[: axis + 1], interior, *apart.shape[axis + 2 :]))
    joined = jnp.concatenate([apart, fill], axis + 1).reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])
    return jax.lax.slice_in_dim(joined, 0, count + (count - 1) * interior, axis=axis)


RULES: Mapping[str, Callable[..., jax.Array]] = {"pad": pad}
"""By the name of the operation: what replaces it, called with its inputs and its parameters."""
