"""Operations of ONNX that jax2onnx does not use by itself, as primitives of jax: what `rewrite` replaces others by.

Each is traced and lowered to one node. They are not run by jax.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import onnx_ir as ir
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax2onnx.plugins.plugin_system import PrimitiveLeafPlugin, register_primitive


def matmul(x: jax.Array, kernel_DF: jax.Array) -> jax.Array:
    """f[..., F] by one MatMul, whose weights become int8; those of jax2onnx's Einsum and Gemm with β = 0 do not."""
    return _MATMUL.bind(x, kernel_DF)


def reshape(x: jax.Array, shape: Sequence[Any]) -> jax.Array:
    """`x` in another shape with one dim that is not known, which is inferred; jax2onnx computes it by five nodes."""
    return _RESHAPE.bind(x, shape=tuple(shape))


def modulus(x: jax.Array, y: jax.Array) -> jax.Array:
    """`x % y` of integers, by one node; jax2onnx divides, multiplies and subtracts."""
    return _MODULUS.bind(x, y)


def pad(x: jax.Array, value: jax.Array, low: Sequence[int], high: Sequence[int]) -> jax.Array:
    """`x` with `low` and `high` entries of `value` before and after each dim; jax2onnx fails where a dim is unknown."""
    return _PAD.bind(x, value, low=tuple(low), high=tuple(high))


_Ints = Sequence[int]


def sliced(x: jax.Array, starts: _Ints, ends: _Ints, steps: _Ints, axes: _Ints) -> jax.Array:
    """`x[starts:ends:steps]` along these dims, whose sizes are known; jax2onnx names the ends of all dims, by nodes."""
    return _SLICED.bind(x, starts=tuple(starts), ends=tuple(ends), steps=tuple(steps), axes=tuple(axes))


def set_in_rows(x_BW: jax.Array, at_BL: jax.Array, updates_BL: jax.Array) -> jax.Array:
    """`x_BW` with `updates_BL` at the places `at_BL`, all of them inside, of their rows."""
    return _SET_IN_ROWS.bind(x_BW, at_BL, updates_BL)


def set_entry(x: jax.Array, at: jax.Array, updates: jax.Array, axis: int) -> jax.Array:
    """`x` with one entry of a dim replaced in each row, that at `at` i32[B, 1, …], by `updates`, which broadcast."""
    return _SET_ENTRY.bind(x, at, updates, axis=axis)


def _matmul_shape(x: Any, kernel: Any) -> ShapedArray:
    return ShapedArray((*x.shape[:-1], kernel.shape[1]), x.dtype)


def _matmul_node(ctx: Any, _: Any, x: ir.Value, kernel: ir.Value, **name: Any) -> ir.Value:
    return ctx.builder.MatMul(x, kernel, **name)


def _reshape_shape(x: Any, *, shape: tuple[Any, ...]) -> ShapedArray:
    return ShapedArray(shape, x.dtype)


def _reshape_node(ctx: Any, equation: Any, x: ir.Value, **name: Any) -> ir.Value:
    sizes = np.array([n if isinstance(n, int) else -1 for n in equation.params["shape"]], np.int64)
    return ctx.builder.Reshape(x, _constant(ctx, sizes), **name)


def _modulus_shape(x: Any, y: Any) -> ShapedArray:
    return ShapedArray(x.shape, x.dtype)


def _modulus_node(ctx: Any, _: Any, x: ir.Value, y: ir.Value, **name: Any) -> ir.Value:
    return ctx.builder.Mod(x, y, fmod=0, **name)


def _pad_shape(x: Any, value: Any, *, low: tuple[int, ...], high: tuple[int, ...]) -> ShapedArray:
    sizes = zip(x.shape, low, high, strict=True)
    return ShapedArray(tuple(n + before + after if before or after else n for n, before, after in sizes), x.dtype)


