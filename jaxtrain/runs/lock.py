"""One writer: the lock of a run folder, with a heartbeat, for shared file systems. Not here: what the owner writes.

`lock.json` names its owner, who counts a heartbeat up in it. Whether another host's owner lives is judged by its
content changing, in seconds of one's own monotonic clock, so that no host's time of day matters; one on the same
machine by its process, at once.

The lock of a dead owner with the token T passes to the one process that makes the file `lock.json.T`: the end of the
chain of these files is the owner, who then renames its file to `lock.json`. An owner only ever writes into the file
that it made itself, never by name, so one that sleeps, is taken over and wakes cannot harm its successor.
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

from jaxtrain.base.errors import ConfigError, Retry
from jaxtrain.cluster.processes import broadcast_from_first, is_first_process
from jaxtrain.runs.owner import FREE, Owner, machine, parsed, process_start

BEAT = 5.0
"""Seconds between two heartbeats."""

SILENT = 45.0
"""Seconds without a heartbeat after which an owner on another host counts as dead."""

POLL = 0.5
"""Seconds between two looks at the lock of another."""


class _State(IntEnum):
    WAITING, OWNED, REFUSED = range(3)


class Lock:
    """The right to write in a run's folder: a context, at whose end it is given back. Every process calls all of it.

    wait: seconds to wait for a living owner to end, as a job that was requeued may have to; a dead one's lock is taken
        over as soon as its death is certain.
    on_loss: called from a thread, with a sentence, where the lock was taken over; else the next `check` raises.
    beat, silent: `BEAT` and `SILENT`.
    """

    def __init__(
        self,
        wait: float = 30,
        on_loss: Callable[[str], None] = lambda text: None,
        beat: float = BEAT,
        silent: float = SILENT,
    ) -> None:
        self._wait, self._on_loss, self._beat, self._silent = wait, on_loss, beat, silent
        self._folder = Path()
        self._own: Owner | None = None
        self._file, self._beats, self._confirmed = -1, 0, 0.0
        self._ended, self._writing, self._lost = threading.Event(), threading.Lock(), ""

    def take(self, folder: Path) -> None:
        """Become the owner of a folder, which is made if it is not there. Process 0 takes it for all.

        Raises Retry, naming the owner, where a living one does not end in time, and OSError.
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
            owner = seen.owner if first else parsed((_last(folder) or (folder, b""))[1])
            raise Retry(f"{folder} is being written by {owner or 'another process'}; once it has ended, run this again")

    def check(self) -> None:
        """Raises Retry where the lock was taken over, which may be after this process was suspended. Call it often."""
        if self._lost or (self._own and time.monotonic() - self._confirmed > 2 * self._beat):
            self._confirm()
        if self._lost:
            raise Retry(self._lost)

    def release(self) -> None:
        """Give the folder back, if this process still owns it."""
        self._ended.set()
        with self._writing:
            if self._own is None:
                return
            with contextlib.suppress(OSError):
                os.pwrite(self._file, replace(self._own, state=FREE).text(self._beats), 0)
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
        last = _last(self._folder)
        if last is not None and not seen.is_dead(last[1]):
            late = time.monotonic() - began >= self._wait
            return _State.REFUSED if late and seen.lives else _State.WAITING
        path = self._folder / "lock.json" if last is None else _successor(self._folder, last[1])
        return _State.OWNED if self._claim(path) else _State.WAITING

    def _claim(self, path: Path) -> bool:
        _, started = process_start(os.getpid())
        now = time.strftime("%Y-%m-%d %H:%M:%S %z")
        own = Owner(socket.gethostname(), os.getpid(), machine(), started, secrets.token_hex(16), now)
        file = _create(path, own.text(0), own.token)
        if file is None:
            return False
        try:
            if _token(last[1] if (last := _last(self._folder)) else b"") != own.token:
                # The owner whose death was seen was succeeded meanwhile, and its successor's file is `lock.json` now.
                path.unlink(missing_ok=True)
                os.close(file)
                return False
            if path.name != "lock.json":
                os.replace(path, self._folder / "lock.json")
        except OSError:
            os.close(file)
            path.unlink(missing_ok=True)
            raise
        for pattern in ("lock.json.*", ".lock.json.*"):  # of processes that died while they took it
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
                self._beats += 1
                with contextlib.suppress(OSError):  # a disk may be full or slow for a while
                    os.pwrite(self._file, self._own.text(self._beats), 0)
                    os.fsync(self._file)
        if self._lost:
            self._on_loss(self._lost)

    def _confirm(self) -> None:
        own = self._own
        try:
            last = _last(self._folder)
        except OSError:
            return  # a file system that fails is no other owner
        if own is None or last is None:  # the folder was deleted, which what is written next will meet
            return
        if _token(last[1]) == own.token:
            self._confirmed = time.monotonic()
        else:
            other = parsed(last[1]) or "another process"
            self._lost = (
                f"{self._folder} was taken over by {other}, while this process gave no sign of life for "
                f"{time.monotonic() - self._confirmed:.0f} s; it writes nothing more"
            )


