"""Evaluates a jaxpr one equation at a time, to find the first one whose result is not finite although its inputs are.

Values are freed after their last use. A loop is evaluated as one equation; only the iteration in which the fault begins
is then evaluated equation by equation. Not here: which program is evaluated, and the report.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from jaxtrain.analysis.replay.loops import FIELD, Evaluated, Flow, Loop
from jaxtrain.analysis.replay.places import Frame, finite, frames_of, range_of

MOVES = frozenset(
    {
        *("broadcast_in_dim", "reshape", "transpose", "convert_element_type", "copy", "slice", "squeeze", "rev"),
        *("optimization_barrier", "stop_gradient", "sharding_constraint", "reduce_precision"),
    }
)
"""Primitives whose result has the values of their operand, so that a parameter keeps its name."""

KEEPS_INFINITY = MOVES | {
    *("select_n", "concatenate", "pad", "gather", "dynamic_slice", "dynamic_update_slice"),
    *("max", "min", "reduce_max", "reduce_min", "add", "sub", "neg"),
}
"""Primitives that pass on an infinity which is a constant of the code, such as that of a mask: no fault."""

LOOPS = ("scan", "while")


@dataclass(frozen=True)
class Place:
    """Where an equation is: in the source, in jax's name stack, and in which iterations of loops (`parts`)."""

    frames: tuple[Frame, ...] = ()
    stack: str = ""
    parts: tuple[str, ...] = ()


