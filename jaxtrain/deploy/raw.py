"""Which inputs a graph takes: those fields of an example that the model's input is made of, as they are read.

Found by tracing the transforms of a run: a field is an input of the kind of its array, or of the kind that the first
transform asks for. Not here: the model.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.data.remembered import RememberedPipeline, Watched, changed_where_possible
from jaxtrain.data.sources.base import Example, RememberedSource
from jaxtrain.data.sources.images import ImageFolder
from jaxtrain.data.sources.windows import Windows
from jaxtrain.data.tokens.files import TokenSource
from jaxtrain.data.tokens.tokenizers import Bytes, HuggingFace
from jaxtrain.data.transforms.base import Transform
from jaxtrain.deploy.inputs import Input, Text, TokenIds
from jaxtrain.deploy.numeric import INPUT_KINDS, Array, Image, Number
from jaxtrain.deploy.signature import Row
from jaxtrain.tasks.base import Task
from jaxtrain.tasks.language import LanguageModel

_ROWS = 2  # of the arrays that are traced, so that none is taken for a dim of 1

_NARROW = {"int64": "int32", "uint64": "uint32", "float64": "float32"}  # as batches are stacked


@dataclass(frozen=True)
class RawInputs:
    """The inputs of a graph, and what becomes of their tensors before the model reads them."""

    inputs: tuple[Input, ...]
    batch_of: Callable[[Mapping[str, Any]], dict[str, Any]]
    """From tensors, by name, to the fields that the model reads: pure, traced by jax."""
    row_of: Callable[[Example], dict[str, Any]]
    """From an example of the source, before all transforms, to a raw input."""
    tokenizers: Mapping[str, Path]
    """The files of tokenizers by their names in a bundle."""
    example_of: Callable[[Row], Example] | None = None
    """From a raw input to an example of the source; None where the source makes rows of more than one."""


@dataclass(frozen=True)
class _Raw:
    """A field that is still as it was read."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def is_text(self) -> bool:
        return self.dtype in ("text", "bytes")


def raw_inputs(kept: RememberedPipeline, task: Task, examples: Sequence[Example] = ()) -> RawInputs:
    """The inputs that the task's input is made of.

    examples: some of the source, before all transforms. A transform that cannot be traced is left out where it leaves
        all fields of these as they are, since it is one of labels. Raises ConfigError, with the reason, where the
        input cannot be made in a graph.
    """
    if isinstance(kept.source, Windows | TokenSource):
        return _of_tokens(kept, task)
    plan = _Plan(kept, task, [{name: one[name] for name in _kinds(kept) if name in one} for one in examples])
    jax.eval_shape(plan.trace)
    used = dict(plan.used)

    def batch_of(tensors: Mapping[str, Any]) -> dict[str, Any]:
        fields = {name: tensors[each.tensor].astype(dtype) for name, (each, dtype) in used.items()}
        return plan.apply(fields, lambda transform, fields: transform.traced(fields))

    inputs = tuple(each for each, _ in used.values())
    return RawInputs(
        inputs, batch_of, lambda example: {name: example[name] for name in used}, plan.tokenizers, plan.example_of
    )


