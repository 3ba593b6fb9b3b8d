"""Reads what a function computes off its jaxpr: every equation, also those in loops, jits and shard_maps. Not a test."""

from collections.abc import Callable, Iterator
from typing import Any

import jax


def equations(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """All equations of a function of arguments with these shapes and dtypes."""
    return list(_inside(jax.make_jaxpr(function)(*arguments).jaxpr))


def _inside(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for each in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(each, "jaxpr", each)
                if hasattr(inner, "eqns"):
                    yield from _inside(inner)


def dtypes(equation: Any) -> set[str]:
    """The floating-point dtypes that an equation reads."""
    found = {str(operand.aval.dtype) for operand in equation.invars if hasattr(operand.aval, "dtype")}
    return {dtype for dtype in found if "float" in dtype}
