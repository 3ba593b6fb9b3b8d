"""Writes the traceback of an error to a file: in the folder of the run that failed, else in the user's cache.

Not here: the message for the user, which is `cli/failures.py`.
"""

import contextlib
import datetime
import importlib.metadata
import platform
import shlex
import sys
import traceback
from pathlib import Path
from typing import Any

from jaxtrain.base.cache import cache
from jaxtrain.base.files import open_own

MOST_BYTES = 1 << 20
"""Size in bytes above which a file of tracebacks is overwritten instead of appended to."""

_folder: Path | None = None


def keep_tracebacks_in(folder: Path | None) -> None:
    """From here on tracebacks are written into the folder of this run; None: into the user's cache."""
    global _folder
    _folder = None if folder is None else folder.absolute()


def failing_run() -> Path | None:
    """The folder of the run that this process trains; None before it exists, and in commands that only read runs."""
    return _folder


def keep_traceback(error: BaseException) -> Path | None:
    """Append the traceback, with time, command and versions, to traceback.txt (in process 3: traceback-3.txt) of the
    run or the user's cache. Returns the file; None where neither can be written.
    """
    with contextlib.suppress(OSError, MemoryError):  # the error itself is reported without a file then
        text = _log_entry(error)
        for file in _traceback_files():
            with contextlib.suppress(OSError):
                if file.parent != _folder:
                    file.parent.mkdir(parents=True, exist_ok=True)
                begun_anew = not file.is_file() or file.stat().st_size > MOST_BYTES
                with open_own(file, begun_anew) as opened:
                    opened.write(text)
                return file
    return None


def _traceback_files() -> list[Path]:
    """The files to try, in this order."""
    # A run folder that was deleted is not created again.
    found = [_folder / _name()] if _folder is not None and (_folder / "experiment.json").is_file() else []
    return [*found, cache("traceback.txt")]


def _name() -> str:
    jax: Any = sys.modules.get("jax")
    number = jax.process_index() if jax is not None else 0
    return f"traceback-{number}.txt" if number else "traceback.txt"


def _log_entry(error: BaseException) -> str:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jaxtrain", "jax", "jaxlib")]
    head = [f"{now}  {shlex.join(sys.orig_argv)}", ", ".join([f"python {platform.python_version()}", *versions])]
    return "\n".join([*head, "".join(traceback.format_exception(error)), ""])
