"""Where the traceback of an error is kept: in the folder of the run that failed, else in the user's cache.

Not here: what is said of the error, which is `cli/failures.py`.
"""

import contextlib
import datetime
import importlib.metadata
import platform
import shlex
import sys
import traceback
from pathlib import Path

import jax

from jaxtrain.base.cache import cache
from jaxtrain.base.files import open_own

MOST_BYTES = 1 << 20
"""Bytes of a file of tracebacks, beyond which it is begun anew."""

_folder: Path | None = None


def keep_tracebacks_in(folder: Path | None) -> None:
    """From here on errors are those of the run in this folder; of no run with None."""
    global _folder
    _folder = None if folder is None else folder.absolute()


def failing_run() -> Path | None:
    """The folder of the run that an error is of; None before it is written, and for what reads runs."""
    return _folder


def keep_traceback(error: BaseException) -> Path | None:
    """Append the traceback, with time, command and versions, to traceback.txt of the run (traceback-3.txt of process
    3), or of the user's cache. Returns the file; None where none can be written.
    """
    with contextlib.suppress(OSError, MemoryError):  # what could be done about it?
        text = _text(error)
        for file in _files():
            with contextlib.suppress(OSError):
                if file.parent != _folder:
                    file.parent.mkdir(parents=True, exist_ok=True)
                begun_anew = not file.is_file() or file.stat().st_size > MOST_BYTES
                with open_own(file, begun_anew) as opened:
                    opened.write(text)
                return file
    return None


def _files() -> list[Path]:
    """Where to try, in this order."""
    # What is left of a run's folder that is gone is not made again.
    found = [_folder / _name()] if _folder is not None and (_folder / "experiment.json").is_file() else []
    return [*found, cache("traceback.txt")]


def _name() -> str:
    number = jax.process_index()
    return f"traceback-{number}.txt" if number else "traceback.txt"


def _text(error: BaseException) -> str:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jaxtrain", "jax", "jaxlib")]
    head = [f"{now}  {shlex.join(sys.orig_argv)}", ", ".join([f"python {platform.python_version()}", *versions])]
    return "\n".join([*head, "".join(traceback.format_exception(error)), ""])
