"""The watchdog: ends a process whose phase takes longer than its deadline, and leaves the stacks of all its threads.

Of several processes, the server on process 0 then ends all. Not here: what the phases are (`runs/clock`), and how the
loss of another process is noticed (`server`).
"""

import contextlib
import ctypes
import faulthandler
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import wait
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from jaxtrain.base.errors import ExitCode, Retry
from jaxtrain.base.files import open_own
from jaxtrain.base.threads import CallThread
from jaxtrain.cluster.stop import exit_now

MARGIN = 30.0
"""Seconds after a deadline in which the others answer, before the process ends by itself."""

LAST_WORDS = 3.0
"""Seconds in which a run may write what it knows before a thread ends its process. What hangs is left then."""

Progress = Callable[[], tuple[int, str]]

_beats = itertools.count()
_beat = 0
_current: "Watchdog | None" = None


def beat() -> None:
    """Within a phase, something was done: its deadline begins anew."""
    global _beat
    _beat = next(_beats)


def stacks_into(folder: Path, check: Callable[[], None] = lambda: None) -> None:
    """From here on stacks are written into a run's folder; before, to standard error.

    check: raises Retry where the folder is another process's by now.
    """
    if _current is not None:
        _current.folder, _current.check = folder, check


def write_at_end(write: Callable[[str], None] | None) -> None:
    """From here on, before a thread ends this process, `write(why)` is called in a thread of its own, while the main
    thread may hang: without collectives. It has `LAST_WORDS` seconds. None for nothing.
    """
    if _current is not None:
        _current.write_at_end = write


def last_words(why: str) -> None:
    """Have the run write what it knows, before a thread ends this process."""
    if _current is not None:
        _current.last_words(why)


def write_stacks(why: str) -> str:
    """Write the stacks of all threads; says where they are."""
    return "its stacks are not known" if _current is None else _current.write_stacks(why)


def leave(message: str) -> None:
    """End the command with code 75; without a watchdog, as in a notebook, this does nothing."""
    if _current is not None:
        _current.leave(message, ExitCode.RETRY)


class Watchdog(threading.Thread):
    """Watches the phases of the main thread, while this context is open.

    deadlines: seconds by phase; 0 for none. Phases without one have that of "other".
    progress: the step and the phase that the main thread is in.
    """

    def __init__(self, deadlines: Mapping[str, float], progress: Progress, process: int = 0) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._deadlines, self._process, self.progress = deadlines, process, progress
        self.folder: Path | None = None
        self.check: Callable[[], None] = lambda: None
        self.write_at_end: Callable[[str], None] | None = None
        self.leave: Callable[[str, int], None] = exit_now
        """Ends the process at once, with a message and an exit code."""
        self.ask_others: Callable[[str, float], None] | None = None
        """Has the server end all processes: phase and deadline of this one. None for one process."""
        self._interval = min([seconds for seconds in deadlines.values() if seconds] + [40.0]) / 8
        self._ended, self._fallback = threading.Event(), _Fallback()

    def __enter__(self) -> Self:
        global _current
        _current = self
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _current
        _current = None
        self._ended.set()
        self.join()
        self._fallback.disarm()

    def run(self) -> None:
        """Look until the end."""
        seen, since = (self.progress(), _beat), time.monotonic()
        looked = since
        while True:
            now, ((step, phase), _) = time.monotonic(), seen
            if (self.progress(), _beat) != seen:
                seen, since = (self.progress(), _beat), now
            elif now - looked > 3 * self._interval + 1:
                since += now - looked  # this process was suspended, or had no time to look
            looked, limit = now, self._deadline(phase)
            if limit and now - since > limit:
                self._overdue(step, phase, now - since, limit)
                return
            # As long as this thread runs, the timer begins anew each time: it is for who keeps the interpreter's lock.
            self._fallback.arm(limit - (now - since) + 2 * MARGIN if limit else 0)
            if self._ended.wait(self._interval):
                return

    def _deadline(self, phase: str) -> float:
        return self._deadlines.get(phase, self._deadlines.get("other", 0))

    def _overdue(self, step: int, phase: str, seconds: float, limit: float) -> None:
        self._fallback.arm(2 * MARGIN)
        if self.ask_others is not None:
            self.ask_others(phase, limit)
            if self._ended.wait(MARGIN):  # the server ends this process
                return
        where = self.write_stacks(f"step {step}, {phase}, for {seconds:.0f} s")
        name = f"deadlines.{phase if phase in self._deadlines else 'other'}"
        why = f"step {step} hangs: {phase} takes longer than {name}, {limit:g} s"
        self.last_words(why)
        self.leave(f"{why}; {where}", ExitCode.RETRY)

    def last_words(self, why: str) -> None:
        """Have the run write what it knows, if the folder is still its own; takes at most `LAST_WORDS` seconds."""
        if (write := self.write_at_end) is not None:
            wait([CallThread("last words").submit(lambda: (self.check(), write(why)))], LAST_WORDS)

    def write_stacks(self, why: str) -> str:
        """Write the stacks of all threads; says where they are."""
        name = f"stacks-{self._process}.txt" if self._process else "stacks.txt"
        if self.folder is not None:
            with contextlib.suppress(OSError, Retry):
                self.check()
                with open_own(self.folder / name) as file:
                    self._write_stacks(file, why)
                return f"the stacks of its threads are in {self.folder / name}"
        self._write_stacks(sys.__stderr__ or sys.stderr, why)
        return "the stacks of its threads are above"

    def _write_stacks(self, file: TextIO, why: str) -> None:
        file.write(f"process {self._process}, pid {os.getpid()}: {why}\n")
        file.flush()
        with contextlib.suppress(OSError, ValueError):
            faulthandler.dump_traceback(file.fileno(), all_threads=True)


