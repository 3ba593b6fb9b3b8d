"""Numbers out of their range are refused when a value is built, in every dataclass of the library and in a user's."""

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, replace
from typing import Annotated, Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxtrain.base.config import check_types, from_json, to_json
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import (
    AnyInt,
    Checked,
    Finite,
    Fraction,
    FractionBelow1,
    InnerFraction,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Range,
    Seed,
)
from jaxtrain.models import Blocks
from jaxtrain.optimizers import AdamW

KINDS = {
    "PositiveInt": (PositiveInt, [1, 10**12], [0, -1], "at least 1"),
    "NonNegativeInt": (NonNegativeInt, [0, 5], [-1], "at least 0"),
    "AnyInt": (AnyInt, [-(10**30), 0], [], ""),
    "Seed": (Seed, [0, 4294967295], [-1, 4294967296], r"from 0 to 4,294,967,295 \(seeds are u32\)"),
    "Positive": (Positive, [1e-38, 1, 3e38], [0.0, -0.0, -1e-9], "above 0"),
    "NonNegative": (NonNegative, [0.0, -0.0, 1], [-5e-324], "at least 0"),
    "Finite": (Finite, [-3e38, 0], [], "a finite number"),
    "Fraction": (Fraction, [0, 0.5, 1, 1.0], [-1e-9, 1.0000001, 2], "from 0 to 1"),
    "FractionBelow1": (FractionBelow1, [0, 0.999], [1, 1.0, -0.1], "at least 0 and below 1"),
    "InnerFraction": (InnerFraction, [1e-9, 0.999], [0, 1, 0.0, 1.0], "above 0 and below 1"),
    "also": (Annotated[int, Range(at_least=1, also=-1)], [-1, 1], [0, -2], "at least 1"),
    "an infinity": (Annotated[float, Range(above=0, also=math.inf)], [math.inf, 1.0], [0], "above 0"),
}


def value_of(annotation: Any) -> Callable[..., Any]:
    """A dataclass with one field `x` of this annotation."""
    made = types.new_class("Value", (Checked,), {}, lambda body: body.update(__annotations__={"x": annotation}))
    return dataclass(frozen=True)(made)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_range_has_both_its_bounds(name: str) -> None:
    annotation, inside, outside, says = KINDS[name]
    for number in inside:
        assert value_of(annotation)(number).x is number
    for number in outside:
        with pytest.raises(ConfigError, match=rf"^Value\.x: {number} is not {says}"):
            value_of(annotation)(number)


@pytest.mark.parametrize("name", [name for name in KINDS if get_args(KINDS[name][0])[0] is float])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_unless_the_range_has_it(name: str, number: float) -> None:
    if name == "an infinity" and number == math.inf:
        return
    with pytest.raises(ConfigError, match=rf"^Value\.x: {number} is not a finite number"):
        value_of(KINDS[name][0])(number)


@pytest.mark.parametrize(
    ("annotation", "value", "says"),
    [
        (PositiveInt, True, "True is a value of type bool, not int"),
        (Fraction, False, "False is a value of type bool, not float"),
        (PositiveInt | None, True, "True is a value of type bool, not int | None"),
        (PositiveInt, 1.0, "1.0 is a value of type float, not int"),
        (PositiveInt, "1", "'1' is a value of type str, not int"),
        (Positive, None, "None is a value of type NoneType, not float"),
        (PositiveInt, np.int64(3), "np.int64(3) is a value of type int64, not int"),
        (Positive, np.float32(0.5), "np.float32(0.5) is a value of type float32, not float"),
        (Positive, jnp.float32(0.5), "is a value of type ArrayImpl, not float"),
        (tuple[PositiveInt, ...], [1, 2], "[1, 2] is a value of type list, not tuple[int, ...]"),
    ],
    ids=str,
)
def test_a_value_of_another_type_than_its_number_is_refused_too(annotation: Any, value: Any, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        value_of(annotation)(value)
    assert says in str(refused.value)


def test_a_float64_of_numpy_is_a_float_and_held_to_the_range() -> None:
    assert value_of(Fraction)(np.float64(0.5)).x == 0.5
    with pytest.raises(ConfigError, match=r"^Value\.x: 1\.5 is not from 0 to 1$"):
        value_of(Fraction)(np.float64(1.5))


@pytest.mark.parametrize(
    ("annotation", "good", "bad", "says"),
    [
        (PositiveInt | None, None, 0, "x: 0 is not at least 1"),
        (Annotated[int | None, Range(at_least=1)], None, 0, "x: 0 is not at least 1"),
        (Annotated[PositiveInt | None, "a note"], 3, 0, "x: 0 is not at least 1"),
        (tuple[PositiveInt, Fraction], (1, 0.5), (1, 1.5), "x.1: 1.5 is not from 0 to 1"),
        (tuple[Positive, ...], (), (1.0, 2.0, 0.0), "x.2: 0.0 is not above 0"),
        (Positive | tuple[Positive, ...], (1.0, 2.0), (1.0, -2.0), "x.1: -2.0 is not above 0"),
        (Positive | tuple[Positive, ...], 1.0, -2.0, "x: -2.0 is not above 0"),
        (tuple[str | AnyInt, ...], ("a", -3), ("a", True), "is a value of type tuple"),
        (list[NonNegative], [0.0], [0.0, -1.0], "x.1: -1.0 is not at least 0"),
        (Mapping[str, Positive], {"a": 1.0}, {"a": 1.0, "b": 0.0}, "x.b: 0.0 is not above 0"),
        (Mapping[str, tuple[Seed, ...]], {"a": (0,)}, {"a": (0, -1)}, "x.a.1: -1 is not from 0 to"),
    ],
    ids=str,
)
def test_numbers_inside_of_values_are_checked_and_named(annotation: Any, good: Any, bad: Any, says: str) -> None:
    assert value_of(annotation)(good).x is good
    with pytest.raises(ConfigError) as refused:
        value_of(annotation)(bad)
    assert says in str(refused.value)


def test_one_that_holds_a_class_to_its_own_conditions_is_checked_before_these() -> None:
    with pytest.raises(ConfigError, match=r"Blocks\.heads: 0 is not at least 1"):  # not a ZeroDivisionError
        Blocks(heads=0)
    with pytest.raises(ConfigError, match="width 16 over 3 heads"):
        Blocks(width=16, heads=3)


@dataclass(frozen=True)
class Half(Checked):
    """Has conditions of its own, which count how often they were asked."""

    asked: list[int]
    x: PositiveInt = 2

    def __post_init__(self) -> None:
        """Only even numbers."""
        self.asked.append(self.x)
        if self.x % 2:
            raise ConfigError("odd")


@dataclass(frozen=True)
class Quarter(Half):
    """Goes on from the conditions of its base."""

    y: Fraction = 0.5

    def __post_init__(self) -> None:
        """No more."""
        super().__post_init__()


class Noted:
    """No dataclass; its `__post_init__` hides that of the class after it."""

    def __post_init__(self) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Mixed(Noted, Half):
    """Takes its `__post_init__` from a class that knows nothing of ranges."""


@dataclass(frozen=True)
class Given(Checked):
    """Has an argument that is no field."""

    scale: InitVar[int]
    x: PositiveInt

    def __post_init__(self, scale: int) -> None:
        """Scaled."""
        object.__setattr__(self, "x", self.x * scale)


@pytest.mark.parametrize("kind", [Half, Quarter, Mixed])
def test_a_class_with_its_own_post_init_is_checked_first(kind: type[Half]) -> None:
    asked: list[int] = []
    with pytest.raises(ConfigError, match=rf"{kind.__name__}\.x: -2 is not at least 1"):
        kind(asked, -2)
    assert asked == []
    kind(asked, 4)
    assert asked == ([] if kind is Mixed else [4])


def test_the_field_that_a_subclass_adds_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"Quarter\.y: 2 is not from 0 to 1"):
        Quarter([], 2, 2)
    with pytest.raises(ConfigError, match="odd"):
        Quarter([], 3)


