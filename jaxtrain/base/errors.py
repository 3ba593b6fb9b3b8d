"""Exceptions for user errors and damaged data, and the exit codes. Bugs have no class here: see `cli/failures`."""

import difflib
import errno
from collections.abc import Iterable
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """How a command ends. A launcher runs the same command again only after RETRY."""

    FINISHED = 0
    """Everything was done; also a run that an observer stopped early."""
    FAILED = 1
    """Damaged data, a check that found faults, or a bug."""
    USER_ERROR = 2
    """A user error; nothing was written."""
    DOES_NOT_FIT = 3
    """The run does not fit into memory."""
    DIVERGED = 4
    """A loss or a gradient that is not finite."""
    ALARM = 5
    """A monitored quantity left its bounds."""
    RETRY = 75
    """Stopped early by a signal, the loss of a process, or a cause that somebody can remove, such as a full disk: run
    the same command again (EX_TEMPFAIL)."""
    INTERRUPTED = 130
    """Ctrl-C: 128 + SIGINT."""
    BROKEN_PIPE = 141
    """The reader of the output went away, as with `| head -1`: 128 + SIGPIPE, as for programs in C."""


class ConfigError(ValueError):
    """A user error. The message says what is wrong, where, and the nearest right name.

    The command line prints only the message and exits with code 2.
    """


def nearest(name: str, names: Iterable[str], listed: bool = True) -> str:
    """The end of an error message: `; did you mean 'x'?` for the closest of `names`, else all of them if `listed`."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known and listed else ""


class Diverged(Exception):
    """The loss, a gradient or a parameter of a run is not finite: exit code 4."""


class Retry(Exception):
    """A failure that may not recur when the same command is run again: exit code 75."""


TRANSIENT = {
    errno.ENOSPC: "free some of that disk",
    errno.EDQUOT: "free some of your quota of that disk",
    errno.EFBIG: "raise the limit of the size of files (`ulimit -f`)",
    errno.EIO: "the disk or the network file system failed: see whether it is well",
    errno.ESTALE: "the network file system lost the file: see whether it is mounted",
    errno.EROFS: "the disk is mounted for reading only: see whether it failed",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "this machine has too many open files: end other programs",
    errno.EAGAIN: "this machine has too many processes or threads (`ulimit -u`): end others",
    errno.ENODEV: "the disk is gone: see whether it is mounted",
    errno.ENXIO: "the disk is gone: see whether it is mounted",
    errno.ENOTCONN: "the network file system is gone: see whether it is mounted",
    errno.ETIMEDOUT: "the other side did not answer: see whether it is well",
    errno.EHOSTDOWN: "the other side did not answer: see whether it is well",
    errno.EHOSTUNREACH: "there is no way to the other side: see whether the network is well",
    errno.ENETUNREACH: "there is no way to the other side: see whether the network is well",
    errno.ENETDOWN: "the network is down",
    errno.ECONNRESET: "the connection was cut: see whether the other side is well",
    errno.ECONNREFUSED: "nobody answers there: see whether the other side is well",
    errno.ECONNABORTED: "the connection was cut: see whether the other side is well",
}
"""OSError numbers whose cause can be removed, and how; then the same command resumes."""


def cannot_write(what: str, error: OSError, done: str = "written") -> ConfigError | Retry:
    """What to raise where something cannot be written, or `done`: a user error, unless the cause can be mended."""
    why = f"{what} cannot be {done}: {error.strerror or error}"
    if error.errno in TRANSIENT:
        return Retry(f"{why}; {TRANSIENT[error.errno]}, then run the same command again")
    return ConfigError(why)


class Damaged(Exception):
    """A file, or record `record` (from 0) of it, cannot be read or has changed since it was written."""

    def __init__(self, file: str, record: int | None, why: str) -> None:
        self.file, self.record, self.why = file, record, why
        super().__init__(f"{file}{'' if record is None else f', record {record}'}: {why}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Damaged, (self.file, self.record, self.why)  # it has to come back from worker processes


class DamagedCheckpoint(Damaged):
    """A file of a checkpoint cannot be read or has changed since it was saved."""