class _Plan:
    """Traces the transforms once, with the fields of a raw input, which become inputs when a transform reads them."""

    def __init__(self, kept: RememberedPipeline, task: Task, examples: Sequence[Example]) -> None:
        self._kept, self._task, self._examples = kept, task, [*examples]
        self.used: dict[str, tuple[Input, str]] = {}
        self.tokenizers: dict[str, Path] = {}
        self._left_out: set[int] = set()

    def trace(self) -> dict[str, Any]:
        """The fields that the task reads, traced; `used` then holds the inputs."""
        fields = {name: _Raw(*kind) for name, kind in _kinds(self._kept).items()}
        found = _Fields(self.apply(fields, self._traced), self._array)
        wanted = (self._task.inputs,) if isinstance(self._task.inputs, str) else self._task.inputs
        for name in wanted:
            if name not in found:
                raise ConfigError(f"the model reads {name!r}, which no raw input is made into{nearest(name, found)}")
        direct = [name for name in wanted if isinstance(dict(found)[name], _Raw)]
        batch = {name: found[name] for name in wanted}
        for name in direct:
            self._limit(name)
        return batch

    def apply(self, fields: Example, change: Callable[[Transform, Any], Example]) -> Example:
        """The fields after all transforms but those that were left out."""
        for number, transform in enumerate(self._kept.evaluated()):
            if number not in self._left_out:
                self._number = number
                watched = _Fields(fields, self._array)
                fields = changed_where_possible(functools.partial(change, transform), fields, watched)
        return dict(fields)

    def example_of(self, row: Row) -> Example:
        """A raw input as an example, in the dtypes of the source."""
        return {name: self._as_read(name, value) for name, value in row.items()}

    def _as_read(self, name: str, value: Any) -> Any:
        kind = _kinds(self._kept)[name][0]
        if isinstance(value, str) and kind == "bytes":
            return value.encode()
        if isinstance(value, str | bytes):
            return value
        value = np.asarray(np.nan if value is None else value)
        floats = np.dtype(kind).kind == "f" or (value.dtype.kind == "f" and not np.isfinite(value).all())
        return value.astype(np.float32 if floats else kind)[()]

    def _traced(self, transform: Transform, fields: Any) -> Example:
        if type(transform).traced is Transform.traced and self._leaves_alone(transform):
            self._left_out.add(self._number)
            return dict(fields)
        raw = {name: (each.dtype, each.shape) for name, each in fields.items() if isinstance(each, _Raw)}
        for name, given in transform.raw_inputs(raw).items():
            fields[name] = self._input(name, raw[name][0], dict(given))
        made = transform.traced(fields)
        rng = np.random.default_rng(0)
        self._examples = [changed_where_possible(lambda one: transform(one, rng), one) for one in self._examples]
        return made

    def _leaves_alone(self, transform: Transform) -> bool:
        """Whether a transform changes no field of the examples; it may add some."""

        def unchanged(one: Example) -> bool:
            new = changed_where_possible(lambda given: transform(given, np.random.default_rng(0)), one)
            return all(name in new and _same(new[name], value) for name, value in one.items())

        return bool(self._examples) and all(map(unchanged, self._examples))

    def _input(self, name: str, dtype: str, given: dict[str, Any]) -> jax.Array:
        """The traced tensor of the input that a transform asks for."""
        if given["kind"] == "tokens":
            self.tokenizers["tokenizer.json"] = Path(given["tokenizer"])
            given["tokenizer"] = "tokenizer.json"
        made = INPUT_KINDS[given.pop("kind")](name=name, tensor=name, **given)
        return self._remember(name, made, made.spec().dtype)

    def _array(self, name: str, raw: _Raw) -> jax.Array:
        """The traced tensor of a field that is an array, in its dtype."""
        if raw.is_text:
            raise ConfigError(f"the model reads {name!r}, a text, of which no transform here makes numbers")
        if -1 in raw.shape:
            shown = [n if n >= 0 else "n" for n in raw.shape]
            raise ConfigError(f"the model reads {name!r} of shape {shown}: a graph takes arrays of one shape")
        dtype = np.dtype(raw.dtype)
        dtype = np.dtype(_NARROW.get(dtype.name, dtype))
        missing = dtype.kind == "f" and not self._task.allowed().keys() & {*_wanted(self._task)}
        if not raw.shape:
            made: Input = Number(name=name, tensor=name, missing=missing, integer=dtype.kind != "f")
        elif len(raw.shape) == 3 and raw.shape[2] in (1, 3) and self._is_image(name, dtype):
            scale = (0, 255) if dtype == np.uint8 else (0, 1)
            made = Image(name=name, tensor=name, shape=raw.shape, dtype=dtype.name, range=scale, missing=missing)
        else:
            made = Array(name=name, tensor=name, shape=raw.shape, dtype=dtype.name, missing=missing)
        return self._remember(name, made, dtype.name)

    def _is_image(self, name: str, dtype: np.dtype) -> bool:
        source = self._kept.source
        return dtype == np.uint8 or (dtype.kind == "f" and name not in getattr(source, "unscaled", ()))

    def _remember(self, name: str, made: Input, dtype: str) -> jax.Array:
        self.used[name] = made, dtype
        return jnp.zeros((_ROWS, *made.spec().shape), made.spec().dtype).astype(dtype)

    def _limit(self, name: str) -> None:
        """Integers that the model reads as they are given are refused where the model does not allow them."""
        (made, dtype), allowed = self.used[name], self._task.allowed().get(name)
        if isinstance(made, Array) and allowed is not None and math.isfinite(allowed.least) and allowed.most < math.inf:
            self.used[name] = replace(made, range=(allowed.least, allowed.most)), dtype