class _Seen:
    """What was seen of the lock of another, in one's own time."""

    def __init__(self, silent: float) -> None:
        self._silent, self._content, self._unchanged, self._looked = silent, b"", 0.0, time.monotonic()
        self.owner: Owner | None = None
        self.lives = False
        """Whether its heart was seen to beat."""

    def is_dead(self, content: bytes) -> bool:
        """Whether the owner who wrote this is dead. Call it often with what is there."""
        now = time.monotonic()
        # Time in which this process did not look does not count: it may have been suspended, and the owner too.
        passed, self._looked = min(now - self._looked, self._silent / 5), now
        self.owner, same = parsed(content), _token(content) == _token(self._content)
        if content == self._content:
            self._unchanged += passed
        else:
            self.lives, self._unchanged = same and self._content != b"", 0.0
        self._content = content
        seen = self.owner.seen() if self.owner else None
        self.lives = self.lives or seen is True
        return self._unchanged >= self._silent if seen is None else not seen


def owner_of(folder: Path, silent: float = SILENT) -> Owner | None:
    """The living owner of a run folder, if it has one. Takes up to `silent` seconds where that is on another host."""
    seen = _Seen(silent)
    while (last := _last(folder)) is not None and not seen.is_dead(last[1]):
        if seen.lives:
            return seen.owner
        time.sleep(min(POLL, silent / 10))
    return None


def _last(folder: Path) -> tuple[Path, bytes] | None:
    """The file of the owner, and what it holds; None without any."""
    path = folder / "lock.json"
    content = _read(path)
    if content is None:
        return None
    for _ in range(1000):
        after = _successor(folder, content)
        following = _read(after)
        if following is None:
            break
        path, content = after, following
    return path, content


def _successor(folder: Path, content: bytes) -> Path:
    return folder / f"lock.json.{_token(content)}"


def _create(path: Path, content: bytes, token: str) -> int | None:
    """Make a file that is whole once it is there, and open it; None where the path is taken."""
    temporary = path.with_name(f".lock.json.{token}")
    file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(file, content)
        os.fsync(file)
        try:
            os.link(temporary, path)
        except (FileExistsError, FileNotFoundError):
            if os.fstat(file).st_nlink < 2:  # else the answer of a network file system was lost, and it is linked
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


def _read(path: Path) -> bytes | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # what waits for a writer is no lock
    except FileNotFoundError:
        return b"" if path.is_symlink() else None  # a link to nothing is a damaged lock
    try:
        return os.read(file, 4096)
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder, and not the lock of its owner: move it away") from None
    finally:
        os.close(file)


def _token(content: bytes) -> str:
    owner = parsed(content)
    return owner.token if owner else "unreadable"
