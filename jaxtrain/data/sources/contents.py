"""A hash of the contents of files. Each file is read once, and its hash is cached in the user's cache until it changes.

Not here: what else is part of a source's identity.
"""

import contextlib
import hashlib
import sys
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path

from jaxtrain.base.cache import cache
from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.base.files import digest, edges, read_json, write_json
from jaxtrain.base.text import size
from jaxtrain.data.sources.paths import data_file

_SLOW = 1 << 30
"""Bytes to read from which on progress is printed."""

_SETTLED = 2.0
"""Seconds after a file was written before its hash is cached. File systems have coarse clocks: an edit soon after could
leave the same time.
"""

_HASHED_AT_ONCE = 1 << 20  # at once

_FORMER: ContextVar[bool] = ContextVar("former", default=False)

_known: dict[str, str] = {}


def content(paths: Sequence[str], listing: str = "", kind: str = "file") -> str:
    """A sha256 of a listing and of all bytes of files in this order, independent of their names and folders.

    A file is read again when its path, size or times differ from the cached ones. Progress is printed on stderr where
    more than 1 GiB is read. Raises ConfigError for a missing file (`kind` is what the message calls it), Damaged for
    one that cannot be read.
    """
    if _FORMER.get():
        return digest(listing) if listing else edges(*map(Path, paths))
    states = [file_state(path, kind) for path in paths]
    whole = digest(listing, *states)
    if whole not in _known:
        _known[whole] = digest(listing, *_hashes(paths, states))
    return _known[whole]


@contextlib.contextmanager
def by_former_rule() -> Generator[None]:
    """Within the block, identities are computed as in earlier versions: from the size and the first and last MiB of
    each file, and from the names and sizes of images. Runs of those versions are recognised by them.
    """
    token = _FORMER.set(True)
    try:
        yield
    finally:
        _FORMER.reset(token)


def file_state(path: str, kind: str = "file") -> str:
    """A short text that changes whenever a file does, from its path, size and times."""
    found = data_file(path, kind).stat()
    # With ctime, which cannot be set: mtime can be set back after an edit, as by `rsync -t`.
    return digest(f"{path}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}")


def is_settled(path: str) -> bool:
    """Whether any later edit of a file is certain to change its `file_state`."""
    return time.time() - Path(path).stat().st_mtime > _SETTLED


def _hashes(paths: Sequence[str], states: Sequence[str]) -> list[str]:
    """The sha256 of each file; all of them are cached together in one file."""
    kept = cache("contents") / f"{digest(*(f'{path}:' for path in paths))}.json"
    try:
        remembered: Mapping[str, str] = read_json(kept)
    except (ConfigError, OSError):
        remembered = {}
    new = {state: path for path, state in zip(paths, states, strict=True) if state not in remembered}
    if not new:
        return [remembered[state] for state in states]
    progress = _Progress(sum(Path(path).stat().st_size for path in new.values()))
    with ThreadPoolExecutor(8) as pool:
        read = dict(zip(new, pool.map(progress.sha256, new.values()), strict=True))
    found = {state: read.get(state) or remembered[state] for state in states}
    with contextlib.suppress(OSError):  # no room in the cache: the next process reads all of them again
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, {state: found[state] for path, state in zip(paths, states, strict=True) if is_settled(path)})
    return [found[state] for state in states]


class _Progress:
    """Hashes files, called by several threads, and prints a line for each tenth if there are many bytes."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._lock = total, 0, threading.Lock()
        if total > _SLOW:
            print(f"reading {size(total)} of data, once, to know them again after an edit", file=sys.stderr)

    def sha256(self, path: str) -> str:
        found = hashlib.sha256()
        try:
            with open(path, "rb") as file:
                while block := file.read(_HASHED_AT_ONCE):
                    found.update(block)
                    self._add(len(block))
        except OSError as error:
            raise Damaged(path, None, f"it cannot be read ({error.strerror})") from error
        return found.hexdigest()

    def _add(self, new: int) -> None:
        with self._lock:
            self._done += new
            if self._total > _SLOW and 10 * self._done // self._total > 10 * (self._done - new) // self._total:
                print(f"read {size(self._done)} of {size(self._total)}", file=sys.stderr)
