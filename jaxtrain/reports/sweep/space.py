"""The search space of a sweep: which values each field may have, and the values of each trial of a grid or of random
draws. Not here: adaptive search, and reading the command line.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.ranges import Checked, NonNegativeInt, PositiveInt

Method = Literal["grid", "random", "adaptive"]


@dataclass(frozen=True)
class Choices(Checked):
    """A field that has one of several values."""

    path: str
    values: tuple[Any, ...]

    def draw(self, generator: np.random.Generator) -> Any:
        """One of the values, each as likely."""
        return self.values[int(generator.integers(len(self.values)))]

    def json(self) -> dict[str, Any]:
        """As in sweep.json."""
        return {"path": self.path, "values": list(self.values)}

    def __str__(self) -> str:
        return f"{self.path} = {', '.join(map(str, self.values))}"


@dataclass(frozen=True)
class Between(Checked):
    """A field that has a number from `low` to `high`, both included."""

    path: str
    low: int | float
    high: int | float
    log: bool = False
    """Whether the logarithm is drawn, and not the number."""
    whole: bool = False
    """Whether the number is a whole one."""

    def __post_init__(self) -> None:
        """Raises ConfigError where there is nothing in between, and for a logarithm of what is not above 0."""
        if not (self.low < self.high and math.isfinite(self.high - self.low)):
            raise ConfigError(f"{self.path}={self.low}:{self.high}: the first number must be less than the second")
        if self.log and self.low <= 0:
            raise ConfigError(f"{self.path}={self.low}:{self.high}:log: a logarithm needs numbers above 0")

    def draw(self, generator: np.random.Generator) -> int | float:
        """A number; floats have six digits, so that they can be read and typed."""
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        ends = (math.log(max(low, 0.5) if self.whole else low), math.log(high)) if self.log else (low, high)
        found = float(generator.uniform(*ends))
        found = math.exp(found) if self.log else found
        found = round(found) if self.whole else float(f"{found:.6g}")
        return min(max(found, self.low), self.high)

    def json(self) -> dict[str, Any]:
        """As in sweep.json."""
        return {"path": self.path, "low": self.low, "high": self.high, "log": self.log, "whole": self.whole}

    def __str__(self) -> str:
        return f"{self.path} from {self.low} to {self.high}{' (logarithm)' if self.log else ''}"


Axis = Choices | Between


@dataclass(frozen=True)
class Space(Checked):
    """What a sweep varies. A grid is crossed with the draws, of which a grid alone has one that draws nothing."""

    method: Method
    grid: tuple[Choices, ...] = ()
    drawn: tuple[Axis, ...] = ()
    draws: PositiveInt = 1
    seed: NonNegativeInt = 0

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All fields that vary."""
        return (*self.drawn, *self.grid)

    @property
    def cells(self) -> int:
        """How many points the grid has."""
        return math.prod(len(axis.values) for axis in self.grid)

    def __len__(self) -> int:
        return self.draws * self.cells

    def point(self, number: int) -> dict[str, Any]:
        """The values of a trial, from 1 on, by path; always the same ones, whoever asks. Not of an adaptive search,
        whose values depend on the trials before.
        """
        draw, cell = divmod(number - 1, self.cells)
        generator = np.random.default_rng([self.seed, draw])
        found = {axis.path: axis.draw(generator) for axis in self.drawn}
        for axis in reversed(self.grid):  # the last one varies fastest
            cell, at = divmod(cell, len(axis.values))
            found[axis.path] = axis.values[at]
        return {axis.path: found[axis.path] for axis in self.axes}

    def json(self) -> dict[str, Any]:
        """As in sweep.json."""
        axes = {"grid": [axis.json() for axis in self.grid], "drawn": [axis.json() for axis in self.drawn]}
        return {"method": self.method, "draws": self.draws, "seed": self.seed, **axes}


def space_of(saved: Mapping[str, Any]) -> Space:
    """The space that `Space.json` saved. Raises ConfigError for anything else."""
    try:
        grid, drawn = ([_axis(axis) for axis in saved[name]] for name in ("grid", "drawn"))
        if any(not isinstance(axis, Choices) for axis in grid):
            raise ConfigError("the grid has a field without values")
        choices = tuple(axis for axis in grid if isinstance(axis, Choices))
        return Space(saved["method"], choices, tuple(drawn), saved["draws"], saved["seed"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"no sweep wrote this space: {type(error).__name__} {error}") from error


def _axis(saved: Mapping[str, Any]) -> Axis:
    path = saved["path"]
    if not isinstance(path, str):
        raise ConfigError(f"{path!r} is not the path of a field")
    if "values" in saved:
        if not saved["values"]:
            raise ConfigError(f"{path} has no values")
        return Choices(path, as_values(saved["values"]))
    low, high, log, whole = (saved[name] for name in ("low", "high", "log", "whole"))
    if any(type(number) not in (int, float) for number in (low, high)):
        raise ConfigError(f"{path}: {low!r} and {high!r} are not numbers")
    return Between(path, low, high, bool(log), bool(whole))


def as_values(saved: Any) -> Any:
    """Values of an experiment from their JSON: lists are tuples."""
    if isinstance(saved, list):
        return tuple(as_values(entry) for entry in saved)
    return {name: as_values(entry) for name, entry in saved.items()} if isinstance(saved, dict) else saved
