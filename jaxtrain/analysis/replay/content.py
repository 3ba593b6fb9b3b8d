"""An example as text, for the report: its location, its fields, and which numbers are not finite."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxtrain.analysis.replay.places import range_of
from jaxtrain.base.config import find
from jaxtrain.base.errors import Damaged
from jaxtrain.base.text import cut, number
from jaxtrain.data.pipeline import Pipeline
from jaxtrain.data.tokens.tokenizers import Bytes, Tokenizer
from jaxtrain.tasks.base import Task

SHOWN = 8
"""An array with at most this many numbers is printed in full."""


def where(pipeline: Pipeline, index: int, row: int) -> str:
    """The location in the source of the example in a row of batch `index`."""
    found = pipeline.record(index, row, training=True)
    if found is None:
        return f"row {row} of batch {index}, which batch transforms made of several examples"
    return pipeline.source.where(found)


def content_of(pipeline: Pipeline, task: Task, batch: Mapping[str, Any], index: int, row: int) -> dict[str, str]:
    """The fields of a row as text: texts as in the source, tokens decoded, numbers as in the batch."""
    found = {name: _field(task, pipeline, name, np.asarray(x)[row]) for name, x in batch.items() if name != "mask"}
    record = pipeline.record(index, row, training=True)
    if record is None:
        return found
    try:
        example = pipeline.source[record]
    except Damaged as error:
        return {"in the source": str(error), **found}
    texts = {name: value for name, value in example.items() if isinstance(value, str | bytes)}
    return {name: _quoted(value) for name, value in texts.items()} | found


def _quoted(value: str | bytes) -> str:
    return repr(cut(value.decode(errors="replace") if isinstance(value, bytes) else value, 90))


def _field(task: Task, pipeline: Pipeline, name: str, x: np.ndarray) -> str:
    if np.issubdtype(x.dtype, np.integer) and x.ndim == 1 and name == "tokens":
        tokenizer = tokenizer_of(pipeline, task)
        return f"{x.size} tokens: {_quoted(tokenizer.decode(_unpadded(x)))}" if tokenizer else _array_text(x)
    return _array_text(x)


def _unpadded(tokens: np.ndarray) -> np.ndarray:
    return tokens[: int(np.flatnonzero(tokens)[-1]) + 1] if tokens.any() else tokens[:0]


def tokenizer_of(pipeline: Pipeline, task: Task) -> Tokenizer | None:
    """The tokenizer of the data; `Bytes` for a model with a vocabulary of 256; None where it is not known."""
    found = list(find(pipeline, Tokenizer))
    if found:
        return found[0]
    return Bytes() if getattr(task.model, "vocab", None) == 256 else None


def _array_text(x: np.ndarray) -> str:
    if x.size > SHOWN or not np.issubdtype(x.dtype, np.number):
        return range_of(x) if x.size > 1 else str(x)
    values = " ".join(number(float(each)) for each in x.ravel())
    wrong = "" if not np.issubdtype(x.dtype, np.floating) or np.isfinite(x).all() else "  ← not finite"
    return (values if x.ndim == 0 else f"[{values}]") + wrong


def wrong_numbers(batch: Mapping[str, Any]) -> list[tuple[int, str]]:
    """The rows of a batch that hold NaN or infinity, each with the field and the index in it."""
    found = []
    for name, x in batch.items():
        values = np.asarray(x)
        if not np.issubdtype(values.dtype, np.number) or np.isfinite(values.astype(np.float64)).all():
            continue
        places = np.argwhere(~np.isfinite(values.astype(np.float64)))
        for row in dict.fromkeys(places[:, 0].tolist()):
            at = next(place for place in places if place[0] == row)[1:]
            place = f"[{','.join(map(str, at))}]" if len(at) else ""
            found.append((row, f"{name}{place} is {values[(row, *at)]}"))
    return found