@dataclass
class Evaluation:
    """Evaluates the equations of a jaxpr.

    seen: called for every equation with its place, primitive, inputs, the last parameter read, and results. With it,
        every loop is evaluated iteration by iteration.
    """

    seen: Callable[[Place, str, tuple[Any, ...], str | None, list[Any]], None] | None = None
    order: int = 0
    """The number of equations evaluated so far."""
    last_parameter: str | None = None
    passes: dict[Any, str] = field(default_factory=dict)
    """What a loop iterates over ("layer", "microbatch"), by its source line: found in the forward pass, and looked up
    in the backward pass.
    """

    def run(self, jaxpr: Jaxpr, constants: Sequence[Any], inputs: Sequence[Flow], place: Place) -> list[Flow]:
        """The results of a jaxpr."""
        known: dict[Any, Flow] = dict(zip(jaxpr.constvars, map(_constant, constants), strict=True))
        known |= dict(zip(jaxpr.invars, inputs, strict=True))
        last: dict[Any, int] = {}
        for number, equation in enumerate(jaxpr.eqns):
            last |= {each: number for each in (*equation.invars, *equation.outvars) if not isinstance(each, Literal)}
        last |= {each: len(jaxpr.eqns) for each in jaxpr.outvars if not isinstance(each, Literal)}
        done: dict[int, list[Any]] = {}
        for each, number in last.items():
            done.setdefault(number, []).append(each)

        def read(variable: Any) -> Flow:
            return _constant(variable.val) if isinstance(variable, Literal) else known[variable]

        for number, equation in enumerate(jaxpr.eqns):
            results = self._equation(equation, [read(each) for each in equation.invars], place)
            known |= dict(zip(equation.outvars, results, strict=True))
            for each in done.get(number, ()):
                known.pop(each, None)
        return [read(each) for each in jaxpr.outvars]

    def _equation(self, equation: Any, inputs: list[Flow], around: Place) -> list[Flow]:
        """The results of an equation: those of the jaxpr that it calls, or its own."""
        self.order += 1
        stack = f"{around.stack}/{equation.source_info.name_stack}"
        place = Place(frames_of(equation) or around.frames, stack, around.parts)
        own = next((each.name for each in inputs if each.name and not each.name.startswith(FIELD)), None)
        self.last_parameter = own or self.last_parameter
        inner, arguments = _called(equation, inputs)
        if inner is not None:
            return self.run(inner.jaxpr, inner.consts, arguments, place)
        if equation.primitive.name == "scan" and self.seen is not None:
            return self._passes(equation, inputs, place)
        arrays = _bind(equation, [each.array for each in inputs])
        if self.seen is not None:
            operands = tuple(each.array for each in inputs)
            self.seen(place, equation.primitive.name, operands, self.last_parameter, arrays)
        results = _named_results(equation, inputs, arrays)
        self._mark(equation, inputs, results, place, reads=own is not None)
        return results

    def _mark(self, equation: Any, inputs: list[Flow], results: list[Flow], place: Place, reads: bool) -> None:
        """Record at each result of an equation that is not finite what made it so."""
        wrong = {number: each.array for number, each in enumerate(results) if not finite(each.array)}
        if not wrong:
            return
        name = equation.primitive.name
        causes, written = _causes(name, inputs, [*wrong.values()])
        record = Evaluated(self.order, name, place.frames, place.stack, place.parts, self.last_parameter, reads, causes)
        if not causes and not written:
            record.inputs = tuple(_input_text(each) for each in inputs)
            record.outputs = tuple(map(range_of, wrong.values()))
            record.loop = self._loop(equation, inputs, place, record) if name in LOOPS else None
        for number in wrong:
            results[number].bad, results[number].written = None if written else (record, number), written

    def _loop(
        self, equation: Any, inputs: list[Flow], place: Place, record: Evaluated
    ) -> Callable[[frozenset[int]], Evaluated]:
        """A function that finds the equation inside a loop in which a fault begins."""

        def find(results: frozenset[int]) -> Evaluated:
            loop = Loop.of(equation, inputs)
            step, count = jax.jit(jaxpr_as_fun(loop.body)), len(loop.carried)
            watched = {*range(count), *results}
            for number in loop.numbers():
                arguments = loop.arguments(number)
                outputs = step(*(each.array for each in arguments))
                if not all(finite(output) for each, output in enumerate(outputs) if each in watched):
                    inside = replace(place, parts=(*place.parts, self._pass(loop, place, number)))
                    made = Evaluation(order=self.order, last_parameter=self.last_parameter, passes=self.passes)
                    values = made.run(loop.body.jaxpr, loop.body.consts, arguments, inside)
                    record.parts = inside.parts
                    return first_fault([value for each, value in enumerate(values) if each in watched]) or record
                loop.carried = [Flow(output) for output in outputs[:count]]
            return record

        return find

    def _passes(self, equation: Any, inputs: list[Flow], place: Place) -> list[Flow]:
        """Evaluates a scan, iteration by iteration."""
        loop = Loop.of(equation, inputs)
        count, stacked = len(loop.carried), list[list[Any]]()
        for number in loop.numbers():
            inside = replace(place, parts=(*place.parts, self._pass(loop, place, number)))
            outputs = self.run(loop.body.jaxpr, loop.body.consts, loop.arguments(number), inside)
            loop.carried = [Flow(each.array) for each in outputs[:count]]
            stacked.append([each.array for each in outputs[count:]])
        in_order = stacked[::-1] if equation.params["reverse"] else stacked
        return [*loop.carried, *(Flow(jnp.stack(each)) for each in zip(*in_order, strict=True))]

    def _pass(self, loop: Loop, place: Place, number: int) -> str:
        """The name of an iteration, such as `layer 3 of 0…4`."""
        names = [each.name for each in loop.scanned if each.name]
        line = place.frames[0] if place.frames else None
        if any(not name.startswith(FIELD) for name in names):
            self.passes[line] = "layer"
        elif names:
            self.passes[line] = "microbatch"
        of = "" if loop.length is None else f" of 0…{loop.length - 1}"
        return f"{self.passes.get(line, 'pass')} {number}{of}"


