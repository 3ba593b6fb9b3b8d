"""Metrics as sums, which merge exactly over microbatches, batches, devices and hosts; a value is computed at the end.

Numpy is enough to merge metrics and to read their values: jax is imported only where `of` computes on a device.
Not here: which metrics a task reports, and where they are written.
"""

import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from jaxtrain.base.display import Displayed
from jaxtrain.base.errors import ConfigError

AnyArray = Any
"""A `jax.Array` on a device, a `numpy.ndarray` once it was fetched."""


@dataclass(frozen=True)
class Metric(Displayed, ABC):
    """Arrays that are summed over rows, and the value that follows from the sums. `+` adds field by field.

    A metric of your own is a frozen dataclass of such arrays with a `value`. It is a jax pytree by itself.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _unregistered.append(cls)

    def __new__(cls, *_: Any, **__: Any) -> Self:
        _register()  # here, since jax may be imported after the class was defined
        return super().__new__(cls)

    @abstractmethod
    def value(self) -> float | Mapping[str, float]:
        """The value of all rows that were merged, or several by name; NaN where they weigh nothing."""

    def __add__(self, other: Self) -> Self:
        if type(other) is not type(self):
            return NotImplemented
        one, two = _arrays(self), _arrays(other)
        for name in one:
            if np.shape(one[name]) != np.shape(two[name]):
                shapes = f"{np.shape(one[name])} and {np.shape(two[name])}"
                raise ValueError(f"{type(self).__name__}.{name}: cannot add arrays of the shapes {shapes}")
        return type(self)(**{name: one[name] + two[name] for name in one})

    def __float__(self) -> float:
        value = self.value()
        if isinstance(value, Mapping):
            raise TypeError(f"a {type(self).__name__} has several values: {', '.join(value)}; read them with value()")
        return float(value)


_unregistered: list[type[Metric]] = []
_lock = threading.Lock()


def _register() -> None:
    """Make pytrees of the metrics defined so far, once there is a jax. Their fields are read when they are used:
    a class is seen before its dataclass decorator has run.
    """
    if not _unregistered or "jax" not in sys.modules:
        return
    from jax import tree_util

    def with_names(metric: Metric) -> tuple[list[tuple[Any, AnyArray]], None]:
        return [(tree_util.GetAttrKey(name), array) for name, array in _arrays(metric).items()], None

    def flatten(metric: Metric) -> tuple[list[AnyArray], None]:
        return list(_arrays(metric).values()), None

    def unflatten(kind: type[Metric], leaves: Iterable[Any]) -> Metric:
        metric = object.__new__(kind)  # without __init__, since jax puts other things than arrays into trees
        for field, leaf in zip(fields(kind), leaves, strict=True):
            object.__setattr__(metric, field.name, leaf)
        return metric

    with _lock:
        while _unregistered:
            kind = _unregistered.pop()
            tree_util.register_pytree_with_keys(
                kind, with_names, lambda _, leaves, kind=kind: unflatten(kind, leaves), flatten
            )


def _arrays(metric: Metric) -> dict[str, AnyArray]:
    return {field.name: getattr(metric, field.name) for field in fields(metric)}


def as_weights(values: AnyArray, weights: AnyArray | None) -> AnyArray:
    """The weights of `values` as f32 of their shape, 1 each for None. Raises ConfigError for another shape."""
    import jax.numpy as jnp

    if weights is None:
        return jnp.ones_like(values, jnp.float32)
    if jnp.shape(weights) != jnp.shape(values):
        shapes = f"{list(jnp.shape(weights))} for values of shape {list(jnp.shape(values))}"
        raise ConfigError(f"a metric has weights of shape {shapes}: give one weight for each value")
    return jnp.asarray(weights, jnp.float32)


def weighted(values: AnyArray, weights: AnyArray) -> AnyArray:
    """`values * weights`, 0 where the weight is 0 even if the value is NaN or infinite; so is the gradient to `values`.

    What a masked value was computed from is the caller's: the gradient of log(x) at x = 0 is 0 × inf. Choose a safe x
    there first.
    """
    import jax.numpy as jnp

    return jnp.where(weights != 0, values, jnp.zeros_like(values)) * weights


@dataclass(frozen=True)
class Mean(Metric):
    """A weighted mean, kept as the weighted sum and the sum of weights, f32[] each."""

    total: AnyArray
    weight: AnyArray

    @classmethod
    def of(cls, values: AnyArray, weights: AnyArray | None = None) -> Self:
        """The mean of `values` (any shape), weighted by `weights` of the same shape or all equally.

        A value of weight 0 counts for nothing, even if it is NaN or infinite.
        """
        weights = as_weights(values, weights)
        return cls(weighted(values, weights).sum(), weights.sum())

    def value(self) -> float:
        weight = float(self.weight)
        return float(self.total) / weight if weight else float("nan")


@dataclass(frozen=True)
class Sum(Metric):
    """A weighted sum f32[], such as a count; that of no rows is 0."""

    total: AnyArray

    @classmethod
    def of(cls, values: AnyArray, weights: AnyArray | None = None) -> Self:
        """The sum of `values` (any shape), weighted by `weights` of the same shape or all by 1."""
        return cls(weighted(values, as_weights(values, weights)).sum())

    def value(self) -> float:
        return float(self.total)


@dataclass(frozen=True)
class Perplexity(Metric):
    """exp of a weighted mean of cross-entropies in nats, taken once all rows are merged."""

    total: AnyArray
    weight: AnyArray

    @classmethod
    def of(cls, losses: AnyArray, weights: AnyArray | None = None) -> Self:
        """The perplexity of `losses` in nats (any shape), weighted by `weights` of the same shape or all equally."""
        mean = Mean.of(losses, weights)
        return cls(mean.total, mean.weight)

    def value(self) -> float:
        with np.errstate(over="ignore"):
            return float(np.exp(Mean(self.total, self.weight).value()))


def of_no_rows(metric: Metric) -> Metric:
    """The metric of no rows: zeros in place of all sums."""
    return type(metric)(**{name: np.zeros_like(array) for name, array in _arrays(metric).items()})


def merge(parts: Iterable[Mapping[str, Metric]]) -> dict[str, Metric]:
    """The metrics of several dicts with the same names, added by name in float64 on the host."""
    merged: dict[str, Metric] = {}
    for part in parts:
        wide = {name: _in_float64(metric) for name, metric in part.items()}
        merged = {name: merged[name] + metric if name in merged else metric for name, metric in wide.items()}
    return merged


def _in_float64(metric: Metric) -> Metric:
    return type(metric)(**{name: np.asarray(array, np.float64) for name, array in _arrays(metric).items()})


def values_by_name(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """The value of each metric; several values of one become `metric/name`."""
    found: dict[str, float] = {}
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is NaN: the value of no rows
        for name, metric in metrics.items():
            found |= flat(name, metric.value())
    return found


def flat(name: str, value: float | Mapping[str, float]) -> dict[str, float]:
    """A metric's value as floats by name: `name`, or `name/part` for each of several."""
    if isinstance(value, Mapping):
        return {f"{name}/{part}": _number(f"{name}/{part}", number) for part, number in value.items()}
    return {name: _number(name, value)}


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        found = f"an array of shape {list(value.shape)}" if isinstance(value, np.ndarray) else repr(value)
        raise ConfigError(f"the metric {name!r} has as its value {found}, not a number") from error
