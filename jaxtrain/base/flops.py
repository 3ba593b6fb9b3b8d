"""Counts the floating-point operations of a function and its gradient from its jaxpr, all iterations of loops included.

XLA's own count (`cost_analysis`) counts the body of a loop once. Not here: how long the operations take.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal


def gradient_flops(function: Callable[..., Any], params: Any, *arguments: Any) -> int:
    """FLOPs of the matmuls and convolutions in `function(params, *arguments)` and in its gradient by `params`.

    A matmul of m×k by k×n has 2·m·k·n, and its gradient 2·m·k·n more for each operand that depends on the parameters.
    Recomputation by remat and elementwise operations do not count. A `while` loop counts as one iteration, a `cond` as
    its largest branch. Arguments may be abstract.
    """
    jaxpr = jax.make_jaxpr(function)(params, *arguments).jaxpr
    trained = len(jax.tree.leaves(params))
    return _count(jaxpr, [number < trained for number in range(len(jaxpr.invars))])[0]


def forward_flops(jaxpr: Jaxpr) -> int:
    """FLOPs of the matmuls and convolutions in a jaxpr, counted as by `gradient_flops`, without a gradient."""
    return _count(jaxpr, [False] * len(jaxpr.invars))[0]


def differentiable(jaxpr: Jaxpr, by: Sequence[bool]) -> list[bool]:
    """Which results have a derivative by one of the arguments that `by` marks, judged by dtypes and `stop_gradient`."""
    return _count(jaxpr, by)[1]


def reached(jaxpr: Jaxpr, by: Sequence[bool]) -> list[bool]:
    """Which results may depend on one of the arguments that `by` marks: every result of an equation is taken to depend
    on all of its operands.
    """
    known = dict(zip(jaxpr.invars, by, strict=True))

    def read(variables: Sequence[Any]) -> list[bool]:
        return [not isinstance(each, Literal) and known.get(each, False) for each in variables]

    for equation in jaxpr.eqns:
        known |= dict.fromkeys(equation.outvars, any(read(equation.invars)))
    return read(jaxpr.outvars)


def _count(jaxpr: Jaxpr, depends: Sequence[bool]) -> tuple[int, list[bool]]:
    """FLOPs, and which results depend on the parameters; `depends` says which arguments do."""
    known = dict(zip(jaxpr.invars, depends, strict=True))

    def read(variables: Sequence[Any]) -> list[bool]:
        return [not isinstance(each, Literal) and known.get(each, False) for each in variables]

    total = 0
    for equation in jaxpr.eqns:
        flops, results = _of_equation(equation, read(equation.invars))
        total += flops
        for variable, result in zip(equation.outvars, results, strict=True):
            known[variable] = result and jnp.issubdtype(getattr(variable.aval, "dtype", bool), jnp.inexact)
    return total, read(jaxpr.outvars)


def _of_equation(equation: Any, depends: list[bool]) -> tuple[int, list[bool]]:
    name, outputs = equation.primitive.name, len(equation.outvars)
    if name in MATMULS:
        left, right = (variable.aval.shape for variable in equation.invars[:2])
        flops = MATMULS[name](equation.params, left, right, equation.outvars[0].aval.shape)
        return flops * (1 + sum(depends[:2])), [any(depends)]
    if name in WITHOUT_DERIVATIVE:
        return 0, [False] * outputs
    if name == "scan":
        return _of_scan(equation.params, depends)
    if name == "cond":
        branches = [_count(branch.jaxpr, depends[1:]) for branch in equation.params["branches"]]
        results = [any(each) for each in zip(*(result for _, result in branches), strict=True)]
        return max(flops for flops, _ in branches), results
    if name == "while":
        body, skipped = equation.params["body_jaxpr"].jaxpr, equation.params["cond_nconsts"]
        return _count(body, depends[skipped:])[0], [any(depends)] * outputs
    for inner in map(_called_jaxpr, equation.params.values()):
        if inner is not None and len(inner.invars) == len(depends) and len(inner.outvars) == outputs:
            return _count(inner, depends)
    return 0, [any(depends)] * outputs


def _of_scan(params: dict[str, Any], depends: list[bool]) -> tuple[int, list[bool]]:
    jaxpr, (first, count) = params["jaxpr"].jaxpr, scan_sizes(params)
    last = first + count
    while True:  # a carried value may depend on the parameters from a later iteration on
        flops, results = _count(jaxpr, depends)
        carried = [one or two for one, two in zip(depends[first:last], results, strict=False)]
        if carried == depends[first:last]:
            return flops * params["length"], results
        depends = [*depends[:first], *carried, *depends[last:]]


def scan_sizes(params: dict[str, Any]) -> tuple[int, int]:
    """The number of constants and of carried values of a scan; from jax 0.12 on they are stored as a tree."""
    if "ft_in" in params:
        constants, carried, _ = params["ft_in"].unpack()
        return len(constants), len(carried)
    return params["num_consts"], params["num_carry"]


def _called_jaxpr(value: Any) -> Any:
    """The jaxpr of a call, closed or not; None for any other parameter of an equation."""
    inner = getattr(value, "jaxpr", value)
    return inner if hasattr(inner, "eqns") else None


WITHOUT_DERIVATIVE = ("stop_gradient", "round", "floor", "ceil", "sign")
"""Primitives whose results are floats with a derivative of 0 everywhere."""

Shape = tuple[int, ...]


def _dot_general(params: dict[str, Any], left: Shape, right: Shape, output: Shape) -> int:
    (contracted, _), _ = params["dimension_numbers"]
    return 2 * math.prod(output) * math.prod(left[dim] for dim in contracted)


def _ragged_dot(params: dict[str, Any], left: Shape, right: Shape, output: Shape) -> int:
    (contracted, _), _ = params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    return 2 * math.prod(output) * math.prod(left[dim] for dim in contracted)


def _convolution(params: dict[str, Any], left: Shape, right: Shape, output: Shape) -> int:
    features = right[params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(output) * math.prod(right) // features


MATMULS: dict[str, Callable[[dict[str, Any], Shape, Shape, Shape], int]] = {
    "dot_general": _dot_general,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _convolution,
}
"""The FLOPs of each primitive that is counted, as a function of its parameters and shapes."""
