"""Standard output and error of the command line, on any terminal, pipe or file; printing errors.

Not here: the message for each kind of error (`failures`).
"""

import contextlib
import io
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Generator
from typing import Any, TextIO, cast

from jaxtrain.base.errors import ExitCode
from jaxtrain.base.tracebacks import keep_traceback

_show_tracebacks = False

_reported = False
"""Whether the error that ends this command has been printed; later ones are consequences of it."""


def show_tracebacks(wanted: bool) -> None:
    """Whether `report_error` shows the traceback of every error, for --debug."""
    global _show_tracebacks
    _show_tracebacks = wanted


def report_error(error: BaseException) -> int:
    """Print an error in at most five lines, and write its traceback to a file where that may help; returns the exit
    code.
    """
    global _reported
    from jaxtrain.cli.failures import kind_of, message_lines

    kind, file, _reported = kind_of(error), None, True
    if kind.traceback:
        file = keep_traceback(error)
    if _show_tracebacks:
        traceback.print_exception(error)
    first, *more = message_lines(error)
    print(f"jaxtrain: {first}", *more, sep="\n", file=sys.stderr)
    if file is not None:
        print(f"the traceback is at the end of {file}", file=sys.stderr)
    elif kind.traceback:
        print("the traceback could not be written to a file; --debug shows it", file=sys.stderr)
    return kind.code


LEFT = "Event loop is closed"
"""The message by which tensorstore reports a read that it cancels after another read failed."""


def report_stray_errors() -> None:
    """From here on, an exception that no caller can catch (in a thread, or in a finalizer) is printed in one line, and
    its traceback goes to the same files. Not printed: exceptions after the error that ends the command, and those while
    the interpreter shuts down.

    Hooks that are set already stay.
    """
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = lambda found: _stray(found.exc_value, "in closing what is no longer used")
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = lambda found: _stray(
            found.exc_value, f"in the thread {getattr(found.thread, 'name', '')}"
        )
    logging.raiseExceptions = False  # else a log line that cannot be written prints a traceback


def _stray(error: BaseException | None, where: str) -> None:
    # A signal that was raised where nothing can catch it has been heard all the same.
    if error is None or isinstance(error, SystemExit | KeyboardInterrupt) or LEFT in str(error) or sys.is_finalizing():
        return
    from jaxtrain.cli.failures import message_lines

    file = keep_traceback(error)
    if not _reported:
        print(
            f"jaxtrain: an error {where}: {message_lines(error, advise=False)[0]}; "
            f"the traceback is at the end of {file}",
            file=sys.stderr,
        )


class Output:
    """A standard stream that may stop working: a pipe that is closed, a full disk, a terminal that is gone.

    needed: whether the output is the purpose of the command, which then ends once it cannot be written; else output is
        dropped from then on, and the command goes on.
    """

    def __init__(self, stream: TextIO, needed: bool) -> None:
        self._stream = stream
        self.needed = needed

    def write(self, text: str) -> int:
        """Write a text, as to a text file."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush the buffer, as of a text file."""
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            # From here on all output is dropped, also what is buffered and what libraries write in C.
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
            if not self.needed:
                return
            if isinstance(error, BrokenPipeError):
                sys.exit(ExitCode.BROKEN_PIPE)
            print(f"jaxtrain: standard output cannot be written: {error.strerror}", file=sys.stderr)
            sys.exit(ExitCode.FAILED)


def use_utf8() -> None:
    """Restart the command in Python's UTF-8 mode where the locale has another encoding.

    Otherwise texts and paths among its arguments could not be decoded. For LC_ALL=C Python uses UTF-8 by itself, unless
    PYTHONUTF8=0; for pt_BR.ISO-8859-1 it does not.
    """
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


@contextlib.contextmanager
def standard_streams() -> Generator[None]:
    """Replace standard output and error by `Output`s that can write any text in any encoding."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed by the shell's `>&-`: the next file that is opened would get its number
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    out, err = (stream or os.fdopen(number, "w", closefd=False) for number, stream in enumerate(before, 1))
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="replace")  # "?" for characters that the encoding lacks; stderr escapes them already
    sys.stdout, sys.stderr = cast(TextIO, Output(out, needed=True)), cast(TextIO, Output(err, needed=False))
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        finally:
            sys.stdout, sys.stderr = before


def output_not_needed() -> None:
    """From here on the command goes on where standard output cannot be written."""
    if isinstance(sys.stdout, Output):
        sys.stdout.needed = False
