"""A run's steps.bin: loss, gradient norm and batch checksum of every step, in 29 bytes each.

A header of 16 bytes, then records with the dtype `RECORD`, little endian and packed, of ascending steps. Not here: when
they are written.
"""

import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.base.errors import Damaged
from jaxtrain.base.files import atomic_write, require_file
from jaxtrain.runs.retention import set_aside_no_file

HEADER = b"jaxtrain steps 1"
RECORD = np.dtype(
    [("step", "<i8"), ("loss", "<f4"), ("gradient_norm", "<f4"), ("batch", "<u8"), ("skipped", "u1"), ("crc", "<u4")]
)
"""A step, its loss and gradient norm, its batch's checksum, whether its update was skipped, and a crc32 of these."""

STEP_COLUMNS = ("step", "loss", "gradient_norm", "batch", "skipped")
_BODY = RECORD.itemsize - 4


class StepsLog:
    """Appends to steps.bin in `folder`; records are in the file when the call returns.

    active: False writes nothing, for all processes but the first.
    """

    def __init__(self, folder: Path, active: bool = True) -> None:
        self._path, self._active = folder / "steps.bin", active

    def append(self, columns: Mapping[str, Sequence[Any] | np.ndarray]) -> None:
        """Append records, given by column: `STEP_COLUMNS`."""
        if not self._active:
            return
        records: Any = np.zeros(len(columns["step"]), RECORD)
        with np.errstate(over="ignore"):  # numbers beyond f32 become infinite
            for name in STEP_COLUMNS:
                records[name] = columns[name]
        records["crc"] = _crcs(records)
        with self._path.open("ab") as file:
            file.write((b"" if file.tell() else HEADER) + records.tobytes())

    def rewind(self, step: int) -> list[str]:
        """Drop the records after `step`, for a run that resumes from there, and records that are cut off or damaged.

        Returns a message for everything that is wrong. A damaged file is kept as steps.damaged.bin.
        """
        if not self._active:
            return []
        no_file = set_aside_no_file(self._path)
        data = self._path.read_bytes() if self._path.exists() else b""
        records = _records(data)
        bad = np.flatnonzero(_crcs(records) != records["crc"])
        kept = np.delete(records, bad)
        kept = kept[kept["step"] <= step]
        wrong = [f"{self._path}, record {number}: its checksum is another" for number in bad.tolist()]
        if data and not HEADER.startswith(data[: len(HEADER)]):
            kept, wrong = kept[:0], [f"{self._path} does not begin with {HEADER.decode()!r}"]
        if wrong:
            self._path.with_name("steps.damaged.bin").write_bytes(data)
        lost = step - len(np.unique(kept["step"]))
        if lost:
            wrong.append(f"{self._path} lacks {lost} of the {step} steps until here")
        whole = HEADER + kept.tobytes() if data else b""
        if data.startswith(whole):
            os.truncate(self._path, len(whole)) if len(whole) < len(data) else None
        else:
            with atomic_write(self._path) as temporary:
                temporary.write_bytes(whole)
        return no_file + wrong


def read_steps(folder: Path) -> dict[str, np.ndarray]:
    """The columns of a run's steps.bin by name, `STEP_COLUMNS`; a last record that was cut off is left out.

    Raises ConfigError where the file is missing, Damaged for a record that does not match its checksum.
    """
    path = require_file(folder / "steps.bin")
    data = path.read_bytes()
    if not HEADER.startswith(data[: len(HEADER)]):
        raise Damaged(str(path), None, f"it does not begin with {HEADER.decode()!r}")
    records = _records(data)
    bad = np.flatnonzero(_crcs(records) != records["crc"])
    if len(bad):
        raise Damaged(str(path), int(bad[0]), "its checksum is another")
    return {name: records[name].copy() for name in STEP_COLUMNS}


def _records(data: bytes) -> np.ndarray:
    count = max(0, len(data) - len(HEADER)) // RECORD.itemsize
    return np.frombuffer(data, RECORD, count, offset=len(HEADER)) if count else np.zeros(0, RECORD)


def _crcs(records: np.ndarray) -> np.ndarray:
    rows = records.tobytes()
    size = RECORD.itemsize
    found = [zlib.crc32(rows[start : start + _BODY]) for start in range(0, len(rows), size)]
    return np.array(found, np.uint32)
