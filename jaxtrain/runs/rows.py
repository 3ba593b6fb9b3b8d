"""rows/SPLIT.npz of a run folder: what its last evaluation found for each example, so that it can be looked at and
compared later without model and data.

An example is known by the hash of its record, so that two runs can be compared on the examples that both have. Reading
needs no device. Not here: the pass over a split that collects them (`row_pass`).
"""

import errno
import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np

from jaxtrain.base.checksums import read_regular, unreadable
from jaxtrain.base.errors import ConfigError, Damaged, nearest
from jaxtrain.base.files import atomic_write
from jaxtrain.base.registry import find_kind, name_of
from jaxtrain.runs.retention import set_aside_no_file
from jaxtrain.tasks.host_metrics import HostMetric
from jaxtrain.tasks.metrics import Metric, flat, values_by_name

ROWS_FOLDER = "rows"

LARGEST_ROWS_FILE = 2 << 30
"""Bytes of a file of rows, and of what it holds once it is unpacked: a larger one is not read."""

_VERSION = 1


@dataclass(frozen=True)
class RowsOf:
    """The rows of one split as a run evaluated them after `step` updates, in the order of the split. Arrays have the
    kept rows on dim 0, n of them.
    """

    split: str
    step: int
    kept: int
    """How many rows these are, n."""
    of: int
    """How many the split has. Where more than were kept, these are the ones with the smallest ids: two runs keep the
    same examples.
    """
    ids: np.ndarray
    """u64[n]: `row_ids.record_id` of the example's record. Examples with the same content have the same id."""
    positions: np.ndarray
    """i64[n]: the row in one pass of the split, from 0, ascending."""
    predictions: Mapping[str, np.ndarray]
    """What `Task.predict` gives, by name, in the units of the data: [n, …]."""
    labels: Mapping[str, np.ndarray]
    """The fields that the loss reads and the predictions do not, and those of host metrics, in the units of the data:
    [n, …].
    """
    metrics: Mapping[str, Metric]
    """The task's metrics, each with the sums of every row on dim 0: its arrays are [n, …]."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Why an array or a metric was not kept, by its name, such as `predictions.log_probabilities`."""

    def values(
        self,
        weights: Sequence[float] | np.ndarray | None = None,
        host_metrics: Mapping[str, HostMetric] | None = None,
    ) -> dict[str, float]:
        """The metrics of these rows by name, as an evaluation names them, computed in float64.

        weights: how often each row counts, numbers [n] from 0 on; None counts each once. A row that counts 0 times has
            no part in the value, even if it holds NaN. Raises ConfigError for other weights.
        host_metrics: those of the experiment, to be computed too; the weights are then whole numbers.
        """
        counts = np.ones(self.kept) if weights is None else np.asarray(weights, np.float64)
        if counts.shape != (self.kept,) or not (np.isfinite(counts).all() and (counts >= 0).all()):
            raise ConfigError(f"weights are {self.kept} finite numbers from 0 on, one for each row of {self.split!r}")
        chosen = np.flatnonzero(counts)
        counts = counts[chosen]

        def total(rows: np.ndarray) -> np.ndarray:
            with np.errstate(invalid="ignore", over="ignore"):
                return np.tensordot(counts, np.asarray(rows, np.float64)[chosen], 1)

        sums = {
            name: type(metric)(**{part: total(rows) for part, rows in arrays_of(metric).items()})
            for name, metric in self.metrics.items()
        }
        found = values_by_name(sums)
        if host_metrics and (counts % 1).any():
            raise ConfigError("host metrics are of whole rows: give whole numbers as weights")
        for name, host in (host_metrics or {}).items():
            rows = np.repeat(chosen, counts.astype(np.int64))
            predictions, labels = (
                {key: x[rows] for key, x in part.items()} for part in (self.predictions, self.labels)
            )
            found |= flat(name, host.value(predictions, labels))
        return found


def arrays_of(metric: Metric) -> dict[str, np.ndarray]:
    """The arrays of a metric by the names of its fields."""
    return {each.name: np.asarray(getattr(metric, each.name)) for each in fields(metric)}


def rows_path(folder: Path, split: str) -> Path:
    """The file of a split's rows in a run folder."""
    return folder / ROWS_FOLDER / f"{quote(split, safe=' ')}.npz"


def rows_kept(folder: Path) -> list[str]:
    """The splits of which a run folder holds rows, by name; nothing is read."""
    try:
        return sorted(unquote(path.stem) for path in (folder / ROWS_FOLDER).glob("[!.]*.npz"))
    except OSError:
        return []


