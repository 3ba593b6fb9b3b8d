"""Files written whole or not at all, and JSON."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtrain.base.errors import ConfigError


def write_json(path: Path, value: object) -> None:
    """Writes the file whole or not at all, whatever kills the process. NaN and infinities become strings."""
    replace_text(path, json.dumps(plain_json(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote. Raises `ConfigError` when the file is missing or is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no {path}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None


def plain_json(value: Any) -> Any:
    """The value with paths, NaN and infinities as strings, for JSON."""
    if isinstance(value, Mapping):
        return {str(name): plain_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return str(value) if isinstance(value, Path) else value


def replace_text(path: Path, text: str) -> None:
    """Write the file whole or not at all, on disk when this returns."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
