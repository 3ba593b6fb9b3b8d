"""What goes wrong, said to a person. Not for bugs: those raise whatever they raise, with a traceback."""

import difflib
from collections.abc import Iterable
from typing import Any


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


class Damaged(Exception):
    """A file, or record `record` (from 0) of it, that cannot be read or is not what was written."""

    def __init__(self, file: str, record: int | None, why: str) -> None:
        self.file, self.record, self.why = file, record, why
        super().__init__(f"{file}{'' if record is None else f', record {record}'}: {why}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Damaged, (self.file, self.record, self.why)  # it has to come back from worker processes
