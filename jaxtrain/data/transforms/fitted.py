"""Transforms that are fitted on the training split: mean and std, quantiles.

Not here: reading the examples for it, and saving the fitted values.
"""

import json
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Self

import numpy as np

from jaxtrain.base.config import NOT_IN_FINGERPRINT, to_json
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.files import digest
from jaxtrain.base.ranges import Checked, Finite, Positive, Range
from jaxtrain.data.sources.base import Example
from jaxtrain.data.transforms.base import Transform, check_once


@dataclass(frozen=True)
class FittedTransform(Transform):
    """A transform that is fitted on the training split before a run begins.

    `fit` returns the transform with a value in its field `fitted`. A run saves it; evaluation and `predict` use it.
    """

    fitted: Any = field(default=None, kw_only=True, metadata=NOT_IN_FINGERPRINT)
    """The fitted values: anything that `to_json` accepts. Their hash is in the fingerprint, by `identity`."""

    @abstractmethod
    def fit(self, examples: Iterable[Example]) -> Self:
        """This transform with its fitted values, a deterministic function of the examples, in one pass over them."""

    def unfitted(self) -> Self:
        """This transform without its fitted values."""
        return replace(self, fitted=None)

    def identity(self) -> str:
        """A hash of the fitted values."""
        if self.fitted is None:
            return "not fitted"
        return f"fitted:{digest(json.dumps(to_json(self.fitted), sort_keys=True), length=16)}"

    def known(self) -> Any:
        """The fitted values. Raises ConfigError where there are none."""
        if self.fitted is None:
            raise ConfigError(
                f"{self!r} is not fitted: a run fits it on its training split when it begins; "
                "in Python, use the experiment that jaxtrain.fit(experiment) returns"
            )
        return self.fitted


@dataclass(frozen=True)
class Moments(Checked):
    """Mean and standard deviation of a field, one per channel (last dimension)."""

    mean: tuple[Finite, ...]
    std: tuple[Positive, ...]


@dataclass(frozen=True)
class Standardize(FittedTransform):
    """(value - mean) / std as float32, with the mean and the (biased) standard deviation of the training split.

    One mean and std per channel (last dimension); where all values are equal, the std is 1. Fields that an example
    lacks are skipped, since inputs for prediction have no target. Predictions of a field are converted back to the
    units of the data.
    """

    fields: tuple[str, ...]

    def __post_init__(self) -> None:
        check_once(self, "fields")

    def fit(self, examples: Iterable[Example]) -> Self:
        """One pass in float64, by Chan et al. 1979. Raises ConfigError for NaN, infinity and another channel count."""
        sums: list[tuple[int, np.ndarray, np.ndarray]] = [(0, np.zeros(()), np.zeros(()))] * len(self.fields)
        for number, example in enumerate(examples):
            for place, name in enumerate(self.fields):
                count, mean, squares = sums[place]
                rows = _channels(self, example, name, number, None if count == 0 else len(mean))
                if not len(rows):
                    continue
                new = rows.mean(0)
                shift, total = new - mean, count + len(rows)
                squares = squares + ((rows - new) ** 2).sum(0) + shift**2 * (count * len(rows) / total)
                sums[place] = total, mean + shift * (len(rows) / total), squares
        found = []
        for name, (count, mean, squares) in zip(self.fields, sums, strict=True):
            if not count:
                raise ConfigError(f"Standardize: the training split has no values in {name!r}")
            std = np.sqrt(squares / count)
            found.append(Moments(tuple(mean.tolist()), tuple(np.where(std > 0, std, 1).tolist())))
        return replace(self, fitted=tuple(found))

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        new = dict(example)
        for name, moments in zip(self.fields, self.known(), strict=True):
            if name in example:
                value = self.numbers_of(example, name, np.float64)
                _check_channels(self, name, value, len(moments.mean))
                new[name] = ((value - _like(moments.mean, value)) / _like(moments.std, value)).astype(np.float32)
        return new

    def traced(self, fields: Example) -> Example:
        """In float32, but the mean in two parts: one would lose the digits that a large mean leaves of a value."""
        new = dict(fields)
        for name, moments in zip(self.fields, self.known(), strict=True):
            if name in fields:
                value = fields[name].astype(np.float32)
                _check_channels(self, name, value[0], len(moments.mean))
                mean, std = _like(moments.mean, value[0]), _like(moments.std, value[0])
                high, low = _two_parts(mean)
                # Divided before the second part is subtracted: XLA would add the two parts again.
                new[name] = (value - high) / std.astype(np.float32) - (low / std).astype(np.float32)
        return new

    def undo(self, name: str, values: Any) -> Any:
        """values · std + mean."""
        if name not in self.fields:
            return values
        moments = self.known()[self.fields.index(name)]
        return values * np.asarray(moments.std, np.float32) + np.asarray(moments.mean, np.float32)


