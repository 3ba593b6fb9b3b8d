"""Transforms of one example, or of a whole batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.ranges import Checked
from jaxtrain.data.sources.base import Example, HostBatch


@dataclass(frozen=True)
class Transform(Checked, ABC):
    """A function from an example to a new one, deterministic given the state of the generator. Picklable."""

    @abstractmethod
    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The new example. Must not modify `example` or its arrays."""

    @property
    def training_only(self) -> bool:
        """Whether evaluation and prediction skip it, as they skip augmentation."""
        return False

    def evaluating(self) -> "Transform":
        """The transform to use instead in evaluation and prediction."""
        return self

    def traced(self, fields: Example) -> Example:
        """What `__call__` does in evaluation, on a batch of arrays [rows, …] that jax traces, for an exported graph.

        Raises ConfigError, as here by default, where a graph cannot do it.
        """
        raise ConfigError(
            f"{type(self).__name__} cannot be part of an exported graph: it has no `traced(self, fields)`, which does "
            "to a batch of jax arrays what `__call__` does to an example"
        )

    def raw_inputs(self, kinds: Mapping[str, tuple[str, tuple[int, ...]]]) -> Mapping[str, Mapping[str, Any]]:
        """How raw fields that only this transform can make numbers of are given to an exported graph, by name: a kind
        of `jaxtrain.deploy.inputs` with its fields. `traced` then gets the tensor of it.

        kinds: the dtype ("text" and "bytes" too) and the shape of each field that is still as it was read.
        """
        return {}

    def undo(self, name: str, values: Any) -> Any:
        """The inverse, for values of field `name`, f[rows, …], of numpy or traced by jax.

        By default the values unchanged, for transforms without an inverse.
        """
        return values

    def field_of(self, example: Mapping[str, Any], name: str) -> Any:
        """Field `name` of an example. Raises ConfigError with the nearest right name when there is none."""
        if name not in example:
            raise ConfigError(f"{type(self).__name__}: no field {name!r} in the example{nearest(name, example)}")
        return example[name]

    def text_of(self, example: Mapping[str, Any], name: str) -> str | bytes:
        """Field `name` as text. Raises ConfigError for any other type, and for half of a surrogate pair."""
        text = self.field_of(example, name)
        if not isinstance(text, str | bytes):
            raise ConfigError(f"{type(self).__name__}: {name!r} must be str or bytes, got {type(text).__name__}")
        if isinstance(text, str):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ConfigError(f"{type(self).__name__}: {name!r} is not Unicode text: {error}") from error
        return text

    def category_of(self, example: Mapping[str, Any], name: str) -> str | int:
        """Field `name` as a str or int; it may be bytes or a numpy scalar. Raises ConfigError for anything else."""
        value = self.field_of(example, name)
        if isinstance(value, str | bytes):
            return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        array = np.asarray(value)
        if array.ndim or array.dtype.kind not in "biu":
            raise ConfigError(f"{type(self).__name__}: {name!r} is {_shown(array)}, neither a text nor an integer")
        return int(value)

    def numbers_of(self, example: Mapping[str, Any], name: str, dtype: Any = np.float32) -> np.ndarray:
        """Field `name` with a float dtype. Raises ConfigError for values that are not numbers, or beyond the dtype."""
        value = np.asarray(self.field_of(example, name))
        if value.dtype.kind not in "biuf":
            raise ConfigError(f"{type(self).__name__}: {name!r} must be numbers, got {_shown(value)}")
        with np.errstate(over="ignore"):
            numbers = value.astype(dtype)
        if np.isinf(numbers).sum() != np.isinf(value).sum():
            raise ConfigError(f"{type(self).__name__}: {name!r} has a number beyond {numbers.dtype}: {_shown(value)}")
        return numbers

    def replaced(self, example: Example, fields: Sequence[str], to: str, value: Any) -> Example:
        """The example with `value` in `to` instead of `fields`. Raises ConfigError where `to` exists and is not one of
        these.
        """
        rest = {name: kept for name, kept in example.items() if name not in fields}
        if to in rest:
            raise ConfigError(
                f"{type(self).__name__}: the example has a field {to!r} already, which would be lost: name another"
            )
        return {**rest, to: value}

    def image_of(self, example: Mapping[str, Any], name: str) -> np.ndarray:
        """Field `name` as an array [height, width, channels]. Raises ConfigError for another rank."""
        image = np.asarray(self.field_of(example, name))
        if image.ndim != 3:
            raise ConfigError(
                f"{type(self).__name__}: {name!r} must be [height, width, channels], got shape {image.shape}"
            )
        return image


def check_once(value: Any, name: str) -> None:
    """For `__post_init__`: raises ConfigError where attribute `name`, a tuple of fields, is empty or repeats one."""
    given = getattr(value, name)
    if isinstance(given, tuple) and (not given or len(set(given)) < len(given)):
        raise ConfigError(f"{type(value).__name__} {name} must name one or more fields, each once, got {given}")


@contextmanager
def with_place(where: Callable[[], str]) -> Generator[None]:
    """Adds the location of the example to a ConfigError."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{error} (in {where()})") from error


def _shown(value: np.ndarray) -> str:
    text = repr(value.item() if value.ndim == 0 else value)
    return text if len(text) <= 80 else f"{value.dtype}{list(value.shape)}"


@dataclass(frozen=True)
class BatchTransform(Checked, ABC):
    """A function from a global batch to a new one, deterministic given the state of the generator. Training only."""

    @abstractmethod
    def __call__(self, batch: HostBatch, rng: np.random.Generator) -> HostBatch:
        """The new batch, with the same number of rows. Must not modify `batch` or its arrays."""
