"""Files of one JSON object a line, which are only appended to and survive a kill in the middle of a line."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.files import plain_json, replace_text


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, without a last line that was cut off; [] if there is no file.

    Raises ConfigError for a damaged line before the last.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    try:
        return [json.loads(line) for line in lines[:-1]]  # what follows the last newline was cut off
    except ValueError as error:
        raise ConfigError(f"{path} has a line that is not JSON: {error}") from None


def append_line(path: Path, line: Mapping[str, object]) -> None:
    """Append one object; NaN and infinities become the strings "nan", "inf" and "-inf"."""
    # Opened each time: `write_lines` replaces the file, and a network file system shows it to others when it is closed.
    with path.open("a", encoding="utf-8") as file:
        file.write(_dump(line))


def write_lines(path: Path, lines: Iterable[Mapping[str, object]]) -> None:
    """Replace the file, whole or not at all."""
    replace_text(path, "".join(map(_dump, lines)))


def drop_partial_line(path: Path) -> None:
    """Cut off what follows the last newline, so that the next line is not appended to it."""
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def _dump(line: Mapping[str, object]) -> str:
    return json.dumps(plain_json(line), allow_nan=False) + "\n"
