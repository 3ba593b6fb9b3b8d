"""User errors, damaged data and exit codes. Not for bugs: those raise whatever they raise, with a traceback."""

import difflib
from collections.abc import Iterable
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """How a command ends. A launcher runs the same command again only after RETRY."""

    FINISHED = 0
    """All was done; a run that stopped early on its own rule too."""
    FAILED = 1
    """Damaged data, a check that found faults, or an error of ours."""
    USER_ERROR = 2
    """A mistake of the user's; nothing was written."""
    DOES_NOT_FIT = 3
    """A plan that does not fit into memory."""
    DIVERGED = 4
    """A loss or a gradient that is not finite."""
    ALARM = 5
    """A monitored quantity left its bounds."""
    RETRY = 75
    """Stopped early by a signal, or by the loss of a process: run the same command again (EX_TEMPFAIL)."""
    INTERRUPTED = 130
    """Ctrl-C: 128 and the number of SIGINT."""
    BROKEN_PIPE = 141
    """Nobody read what was printed, as with `| head -1`: 128 and the number of SIGPIPE, as of programs in C."""


class ConfigError(ValueError):
    """A mistake in what the user asked for: names the thing, the place and the nearest right name.

    The command line prints only the message and exits with code 2.
    """


def nearest(name: str, names: Iterable[str], listed: bool = True) -> str:
    """`; did you mean 'x'?` for the closest of `names`, else all of them if `listed`, to end an error message with."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known and listed else ""


class Diverged(Exception):
    """A run whose gradients or loss are no longer finite: exit code 4."""


class Retry(Exception):
    """Something that the same command, run again, may get past: exit code 75."""


class Damaged(Exception):
    """A file, or record `record` (from 0) of it, that cannot be read or is not what was written."""

    def __init__(self, file: str, record: int | None, why: str) -> None:
        self.file, self.record, self.why = file, record, why
        super().__init__(f"{file}{'' if record is None else f', record {record}'}: {why}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Damaged, (self.file, self.record, self.why)  # it has to come back from worker processes


class DamagedCheckpoint(Damaged):
    """A file of a checkpoint that is not what was saved."""
