"""Data structures for evaluating a program: values with what is known of them, and loops by iteration."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from jaxtrain.analysis.replay.places import Frame
from jaxtrain.base.flops import scan_sizes

FIELD = "batch/"
"""The prefix of the names of batch fields, which tells them from parameters."""


@dataclass
class Evaluated:
    """An equation whose result is not finite."""

    order: int
    primitive: str
    frames: tuple[Frame, ...]
    stack: str
    parts: tuple[str, ...]
    """The iterations of loops that it is in, such as `layer 3 of 0…4`."""
    parameter: str | None
    """The parameter that it reads, or the last one that was read before."""
    reads: bool = False
    """Whether it reads `parameter` itself."""
    causes: tuple[tuple["Evaluated", int], ...] = ()
    """The equations with results that are the cause, and the number of each result."""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    loop: Callable[[frozenset[int]], "Evaluated"] | None = None
    """For a loop in which the fault begins: a function that finds the equation in it, given the results to look at."""


@dataclass
class Flow:
    """An array, and what is known about it."""

    array: Any
    name: str | None = None
    """The name of the parameter or batch field that it is, if any."""
    bad: tuple[Evaluated, int] | None = None
    """The equation that made it not finite, and the number of the result."""
    written: bool = False
    """Whether it holds an infinity that the code writes on purpose, as for a mask."""


@dataclass
class Loop:
    """A scan or a while loop with its inputs. The caller replaces `carried` after every iteration."""

    body: ClosedJaxpr
    constants: list[Flow]
    carried: list[Flow]
    scanned: list[Flow]
    length: int | None
    reverse: bool = False
    goes_on: Callable[[Sequence[Any]], bool] = lambda carried: True

    @classmethod
    def of(cls, equation: Any, inputs: list[Flow]) -> "Loop":
        """The loop of an equation."""
        params = equation.params
        if equation.primitive.name == "scan":
            first, count = scan_sizes(params)
            parts = inputs[:first], inputs[first : first + count], inputs[first + count :]
            return cls(params["jaxpr"], *parts, params["length"], params["reverse"])
        asked, first = params["cond_nconsts"], params["body_nconsts"]
        constants = [each.array for each in inputs[:asked]]
        ask = jax.jit(jaxpr_as_fun(params["cond_jaxpr"]))
        body, carried = inputs[asked : asked + first], inputs[asked + first :]
        return cls(params["body_jaxpr"], body, carried, [], None, goes_on=lambda now: bool(ask(*constants, *now)[0]))

    def numbers(self) -> Iterator[int]:
        """The numbers of its iterations, in the order in which they are run."""
        if self.length is not None:
            yield from reversed(range(self.length)) if self.reverse else range(self.length)
            return
        number = 0
        while self.goes_on([each.array for each in self.carried]):
            yield number
            number += 1

    def arguments(self, number: int) -> list[Flow]:
        """The inputs of the body in an iteration."""
        rows = [Flow(each.array[number], each.name and _entry_name(each.name, number)) for each in self.scanned]
        return [*self.constants, *self.carried, *rows]


def _entry_name(name: str, number: int) -> str:
    return name if name.startswith(FIELD) else f"{name}[{number}]"
