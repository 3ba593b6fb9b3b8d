"""Writes lines, and on a terminal a view below them, so that neither a slow terminal nor one that is gone stops a run.

The cursor stays on an empty line above the view: what anybody else prints appears there, above the view, and a process
that is killed leaves a terminal that works, since no mode of it is changed. Not here: what the view shows (`view`).
"""

import contextlib
import fcntl
import io
import os
import select
import stat
import struct
import sys
import termios
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO, cast

from jaxtrain.runs.view import WIDE

MOST_WAITING = 1000
"""Lines that wait for a terminal that takes none; the oldest beyond these are left out, and their number is shown."""

LAST_SECONDS = 2.0
"""Seconds that the end of a run waits for what is left to be written."""

SLOWEST, QUICKEST, SHARE = 5.0, 0.25, 1 / 800
"""Seconds between two drawings of the view: at most, at least, and such that they take this share of a CPU's time."""

Draw = Callable[[int, int], Sequence[str]]
"""The lines of a view with at most this width and height."""


def draws(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a stream shows a view: a terminal that is wide enough, moves its cursor, takes UTF-8 and has colors."""
    term, encoding = environment.get("TERM", ""), (getattr(stream, "encoding", None) or "").lower()
    if not stream.isatty() or term in ("", "dumb", "unknown") or environment.get("NO_COLOR"):
        return False
    return encoding.replace("-", "") == "utf8" and terminal_size(stream)[0] >= WIDE


def terminal_size(stream: TextIO) -> tuple[int, int]:
    """Columns and rows of the stream's terminal; 80 and 24 if it does not say."""
    try:
        rows, columns, _, _ = struct.unpack("4H", fcntl.ioctl(stream.fileno(), termios.TIOCGWINSZ, b"\0" * 8))
    except (OSError, ValueError, AttributeError):
        return 80, 24
    return columns or 80, rows or 24


def may_block(stream: TextIO) -> bool:
    """Whether whoever reads the stream can make a writer wait: a terminal or a pipe, and not a file.

    Also False of a stream that is no text over a file, such as a notebook's: what is written to its `fileno` does not
    get to the notebook.
    """
    if not isinstance(getattr(stream, "buffer", None), io.BufferedIOBase | io.RawIOBase):
        return False
    try:
        return not stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):
        return False


class Screen:
    """Lines on a stream, and a view below them if `draw` is given. May block; raises nothing.

    After an error of the stream nothing more is written, and `lost` is True.
    """

    def __init__(self, stream: TextIO, draw: Draw | None = None) -> None:
        self._stream, self._draw, self.lost = stream, draw, False
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._utf8 = self._encoding.lower().replace("-", "") == "utf8"
        self._file = stream.fileno() if may_block(stream) else None

    def write(self, lines: Sequence[str], redraw: bool = True) -> None:
        """Write lines above the view, and draw the view again."""
        text = "".join(f"{line if self._utf8 else line.encode('ascii', 'replace').decode()}\n" for line in lines)
        if self._draw is None:
            self._put(text)
            return
        text = text.replace("\n", "\r\n")
        if redraw and not self._in_background():
            columns, rows = terminal_size(self._stream)
            view = self._draw(columns - 1, rows - 2)
            body = "".join(f"\r\n{line}\033[K" for line in view)
            self._put(f"\r\033[J{text}\033[K{body}\033[{len(view)}A\r" if view else f"\r\033[J{text}")
        elif text:
            self._put(f"\r\033[J{text}")

    def close(self, lines: Sequence[str] = (), view: bool = True) -> None:
        """Leave the cursor below the last view and these lines; without `view`, it is erased."""
        if self._draw is None:
            self.write(lines)
            return
        columns, rows = terminal_size(self._stream)
        drawn = self._draw(columns - 1, rows - 2) if view else []
        self._put("\r\033[J" + "".join(f"{line}\r\n" for line in [*drawn, *lines]))

    def _in_background(self) -> bool:
        """Whether another job has the terminal, such as a shell in which somebody types."""
        try:
            return os.tcgetpgrp(self._stream.fileno()) != os.getpgrp()
        except (OSError, ValueError, AttributeError):
            return False

    def _put(self, text: str) -> None:
        if not text or self.lost:
            return
        try:
            if self._file is None:
                self._stream.write(text)
                self._stream.flush()
            else:
                self._write_bytes(self._file, text.encode(self._encoding, "replace"))
        except (OSError, ValueError):  # ValueError: a closed file, or a character that its encoding lacks
            self.lost = True
            if self._file is not None:
                with contextlib.suppress(OSError, ValueError):
                    self._stream.write("\n")  # so that it, too, learns that it is lost
                    self._stream.flush()

    def _write_bytes(self, file: int, data: bytes) -> None:
        # Not by the stream: a thread that hangs in it keeps its lock, for which the end of the interpreter would wait.
        while data:
            try:
                data = data[os.write(file, data) :]
            except BlockingIOError:
                select.select([], [file], [], 1.0)


