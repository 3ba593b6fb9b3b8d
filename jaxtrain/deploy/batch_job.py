"""Predictions for the rows of a file: one line of JSON for each line of the input, in its order.

What is done is kept beside the output, so that the same command goes on after it was killed, and ends with the same
bytes. Needs no jax. Not here: the model.
"""

import contextlib
import fcntl
import functools
import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxtrain.base.errors import ConfigError, cannot_write
from jaxtrain.base.files import digest, file_sha256, read_json, require_file, write_json
from jaxtrain.base.text import size
from jaxtrain.deploy.bundle import Bundle
from jaxtrain.deploy.golden import decoded, encoded
from jaxtrain.deploy.manifest import MANIFEST_FILE
from jaxtrain.deploy.values import json_value
from jaxtrain.runs.screen import Writer, draws

CHUNK = 256
"""Rows that are computed, and written, together: the same ones whenever a job goes on."""

_SHOWN = 20  # bad rows in messages

_LONGEST = 64 << 20  # bytes of a row


@dataclass(frozen=True)
class Finished:
    """How a batch job ended: rows, and how many of them were bad."""

    rows: int
    bad: int


def predict_file(bundle: Bundle, source: Path, output: Path) -> Finished:
    """Write `output`: a line {"probabilities": …} for each line of `source`, with the row's "id" where it has one, or
    {"error": …} for a row that cannot be read or that the signature does not take; these are named on stderr.

    source: a line of JSON a row: an object by the names of the inputs, or the value of the one input.

    Raises ConfigError, and leaves what is there, where rows of another bundle or of an input that has changed since
    are done already, and where another process writes the same output.
    """
    if not _is_file(source, "--input"):
        require_file(source)
    if not os.access(source, os.R_OK):
        raise ConfigError(f"--input: {source} cannot be read: you are not permitted to")
    if _is_file(output, "--output") and output.samefile(source):
        raise ConfigError(f"--output is --input, {source}: name another file")
    output = output.resolve()  # a link stays one
    part, rows = output.with_name(f".{output.name}.part"), 0
    try:
        with part.open("ab") as to, source.open("rb") as lines, contextlib.closing(_Bar(source, output.name)) as bar:
            _lock(to, output)
            before, given = _state(lines), _lines(lines)
            job = _identity(bundle, source)
            rows, bad = _done(to, part, job, source), _bad_lines(part)
            for line in islice(given, rows):
                bar.add(len(line))
            while made := [*map(functools.partial(_row_of, bundle), islice(given, CHUNK))]:
                answers = _answers(bundle, [each for each, _ in made])
                bad += [(rows + number, each["error"]) for number, each in enumerate(answers, 1) if "error" in each]
                to.write(b"".join(map(_line, answers)))
                to.flush()
                rows += len(made)
                bar.add(sum(size for _, size in made))
            os.fsync(to.fileno())
            if _state(lines) != before:
                to.truncate(0)
                raise ConfigError(f"{source} was changed while it was read: run the command again once it is whole")
            os.replace(part, output)
        _note(part).unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(f"the predictions in {output}", error) from error
    except KeyboardInterrupt:
        print(f"{rows:,} rows of {source} are done, and the same command goes on after them", file=sys.stderr)
        raise
    for line, why in bad[:_SHOWN]:
        print(f"{source}, line {line}: {why}", file=sys.stderr)
    if len(bad) > _SHOWN:
        print(f"… and {len(bad) - _SHOWN:,} more bad rows", file=sys.stderr)
    return Finished(rows, len(bad))


