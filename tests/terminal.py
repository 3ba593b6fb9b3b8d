"""A real pseudo-terminal for processes, and what a terminal shows of the bytes that they write."""

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence

CODE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


def resize(file: int, columns: int, rows: int = 24) -> None:
    """Set the size of a terminal."""
    fcntl.ioctl(file, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))


class Shown:
    """The lines of a terminal of this width, from its first on; those that scrolled away too."""

    def __init__(self, columns: int) -> None:
        self.columns, self.row, self.column = columns, 0, 0
        self.cells: list[list[str]] = [[]]
        self.codes: set[str] = set()

    def feed(self, text: str) -> None:
        """Write a text as it comes from a process."""
        at = 0
        while at < len(text):
            if match := CODE.match(text, at):
                self._code(*match.groups())
                at = match.end()
                continue
            self._letter(text[at])
            at += 1

    @property
    def lines(self) -> list[str]:
        """Each line without the spaces at its end."""
        return ["".join(line).rstrip() for line in self.cells]

    def _code(self, number: str, kind: str) -> None:
        self.codes.add(kind)
        if kind == "A":
            self.row = max(0, self.row - int(number or 1))
        elif kind in "JK":
            assert number in ("", "0")
            del self.cells[self.row][self.column :]
            if kind == "J":
                del self.cells[self.row + 1 :]
        else:
            assert kind == "m", f"a code that changes modes: {number}{kind}"

    def _letter(self, letter: str) -> None:
        if letter == "\r":
            self.column = 0
        elif letter == "\n":
            self._down()
        else:
            if self.column == self.columns:
                self._down()
                self.column = 0
            line = self.cells[self.row]
            line += " " * (self.column + 1 - len(line))
            line[self.column] = letter
            self.column += 1

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.cells):
            self.cells.append([])


class InTerminal:
    """A process in a terminal of its own. `read` is what a person sees; without it the terminal fills up."""

    def __init__(self, command: Sequence[str], columns: int = 100, **environment: str) -> None:
        self.main, other = pty.openpty()
        resize(self.main, columns)
        own = {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **environment}
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", *own)}
        self.process = subprocess.Popen(
            command, stdin=other, stdout=other, stderr=other, start_new_session=True, env={**kept, **own}
        )
        os.close(other)
        self.shown, self.text = Shown(columns), ""

    def read(self, until: Callable[[str], object] = lambda text: False, seconds: float = 60) -> str:
        """Read until a condition on all text so far holds, or the process has closed the terminal."""
        end = time.monotonic() + seconds
        while not until(self.text):
            assert time.monotonic() < end, self.text[-3000:]
            if not select.select([self.main], [], [], 0.2)[0]:
                continue
            try:
                data = os.read(self.main, 1 << 16)
            except OSError:  # the last process that had it is gone
                break
            text = data.decode(errors="replace")
            self.text += text
            self.shown.feed(text)
        return self.text

    def close(self) -> None:
        """End the process, and the terminal."""
        with contextlib.suppress(OSError):
            os.close(self.main)
        self.process.kill()
        self.process.wait()