def first_fault(values: Sequence[Flow]) -> Evaluated | None:
    """The first equation that makes one of these values not finite; None where all are finite."""
    left, seen = [each.bad for each in values if each.bad], dict[int, tuple[Evaluated, set[int]]]()
    while left:
        record, number = left.pop()
        known = seen.setdefault(id(record), (record, set()))[1]
        left += [] if known else record.causes
        known.add(number)
    starts = [(record, results) for record, results in seen.values() if not record.causes]
    if not starts:
        return None
    record, results = min(starts, key=lambda each: each[0].order)
    return record.loop(frozenset(results)) if record.loop else record


def _causes(name: str, inputs: list[Flow], wrong: list[Any]) -> tuple[tuple[tuple[Evaluated, int], ...], bool]:
    """The equations that made the inputs of a result not finite, and whether the result is an infinity that the code
    writes on purpose, as for a mask.
    """
    chosen = inputs
    if name == "select_n":  # a value that is not selected does no harm
        which, cases = np.asarray(inputs[0].array), inputs[1:]
        chosen = [each for number, each in enumerate(cases) if not _all_finite(each.array, which == number)]
    causes = tuple(each.bad for each in chosen if each.bad)
    of_code = any(each.written for each in chosen) and name in KEEPS_INFINITY
    return causes, not causes and of_code and not any(np.isnan(np.asarray(each)).any() for each in wrong)


def _all_finite(x: Any, where: np.ndarray) -> bool:
    return finite(x) or bool(np.isfinite(np.asarray(x)[np.broadcast_to(where, np.shape(x))]).all())


def _constant(array: Any) -> Flow:
    return Flow(array, written=hasattr(array, "dtype") and not finite(array))


def _input_text(value: Flow) -> str:
    return f"{value.name}: {range_of(value.array)}" if value.name else range_of(value.array)


def _called(equation: Any, inputs: list[Flow]) -> tuple[ClosedJaxpr | None, list[Flow]]:
    """The jaxpr that an equation calls once, and its inputs: the branch of a `cond`, the function of `jax.jit` or
    `jax.checkpoint`. None for other equations.
    """
    if equation.primitive.name == "cond":
        return equation.params["branches"][int(inputs[0].array)], inputs[1:]
    if equation.primitive.name in (*LOOPS, "shard_map"):
        return None, inputs
    for value in equation.params.values():
        inner = ClosedJaxpr(value, ()) if isinstance(value, Jaxpr) and not value.constvars else value
        if isinstance(inner, ClosedJaxpr):
            pairs = (inner.jaxpr.invars, equation.invars), (inner.jaxpr.outvars, equation.outvars)
            if all([_shape(each) for each in one] == [_shape(each) for each in two] for one, two in pairs):
                return inner, inputs
    return None, inputs


def _shape(variable: Any) -> Any:
    return getattr(variable.aval, "shape", None), getattr(variable.aval, "dtype", None)


def _bind(equation: Any, arrays: list[Any]) -> list[Any]:
    with equation.ctx.manager:
        made = equation.primitive.bind(*arrays, **equation.primitive.get_bind_params(equation.params))
    return list(made) if equation.primitive.multiple_results else [made]


def _named_results(equation: Any, inputs: list[Flow], arrays: list[Any]) -> list[Flow]:
    """The results of an equation, with the name of the input where they have its values: of `MOVES`, and of scanned
    inputs that a loop returns unchanged, which the backward pass reads.
    """
    name = equation.primitive.name
    results = [Flow(array, inputs[0].name if name in MOVES and len(arrays) == 1 else None) for array in arrays]
    if name == "scan":
        body, loop = equation.params["jaxpr"].jaxpr, Loop.of(equation, inputs)
        first = len(loop.constants) + len(loop.carried)
        names = {id(variable): value.name for variable, value in zip(body.invars[first:], loop.scanned, strict=True)}
        for variable, result in list(zip(body.outvars, results, strict=True))[len(loop.carried) :]:
            result.name = names.get(id(variable))
    return results
