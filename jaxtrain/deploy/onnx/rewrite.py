"""A traced function as jax2onnx takes it: operations that it has no form of, or a slow one, are replaced by others that
compute the same, and what is computed of weights alone is computed once, now.

Not here: operations that no others can replace.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Literal

from jaxtrain.deploy.onnx.operations import matmul, modulus, pad, reshape, set_entry, set_in_rows, sliced

_SMALL = 4096  # numbers of a constant

_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2")

_Params = Mapping[str, Any]
"""The parameters of an operation."""


def evaluated(closed: ClosedJaxpr, arrays: Sequence[Any]) -> list[Any]:
    """The outputs of a jaxpr, operation by operation, to be traced for jax2onnx."""
    values: dict[Any, Any] = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(closed.jaxpr.invars, arrays, strict=True))

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in closed.jaxpr.eqns:
        given, name = [*map(value, equation.invars)], equation.primitive.name
        if (inside := _inlined(equation)) is not None:
            found = evaluated(inside, given)
        elif _is_constant(equation, given):
            with jax.ensure_compile_time_eval():
                found = _bound(equation, given)
        else:
            replaced = REWRITES[name](*given, equation.params) if name in REWRITES else None
            found = _bound(equation, given) if replaced is None else [replaced]
        values |= dict(zip(equation.outvars, found, strict=True))
    return [*map(value, closed.jaxpr.outvars)]


def _inlined(equation: Any) -> ClosedJaxpr | None:
    """The function that an operation only calls, once; None for loops, branches and all others."""
    if equation.primitive.name not in _CALLS:
        return None
    inside = next(equation.params[each] for each in ("jaxpr", "call_jaxpr", "fun_jaxpr") if each in equation.params)
    return inside if isinstance(inside, ClosedJaxpr) else ClosedJaxpr(inside, ())


def _bound(equation: Any, given: Sequence[Any]) -> Sequence[Any]:
    with equation.ctx.manager:
        made = equation.primitive.bind(*given, **equation.primitive.get_bind_params(equation.params))
    return made if equation.primitive.multiple_results else [made]


def _is_constant(equation: Any, given: Sequence[Any]) -> bool:
    """Whether an operation is of weights alone, and makes nothing of them that would be longer in the file."""
    if any(isinstance(x, Tracer) for x in given) or equation.effects or equation.primitive.name == "dim_as_value":
        return False
    if any(_unknown(each.aval.shape) for each in equation.outvars):
        return False
    return sum(each.aval.size for each in equation.outvars) <= max(_SMALL, sum(np.size(x) for x in given))


def _unknown(shape: Sequence[Any]) -> list[int]:
    """The dims whose size is not known: those of rows."""
    return [axis for axis, size in enumerate(shape) if not isinstance(size, int)]


def _pad(x: jax.Array, value: jax.Array, params: _Params) -> jax.Array:
    """Entries around, and between others, which jax2onnx does not have."""
    for axis, (_, _, interior) in enumerate(params["padding_config"]):
        x = _spread(x, value, axis, interior) if interior and x.shape[axis] > 1 else x
    sides = [(low, high) for low, high, _ in params["padding_config"]]
    for axis, (low, high) in enumerate(sides):
        if low < 0 or high < 0:
            x = _part(x, axis, max(-low, 0), x.shape[axis] - max(-high, 0))
    low, high = ([max(each, 0) for each in side] for side in zip(*sides, strict=True))
    return pad(x, value, low, high) if any((*low, *high)) else x


def _spread(x: jax.Array, value: jax.Array, axis: int, interior: int) -> jax.Array:
    """`interior` entries of `value` between any two of an axis."""
    before, count, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    apart, rank = _reshaped(x, (*before, count, 1, *after)), x.ndim + 1
    wide = pad(apart, value, [0] * rank, [interior if each == axis + 1 else 0 for each in range(rank)])
    joined = _reshaped(wide, (*before, count * (1 + interior), *after))
    return _part(joined, axis, 0, count + (count - 1) * interior)


def _part(x: jax.Array, axis: int, start: int, end: int) -> jax.Array:
    return sliced(x, (start,), (end,), (1,), (axis,))


def _reshaped(x: jax.Array, shape: Sequence[Any]) -> jax.Array:
    return reshape(x, shape) if len(_unknown(shape)) <= 1 else lax.reshape(x, shape)


def _slice(x: jax.Array, params: _Params) -> jax.Array | None:
    """By one node, where the dims that are not known are taken whole."""
    starts, ends = params["start_indices"], params["limit_indices"]
    steps = params["strides"] or (1,) * x.ndim
    axes = [each for each in range(x.ndim) if (starts[each], steps[each]) != (0, 1) or ends[each] != x.shape[each]]
    if _unknown([x.shape[axis] for axis in axes]):
        return None
    return sliced(x, *([each[axis] for axis in axes] for each in (starts, ends, steps)), axes) if axes else x


def _scatter(x: jax.Array, at: jax.Array, updates: jax.Array, params: _Params) -> jax.Array | None:
    """`x.at[:, 2:5].set(…)`, `jax.vmap(lambda x, at, new: x.at[at].set(new, mode="drop"))` and a vmap of
    `lax.dynamic_update_slice` that sets one entry of a dim; None for all others.
    """
    numbers, mode = params["dimension_numbers"], str(params["mode"])
    inserted, places = (
        [*map(int, each)] for each in (numbers.inserted_window_dims, numbers.scatter_dims_to_operand_dims)
    )
    batched = [*map(int, numbers.operand_batching_dims)]
    if not isinstance(at, Tracer) and not inserted and not batched and at.ndim == 1:
        return _window_set(x, dict(zip(places, np.asarray(at).tolist(), strict=True)), updates)
    if batched == [0] and inserted == places == [1] and x.ndim == updates.ndim == 2 and "DROP" in mode:
        return _rows_set(x, lax.squeeze(at, (2,)), updates)
    if batched == [0] and not inserted and places == [*range(1, x.ndim)] and "CLIP" in mode:
        return _entry_set(x, at, updates)
    return None


def _window_set(x: jax.Array, starts: Mapping[int, int], updates: jax.Array) -> jax.Array | None:
    """`x` with a window of it replaced, which begins at `starts` by dim; None where it is outside, or of two dims."""
    cut_short = [axis for axis in range(x.ndim) if x.shape[axis] != updates.shape[axis]]
    if not cut_short and not any(starts.values()):
        return updates
    if len(cut_short) != 1 or any(start for axis, start in starts.items() if axis not in cut_short):
        return None
    [axis] = cut_short
    start = starts.get(axis, 0)
    end = start + updates.shape[axis]
    if _unknown(x.shape[axis : axis + 1]) or start < 0 or end > x.shape[axis]:
        return None
    before = [_part(x, axis, 0, start)] if start else []
    after = [_part(x, axis, end, x.shape[axis])] if end < x.shape[axis] else []
    return lax.concatenate([*before, updates, *after], axis)


def _entry_set(x: jax.Array, at_BN: jax.Array, updates: jax.Array) -> jax.Array | None:
    """`x` with one entry of a dim replaced in each row; None where other than one is. Along the other dims, which are
    replaced whole, the places are clipped to 0.
    """
    [axis, *more] = [axis for axis in range(x.ndim) if x.shape[axis] != updates.shape[axis]] or [0]
    if more or axis == 0 or updates.shape[axis] != 1:
        return None
    at_B1 = _part(at_BN, 1, axis - 1, axis)
    at_B1 = lax.clamp(lax.full_like(at_B1, 0), at_B1, lax.full_like(at_B1, x.shape[axis] - 1))
    return set_entry(x, reshape(at_B1, (x.shape[0], *[1] * (x.ndim - 1))), updates, axis)


def _rows_set(x_BW: jax.Array, at_BL: jax.Array, updates_BL: jax.Array) -> jax.Array:
    """`x_BW` with `updates_BL` at the places `at_BL` of their rows; what is at other places goes to a column that is
    dropped.
    """
    W = x_BW.shape[1]
    wide = pad(x_BW, lax.full_like(x_BW, 0, shape=()), (0, 0), (0, 1))
    inside_BL = lax.bitwise_and(lax.ge(at_BL, lax.full_like(at_BL, 0)), lax.lt(at_BL, lax.full_like(at_BL, W)))
    at_BL = lax.select(inside_BL, at_BL, lax.full_like(at_BL, W))
    return _part(set_in_rows(wide, at_BL, updates_BL), 1, 0, W)


def _dot_general(x: jax.Array, kernel: jax.Array, params: _Params) -> jax.Array | None:
    """`x[..., D] @ kernel_DF`, in f32; None for all others."""
    (ours, theirs), batched = params["dimension_numbers"][0], params["dimension_numbers"][1]
    plain = (*ours, *theirs) == (x.ndim - 1, 0) and not any(batched) and kernel.ndim == 2 and x.ndim > 1
    return matmul(x, kernel) if plain and x.dtype == kernel.dtype == np.float32 else None


def _reshape(x: jax.Array, *more: Any) -> jax.Array:
    """By one node, where one dim is not known."""
    return _reshaped(x, more[-1]["new_sizes"])


def _broadcast_in_dim(x: jax.Array, *more: Any) -> jax.Array | None:
    """As a reshape, where it only adds dims of one entry."""
    shape, places = more[-1]["shape"], more[-1]["broadcast_dimensions"]
    added = all(shape[axis] == 1 for axis in range(len(shape)) if axis not in places)
    same = all(x.shape[n] is shape[axis] or x.shape[n] == shape[axis] for n, axis in enumerate(places))
    return reshape(x, shape) if added and same and len(_unknown(shape)) == 1 else None


def _rem(x: jax.Array, y: jax.Array, params: _Params) -> jax.Array | None:
    """By one node, of unsigned integers, of which the remainder is the modulus."""
    return modulus(x, y) if jnp.issubdtype(x.dtype, jnp.unsignedinteger) else None


def _sort(x: jax.Array, *more: Any) -> jax.Array | None:
    """Of u32 as i32 in the same order, which is what ONNX Runtime sorts; None for all others."""
    if len(more) > 1 or x.dtype != jnp.uint32:
        return None
    highest = lax.full_like(x, 1 << 31)
    signed = lax.convert_element_type(lax.bitwise_xor(x, highest), jnp.int32)
    made = lax.sort(signed, dimension=more[0]["dimension"], is_stable=False)
    return lax.bitwise_xor(lax.convert_element_type(made, jnp.uint32), highest)


REWRITES: Mapping[str, Callable[..., jax.Array | None]] = {
    "pad": _pad,
    "slice": _slice,
    "scatter": _scatter,
    "dot_general": _dot_general,
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast_in_dim,
    "rem": _rem,
    "sort": _sort,
}
"""By the name of the operation: what replaces it, of its inputs and its parameters; None leaves it as it is."""
