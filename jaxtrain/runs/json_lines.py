"""JSON Lines files that are only appended to, and can be read and continued after a kill in the middle of a line."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtrain.base.files import atomic_write, plain_json


@dataclass(frozen=True)
class BadLine:
    """A damaged line: its number from 1, its bytes, and what is wrong with it."""

    number: int
    data: bytes
    why: str


Check = Callable[[dict[str, Any]], str]
"""Returns what is wrong with an object, or ""."""


def scan_lines(path: Path, check: Check | None = None) -> tuple[list[tuple[bytes, dict[str, Any]]], list[BadLine]]:
    """The good lines of a file, with their objects, and the damaged ones. A last line that was cut off is in neither,
    unless only its newline is missing. A missing file has no lines.
    """
    good: list[tuple[bytes, dict[str, Any]]] = []
    bad: list[BadLine] = []
    *lines, rest = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, line in enumerate([*lines, *([rest] if rest else [])], 1):
        found, why = _parsed(line)
        why = why or (check(found) if check else "")
        if not why:
            good.append((line, found))
        elif number <= len(lines) or b"\0" in line:
            bad.append(BadLine(number, line, why))
    return good, bad


def _parsed(line: bytes) -> tuple[dict[str, Any], str]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {}, f"it is not JSON ({type(error).__name__})"
    return (found, "") if isinstance(found, dict) else ({}, "it is not a JSON object")


def read_lines(path: Path, check: Check | None = None) -> list[dict[str, Any]]:
    """The objects of a file, without a last line that was cut off; [] if there is no file.

    Damaged lines are left out, with a warning.
    """
    good, bad = scan_lines(path, check)
    for line in bad:
        logging.getLogger("jaxtrain.runs").warning("%s, line %d is left out: %s", path, line.number, line.why)
    return [found for _, found in good]


def repair_lines(path: Path, check: Check | None = None, last_step: int | None = None) -> list[str]:
    """Move damaged lines to NAME.damaged.jsonl beside the file, and drop lines of steps after `last_step` and a last
    line that was cut off. Returns a message for each damaged line.
    """
    good, bad = scan_lines(path, check)
    kept = b"".join(line + b"\n" for line, found in good if last_step is None or found["step"] <= last_step)
    aside = path.with_name(f"{path.stem}.damaged.jsonl")
    if bad:  # written before they are removed, so that a kill in between loses none
        with aside.open("ab") as file:
            file.write(b"".join(line.data + b"\n" for line in bad))
    if path.exists() and kept != path.read_bytes():
        with atomic_write(path) as temporary:
            temporary.write_bytes(kept)
    return [f"{path}, line {line.number}: {line.why}; it was moved to {aside.name}" for line in bad]


def append_line(path: Path, line: Mapping[str, object]) -> None:
    """Append one object; NaN and infinities become the strings "nan", "inf" and "-inf"."""
    # Opened each time: `repair_lines` replaces the file, and other hosts see the line once the file is closed.
    with path.open("a", encoding="utf-8") as file:
        file.write(_dump(line))


def _dump(line: Mapping[str, object]) -> str:
    return json.dumps(plain_json(line), allow_nan=False) + "\n"
