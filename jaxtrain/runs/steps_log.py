"""A run's steps.bin: what every step of it came to, a record of fixed size each."""

import zlib
from pathlib import Path

import numpy as np

from jaxtrain.base.errors import Damaged

HEADER = b"jaxtrain steps 1"

RECORD = np.dtype(
    [("step", "<i8"), ("loss", "<f4"), ("gradient_norm", "<f4"), ("batch", "<u8"), ("skipped", "u1"), ("crc", "<u4")]
)

COLUMNS = ("step", "loss", "gradient_norm", "batch", "skipped")


def read_steps(folder: Path) -> dict[str, np.ndarray]:
    """The columns of steps.bin by name; those of no steps where there is no file. A last record that was cut is left
    out. Raises Damaged for any other that is not as it was written.
    """
    file = folder / "steps.bin"
    data = file.read_bytes() if file.is_file() else HEADER
    if not data.startswith(HEADER):
        raise Damaged(str(file), None, "it does not begin as a steps.bin does")
    whole = (len(data) - len(HEADER)) // RECORD.itemsize
    records: np.ndarray = np.frombuffer(data, RECORD, whole, len(HEADER))
    for number, record in enumerate(records):
        if zlib.crc32(record.tobytes()[:-4]) != record["crc"]:
            raise Damaged(str(file), number, "its checksum is another")
    return {name: np.asarray(records[name]) for name in COLUMNS}