def _pad_node(ctx: Any, equation: Any, x: ir.Value, value: ir.Value, **name: Any) -> ir.Value:
    pads = np.array([*equation.params["low"], *equation.params["high"]], np.int64)
    return ctx.builder.Pad(x, _constant(ctx, pads), value, mode="constant", **name)


def _sliced_shape(x: Any, *, starts: Any, ends: Any, steps: Any, axes: Any) -> ShapedArray:
    shape = [*x.shape]
    for start, end, step, axis in zip(starts, ends, steps, axes, strict=True):
        shape[axis] = len(range(start, end, step))
    return ShapedArray(tuple(shape), x.dtype)


def _sliced_node(ctx: Any, equation: Any, x: ir.Value, **name: Any) -> ir.Value:
    wanted = (equation.params[each] for each in ("starts", "ends", "axes", "steps"))
    return ctx.builder.Slice(x, *(_constant(ctx, np.array(each, np.int64)) for each in wanted), **name)


def _set_in_rows_shape(x_BW: Any, at_BL: Any, updates_BL: Any) -> ShapedArray:
    return ShapedArray(x_BW.shape, x_BW.dtype)


def _set_in_rows_node(ctx: Any, _: Any, x_BW: ir.Value, at_BL: ir.Value, updates_BL: ir.Value, **name: Any) -> ir.Value:
    return ctx.builder.ScatterElements(x_BW, at_BL, updates_BL, axis=1, **name)


def _set_entry_shape(x: Any, at: Any, updates: Any, *, axis: int) -> ShapedArray:
    return ShapedArray(x.shape, x.dtype)


def _set_entry_node(ctx: Any, equation: Any, x: ir.Value, at: ir.Value, updates: ir.Value, **name: Any) -> ir.Value:
    aval, axis = equation.outvars[0].aval, equation.params["axis"]
    sizes = [aval.shape[axis] if each == axis else 1 for each in range(len(aval.shape))]
    order = np.arange(aval.shape[axis], dtype=np.int32).reshape(sizes)
    return ctx.builder.Where(ctx.builder.Equal(_constant(ctx, order), at), updates, x, **name)


def _constant(ctx: Any, array: np.ndarray) -> ir.Value:
    return ctx.builder.add_initializer_from_array(name=ctx.fresh_name("constant"), array=array)


def _primitive(name: str, shape: Callable[..., ShapedArray], node: Callable[..., ir.Value]) -> Primitive:
    """A primitive whose result is of this shape, and that becomes this node."""
    made = Primitive(f"onnx_{name}")
    made.def_abstract_eval(shape)

    class Plugin(PrimitiveLeafPlugin):
        def lower(self, ctx: Any, eqn: Any) -> None:
            [variable] = eqn.outvars
            given = [ctx.get_value_for_var(each, name_hint=ctx.fresh_name(name)) for each in eqn.invars]
            wanted = ctx.get_value_for_var(variable, name_hint=ctx.fresh_name(name))
            taken = wanted.name is None or wanted.producer() is not None
            result = node(ctx, eqn, *given, _outputs=[ctx.fresh_name(name) if taken else wanted.name])
            result.type = ir.TensorType(given[0].dtype)
            result.shape = ir.Shape([n if isinstance(n, int) else str(n) for n in variable.aval.shape])
            ctx.bind_value_for_var(variable, result)

    register_primitive(jaxpr_primitive=made.name)(Plugin)
    return made


_MATMUL = _primitive("matmul", _matmul_shape, _matmul_node)
_RESHAPE = _primitive("reshape", _reshape_shape, _reshape_node)
_PAD = _primitive("pad", _pad_shape, _pad_node)
_SLICED = _primitive("sliced", _sliced_shape, _sliced_node)
_MODULUS = _primitive("modulus", _modulus_shape, _modulus_node)
_SET_IN_ROWS = _primitive("set_in_rows", _set_in_rows_shape, _set_in_rows_node)
_SET_ENTRY = _primitive("set_entry", _set_entry_shape, _set_entry_node)