def pause_after(seconds: float) -> float:
    """Seconds until the next drawing of a view that took these seconds of a CPU."""
    return min(SLOWEST, max(QUICKEST, seconds / SHARE))


class Writer:
    """Writes to a stream from a thread of its own, so that no call blocks. With `draw` there is a view below the lines,
    and what is printed to standard output and error on a terminal goes above it.
    """

    def __init__(self, stream: TextIO, draw: Draw | None = None) -> None:
        self._screen, self._live = Screen(stream, draw), draw is not None
        self._lines: deque[str] = deque()
        self._left_out, self._view = 0, True
        self._changed, self._ended, self._adding = threading.Event(), threading.Event(), threading.Lock()
        self._before = sys.stdout, sys.stderr
        if self._live:
            sys.stdout, sys.stderr = (self._above(stream) for stream in self._before)
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)
        self._thread.start()

    def print(self, line: str) -> None:
        """Write a line, when the terminal takes it."""
        with self._adding:  # which the thread keeps only to take the lines
            if len(self._lines) >= MOST_WAITING:
                self._lines.popleft()
                self._left_out += 1
            self._lines.append(line)
        self._changed.set()

    def close(self, view: bool = True) -> None:
        """Write what is left, for at most `LAST_SECONDS`. The last view stays, unless `view` is False."""
        for name, before in zip(("stdout", "stderr"), self._before, strict=True):
            if isinstance(now := getattr(sys, name), _Above):
                now.flush_rest()
                setattr(sys, name, before)
        self._view = view
        self._ended.set()
        self._changed.set()
        self._thread.join(LAST_SECONDS)

    @property
    def lost(self) -> bool:
        """Whether the stream can no longer be written."""
        return self._screen.lost

    def _above(self, stream: TextIO) -> TextIO:
        if stream is None or not stream.isatty():
            return stream
        return cast(TextIO, _Above(stream, self.print))

    def _take(self) -> list[str]:
        with self._adding:
            lines = [*([f"({self._left_out} lines are left out)"] if self._left_out else []), *self._lines]
            self._lines.clear()
            self._left_out = 0
        return lines

    def _run(self) -> None:
        while not self._screen.lost:
            ended, since = self._ended.is_set(), time.thread_time()
            self._changed.clear()
            lines = self._take()
            if ended:
                self._screen.write(lines, redraw=False)
                self._screen.close(view=self._view)
                return
            self._screen.write(lines)
            if self._live:
                self._ended.wait(pause_after(time.thread_time() - since))
            else:
                self._changed.wait()


class _Above:
    """A standard stream whose lines go above the view."""

    def __init__(self, stream: TextIO, show: Callable[[str], None]) -> None:
        self._stream, self._show, self._rest = stream, show, ""

    def write(self, text: str) -> int:
        """Show the lines that are complete."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._show(line.rpartition("\r")[2])  # as of a progress bar, which writes over itself
        return len(text)

    def flush_rest(self) -> None:
        """Show what is left of a line."""
        if self._rest:
            self._show(self._rest)
            self._rest = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
