"""What the command line says, on whatever terminal, pipe or file is there; errors, and the exit codes of these.

Not here: what a verb prints.
"""

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Generator
from typing import Any, TextIO, cast

from jaxtrain.base.errors import ConfigError, Damaged, Diverged, ExitCode, Retry

_show_tracebacks = False


def show_tracebacks(wanted: bool) -> None:
    """Whether `report_error` shows the traceback of every error, for --debug."""
    global _show_tracebacks
    _show_tracebacks = wanted


def report_error(error: BaseException) -> int:
    """Prints an error for a person, with its traceback only where it is a bug; returns the exit code."""
    expected = isinstance(error, ConfigError | Damaged | Diverged | Retry | KeyboardInterrupt)
    if _show_tracebacks or not expected:
        traceback.print_exception(error)
    elif isinstance(error, KeyboardInterrupt):
        print("jaxtrain: interrupted", file=sys.stderr)
    else:
        print(f"jaxtrain: {'damaged data: ' * isinstance(error, Damaged)}{error}", file=sys.stderr)
    if isinstance(error, Damaged):
        print(
            "`jaxtrain data check` names all damage of a built dataset; the source Tolerant(source, limit) goes on "
            "without up to `limit` records",
            file=sys.stderr,
        )
    if isinstance(error, ConfigError):
        return ExitCode.USER_ERROR
    if isinstance(error, Diverged):
        return ExitCode.DIVERGED
    if isinstance(error, Retry):
        return ExitCode.RETRY
    return ExitCode.INTERRUPTED if isinstance(error, KeyboardInterrupt) else ExitCode.FAILED


class Output:
    """A standard stream that may be lost while it is written: a pipe that is closed, a full disk, a dead terminal.

    needed: what is printed is all that the command does, so it ends once nobody reads it; else what cannot be written
        is dropped, and the work goes on.
    """

    def __init__(self, stream: TextIO, needed: bool) -> None:
        self._stream = stream
        self.needed = needed

    def write(self, text: str) -> int:
        """As that of a text file."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """As that of a text file."""
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            # From here on all of it goes nowhere, what is in the buffers and what libraries write in C too.
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
            if not self.needed:
                return
            if isinstance(error, BrokenPipeError):
                sys.exit(ExitCode.BROKEN_PIPE)
            print(f"jaxtrain: standard output cannot be written: {error.strerror}", file=sys.stderr)
            sys.exit(ExitCode.FAILED)


def use_utf8() -> None:
    """Starts the command again in Python's UTF-8 mode where the locale has another encoding.

    Else a text or a path among its arguments could not be read. For LC_ALL=C Python does so by itself, unless it is
    told not to by PYTHONUTF8=0; for pt_BR.ISO-8859-1 it does not.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


@contextlib.contextmanager
def standard_streams() -> Generator[None]:
    """Standard output and error that fail in no other way than `Output` says, and write any text in any encoding."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed by the shell's `>&-`; the next file that is opened would get what is printed
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    out, err = (stream or os.fdopen(number, "w", closefd=False) for number, stream in enumerate(before, 1))
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="replace")  # "?" for what the encoding lacks; standard error has an escape of its own
    sys.stdout, sys.stderr = cast(TextIO, Output(out, needed=True)), cast(TextIO, Output(err, needed=False))
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        finally:
            sys.stdout, sys.stderr = before


def output_not_needed() -> None:
    """From here on the work goes on although nobody may read what is printed."""
    if isinstance(sys.stdout, Output):
        sys.stdout.needed = False