def write_rows(folder: Path, rows: RowsOf) -> Path:
    """Write a split's rows into a run folder, whole or not at all; returns the file. Raises OSError."""
    arrays: dict[str, np.ndarray] = {"ids": rows.ids, "positions": rows.positions}
    for part in ("predictions", "labels"):
        arrays |= {f"{part}.{number}": x for number, x in enumerate(getattr(rows, part).values())}
    kinds = {}
    for number, (name, metric) in enumerate(rows.metrics.items()):
        kinds[name] = {"kind": name_of(type(metric)), "parts": [*arrays_of(metric)]}
        arrays |= {f"metrics.{number}.{place}": x for place, x in enumerate(arrays_of(metric).values())}
    about = {
        "version": _VERSION,
        "split": rows.split,
        "step": rows.step,
        "of": rows.of,
        "predictions": [*rows.predictions],
        "labels": [*rows.labels],
        "metrics": kinds,
        "left_out": dict(rows.left_out),
    }
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    path = rows_path(folder, rows.split)
    if path.parent.is_symlink():
        raise OSError(errno.ELOOP, "it is a link, which may lead out of the run", str(path.parent))
    path.parent.mkdir(exist_ok=True)
    set_aside_no_file(path)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return path


def read_rows(folder: Path, split: str) -> RowsOf:
    """The rows that a run kept of a split.

    A metric whose class is not imported is in `left_out`. Raises ConfigError where none were kept, Damaged for a file
    that is not as it was written.
    """
    path = rows_path(folder, split)
    if not os.path.lexists(path):
        kept = rows_kept(folder)
        others = nearest(split, kept) if kept else ""
        raise ConfigError(
            f"{folder} holds no rows of {split!r}{others}: make them with `jaxtrain evaluate {folder} --keep-rows`"
        )
    try:
        if os.stat(path).st_size > LARGEST_ROWS_FILE:
            raise Damaged(str(path), None, f"it has more than {LARGEST_ROWS_FILE:,} bytes")
        return _rows_of(split, _arrays(read_regular(path)))
    except OSError as error:
        raise unreadable(path, error) from error
    except _UNREADABLE as error:
        raise Damaged(str(path), None, f"it is no file of rows ({error})") from error


_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, EOFError, MemoryError, OverflowError, RecursionError)
_UNREADABLE += (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


def _arrays(content: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        if (size := sum(each.file_size for each in file.infolist())) > LARGEST_ROWS_FILE:
            raise ValueError(f"unpacked it has {size:,} bytes, more than {LARGEST_ROWS_FILE:,}")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _rows_of(split: str, arrays: Mapping[str, np.ndarray]) -> RowsOf:
    """Raises one of `_UNREADABLE` for what `write_rows` does not write."""
    about = json.loads(arrays["about"].tobytes())
    if about["version"] != _VERSION or about["split"] != split:
        raise ValueError(f"version {about['version']!r} of split {about['split']!r}")
    ids, positions, step, of = arrays["ids"], arrays["positions"], about["step"], about["of"]
    if ids.dtype != np.uint64 or positions.dtype != np.int64 or ids.ndim != 1 or ids.shape != positions.shape:
        raise ValueError("its ids and positions are not numbers of as many rows")
    kept = len(ids)
    if type(step) is not int or type(of) is not int or step < 0 or kept > of:
        raise ValueError(f"step {step!r}, {kept} rows of {of!r}")
    if kept and (positions[0] < 0 or positions[-1] >= of or (np.diff(positions) <= 0).any()):
        raise ValueError("its positions do not ascend within the split")

    def rows(key: str) -> np.ndarray:
        array = arrays[key]
        if array.dtype.kind not in "biufc" or array.ndim == 0 or len(array) != kept:
            raise ValueError(f"{key} is {array.dtype}{list(array.shape)}, not numbers of {kept} rows")
        return array

    named = {
        part: {str(name): rows(f"{part}.{number}") for number, name in enumerate(about[part])}
        for part in ("predictions", "labels")
    }
    left_out = {str(name): str(why) for name, why in about["left_out"].items()}
    metrics: dict[str, Metric] = {}
    for number, (name, saved) in enumerate(about["metrics"].items()):
        try:
            kind = find_kind(saved["kind"])
        except ConfigError as error:
            left_out[f"metrics.{name}"] = str(error)
            continue
        parts = {str(part): rows(f"metrics.{number}.{place}") for place, part in enumerate(saved["parts"])}
        if not (issubclass(kind, Metric) and [each.name for each in fields(kind)] == [*parts]):
            left_out[f"metrics.{name}"] = f"{saved['kind']} is no longer a metric of {', '.join(parts)}"
            continue
        metrics[name] = kind(**parts)
    return RowsOf(split, step, kept, of, ids, positions, **named, metrics=metrics, left_out=left_out)
