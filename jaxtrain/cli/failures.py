"""The table of all kinds of exceptions: the exit code of each, and the advice for the user.

Not here: printing them, and the files of their tracebacks.
"""

import errno
import functools
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtrain.base.errors import TRANSIENT, ConfigError, Damaged, Diverged, ExitCode, Retry
from jaxtrain.base.packages import PACKAGE
from jaxtrain.base.text import cut
from jaxtrain.base.tracebacks import failing_run
from jaxtrain.cli.memory import account_of_this_command
from jaxtrain.cluster.stop import Stopped

PATH_ERRORS = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
"""OSError numbers that are about a path."""

LOST = ("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "CANCELLED")
"""How the message of a JaxRuntimeError begins where a device or another process is lost."""

MOST_LINES = 5
"""The most lines that are printed for an error."""

LINE = 600
"""The most characters of a printed line; the rest is cut."""


@dataclass(frozen=True)
class Kind:
    """A kind of exception."""

    matches: Callable[[BaseException], bool]
    code: ExitCode
    advice: str | Callable[[BaseException], str] = ""
    """What to do; "" where the message says so."""
    traceback: bool = True
    """Whether its traceback is written to a file."""
    head: str = ""
    """The start of the message."""


def kind_of(error: BaseException) -> Kind:
    """The first kind in the table that matches an exception."""
    error = _first_of_group(error)
    return next(kind for kind in KINDS if kind.matches(error))


def message_lines(error: BaseException, advise: bool = True) -> list[str]:
    """The message for an exception, at most four lines: what happened, at which line of which code, and, if `advise`,
    what to do.
    """
    error = _first_of_group(error)
    kind = kind_of(error)
    advice = kind.advice if isinstance(kind.advice, str) or not advise else kind.advice(error)
    advice = advice if isinstance(advice, str) else ""
    if isinstance(error, Stopped) and error.code == ExitCode.RETRY:
        return [f"{error}: nothing was to be saved; run the same command again"]
    if isinstance(error, KeyboardInterrupt):
        return ["interrupted"]
    if isinstance(error, ConfigError | Damaged | Diverged | Retry):
        lines = [*f"{kind.head}{error}".splitlines(), *advice.splitlines()]
    else:
        lines = [f"{kind.head}{_message(error)}{_at_line(error)}", *advice.splitlines()]
    shown = [_printable(line) for line in lines if line.strip()]
    most = MOST_LINES - kind.traceback
    if len(shown) > most:
        shown = [*shown[: most - 1], f"  and {len(shown) - most + 1} lines more, which --debug shows"]
    return shown


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a device or of this machine ran out."""
    exhausted = _is_of_jax(error) and "RESOURCE_EXHAUSTED" in str(error)
    number = _os_error_number(error)  # tensorstore says RESOURCE_EXHAUSTED of a full disk too
    return number == errno.ENOMEM or (number is None and (exhausted or isinstance(error, MemoryError)))


def _is_of_jax(error: BaseException) -> bool:
    jax: Any = sys.modules.get("jax")  # which a verb that only reads files has not imported
    return jax is not None and isinstance(error, jax.errors.JaxRuntimeError)


def _first_of_group(error: BaseException) -> BaseException:
    """The first exception of a group; any other as it is."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _os_error_number(error: BaseException) -> int | None:
    """The number of the OSError that an exception is or was caused by; of tensorstore's errors, from their text."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        if isinstance(one, OSError) and one.errno:
            return one.errno
        if found := re.search(r"(?:\[Errno |os_error_code=')(\d+)", str(one)):
            return int(found[1])
        one = one.__cause__
    return None


def _in_run(error: BaseException) -> bool:
    """Whether an OSError is about a path in the folder of the run that failed."""
    run, names = failing_run(), [getattr(error, name, None) for name in ("filename", "filename2")]
    paths = [Path(os.path.abspath(os.fsdecode(name))) for name in names if isinstance(name, str | bytes | os.PathLike)]
    return run is not None and any(path.is_relative_to(run.absolute()) for path in paths)


def _run_is_gone(error: BaseException) -> bool:
    run = failing_run()
    return run is not None and not os.path.exists(run / "experiment.json")


def is_exit_of_yours(error: SystemExit) -> bool:
    """Whether the user's code called `sys.exit`, by which the command would end without a message."""
    return any(_whose(file) == "yours" for file, _, name in _frames(error) if name != "<module>")


def _frames(error: BaseException) -> list[tuple[Path, int, str]]:
    """File, line and function of each call that led to an exception, innermost last; also of those in a worker process,
    whose traceback is part of the message.
    """
    frames = [(Path(each.filename), each.lineno or 0, each.name) for each in traceback.extract_tb(error.__traceback__)]
    texts = re.findall(r'File "([^"\n]+)", line (\d+), in (\S+)', _message_of(error))
    return frames + [(Path(file), int(line), name) for file, line, name in texts]


def _at_line(error: BaseException) -> str:
    """The innermost line of the user's or jaxtrain's code, in parentheses; of jaxtrain's, the user's caller too."""
    frames = [(_whose(file), _source_line(file, line, name)) for file, line, name in _frames(error)]
    places = [(whose, place) for whose, place in frames if whose][::-1]
    if not places:
        return ""
    yours = next((place for whose, place in places if whose == "yours"), "")
    caller = f", called from {yours}" if yours and places[0][0] == "ours" else ""
    return f" ({places[0][1]}{caller})"


def _source_line(file: Path, line: int, function: str) -> str:
    shown = file.relative_to(PACKAGE.parent) if file.is_relative_to(PACKAGE) else file
    return f"{shown}, line {line}, {function}"


@functools.cache
def _libraries() -> tuple[Path, ...]:
    return tuple(Path(path) for name, path in sysconfig.get_paths().items() if "lib" in name)


@functools.cache
def _whose(file: Path) -> str:
    """Whose code a file is: "ours", "yours", or "" for a library's."""
    if file.is_relative_to(PACKAGE):
        return "ours"
    library = any(file.is_relative_to(path) for path in _libraries()) or "site-packages" in file.parts
    return "" if library or not file.is_file() else "yours"


def _is_yours(error: BaseException) -> bool:
    return any(_whose(file) == "yours" for file, _, _ in _frames(error))


def _message_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a user's exception class may fail in `__str__`
        return ""


def _message(error: BaseException) -> str:
    """Type and message of an exception; of one that a worker process raised, those of the original."""
    text = _message_of(error)
    if isinstance(error, OSError) and error.strerror:
        names = [repr(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([error.strerror, *names])
    if "Traceback (most recent call last)" in text:
        inner = [line for line in text.splitlines() if re.match(r"[A-Za-z_][\w.]*(: |$)", line)]
        text = inner[-1] if inner else text
        return cut(text, LINE // 2)
    name = type(error).__name__
    return cut(f"{name}: {text}" if text else name, LINE // 2)


def _printable(line: str) -> str:
    """A line with control characters escaped, since they could change the terminal, and cut to `LINE`."""
    plain = "".join(each if each.isprintable() or each == "\t" else repr(each)[1:-1] for each in line)
    return plain if len(plain) <= LINE else f"{plain[: LINE - 1]}…"


def _removed_cause(error: BaseException) -> str:
    return f"{TRANSIENT[_os_error_number(error) or 0]}, then run the same command again"


_RUN_GONE = "a run cannot go on without its folder: bring it back, writable, and run the same command again"

_BUG = "this is probably a bug of jaxtrain, worth reporting together with the traceback"

_YOURS = "the error is in your own code, or in how it calls jaxtrain"

_DAMAGED = (
    "`jaxtrain data check` names all damage of a built dataset; the source Tolerant(source, limit) goes on without up "
    "to `limit` records"
)


def _is(*kinds: type[BaseException]) -> Callable[[BaseException], bool]:
    return lambda error: isinstance(error, kinds)


KINDS = (
    Kind(lambda error: isinstance(error, Stopped) and error.code == ExitCode.RETRY, ExitCode.RETRY, traceback=False),
    Kind(_is(KeyboardInterrupt), ExitCode.INTERRUPTED, traceback=False),
    Kind(_is(ConfigError), ExitCode.USER_ERROR, traceback=False),
    Kind(_is(Damaged), ExitCode.FAILED, _DAMAGED, head="damaged data: "),
    Kind(_is(Diverged), ExitCode.DIVERGED, traceback=False),
    Kind(_is(Retry), ExitCode.RETRY, traceback=False),
    Kind(lambda error: _os_error_number(error) in TRANSIENT, ExitCode.RETRY, _removed_cause),
    Kind(
        lambda error: _os_error_number(error) in PATH_ERRORS and (_in_run(error) or _run_is_gone(error)),
        ExitCode.RETRY,
        _RUN_GONE,
    ),
    Kind(is_out_of_memory, ExitCode.DOES_NOT_FIT, account_of_this_command),
    Kind(
        lambda error: _is_of_jax(error) and _message_of(error).startswith(LOST),
        ExitCode.RETRY,
        "a device, or another process, is gone: run the same command again",
    ),
    Kind(lambda error: isinstance(error, SystemExit), ExitCode.FAILED, "a run ends by an observer, or an exception"),
    Kind(lambda error: _is_yours(error) and failing_run() is None, ExitCode.USER_ERROR, _YOURS),
    Kind(lambda error: _is_yours(error), ExitCode.FAILED, _YOURS),
    Kind(
        lambda error: _os_error_number(error) in PATH_ERRORS and failing_run() is None,
        ExitCode.USER_ERROR,
        "see whether this path is right, and yours to read or write",
    ),
    Kind(
        lambda error: _os_error_number(error) in PATH_ERRORS,
        ExitCode.FAILED,
        "a file that the run needs is gone, or not yours",
    ),
    Kind(lambda error: True, ExitCode.FAILED, _BUG),
)
"""All kinds. The first that matches an exception counts."""
