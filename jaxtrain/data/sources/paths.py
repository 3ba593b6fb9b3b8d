"""Paths of data in dataclasses: relative ones count from the folder of the experiment file, else the current folder."""

import contextlib
import logging
import os
from collections.abc import Generator
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

from jaxtrain.base.config import NOT_IN_FINGERPRINT
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.files import require_file
from jaxtrain.data.sources.kept import forget_changed, note_state

PATH = NOT_IN_FINGERPRINT
"""Metadata of a field that holds a path of data: the identity has their content, so the path is not fingerprinted."""

_FOLDER: ContextVar[Path | None] = ContextVar("folder", default=None)

_MOVED: ContextVar[tuple[Path, Path] | None] = ContextVar("moved", default=None)

_OF_A_RUN_FOLDER: ContextVar[bool] = ContextVar("of_a_run_folder", default=False)


@contextlib.contextmanager
def relative_to(folder: Path) -> Generator[None]:
    """Within the block, relative paths in new values count from this folder."""
    token = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(token)


@contextlib.contextmanager
def moved_together(before: Path, now: Path) -> Generator[None]:
    """Within the block, an absolute path that does not exist is replaced by its location after a move of the folder
    `before`, together with the data, to `now`.
    """
    token = _MOVED.set((before, now))
    try:
        yield
    finally:
        _MOVED.reset(token)


@contextlib.contextmanager
def of_a_run_folder() -> Generator[None]:
    """Within the block, new values come from a run folder, which is untrusted input."""
    token = _OF_A_RUN_FOLDER.set(True)
    try:
        yield
    finally:
        _OF_A_RUN_FOLDER.reset(token)


def is_of_a_run_folder() -> bool:
    """Whether the value being created comes from a run folder, so that it must not write files."""
    return _OF_A_RUN_FOLDER.get()


def make_absolute(value: Any, name: str) -> None:
    """For `__post_init__` of a frozen dataclass: make the path, or the tuple of paths, in a field absolute.

    Then the value means the same files in any current folder, in a worker process, and when it is loaded from a run.
    Caches of files that have changed are cleared. Raises ConfigError for a file that is named twice, whose examples
    would count twice.
    """
    given = getattr(value, name)
    if isinstance(given, str):
        places = (_absolute(given),)
        object.__setattr__(value, name, places[0])
    elif isinstance(given, tuple):
        places = tuple(_absolute(path) if isinstance(path, str) else path for path in given)
        if twice := next((place for place in places if places.count(place) > 1), None):
            raise ConfigError(
                f"{type(value).__name__} {name} name {twice} twice: name each file once, and weigh sources by Mixture"
            )
        object.__setattr__(value, name, places)
    else:
        return  # the wrong type, which `check_types` refuses, naming the field
    forget_changed(*(place for place in places if isinstance(place, str)))


def data_file(path: str, kind: str) -> Path:
    """The path of an existing file; `kind` as in `require_file`.

    Raises ConfigError, with the nearest name, or a hint where the path holds a pattern or a shell variable.
    """
    listing = "name each file, as by tuple(sorted(glob.glob(PATTERN)))"
    if os.path.isdir(path):
        raise ConfigError(f"{path} is a folder, not a {kind}: {listing}")
    if not os.path.exists(path) and set("*?[").intersection(path):
        raise ConfigError(f"there is no {kind} {path}, and patterns are not expanded: {listing}")
    if not os.path.exists(path) and "$" in path:
        raise ConfigError(f"there is no {kind} {path}, and variables are not expanded: use os.environ[NAME] instead")
    note_state([path])
    return require_file(path, kind)


@lru_cache(maxsize=64)
def _log_moved(place: str, other: str) -> None:
    """Logs it once in a process."""
    logging.getLogger("jaxtrain.data").warning("%s is not there; reading %s instead", place, other)


def _absolute(path: str) -> str:
    if "://" in path:
        return path
    place = os.path.abspath(os.path.join(_FOLDER.get() or "", os.path.expanduser(path)))
    if (folders := _MOVED.get()) is not None and not os.path.exists(place):
        other = os.path.abspath(os.path.join(folders[1], os.path.relpath(place, folders[0])))
        if other != place and os.path.exists(other):
            _log_moved(place, other)
            return other
    return place
