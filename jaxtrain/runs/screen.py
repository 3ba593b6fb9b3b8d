"""Writes lines, and on a terminal a view below them, so that neither a slow terminal nor one that is gone stops a run.

The cursor stays on an empty line above the view: what anybody else prints appears there, above the view, and a process
that is killed leaves a terminal that works, since no mode of it is changed. Not here: what the view shows (`view`).
"""

import fcntl
import os
import struct
import termios
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from jaxtrain.runs.view import WIDE

MOST_WAITING = 1000
"""Lines that wait for a terminal that takes none; the oldest beyond these are left out, and their number is shown."""

LAST_SECONDS = 2.0
"""Seconds that the end of a run waits for what is left to be written."""

SLOWEST, QUICKEST, SHARE = 5.0, 0.25, 1 / 400
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


class Screen:
    """Lines on a stream, and a view below them if `draw` is given. May block; raises nothing.

    After an error of the stream nothing more is written, and `lost` is True.
    """

    def __init__(self, stream: TextIO, draw: Draw | None = None) -> None:
        self._stream, self._draw, self.lost = stream, draw, False
        self._utf8 = (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"

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
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: a closed file, or a character that its encoding lacks
            self.lost = True
