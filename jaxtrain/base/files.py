"""Files: atomic writes, errors for missing ones, hashes, JSON."""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import threading
from collections import Counter
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, TextIO

from jaxtrain.base.errors import ConfigError, nearest

_MIB = 1 << 20

LARGEST_JSON = 64 * _MIB
"""Bytes of a JSON file that is read: environment.json holds a git diff, which may be long."""

_DEEPEST = 100  # nesting of JSON

_TEMPORARY = re.compile(r"\..+\.\d+-\d+\.tmp")  # the names by `_temporary`

_MOST_SUGGESTED = 20  # names in an error message


@contextlib.contextmanager
def atomic_write(path: Path) -> Generator[Path]:
    """A temporary path beside `path`. At the end of the block the temporary file is on disk and replaces `path`.

    After an error in the block `path` is unchanged, and the temporary file is deleted.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Generator[Path]:
    """A new temporary folder, which is renamed to `path` at the end of the block; its files have to be on disk by then.

    After an error in the block the folder is deleted. Raises OSError where `path` exists and is not empty.
    """
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_unfinished(path: Path) -> None:
    """Remove what `atomic_folder(path)` left in killed processes. No other process may be writing `path`."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def remove_unfinished_in(folder: Path) -> None:
    """Remove the files that `atomic_write` left in a folder in processes that were killed; no other may write there."""
    for left in folder.glob(".*.tmp"):
        if _TEMPORARY.fullmatch(left.name) and left.is_file():
            left.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")


def replace_text(path: Path, text: str) -> None:
    """Write a file of UTF-8 text whole or not at all; it is on disk when this returns."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def open_own(path: Path, anew: bool = False) -> TextIO:
    """Opens a file of text to append to it, or to begin it anew. Raises OSError for a link, which may lead out of the
    folder, and for what is no file, such as a pipe, which may block for ever.
    """
    how = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_TRUNC if anew else os.O_APPEND)
    number = os.open(path, how, 0o666)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: object) -> None:
    """Write a JSON file whole or not at all. NaN and infinities become strings."""
    replace_text(path, json_text(value) + "\n")


def json_text(value: object) -> str:
    """JSON, with NaN and infinities as strings."""
    return json.dumps(plain_json(value), indent=2, allow_nan=False)


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises `ConfigError` where it is missing or cannot come from `write_json`: text that is
    not JSON in UTF-8, null, a repeated key, NaN, a number beyond float64, more than 64 MiB or 100 levels.
    """
    if (size := require_file(path).stat().st_size) > LARGEST_JSON:
        raise ConfigError(f"{path} has {size:,} bytes, more than the {LARGEST_JSON:,} that such a file may have")
    return parsed_json(path.read_bytes(), str(path))


def parsed_json(content: bytes, path: str) -> Any:
    """The value of a JSON file with this content. Raises ConfigError as `read_json` does."""
    try:
        value = json.loads(content.decode(), object_pairs_hook=unique_keys, parse_float=_finite, parse_constant=_finite)
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    except RecursionError:
        value = None
    if value is None or _deeper(value, _DEEPEST):
        raise ConfigError(f"{path} is null, or nested more than {_DEEPEST} levels deep: no version writes such a file")
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` for `json.loads` that raises ValueError for a key that occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice[:60]!r} occurs twice")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is not a finite float64")
    return number


def _deeper(value: Any, most: int) -> bool:
    """Whether a JSON value has more than `most` levels."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(most):
        level = [
            part
            for one in level
            for part in (one.values() if isinstance(one, dict) else one)
            if isinstance(part, dict | list)
        ]
        if not level:
            return False
    return True


def is_file_name(name: str) -> bool:
    """Whether a name is usable as the name of a file, and does not lead out of its folder."""
    return bool(name) and name not in (".", "..") and not {"/", "\\"} & set(name) and name.isprintable()


def check_file_name(name: str, what: str) -> None:
    """Raises ConfigError where `is_file_name` is False. what: what the message calls the name."""
    if not is_file_name(name):
        raise ConfigError(f"{what}: {name!r} is not a name: give letters, digits, - and _, without / and \\")


def plain_json(value: Any) -> Any:
    """The value with paths, NaN and infinities as strings, for JSON."""
    if isinstance(value, Mapping):
        return {str(name): plain_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return str(value) if isinstance(value, Path) else value


def require_file(path: Path | str, kind: str = "file") -> Path:
    """The path of an existing file. Raises ConfigError, with the nearest name in its folder, where there is none.

    kind: what the message calls it, such as "experiment file".
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.parent.is_dir():
        raise ConfigError(f"there is no {kind} {path}: there is no folder {path.parent}")
    others = [other.name for other in path.parent.iterdir() if other.suffix == path.suffix]
    if not others:
        raise ConfigError(f"there is no {kind} {path}; {path.parent} holds no {path.suffix or 'such'} file")
    raise ConfigError(f"there is no {kind} {path}{nearest(path.name, others, listed=len(others) <= _MOST_SUGGESTED)}")


def digest(*parts: bytes | memoryview | str, length: int = 32) -> str:
    """The first `length` (at most 64) hexadecimal digits of the sha256 of all parts together; text is UTF-8."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
    return found.hexdigest()[:length]


def file_sha256(path: Path) -> str:
    """The sha256 of a whole file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def edges(*paths: Path) -> str:
    """A hash of the size and the first and last MiB of each file: quick for files of any size."""
    parts: list[bytes] = []
    for path in paths:
        with require_file(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            parts += [f"{size}:".encode(), file.read(_MIB)]
            file.seek(max(0, size - _MIB))
            parts.append(file.read())
    return digest(*parts)
