"""A run's scalars as TensorBoard shows them: a mirror of metrics.jsonl, written without tensorflow."""

import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from jaxtrain.experiment.observers import ObservedRun, Scores
from jaxtrain.runs.watcher import Watcher


class TensorBoard(Watcher):
    """Writes one TensorBoard event file in `folder`, created by the first scalars; a call is on disk when it returns.

    start: the steps done. What earlier files hold of later steps is hidden.
    """

    # Not tensorboardX's SummaryWriter: a full disk ends its thread, and then its queue blocks the run. Nor its
    # EventsWriter, which syncs the disk: that would wait for a checkpoint being written.

    def __init__(self, folder: Path, start: int) -> None:
        # In nanoseconds: a run that is resumed within a second needs a second file, which may hide steps of the first.
        self._path = folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._hide_from: int | None = start + 1

    def trained(self, run: ObservedRun, step: int, metrics: Mapping[str, float], rates: Mapping[str, float]) -> None:
        self._write(step, {f"train/{name}": value for name, value in {**metrics, **rates}.items()})

    def evaluated(self, run: ObservedRun, step: int, scores: Scores) -> None:
        for split, values in scores.items():
            self._write(step, {f"{split}/{name}": value for name, value in values.items()})

    def _write(self, step: int, scalars: Mapping[str, float]) -> None:
        from tensorboardX.summary import Summary
        from tensorboardX.writer import Event, SessionLog

        now = time.time()
        events = []
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            events.append(Event(wall_time=now, file_version="brain.Event:2"))
        if self._hide_from is not None:
            start = SessionLog(status=SessionLog.START)
            events.append(Event(wall_time=now, step=self._hide_from, session_log=start))
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        events.append(Event(wall_time=now, step=step, summary=Summary(value=values)))
        with self._path.open("ab") as file:
            file.write(b"".join(_tfrecord(event.SerializeToString()) for event in events))
        self._hide_from = None


def _tfrecord(data: bytes) -> bytes:
    """The TFRecord framing: length, its checksum, data, their checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))))