class _Fallback:
    """Ends the process although a call into C keeps the interpreter's lock: then no thread of Python runs any more.

    faulthandler writes the stacks to standard error from a thread in C, then a timer of the kernel calls C's `_exit`.
    Where there is no such timer (Linux has it), the stacks are all there is.
    """

    _THREAD, _MONOTONIC = 2, 1

    class _Event(ctypes.Structure):
        """`struct sigevent` of Linux on 64 bits."""

        _fields_ = (
            ("value", ctypes.c_void_p),
            ("signal", ctypes.c_int),
            ("notify", ctypes.c_int),
            ("function", ctypes.c_void_p),
            ("more", ctypes.c_char * 40),
        )

    def __init__(self) -> None:
        self._timer: ctypes.c_void_p | None = None
        if sys.platform == "linux" and ctypes.sizeof(ctypes.c_void_p) == 8:
            self._c, timer = ctypes.CDLL(None), ctypes.c_void_p()
            exits = ctypes.cast(self._c._exit, ctypes.c_void_p)
            event = self._Event(int(ExitCode.RETRY), 0, self._THREAD, exits)
            if hasattr(self._c, "timer_create") and not self._c.timer_create(
                self._MONOTONIC, ctypes.byref(event), ctypes.byref(timer)
            ):
                self._timer = timer

    def arm(self, seconds: float) -> None:
        """Begin anew; 0 for never."""
        if seconds <= 0:
            self.disarm()
            return
        with contextlib.suppress(OSError, RuntimeError):  # without standard error there is nowhere to write
            faulthandler.dump_traceback_later(seconds, file=2)
        self._set(seconds + 2)

    def disarm(self) -> None:
        """Never end the process."""
        faulthandler.cancel_dump_traceback_later()
        self._set(0)

    def _set(self, seconds: float) -> None:
        if self._timer is not None:  # seconds and nanoseconds of the interval, then until the first time
            times = (ctypes.c_long * 4)(0, 0, int(seconds), int(seconds % 1 * 1e9))
            self._c.timer_settime(self._timer, 0, times, None)