def test_arguments_that_are_no_fields_still_arrive() -> None:
    assert Given(3, 2).x == 6
    with pytest.raises(ConfigError, match=r"Given\.x: 0 is not at least 1"):
        Given(3, 0)


def test_a_dataclass_that_is_no_part_of_the_library_is_checked_with_the_experiment_that_holds_it() -> None:
    @dataclass(frozen=True)
    class Plain:
        rate: Fraction = 2.0

    @dataclass(frozen=True)
    class Holder:
        inner: Plain

    with pytest.raises(ConfigError, match=r"^inner\.rate: 2\.0 is not from 0 to 1$"):
        check_types(Holder(Plain()))


def test_a_replaced_field_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"AdamW\.clip: -1 is not above 0"):
        replace(AdamW(), clip=-1)


def test_a_saved_value_that_was_changed_on_disk_is_refused() -> None:
    saved = to_json(tiny.main())
    assert from_json(saved) == tiny.main()
    saved["optimizer"]["clip"] = -1.0
    with pytest.raises(ConfigError, match=r"^optimizer\.clip: -1\.0 is not above 0 \(None: no clipping\)"):
        from_json(saved)


@pytest.mark.parametrize(
    ("annotation", "number", "says"),
    [
        (Positive, 1e-60, "1e-60, which is 0 in float32, is not above 0"),
        (FractionBelow1, 0.999999999, "0.999999999, which is 1 in float32, is not at least 0 and below 1"),
        (NonNegative, 1e300, r"1e\+300, which is inf in float32, is not a finite number at least 0"),
        (Finite, -1e39, r"-1e\+39, which is -inf in float32, is not a finite number"),
    ],
)
def test_a_number_that_float32_rounds_out_of_the_range_is_refused(annotation: Any, number: float, says: str) -> None:
    with pytest.raises(ConfigError, match=rf"^Value\.x: {says}$"):
        value_of(annotation)(number)


def test_bounds_that_are_included_may_be_rounded() -> None:
    assert value_of(Annotated[float, Range(at_least=0.1, at_most=0.3)])(0.1).x == 0.1  # float32: 0.100000001
    assert value_of(Annotated[float, Range(at_least=0.1, at_most=0.3)])(0.3).x == 0.3  # float32: 0.300000012


@pytest.mark.parametrize(
    ("annotation", "value", "says"),
    [
        (Literal["min", "max"], "mix", "'mix' is not 'min' | 'max'; did you mean 'min'?"),
        (NonNegativeInt | Literal["best"], "bets", "'bets' is not int | 'best'; did you mean 'best'?"),
        (Literal["min", "max"], 3, "3 is a value of type int, not 'min' | 'max'"),
        (
            tuple[Positive, ...],
            [1.0, 2.0],
            "[1.0, 2.0] is a value of type list, not tuple[float, ...]: write a tuple, (1.0, 2.0)",
        ),
    ],
)
def test_choices_are_checked_when_a_value_is_built(annotation: Any, value: Any, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        value_of(annotation)(value)
    assert str(error.value) == f"Value.x: {says}"


def test_choices_of_the_library_are_checked_in_a_notebook_too() -> None:
    other: Any = "flash"
    with pytest.raises(ConfigError, match=r"^Blocks\.attention: 'flash' is not 'auto' \| 'dense'"):
        Blocks(attention=other)
