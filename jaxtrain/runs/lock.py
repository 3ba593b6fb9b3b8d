"""The lock of a run folder, which ensures a single writer. It has a heartbeat, and works on shared file systems.

`lock.json` names the owner, which increments a heartbeat in it. An owner on another host is alive if the content of the
file changes; that is timed by the observer's own monotonic clock, so the clocks of hosts need not agree. An owner on
the same machine is checked by its process id.

The lock of a dead owner with the token T passes to the process that creates the file `lock.json.T`. The last file in
the chain of these is the owner's, who then renames it to `lock.json`. An owner writes only to the file that it created,
by its descriptor and never by name: if it is suspended, replaced and resumed, it cannot harm its successor.
"""

import contextlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from jaxtrain.base.errors import Retry
from jaxtrain.cluster.processes import broadcast_from_first, is_first_process
from jaxtrain.cluster.watchdog import Progress
from jaxtrain.runs.heartbeat import SILENT, Beat, Heartbeat
from jaxtrain.runs.owner import FREE, Owner, last_lock, machine, parsed, process_start, successor, token_of

BEAT = 5.0
"""Seconds between two heartbeats."""

POLL = 0.5
"""Seconds between two looks at another owner's lock."""


class _State(IntEnum):
    WAITING, OWNED, REFUSED = range(3)


class Lock:
    """The right to write to a run folder; as a context it is released at the end. Every process calls every method.

    wait: seconds to wait for a living owner to end, which a requeued job may have to; a dead owner's lock is taken over
        as soon as its death is certain.
    on_loss: called from a thread, with a message, if another process takes the lock over. `check` raises then too.
    beat, silent: `BEAT` and `SILENT`.
    progress: the step and phase that heartbeats show to readers elsewhere.
    """

    def __init__(
        self,
        wait: float = 30,
        on_loss: Callable[[str], None] = lambda text: None,
        beat: float = BEAT,
        silent: float = SILENT,
        progress: Progress = lambda: (0, ""),
    ) -> None:
        self._wait, self._on_loss, self._beat, self._silent = wait, on_loss, beat, silent
        self._folder = Path()
        self._own: Owner | None = None
        self._file, self._confirmed = -1, 0.0
        self._heartbeat, self._beat_now = Heartbeat(progress), Beat(0)
        self._ended, self._writing, self._lost = threading.Event(), threading.Lock(), ""

    def take(self, folder: Path) -> None:
        """Become the owner of a folder, which is created if missing. Process 0 acts for all.

        Raises Retry, naming the owner, where a living owner does not end in time; OSError for the file system's errors.
        """
        self._folder, seen, said = folder, _Seen(self._silent), False
        first, began = is_first_process(), time.monotonic()
        if first:
            folder.mkdir(parents=True, exist_ok=True)
        while (state := broadcast_from_first(self._try(seen, began) if first else 0)) == _State.WAITING:
            if first and not said:
                said = True
                print(
                    f"jaxtrain: {folder} is owned by {seen.owner or 'another process'}: waiting for it to end",
                    file=sys.stderr,
                )
            time.sleep(min(POLL, self._silent / 10))
        if state == _State.REFUSED:
            owner = seen.owner if first else parsed((last_lock(folder) or (folder, b""))[1])
            raise Retry(f"{folder} is being written by {owner or 'another process'}; once it has ended, run this again")

    def check(self) -> None:
        """Raises Retry if another process took the lock over, as may happen while this one is suspended. Call often."""
        if self._lost or (self._own and time.monotonic() - self._confirmed > 2 * self._beat):
            self._confirm()
        if self._lost:
            raise Retry(self._lost)

    def release(self) -> None:
        """Release the folder, if this process still owns it."""
        self._ended.set()
        with self._writing:
            if self._own is None:
                return
            with contextlib.suppress(OSError):
                os.pwrite(self._file, replace(self._own, state=FREE).text(self._beat_now), 0)
                os.fsync(self._file)
            with contextlib.suppress(OSError):  # of a network file system that writes late: the run is done by now
                os.close(self._file)
            self._own = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _try(self, seen: "_Seen", began: float) -> _State:
        last = last_lock(self._folder)
        if last is not None and not seen.is_dead(last[1]):
            late = time.monotonic() - began >= self._wait
            return _State.REFUSED if late and seen.lives else _State.WAITING
        path = self._folder / "lock.json" if last is None else successor(self._folder, last[1])
        return _State.OWNED if self._claim(path) else _State.WAITING

    def _claim(self, path: Path) -> bool:
        _, started = process_start(os.getpid())
        now = time.strftime("%Y-%m-%d %H:%M:%S %z")
        own = Owner(socket.gethostname(), os.getpid(), machine(), started, secrets.token_hex(16), now)
        self._beat_now = self._heartbeat.next()
        file = create_exclusively(path, own.text(self._beat_now), own.token)
        if file is None:
            return False
        try:
            if token_of(last[1] if (last := last_lock(self._folder)) else b"") != own.token:
                # Another process has succeeded the dead owner meanwhile, and its file is `lock.json` now.
                path.unlink(missing_ok=True)
                os.close(file)
                return False
            if path.name != "lock.json":
                os.replace(path, self._folder / "lock.json")
        except OSError:
            os.close(file)
            path.unlink(missing_ok=True)
            raise
        for pattern in ("lock.json.*", ".lock.json.*"):  # left by processes that died while they took the lock
            for left in self._folder.glob(pattern):
                if left.name != f"lock.json.{own.token}":
                    left.unlink(missing_ok=True)
        self._own, self._file, self._confirmed = own, file, time.monotonic()
        threading.Thread(target=self._renew, name="lock", daemon=True).start()
        return True

    def _renew(self) -> None:
        while not self._ended.wait(self._beat):
            self._confirm()
            with self._writing:
                if self._own is None:
                    return
                if self._lost:
                    break
                self._beat_now = self._heartbeat.next()
                with contextlib.suppress(OSError):  # such as a full disk: the next heartbeat tries again
                    os.pwrite(self._file, self._own.text(self._beat_now), 0)
                    os.fsync(self._file)
        if self._lost:
            self._on_loss(self._lost)

    def _confirm(self) -> None:
        own = self._own
        try:
            last = last_lock(self._folder)
        except OSError:
            return  # an error of the file system does not mean another owner
        if own is None or last is None:  # the folder was deleted, at which the next write fails
            return
        if token_of(last[1]) == own.token:
            self._confirmed = time.monotonic()
        else:
            other = parsed(last[1]) or "another process"
            self._lost = (
                f"{self._folder} was taken over by {other}, while this process gave no sign of life for "
                f"{time.monotonic() - self._confirmed:.0f} s; it writes nothing more"
            )


