"""What a process keeps of files that it has read, and when it forgets it: when a source of a file that changed is made.

In a notebook a file is written again and read again; where its rows began would be where others begin now.
"""

import os
import threading
from collections.abc import Iterable
from typing import Any, TypeVar

Cached = TypeVar("Cached", bound=Any)

_caches: list[Any] = []

_read: dict[str, tuple[int, ...] | None] = {}
"""The state of each file and folder that something is kept of, when it was read."""

_lock = threading.Lock()


def until_files_change(cached: Cached) -> Cached:
    """Decorator of an `lru_cache`: it is emptied when `forget_changed` finds a file changed."""
    _caches.append(cached)
    return cached


def note_state(paths: Iterable[str]) -> None:
    """Notes the state of files that are about to be read, or of folders about to be listed."""
    for path in paths:
        _read.setdefault(path, _state(path))


def forget_changed(*paths: str) -> None:
    """Empties the caches if one of these files, or a folder below one of these, is not as it was when it was read."""
    with _lock:
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
