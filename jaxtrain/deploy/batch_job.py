"""Predictions for the rows of a file: one line of JSON for each line of the input, in its order.

What is done is kept beside the output, so that the same command goes on after it was killed, and ends with the same
bytes. Needs no jax. Not here: the model.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from jaxtrain.base.errors import ConfigError, cannot_write
from jaxtrain.base.files import digest, edges, read_json, require_file, write_json
from jaxtrain.deploy.bundle import Bundle
from jaxtrain.deploy.golden import decoded, encoded
from jaxtrain.deploy.manifest import MANIFEST_FILE
from jaxtrain.deploy.signature import Row

CHUNK = 256
"""Rows that are computed, and written, together: the same ones whenever a job goes on."""

_SHOWN = 20  # bad rows in messages


@dataclass(frozen=True)
class Finished:
    """How a batch job ended: rows, and how many of them were bad."""

    rows: int
    bad: int


def predict_file(bundle: Bundle, source: Path, output: Path) -> Finished:
    """Write `output`: a line {"probabilities": …} for each line of `source`, with the row's "id" where it has one, or
    {"error": …} for a row that cannot be read or that the signature does not take; these are named on stderr.

    source: a line of JSON a row: an object by the names of the inputs, or the value of the one input.
    """
    if require_file(source).resolve() == output.resolve():
        raise ConfigError(f"--output is --input, {source}: name another file")
    part = output.with_name(f".{output.name}.part")
    note, job = part.with_name(f"{part.name}.json"), _identity(bundle, source)
    try:
        done = _done(part, note, job)
        rows, bad = done, _bad_lines(part)
        with source.open("rb") as lines, part.open("ab") as to, _Bar(source, output.name) as bar:
            for line in islice(lines, done):
                bar.add(len(line))
            while chunk := [*islice(lines, CHUNK)]:
                made = _answers(bundle, chunk)
                bad += [(rows + number, each["error"]) for number, each in enumerate(made, 1) if "error" in each]
                to.write(b"".join(_line(each) for each in made))
                to.flush()
                rows += len(chunk)
                bar.add(sum(map(len, chunk)))
            os.fsync(to.fileno())
        os.replace(part, output)
        note.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(f"the predictions in {output}", error) from error
    for line, why in bad[:_SHOWN]:
        print(f"{source}, line {line}: {why}", file=sys.stderr)
    if len(bad) > _SHOWN:
        print(f"… and {len(bad) - _SHOWN:,} more bad rows", file=sys.stderr)
    return Finished(rows, len(bad))


def _identity(bundle: Bundle, source: Path) -> dict[str, str]:
    """What a job is of: a part of another job is not gone on with."""
    return {
        "bundle": digest((bundle.folder / MANIFEST_FILE).read_bytes(), length=64),
        "backend": f"{bundle.backend} {bundle.file}",
        "input": edges(source),
        "chunk": str(CHUNK),
    }


def _done(part: Path, note: Path, job: Mapping[str, str]) -> int:
    """How many rows are done, whole chunks of them; what lies beyond these is cut off."""
    try:
        mine = read_json(note) == job
    except ConfigError:
        mine = False
    if not mine or not part.is_file():
        part.unlink(missing_ok=True)
        write_json(note, dict(job))
        return 0
    ends, size = [0], 0
    with part.open("rb") as file:
        for line in file:
            size += len(line)
            if line.endswith(b"\n"):
                ends.append(size)
    whole = (len(ends) - 1) // CHUNK * CHUNK
    os.truncate(part, ends[whole])
    return whole


def _bad_lines(part: Path) -> list[tuple[int, str]]:
    if not part.is_file():
        return []
    with part.open("rb") as file:
        found = ((number, json.loads(line)) for number, line in enumerate(file, 1) if line.startswith(b'{"error"'))
        return [(number, each["error"]) for number, each in found]


def _answers(bundle: Bundle, lines: list[bytes]) -> list[dict[str, Any]]:
    """One object for each line."""
    rows: list[Row | str] = [_row(bundle, line) for line in lines]
    good = [(number, row) for number, row in enumerate(rows) if not isinstance(row, str)]
    made: list[dict[str, Any]] = [{"error": row} for row in rows]
    if good:
        outputs = bundle.run(bundle.signature.tensors_of([_inputs(row) for _, row in good]))
        for place, (number, row) in enumerate(good):
            values = {name: encoded(x[place]) for name, x in outputs.items()}
            made[number] = {**({"id": row["id"]} if "id" in row else {}), **values}
    return made


def _row(bundle: Bundle, line: bytes) -> Row | str:
    """The raw input of a line, or why it is none."""
    try:
        value = decoded(json.loads(line.decode(), parse_constant=_no_number))
        [row] = bundle.signature.rows([value])
        bundle.signature.tensors_of([_inputs(row)])
    except (ConfigError, ValueError, RecursionError) as error:
        return "it is empty" if not line.strip() else str(error) or type(error).__name__
    return row


def _inputs(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "id"}


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON: a number that is missing is null")


def _line(answer: Mapping[str, Any]) -> bytes:
    return json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


class _Bar:
    """Progress on stderr where that is a terminal."""

    def __init__(self, source: Path, name: str) -> None:
        self._bar: Any = None
        if sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=source.stat().st_size, desc=name, unit="B", unit_scale=True, dynamic_ncols=True)

    def __enter__(self) -> "_Bar":
        return self

    def add(self, count: int) -> None:
        """These bytes of the input are done."""
        if self._bar is not None:
            self._bar.update(count)

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
