"""Ranges of numbers as annotations of dataclass fields, checked when an instance is created.

    class Blur(Transform):
        radius: Annotated[float, Range(above=0)]
        passes: PositiveInt = 1

Not here: conditions on several fields together, which belong in a `__post_init__`.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from jaxtrain.base.display import Displayed
from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.text import cut


@dataclass(frozen=True)
class Range:
    """The numbers that a field may hold. NaN is in no range, and an infinity only where it is `also`.

    A float must also be in the range once it is rounded to float32, in which training computes: there 1e-60 is 0 and
    1e300 is infinite.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    also: float | None = None
    """A number outside of the bounds that is allowed too."""
    on_host: bool = False
    """Whether the number is used on the host only, so that rounding to float32 does not matter."""
    hint: str = ""
    """What to do instead, or why: appended to the error message in parentheses."""

    def __contains__(self, number: float) -> bool:
        exactly = self._holds(number, lambda x: x)
        return number == self.also or (exactly and (self.on_host or self._holds(number, _in_float32)))

    def _holds(self, number: float, rounded: Callable[[float], float]) -> bool:
        x = rounded(number)
        return (
            (isinstance(x, int) or math.isfinite(x))
            and (self.at_least is None or x >= rounded(self.at_least))
            and (self.above is None or x > rounded(self.above))
            and (self.at_most is None or x <= rounded(self.at_most))
            and (self.below is None or x < rounded(self.below))
        )

    def __str__(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"from {self.at_least:,} to {self.at_most:,}"
        named = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        return " and ".join(f"{name} {bound:,}" for name, bound in named.items() if bound is not None)

    def fault(self, number: float) -> str:
        """What is wrong with a number that is not in the range."""
        used = _in_float32(number)
        allowed = str(self) if isinstance(used, int) or math.isfinite(used) else f"a finite number {self}".rstrip()
        rounded = f", which is {used:g} in float32," if self._holds(number, lambda x: x) else ""
        return f"{number}{rounded} is not {allowed}{self.hint and f' ({self.hint})'}"


def _in_float32(number: float) -> float:
    if isinstance(number, int):
        return number
    with np.errstate(over="ignore"):
        return float(np.float32(number))


PositiveInt = Annotated[int, Range(at_least=1)]
NonNegativeInt = Annotated[int, Range(at_least=0)]
AnyInt = Annotated[int, Range()]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(at_least=0)]
Finite = Annotated[float, Range()]
FiniteOnHost = Annotated[float, Range(on_host=True)]
Fraction = Annotated[float, Range(at_least=0, at_most=1)]
FractionBelow1 = Annotated[float, Range(at_least=0, below=1)]
"""For decays of averages and dropout rates: a decay of 1 would never move, dropout of 1 would drop everything."""
InnerFraction = Annotated[float, Range(above=0, below=1)]
Seed = Annotated[int, Range(at_least=0, at_most=2**32 - 1, hint="seeds are u32")]


class Checked(Displayed):
    """Base of the dataclasses that make an experiment, a dataset or a job: creating an instance checks its ranges.

    The check comes before the class's own `__post_init__`, which may rely on it. Raises ConfigError for a number out
    of its range, and for a value of the wrong type in a field that has a range or is a `Literal`.
    """

    __slots__ = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        inherited = [base.__post_init__ for base in cls.__bases__ if issubclass(base, Checked)]
        if cls.__post_init__ not in inherited:
            cls.__post_init__ = _checking_first(cls.__post_init__)

    def __post_init__(self, *initial: Any) -> None:
        _check_ranges(self)


def _checking_first(method: Any) -> Any:
    @functools.wraps(method)
    def checked(self: Any, *initial: Any) -> None:
        _check_ranges(self)
        method(self, *initial)

    return checked


def check_field(owner: Any, name: str, where: str) -> None:
    """Raises ConfigError where a field of a dataclass holds a value of the wrong type or a number out of range."""
    check_value(type(owner), name, getattr(owner, name), where)


def check_value(kind: type, name: str, value: Any, where: str) -> None:
    """`check_field` for a value before it is given to the field `name` of the dataclass `kind`."""
    annotation = annotations(kind).get(name, Any)
    try:
        check_type(value, annotation, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
    except TypeCheckError as error:
        raise _wrong_type(kind, name, value, where) from error
    for place, number, allowed in _ranged_numbers(value, annotation, where):
        if isinstance(number, bool):
            raise _wrong_type(kind, name, value, where)
        if number not in allowed:
            raise ConfigError(f"{place}: {allowed.fault(number)}")


def _wrong_type(kind: type, name: str, value: Any, where: str) -> ConfigError:
    wanted = get_type_hints(kind)[name]
    arms = get_args(wanted) if get_origin(wanted) in (Union, UnionType) else (wanted,)
    words = " | ".join(map(_type_text, arms))
    if isinstance(value, str) and (
        known := [name for arm in arms if get_origin(arm) is Literal for name in get_args(arm)]
    ):
        return ConfigError(f"{where}: {value!r} is not {words}{nearest(value, known, listed=False)}")
    instead = ""
    if isinstance(value, list | str) and any(get_origin(arm) is tuple for arm in arms):
        instead = f": write a tuple, {(value,) if isinstance(value, str) else tuple(value)}"
    return ConfigError(f"{where}: {cut(repr(value))} is a value of type {type(value).__name__}, not {words}{instead}")


def _type_text(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " | ".join(map(repr, get_args(annotation)))
    return "None" if annotation is type(None) else inspect.formatannotation(annotation)


def _check_ranges(value: Any) -> None:
    for name in _with_ranges(type(value)):
        check_field(value, name, f"{type(value).__name__}.{name}")


@functools.cache
def annotations(kind: Any) -> Mapping[str, Any]:
    """The annotations of a class by field name, ranges included."""
    return get_type_hints(kind, include_extras=True)


@functools.cache
def _with_ranges(kind: Any) -> tuple[str, ...]:
    return tuple(f.name for f in fields(kind) if _has_range(annotations(kind)[f.name]))


def _has_range(annotation: Any) -> bool:
    literal = get_origin(annotation) is Literal
    return literal or bool(_ranges(annotation)) or any(map(_has_range, get_args(annotation)))


def _ranges(annotation: Any) -> list[Range]:
    return [each for each in getattr(annotation, "__metadata__", ()) if isinstance(each, Range)]


def _ranged_numbers(value: Any, annotation: Any, where: str) -> Iterator[tuple[str, float, Range]]:
    """The numbers inside a value that the annotation gives a range: the path of each, the number, and the range."""
    kind, arguments = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        if isinstance(value, int | float):
            yield from ((where, value, allowed) for allowed in _ranges(annotation))
        yield from _ranged_numbers(value, arguments[0], where)
    elif kind in (Union, UnionType):
        for argument in arguments:
            yield from _ranged_numbers(value, argument, where)
    elif isinstance(value, tuple | list) and arguments:
        each = arguments if kind is tuple and arguments[-1] is not ... else arguments[:1] * len(value)
        for number, (part, argument) in enumerate(zip(value, each, strict=True)):
            yield from _ranged_numbers(part, argument, f"{where}.{number}")
    elif isinstance(value, Mapping) and arguments:
        for name, part in value.items():
            yield from _ranged_numbers(part, arguments[-1], f"{where}.{name}")
