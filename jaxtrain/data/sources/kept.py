"""Caches of what a process has read from files, cleared when a source is created for a file that has changed since.

In a notebook a file may be rewritten and read again, with its rows at other offsets.
"""

import os
import threading
from collections.abc import Iterable
from typing import Any, TypeVar

Cached = TypeVar("Cached", bound=Any)

_caches: list[Any] = []

_read: dict[str, tuple[int, ...] | None] = {}
"""The state in which each cached file and folder was read."""

_caches_lock = threading.Lock()


def until_files_change(cached: Cached) -> Cached:
    """Decorator for an `lru_cache`: it is cleared when `forget_changed` finds that a file has changed."""
    _caches.append(cached)
    return cached


def note_state(paths: Iterable[str]) -> None:
    """Record the state of files before they are read, or of folders before they are listed."""
    for path in paths:
        _read.setdefault(path, _state(path))


def forget_changed(*paths: str) -> None:
    """Clear the caches if one of these files, or anything below one of these folders, has changed since it was read."""
    with _caches_lock:
        known = [path for path in paths if path in _read]
        known += [other for path in known if os.path.isdir(path) for other in _read if other.startswith(path + os.sep)]
        if any(_state(path) != _read[path] for path in known):
            for cached in _caches:
                cached.cache_clear()
            _read.clear()


def _state(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
