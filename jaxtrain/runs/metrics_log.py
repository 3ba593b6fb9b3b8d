"""metrics.jsonl, events.jsonl and TensorBoard files of a run."""

import datetime
import json
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.files import plain_json, replace_text


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl (or events.jsonl), without a last one that was cut off; [] without a file.

    Raises `ConfigError` for a damaged line before the last.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    try:
        # Whatever follows the last newline was not written to its end.
        return [json.loads(line) for line in lines[:-1]]
    except ValueError as error:
        raise ConfigError(f"{path} has a line that is not JSON: {error}") from None


class Recorder:
    """Appends to metrics.jsonl, events.jsonl and TensorBoard files in `folder`; each call is on disk at once.

    active: False writes nothing, for all processes but the first.
    """

    def __init__(self, folder: Path, active: bool = True) -> None:
        self.folder = folder
        self.active = active
        self._metrics = folder / "metrics.jsonl"
        self._events = folder / "events.jsonl"
        self._board = _Board(folder / "tensorboard") if active else None
        if active:
            folder.mkdir(parents=True, exist_ok=True)
            _mend(self._metrics)
            _mend(self._events)

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One line: step, split, then the values (NaN and infinities as the strings "nan", "inf", "-inf").

        Raises `TypeError` for a metric called step or split. A failing TensorBoard is said in one event.
        """
        if not self.active:
            return
        numbers = {name: float(value) for name, value in values.items()}
        _append(self._metrics, dict(step=step, split=split, **numbers))
        if self._board is not None:
            try:
                self._board.write(step, {f"{split}/{name}": value for name, value in numbers.items()})
            except OSError as error:
                self._board = None
                self.event("tensorboard_failed", step=step, error=str(error))

    def event(self, kind: str, **fields: object) -> None:
        """One line: the UTC time in ISO format, the kind, then the fields (JSON)."""
        if self.active:
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
            _append(self._events, dict(time=now, kind=kind, **fields))

    def rewind(self, step: int) -> None:
        """Drops the metrics after `step`, for a run that goes on from there; TensorBoard hides them."""
        if not self.active:
            return
        lines = read_metrics(self._metrics)
        kept = [line for line in lines if line["step"] <= step]
        if len(kept) < len(lines):
            replace_text(self._metrics, "".join(json.dumps(line) + "\n" for line in kept))
        if self._board is not None:
            self._board.purge = step + 1


class _Board:
    """One TensorBoard event file, made at the first write.

    Not tensorboardX's SummaryWriter: a full disk ends its thread, and then its queue blocks the run. Nor its
    EventsWriter, which syncs the disk: that would wait for a checkpoint being written.
    """

    def __init__(self, folder: Path) -> None:
        # Two openings within a second get two files, for the second one may hide steps of the first.
        self._path = folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self.purge: int | None = None

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        from tensorboardX.summary import Summary
        from tensorboardX.writer import Event, SessionLog

        now = time.time()
        events = []
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            events.append(Event(wall_time=now, file_version="brain.Event:2"))
        if self.purge is not None:
            start = SessionLog(status=SessionLog.START)
            events.append(Event(wall_time=now, step=self.purge, session_log=start))
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        events.append(Event(wall_time=now, step=step, summary=Summary(value=values)))
        with self._path.open("ab") as file:
            file.write(b"".join(_framed(event.SerializeToString()) for event in events))
        self.purge = None


def _framed(data: bytes) -> bytes:
    """TFRecord: length, its checksum, data, their checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))))


def _append(path: Path, line: Mapping[str, object]) -> None:
    # Opened each time: `rewind` replaces the file, and a network file system shows it to others on closing.
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(plain_json(line), allow_nan=False) + "\n")


def _mend(path: Path) -> None:
    """Cuts off what follows the last newline, or the next line would be glued to it."""
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