class _Fields(Watched):
    """Fields of an example, of which those that are raw become arrays when they are read."""

    def __init__(self, fields: Example, array: Callable[[str, _Raw], jax.Array]) -> None:
        super().__init__(fields)
        self._array = array

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if isinstance(value, _Raw):
            value = self[name] = self._array(name, value)
        return value


def _wanted(task: Task) -> tuple[str, ...]:
    return (task.inputs,) if isinstance(task.inputs, str) else task.inputs


def _kinds(kept: RememberedPipeline) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    source = kept.source
    if isinstance(source, RememberedSource):
        return source.kinds
    if isinstance(source, ImageFolder):
        return {"image": ("uint8", (*source.size, 1 if source.gray else 3))}
    raise ConfigError(
        f"{type(source).__name__} reads raw inputs by a `raw` of its own, which is code, and a bundle holds none: "
        "build the data set with what `raw` makes, or leave `raw` out"
    )


def _of_tokens(kept: RememberedPipeline, task: Task) -> RawInputs:
    """A text of any length, whose last tokens a language model reads; shorter ones are padded at their end, in a
    segment that is not read.
    """
    dtype, (length,) = kept.row["tokens"]
    tokenizer = kept.source.tokenizer if isinstance(kept.source, TokenSource) else Bytes()
    tokenizers = {}
    if isinstance(tokenizer, Bytes):
        made: Input = Text(name="text", tensor="text", bytes=length, keep="last", least=1)
        pad = 0
    elif isinstance(tokenizer, HuggingFace):
        pad, tokenizers = -1, {"tokenizer.json": Path(tokenizer.path)}
        made = TokenIds(
            name="text", tensor="tokens", tokenizer="tokenizer.json", length=length, pad=pad, keep="last", least=1
        )
    else:
        raise ConfigError(f"{type(tokenizer).__name__} is a tokenizer of your own, and a bundle holds no code")
    if not isinstance(task, LanguageModel) or kept.evaluated():
        raise ConfigError(f"{type(kept.source).__name__} is exported for a LanguageModel without transforms alone")

    def batch_of(tensors: Mapping[str, Any]) -> dict[str, Any]:
        given_BL = tensors[made.tensor].astype(np.int32)
        later_BL = jnp.cumsum((given_BL != pad)[:, ::-1].astype(np.int32), axis=1)[:, ::-1]
        segments_BL = (later_BL > 0).astype(np.int32)
        return {task.inputs: jnp.where(segments_BL > 0, given_BL, 0).astype(dtype), "segments": segments_BL}

    def row_of(example: Example) -> dict[str, Any]:
        tokens = np.asarray(example["tokens"])
        return {"text": bytes(tokens.astype(np.uint8)) if pad == 0 else tokens.tolist()}

    return RawInputs((made,), batch_of, row_of, tokenizers)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, str | bytes) or isinstance(other, str | bytes):
        return type(one) is type(other) and one == other
    one, other = np.asarray(one), np.asarray(other)
    return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