@dataclass(frozen=True)
class Quantiles(FittedTransform):
    """Replace a value by its quantile in the training split, float32 in 0…1, interpolated linearly.

    Each channel (last dimension) is separate. A value that equals several quantiles gets the middle of them; values out
    of the range of the training split get 0 or 1. Fields that an example lacks are skipped. Fitting holds all values of
    the training split in memory. Predictions of a field are converted back to the units of the data.
    """

    fields: tuple[str, ...]
    count: Annotated[int, Range(at_least=2, hint="the least and the largest value")] = 100
    """The number of quantiles."""

    def __post_init__(self) -> None:
        check_once(self, "fields")

    def fit(self, examples: Iterable[Example]) -> Self:
        """The quantiles of all values at once. Raises ConfigError for NaN, infinity and another channel count."""
        rows: list[list[np.ndarray]] = [[] for _ in self.fields]
        for number, example in enumerate(examples):
            for name, seen in zip(self.fields, rows, strict=True):
                seen.append(_channels(self, example, name, number, seen[0].shape[1] if seen else None))
        found = []
        for name, seen in zip(self.fields, rows, strict=True):
            if not sum(map(len, seen)):
                raise ConfigError(f"Quantiles: the training split has no values in {name!r}")
            cuts = np.quantile(np.concatenate(seen), self._places(), axis=0)
            found.append(tuple(tuple(one) for one in np.maximum.accumulate(cuts).T.tolist()))
        return replace(self, fitted=tuple(found))

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        new, places = dict(example), self._places()
        for name, channels in zip(self.fields, self.known(), strict=True):
            if name not in example:
                continue
            value = self.numbers_of(example, name, np.float64)
            _check_channels(self, name, value, len(channels))
            rows = value.reshape(-1, len(channels))
            done = np.empty(rows.shape, np.float32)
            for channel, cuts in enumerate(np.asarray(channels)):
                low = np.interp(rows[:, channel], cuts, places)
                high = 1 - np.interp(-rows[:, channel], -cuts[::-1], places)
                done[:, channel] = (low + high) / 2  # low and high differ where quantiles are equal
            new[name] = done.reshape(value.shape)
        return new

    def traced(self, fields: Example) -> Example:
        import jax.numpy as jnp  # not at the top: reading data needs no jax

        new = dict(fields)
        for name, channels in zip(self.fields, self.known(), strict=True):
            if name in fields:
                value = fields[name].astype(np.float32)
                _check_channels(self, name, value[0], len(channels))
                rows = value if value.ndim > 1 else value[:, None]
                places = [_place(rows[..., number], np.asarray(cuts)) for number, cuts in enumerate(channels)]
                new[name] = jnp.stack(places, -1).reshape(value.shape)
        return new

    def undo(self, name: str, values: Any) -> Any:
        """The values at these quantiles, f[..., channels]."""
        if name not in self.fields:
            return values
        import jax.numpy as jnp  # not at the top: reading data needs no jax

        cuts_CQ = np.asarray(self.known()[self.fields.index(name)], np.float32)
        places = self._places().astype(np.float32)
        if values.shape[-1:] != cuts_CQ.shape[:1]:  # one number a row, without a dim of channels
            return jnp.interp(values, places, cuts_CQ[0])
        return jnp.stack([jnp.interp(values[..., channel], places, cuts) for channel, cuts in enumerate(cuts_CQ)], -1)

    def _places(self) -> np.ndarray:
        return np.linspace(0, 1, self.count)


def _channels(who: FittedTransform, example: Example, name: str, number: int, wanted: int | None) -> np.ndarray:
    """The values of a field as float64[n, channels]; a single number is one channel."""
    value = np.asarray(who.field_of(example, name))
    where = f"{type(who).__name__}: {name!r} in example {number} of the training split"
    if value.dtype.kind not in "biuf" or not np.isfinite(value).all():
        raise ConfigError(f"{where} is not finite numbers: {value!r}")
    channels = value.shape[-1] if value.ndim else 1
    if wanted not in (None, channels):
        raise ConfigError(f"{where} has {channels} channels (its last dimension), but those before it {wanted}")
    return value.astype(np.float64).reshape(-1, channels)


def _check_channels(who: FittedTransform, name: str, value: np.ndarray, channels: int) -> None:
    if (value.shape[-1] if value.ndim else 1) != channels:
        raise ConfigError(f"{type(who).__name__}: fitted on {channels} channels, but {name!r} has shape {value.shape}")


def _two_parts(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of float64 as float32, and what that leaves."""
    high = numbers.astype(np.float32)
    return high, numbers - high


def _place(value: Any, cuts_Q: np.ndarray) -> Any:
    """Where traced values f32 lie among quantiles, the middle of the place after equal ones and of that before them."""
    import jax.numpy as jnp

    high_Q, low_Q = _two_parts(cuts_Q)
    width_Q, last = np.diff(cuts_Q), len(cuts_Q) - 1
    safe_Q = np.where(width_Q > np.finfo(np.float32).tiny, width_Q, 1)
    begin_Q, wide_Q, rest_Q = (jnp.asarray(x, jnp.float32) for x in (high_Q[:-1], safe_Q, low_Q[:-1] / safe_Q))

    def interpolated(passed: Any) -> Any:
        count = passed.sum(-1)
        begin = jnp.clip(count - 1, 0, last - 1)
        share = (value - begin_Q[begin]) / wide_Q[begin] - rest_Q[begin]
        share = jnp.clip(share, 0, 1)
        inside = (begin + share) / np.float32(last)
        return jnp.where(count == 0, 0, jnp.where(count == last + 1, 1, inside))

    beyond, low_Q = value[..., None] - high_Q, low_Q.astype(np.float32)
    middle = (interpolated(beyond >= low_Q) + interpolated(beyond > low_Q)) / 2
    return jnp.where(jnp.isnan(value), jnp.nan, middle)


def _like(numbers: tuple[float, ...], value: np.ndarray) -> np.ndarray:
    """The numbers, one per channel, as an array; a scalar if the value is one."""
    return np.asarray(numbers if value.ndim else numbers[0], np.float64)
