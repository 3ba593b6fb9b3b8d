"""A run's scalars for TensorBoard: a copy of metrics.jsonl, written without tensorflow."""

import socket
import struct
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from jaxtrain.base.threads import CallThread
from jaxtrain.experiment.observers import ObservedRun, Scores
from jaxtrain.runs.watcher import Watcher

WAIT_SECONDS = 1.0
"""How long a call waits for its write."""

HANG_SECONDS = 60.0
"""After this time a write counts as failed."""


class TensorBoard(Watcher):
    """Writes one TensorBoard event file in `folder`, in a thread of its own. A call returns once its scalars are
    written, but at the latest after `WAIT_SECONDS`. The file is created with the first scalars.

    start: the steps that are done. Later steps in earlier files are hidden.

    A call raises the error of its write or of an earlier one; TimeoutError for one that hangs for `HANG_SECONDS`.
    """

    # Not tensorboardX's SummaryWriter: a full disk ends its thread, after which its queue blocks the run. Nor its
    # EventsWriter: it calls fsync, which waits for a checkpoint that is being written.

    def __init__(self, folder: Path, start: int) -> None:
        # In nanoseconds, so that a run that is resumed within a second gets a new file.
        self._path = folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._hide_from: int | None = start + 1
        self._unfinished: deque[Future[None]] = deque()
        self._since = 0.0
        """The time since which the oldest unfinished write is waited for."""
        self._thread = CallThread("tensorboard")

    def trained(self, run: ObservedRun, step: int, metrics: Mapping[str, float], rates: Mapping[str, float]) -> None:
        self._write(step, {f"train/{name}": value for name, value in {**metrics, **rates}.items()})

    def evaluated(self, run: ObservedRun, step: int, scores: Scores) -> None:
        for split, values in scores.items():
            self._write(step, {f"{split}/{name}": value for name, value in values.items()})

    def _write(self, step: int, scalars: Mapping[str, float]) -> None:
        from tensorboardX.summary import Summary
        from tensorboardX.writer import Event, SessionLog

        now = time.time()
        first = [Event(wall_time=now, file_version="brain.Event:2")]
        events = []
        if self._hide_from is not None:
            start = SessionLog(status=SessionLog.START)
            events.append(Event(wall_time=now, step=self._hide_from, session_log=start))
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        events.append(Event(wall_time=now, step=step, summary=Summary(value=values)))
        self._hide_from = None
        waits = not self._unfinished
        if waits:
            self._since = time.monotonic()
        self._unfinished.append(self._thread.submit(self._append, first, events))
        self._check(WAIT_SECONDS if waits else 0)

    def _append(self, first: list[Any], events: list[Any]) -> None:
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            events = first + events
        with self._path.open("ab") as file:
            file.write(b"".join(_tfrecord(event.SerializeToString()) for event in events))

    def ended(self, run: ObservedRun, step: int) -> None:
        self._check(WAIT_SECONDS)

    def close(self) -> None:
        self._thread.close()

    def _check(self, seconds: float) -> None:
        """Wait for the writes. Raises the error of one that failed."""
        end = time.monotonic() + seconds
        while self._unfinished:
            try:
                self._unfinished[0].result(max(0, end - time.monotonic()))
            except TimeoutError:
                if self._unfinished[0].done():  # the write itself raised TimeoutError
                    raise
                if time.monotonic() - self._since < HANG_SECONDS:
                    return
                raise TimeoutError(f"{self._path} was not written within {HANG_SECONDS:g} s") from None
            self._unfinished.popleft()
            self._since = time.monotonic()


def _tfrecord(data: bytes) -> bytes:
    """The TFRecord framing: length, its checksum, data, their checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))))