def _is_file(path: Path, flag: str) -> bool:
    """Whether there is a file. Raises ConfigError for what is no file: a folder, a pipe, a device."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device, which cannot be gone on with"
        raise ConfigError(f"{flag}: {path} is {what}: name a file")
    return True


def _lock(file: BinaryIO, output: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"another process writes {output} at the moment") from error


def _note(part: Path) -> Path:
    """The file that says what job a part is of."""
    return part.with_name(f"{part.name}.json")


def _identity(bundle: Bundle, source: Path) -> dict[str, str]:
    """What a job is of: a part of another job is not gone on with."""
    return {
        "bundle": digest((bundle.folder / MANIFEST_FILE).read_bytes(), length=64),
        "backend": f"{bundle.backend} {bundle.file}",
        "input": file_sha256(source),
        "chunk": str(CHUNK),
    }


def _done(to: BinaryIO, part: Path, job: Mapping[str, str], source: Path) -> int:
    """How many rows are done, whole chunks of them; what lies beyond these is cut off.

    Raises ConfigError for rows of another job.
    """
    ends, size = [0], 0
    with part.open("rb") as file:
        for line in file:
            size += len(line)
            if line.endswith(b"\n"):
                ends.append(size)
    whole = (len(ends) - 1) // CHUNK * CHUNK
    if whole and (others := _differing(part, job)):
        raise ConfigError(
            f"{part} holds {whole:,} rows that were made of another {others}: put that back to go on with {source}, or "
            "delete this file to begin anew"
        )
    if not whole:
        write_json(_note(part), dict(job))
    to.truncate(ends[whole])
    return whole


def _differing(part: Path, job: Mapping[str, str]) -> str:
    """What of a job is not that of the rows that are done."""
    try:
        found = read_json(_note(part))
    except ConfigError:
        found = None
    if not isinstance(found, dict):
        return "job"
    return " and ".join(name for name, value in job.items() if found.get(name) != value)


def _bad_lines(part: Path) -> list[tuple[int, str]]:
    with part.open("rb") as file:
        found = ((number, json.loads(line)) for number, line in enumerate(file, 1) if line.startswith(b'{"error"'))
        return [(number, each["error"]) for number, each in found]


def _state(file: BinaryIO) -> tuple[int, int]:
    """What is another where a file has changed."""
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; of one that is too long only the beginning, without its end."""
    while line := file.readline(_LONGEST):
        yield line
        while len(line) == _LONGEST and not line.endswith(b"\n"):
            line = file.readline(_LONGEST)


@dataclass(frozen=True)
class _Row:
    """A row that the signature takes: its tensors, of one row, and its id where it has one."""

    tensors: Mapping[str, np.ndarray]
    id: Mapping[str, Any]


def _row_of(bundle: Bundle, line: bytes) -> tuple[_Row | str, int]:
    """The row of a line, or why it is none; and how many bytes it has."""
    if len(line) == _LONGEST:
        return f"it has {_LONGEST:,} bytes or more", len(line)
    try:
        return _row(bundle, line), len(line)
    except (ValueError, RecursionError) as error:
        return "it is empty" if not line.strip() else str(error) or type(error).__name__, len(line)


def _row(bundle: Bundle, line: bytes) -> _Row:
    """Raises ValueError for a line that is none."""
    value = json_value(line.decode("utf-8-sig"))
    named = {"id": value["id"]} if isinstance(value, dict) and "id" in value else {}
    if named and "id" not in {each.name for each in bundle.signature.inputs}:
        del value["id"]
    return _Row(bundle.signature.tensors_of(bundle.signature.rows([decoded(value)])), named)


def _answers(bundle: Bundle, rows: Sequence[_Row | str]) -> list[dict[str, Any]]:
    """One object for each row."""
    good = [(number, row) for number, row in enumerate(rows) if isinstance(row, _Row)]
    made: list[dict[str, Any]] = [{"error": row} for row in rows]
    if good:
        names = [each.name for each in bundle.signature.tensors]
        outputs = bundle.run({name: np.concatenate([row.tensors[name] for _, row in good]) for name in names})
        for place, (number, row) in enumerate(good):
            made[number] = {**row.id, **{name: encoded(x[place]) for name, x in outputs.items()}}
    return made


def _line(answer: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(answer, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, in an id
        return json.dumps(answer).encode() + b"\n"


class _Bar:
    """Progress on stderr where that is a terminal."""

    def __init__(self, source: Path, name: str) -> None:
        self._name, self._done, self._of = name, 0, source.stat().st_size
        self._writer = Writer(sys.stderr, self._draw) if sys.stderr is not None and draws(sys.stderr) else None

    def add(self, count: int) -> None:
        """These bytes of the input are done."""
        self._done += count

    def _draw(self, width: int, height: int) -> list[str]:
        return [f"{self._name}  {size(self._done)} of {size(self._of)}  {self._done / max(1, self._of):.0%}"[:width]]

    def close(self) -> None:
        """Leave the last progress on the terminal."""
        if self._writer is not None:
            self._writer.close()
