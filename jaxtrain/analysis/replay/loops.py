"""What is known of the values of a program, and its loops, pass by pass. Not here: evaluating it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from jaxtrain.analysis.replay.places import Frame
from jaxtrain.base.flops import scan_sizes

FIELD = "batch/"
"""How the names of the batch's fields begin, among those of parameters."""


@dataclass
class Evaluated:
    """An equation whose result is not finite."""

    order: int
    primitive: str
    frames: tuple[Frame, ...]
    stack: str
    parts: tuple[str, ...]
    """The passes of loops it is in, such as `layer 3 of 5`."""
    parameter: str | None
    """The parameter it reads, or the last one read before."""
    reads: bool = False
    """Whether it reads it itself."""
    causes: tuple[tuple["Evaluated", int], ...] = ()
    """The equations whose results make it so, and which of these results."""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    loop: Callable[[frozenset[int]], "Evaluated"] | None = None
    """Of a loop in which the fault begins: finds the equation in it, given which results count."""


@dataclass
class Flow:
    """An array, and what is known of it."""

    array: Any
    name: str | None = None
    """The parameter or field of the batch that it is."""
    bad: tuple[Evaluated, int] | None = None
    """The equation that made it not finite."""
    written: bool = False
    """Not finite because the code says so."""


@dataclass
class Loop:
    """A scan or a while loop, and what goes into it. Who runs it replaces `carried` after every pass."""

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
        """The numbers of its passes, in the order in which they are run."""
        if self.length is not None:
            yield from reversed(range(self.length)) if self.reverse else range(self.length)
            return
        number = 0
        while self.goes_on([each.array for each in self.carried]):
            yield number
            number += 1

    def arguments(self, number: int) -> list[Flow]:
        """What goes into the body in a pass."""
        rows = [Flow(each.array[number], each.name and _entry(each.name, number)) for each in self.scanned]
        return [*self.constants, *self.carried, *rows]


def _entry(name: str, number: int) -> str:
    return name if name.startswith(FIELD) else f"{name}[{number}]"