class _Seen:
    """Observes another owner's lock over time, by this process's own clock."""

    def __init__(self, silent: float) -> None:
        self._silent, self._content, self._unchanged, self._looked = silent, b"", 0.0, time.monotonic()
        self.owner: Owner | None = None
        self.lives = False
        """Whether a heartbeat was observed."""

    def is_dead(self, content: bytes) -> bool:
        """Whether the owner is dead, given the present content of its lock. Call often."""
        now = time.monotonic()
        # Long gaps between two calls do not count: this process may have been suspended, together with the owner.
        passed, self._looked = min(now - self._looked, self._silent / 5), now
        self.owner, same = parsed(content), token_of(content) == token_of(self._content)
        if content == self._content:
            self._unchanged += passed
        else:
            self.lives, self._unchanged = same and self._content != b"", 0.0
        self._content = content
        seen = self.owner.seen() if self.owner else None
        self.lives = self.lives or seen is True
        return self._unchanged >= self._silent if seen is None else not seen


def owner_of(folder: Path, silent: float = SILENT) -> Owner | None:
    """The living owner of a run folder, if any. Takes up to `silent` seconds for an owner on another host."""
    seen = _Seen(silent)
    while (last := last_lock(folder)) is not None and not seen.is_dead(last[1]):
        if seen.lives:
            return seen.owner
        time.sleep(min(POLL, silent / 10))
    return None


class Watch:
    """The owner of a folder, observed without waiting for it. `silent`: `SILENT`."""

    def __init__(self, folder: Path, silent: float = SILENT) -> None:
        self._folder, self._seen = folder, _Seen(silent)

    def is_free(self) -> bool:
        """Whether the folder has no living owner. Call often: an owner on another host is known to be dead only once
        its heartbeat was missing for a while.
        """
        return (last := last_lock(self._folder)) is None or self._seen.is_dead(last[1])


def create_exclusively(path: Path, content: bytes, token: str) -> int | None:
    """Create a file with its content, atomically, and open it; None if the path exists. `token`: of this process."""
    temporary = path.with_name(f".lock.json.{token}")
    file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(file, content)
        os.fsync(file)
        try:
            os.link(temporary, path)
        except (FileExistsError, FileNotFoundError):
            if os.fstat(file).st_nlink < 2:  # else it is linked: a network file system repeated a lost request
                os.close(file)
                return None
        except OSError:  # no hard links here
            os.close(file)
            with contextlib.suppress(FileExistsError):
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
                os.write(file, content)
                os.fsync(file)
                return file
            return None
        return file
    finally:
        temporary.unlink(missing_ok=True)
