"""Files: written whole or not at all, missing ones named, hashes, JSON."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import threading
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from jaxtrain.base.errors import ConfigError, nearest

_MIB = 1 << 20

_LARGEST = 64 * _MIB  # of a JSON file: the diff of git in environment.json may be long

_DEEPEST = 100

_LISTED = 20  # names in an error message


@contextlib.contextmanager
def atomic_write(path: Path) -> Generator[Path]:
    """A temporary path beside `path`, which replaces it at the end of the block; then it is on disk.

    After an error in the block `path` is as it was, and the temporary file is gone.
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
    """A new folder beside `path`, which takes that name at the end of the block; its files have to be on disk by then.

    After an error in the block the new folder is gone. Raises OSError where `path` exists and holds files.
    """
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_unfinished(path: Path) -> None:
    """Remove what `atomic_folder(path)` left in processes that were killed. No other process may be writing `path`."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")


def replace_text(path: Path, text: str) -> None:
    """Write a file of UTF-8 text whole or not at all; it is on disk when this returns."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write a JSON file whole or not at all. NaN and infinities become strings."""
    replace_text(path, json_text(value) + "\n")


def json_text(value: object) -> str:
    """JSON, with NaN and infinities as strings."""
    return json.dumps(plain_json(value), indent=2, allow_nan=False)


def read_json(path: Path) -> Any:
    """What `write_json` wrote. Raises `ConfigError` when the file is missing or holds what that never writes: other
    than JSON of UTF-8, a key twice, NaN, a number beyond float64, more than 64 MiB, or values inside of 100 others.
    """
    if (size := require_file(path).stat().st_size) > _LARGEST:
        raise ConfigError(f"{path} has {size:,} bytes, more than the {_LARGEST:,} that a file of this kind may have")
    return parsed_json(path.read_bytes(), str(path))


def parsed_json(content: bytes, path: str) -> Any:
    """The value of a JSON file with this content. Raises ConfigError as `read_json` does."""
    try:
        value = json.loads(content.decode(), object_pairs_hook=_object, parse_float=_number, parse_constant=_number)
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    except RecursionError:
        value = None
    if value is None or _deeper(value, _DEEPEST):
        raise ConfigError(
            f"{path} is null, or has values inside of more than {_DEEPEST} others: nothing like it is saved"
        )
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return found


def _number(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is no finite number of float64")
    return number


def _deeper(value: Any, most: int) -> bool:
    """Whether a value of JSON has values inside of more than `most` others."""
    level = [value]
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
    """Whether a name may be that of a file in a folder, and does not lead out of it."""
    return bool(name) and name not in (".", "..") and not {"/", "\\"} & set(name) and name.isprintable()


def check_file_name(name: str, what: str) -> None:
    """Raises ConfigError for a name that is no `is_file_name`."""
    if not is_file_name(name):
        raise ConfigError(f"{what}: {name!r} is no name: give letters, digits, - and _, without / and \\")


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
    """The path of a file that is there. Raises ConfigError with the nearest name in its folder where it is not.

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
    raise ConfigError(f"there is no {kind} {path}{nearest(path.name, others, listed=len(others) <= _LISTED)}")


def digest(*parts: bytes | memoryview | str, length: int = 32) -> str:
    """The first `length` of 64 hexadecimal digits of the sha256 of the parts put together; text counts as UTF-8."""
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
