"""The examples behind rows of an evaluation: read from the run's data where they are there, for a bounded time.

An example whose content is no longer that of the evaluation is not shown. Not here: what the rows say in sum.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.text import cut
from jaxtrain.data.pipeline import Pipeline
from jaxtrain.generation.run import texts_of
from jaxtrain.reports.page import Item, Paragraph, Picture, Table
from jaxtrain.reports.pictures import png
from jaxtrain.runs.row_ids import raw_records, record_id
from jaxtrain.runs.rows import RowsOf
from jaxtrain.tasks.metrics import Mean

_SECONDS = 10.0
"""How long a report may read examples of a split."""

WORST = 10

_LARGEST_SIDE = 128  # pixels of a picture

T = TypeVar("T")


class SplitRecords:
    """The records of a split, from its pipeline. why: where there is none, the reason."""

    def __init__(self, pipeline: Pipeline | None, split: str, why: str = "") -> None:
        self._pipeline, self._split, self.why = pipeline, split, why

    def read(self, rows: RowsOf, places: Sequence[int], seconds: float = _SECONDS) -> dict[int, Mapping[str, Any]]:
        """The records of these rows, by their place in `rows`, as far as they are there, unchanged, and read in time;
        else `why` says what is missing.
        """
        if (pipeline := self._pipeline) is None:
            return {}
        end, found, changed = time.monotonic() + seconds, dict[int, Mapping[str, Any]](), list[int]()

        def look() -> None:
            source = raw_records(pipeline.source)
            size = len(source)
            for place in places:
                if time.monotonic() > end:
                    raise TimeoutError
                at = int(rows.positions[place])
                record = source[at] if at < size else None
                if record is not None and record_id(record) == int(rows.ids[place]):
                    found[place] = record
                else:
                    changed.append(place)

        try:
            within(seconds, look)
        except TimeoutError:
            self.why = f"the data of {self._split} were not read within {seconds:.0f} s"
        except Exception as error:  # of any source, also of the user's: the report stands without examples
            self.why = f"the data of {self._split} cannot be read here ({type(error).__name__}: {error})"
        if changed:
            self.why = f"{len(changed)} of {len(places)} records of {self._split} are not those that were evaluated"
        return dict(found)

    def lengths(self, rows: RowsOf) -> tuple[str, np.ndarray] | None:
        """What is the length of each row [n], in words, and the numbers: of text; None where there is none, or not all
        rows can be read in time.
        """
        first = self.read(rows, [0], 3.0)
        field = next((name for name, value in first.get(0, {}).items() if isinstance(value, str)), None)
        if field is None:
            return None
        found = self.read(rows, range(rows.kept))
        if len(found) < rows.kept:
            return None
        return f"characters of {field}", np.array([len(found[place][field]) for place in range(rows.kept)])

    def cell(self, record: Mapping[str, Any]) -> object:
        """A record in a cell of a table: its text, its picture, or its numbers; tokens of text as text."""
        try:
            decode = texts_of(self._pipeline).tokenizer.decode if self._pipeline else None
        except ConfigError:  # it has no tokenizer
            decode = None
        for value in record.values():
            if isinstance(value, str):
                return cut(value, 400)
            if decode and isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "ui":
                return cut(decode(value), 400)
        for name, value in record.items():
            if isinstance(value, np.ndarray) and (pixels := _pixels(value)) is not None:
                return Picture(png(pixels), f"{name} of this row", small=True)
        return cut("  ".join(f"{name} {_numbers(value)}" for name, value in record.items()), 400)


def within(seconds: float, function: Callable[[], T]) -> T:
    """What a function returns. Raises TimeoutError after `seconds`, in which case it goes on in a thread."""
    done: queue.Queue[tuple[bool, Any]] = queue.Queue()

    def call() -> None:
        try:
            done.put((True, function()))
        except BaseException as error:  # raised again below
            done.put((False, error))

    threading.Thread(target=call, daemon=True).start()
    try:
        good, result = done.get(timeout=max(0.0, seconds))
    except queue.Empty:
        raise TimeoutError(f"it took more than {seconds:.0f} s") from None
    if good:
        return result
    raise result


def worst(
    rows: RowsOf, records: SplitRecords, labels: np.ndarray | None, classes: Sequence[str], suffix: str
) -> list[Item]:
    """The rows with the highest loss, with their examples where these can be read."""
    metric = rows.metrics.get("loss")
    if not isinstance(metric, Mean) or np.ndim(metric.total) != 1:
        return []
    total, weight = (np.asarray(each, np.float64) for each in (metric.total, metric.weight))
    with np.errstate(divide="ignore", invalid="ignore"):
        losses = np.where(weight > 0, total / weight, -np.inf)
    losses = np.where(np.isnan(losses), np.inf, losses)  # what is not a number is the worst
    places = [int(place) for place in np.argsort(-losses, kind="stable")[:WORST] if losses[place] > -np.inf]
    found = records.read(rows, places)
    lines = list[list[object]]()
    for place in places:
        line: list[object] = [f"{int(rows.positions[place]):,}", float(losses[place])]
        if labels is not None:
            probabilities = rows.predictions["probabilities"][place]
            chosen = int(probabilities.argmax())
            line += [classes[labels[place]] if labels[place] >= 0 else None]
            line += [f"{classes[chosen]} ({float(probabilities[chosen]):.3f})"]
        lines.append([*line, records.cell(found[place]) if place in found else f"id {int(rows.ids[place]):016x}"])
    named = ["label", "predicted"] if labels is not None else []
    items: list[Item] = [
        Table(["row", "loss", *named, "example"], lines, f"The {len(lines)} rows with the highest loss{suffix}")
    ]
    if len(found) < len(places):
        items.append(Paragraph(f"Some examples are known by their ids alone: {records.why}", "note"))
    return items


def _numbers(value: Any) -> str:
    array = np.asarray(value)
    if array.size <= 8:
        return str(array.tolist())
    return f"{array.dtype}{list(array.shape)} {array.reshape(-1)[:8].tolist()}…"


def _pixels(value: np.ndarray) -> np.ndarray | None:
    """u8[Y, X] or u8[Y, X, 3] of an array that may be a picture, its range stretched; None for others."""
    if value.ndim == 3 and value.shape[2] == 1:
        value = value[:, :, 0]
    grey, colour = value.ndim == 2, value.ndim == 3 and value.shape[2] == 3
    if (
        not (grey or colour)
        or min(value.shape[:2]) < 4
        or max(value.shape[:2]) > 4096
        or value.dtype.kind not in "uifb"
    ):
        return None
    by = -(-max(value.shape[:2]) // _LARGEST_SIDE)
    small = value[::by, ::by].astype(np.float64)
    if not np.isfinite(small).all():
        return None
    if value.dtype == np.uint8 and small.max() > 16:
        return small.astype(np.uint8)
    low, high = small.min(), small.max()
    return np.round((small - low) / ((high - low) or 1) * 255).astype(np.uint8)
