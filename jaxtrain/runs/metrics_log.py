"""A run's metrics.jsonl, events.jsonl and TensorBoard files."""

import datetime
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtrain.runs.json_lines import append_line, drop_partial_line, read_lines, write_lines


class MetricsLog:
    """Appends to metrics.jsonl, events.jsonl and TensorBoard files in `folder`; each call is on disk when it returns.

    active: False writes nothing, for all processes but the first.
    """

    def __init__(self, folder: Path, active: bool = True) -> None:
        self._active = active
        self._metrics = folder / "metrics.jsonl"
        self._events = folder / "events.jsonl"
        self._tensorboard = _TensorBoardFile(folder / "tensorboard") if active else None
        if active:
            folder.mkdir(parents=True, exist_ok=True)
            drop_partial_line(self._metrics)
            drop_partial_line(self._events)

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Append one line: step, split, then the values.

        Raises TypeError for a metric named step or split. If TensorBoard files cannot be written, that is reported by
        one event, and no more of them are written.
        """
        if not self._active:
            return
        numbers = {name: float(value) for name, value in values.items()}
        append_line(self._metrics, dict(step=step, split=split, **numbers))
        if self._tensorboard is not None:
            try:
                self._tensorboard.write(step, {f"{split}/{name}": value for name, value in numbers.items()})
            except OSError as error:
                self._tensorboard = None
                self.event("tensorboard_failed", step=step, error=str(error))

    def event(self, kind: str, **fields: object) -> None:
        """Append one line: the UTC time in ISO 8601, the kind, then the fields (JSON)."""
        if self._active:
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
            append_line(self._events, dict(time=now, kind=kind, **fields))

    def rewind(self, step: int) -> None:
        """Drop the metrics after `step`, for a run that resumes from there. TensorBoard will hide them."""
        if not self._active:
            return
        lines = read_lines(self._metrics)
        kept = [line for line in lines if line["step"] <= step]
        if len(kept) < len(lines):
            write_lines(self._metrics, kept)
        if self._tensorboard is not None:
            self._tensorboard.purge_from = step + 1


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, with NaN and infinities as floats: JSON has none, so the file has strings."""
    return [
        {name: float(value) if name != "split" and isinstance(value, str) else value for name, value in line.items()}
        for line in read_lines(folder / "metrics.jsonl")
    ]


class _TensorBoardFile:
    """One TensorBoard event file, created by the first write.

    Not tensorboardX's SummaryWriter: a full disk ends its thread, and then its queue blocks the run. Nor its
    EventsWriter, which syncs the disk: that would wait for a checkpoint being written.
    """

    def __init__(self, folder: Path) -> None:
        # In nanoseconds: a run that is resumed within a second needs a second file, which may hide steps of the first.
        self._path = folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self.purge_from: int | None = None
        """The first step that TensorBoard shall hide in earlier files; written with the next scalars."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        from tensorboardX.summary import Summary
        from tensorboardX.writer import Event, SessionLog

        now = time.time()
        events = []
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            events.append(Event(wall_time=now, file_version="brain.Event:2"))
        if self.purge_from is not None:
            start = SessionLog(status=SessionLog.START)
            events.append(Event(wall_time=now, step=self.purge_from, session_log=start))
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        events.append(Event(wall_time=now, step=step, summary=Summary(value=values)))
        with self._path.open("ab") as file:
            file.write(b"".join(_tfrecord(event.SerializeToString()) for event in events))
        self.purge_from = None


def _tfrecord(data: bytes) -> bytes:
    """The TFRecord framing: length, its checksum, data, their checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))))
