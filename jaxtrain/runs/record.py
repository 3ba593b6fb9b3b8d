"""What a run folder keeps beside checkpoints: where it ran, metrics, events, time. Not what is on screen."""

import datetime
import importlib.metadata
import json
import math
import os
import platform
import shlex
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from jaxtrain.errors import ConfigError, nearest

VARIABLES = ("XLA_", "JAX_", "LIBTPU_", "NCCL_", "CUDA_VISIBLE_DEVICES")


def environment() -> dict[str, Any]:
    """What somebody needs to run the same again: code, command, packages, variables and hardware; JSON.

    `git` holds revision, diff (`git diff HEAD`) and the untracked files of the repository around the working
    directory, and is None outside of one. Starts JAX's backend.
    """
    packages = {d.name: d.version for d in importlib.metadata.distributions()}
    return {
        "git": _git(),
        "command": shlex.join(sys.orig_argv),
        "folder": os.getcwd(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hostname": socket.gethostname(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)},
        "hardware": {
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "platform": jax.default_backend(),
            "processes": jax.process_count(),
            "cpus": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        },
    }


def revision() -> str | None:
    """The git revision of the repository around the working directory, marked where it has changes."""
    git = _git()
    if git is None or git["revision"] is None:
        return None
    return git["revision"] + (" with changes" if git["diff"] or git["untracked"] else "")


def _git() -> dict[str, Any] | None:
    def git(*arguments: str) -> str | None:
        command = ["git", *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        except FileNotFoundError:
            return None
        return done.stdout if done.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    if top is None:
        return None
    root = top.removesuffix("\n")
    untracked = git("-C", root, "ls-files", "--others", "--exclude-standard", "-z")
    revision = git("rev-parse", "HEAD")
    return {
        "revision": revision and revision.strip(),
        "diff": git("-C", root, "diff", "--no-color", "--no-ext-diff", "HEAD"),
        "untracked": (untracked or "").split("\0")[:-1],
    }


def write_json(path: Path, value: object) -> None:
    """Writes the file whole or not at all, whatever kills the process. NaN and infinities become strings."""
    _replace(path, json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote. Raises `ConfigError` when the file is missing or is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no {path}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl (or events.jsonl), without a last one that was cut off; [] without a file.

    Raises `ConfigError` for a damaged line before the last.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    try:
        # Whatever follows the last newline was not written to its end.
        return [json.loads(line) for line in lines[:-1]]
    except ValueError as error:
        raise ConfigError(f"{path} has a line that is not JSON: {error}") from None


class Recorder:
    """Appends to metrics.jsonl, events.jsonl and TensorBoard files in `folder`; each call is on disk at once.

    active: False writes nothing, for all processes but the first.
    """

    def __init__(self, folder: Path, active: bool = True) -> None:
        self.folder = folder
        self.active = active
        self._metrics = folder / "metrics.jsonl"
        self._events = folder / "events.jsonl"
        self._board = _Board(folder / "tensorboard") if active else None
        if active:
            folder.mkdir(parents=True, exist_ok=True)
            _mend(self._metrics)
            _mend(self._events)

    def metrics(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One line: step, split, then the values (NaN and infinities as the strings "nan", "inf", "-inf").

        Raises `TypeError` for a metric called step or split. A failing TensorBoard is said in one event.
        """
        if not self.active:
            return
        numbers = {name: float(value) for name, value in values.items()}
        _append(self._metrics, dict(step=step, split=split, **numbers))
        if self._board is not None:
            try:
                self._board.write(step, {f"{split}/{name}": value for name, value in numbers.items()})
            except OSError as error:
                self._board = None
                self.event("tensorboard_failed", step=step, error=str(error))

    def event(self, kind: str, **fields: object) -> None:
        """One line: the UTC time in ISO format, the kind, then the fields (JSON)."""
        if self.active:
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
            _append(self._events, dict(time=now, kind=kind, **fields))

    def rewind(self, step: int) -> None:
        """Drops the metrics after `step`, for a run that goes on from there; TensorBoard hides them."""
        if not self.active:
            return
        lines = read_metrics(self._metrics)
        kept = [line for line in lines if line["step"] <= step]
        if len(kept) < len(lines):
            _replace(self._metrics, "".join(json.dumps(line) + "\n" for line in kept))
        if self._board is not None:
            self._board.purge = step + 1


class _Board:
    """One TensorBoard event file, made at the first write.

    Not tensorboardX's SummaryWriter: a full disk ends its thread, and then its queue blocks the run. Nor its
    EventsWriter, which syncs the disk: that would wait for a checkpoint being written.
    """

    def __init__(self, folder: Path) -> None:
        # Two openings within a second get two files, for the second one may hide steps of the first.
        self._path = folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self.purge: int | None = None

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        from tensorboardX.summary import Summary
        from tensorboardX.writer import Event, SessionLog

        now = time.time()
        events = []
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            events.append(Event(wall_time=now, file_version="brain.Event:2"))
        if self.purge is not None:
            start = SessionLog(status=SessionLog.START)
            events.append(Event(wall_time=now, step=self.purge, session_log=start))
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        events.append(Event(wall_time=now, step=step, summary=Summary(value=values)))
        with self._path.open("ab") as file:
            file.write(b"".join(_framed(event.SerializeToString()) for event in events))
        self.purge = None


def _framed(data: bytes) -> bytes:
    """TFRecord: length, its checksum, data, their checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))))


class Clock:
    """Accounts for the wall clock: `with clock("compile"): ...`; what is in no context is "other".

    Of nested contexts the inner one is charged. For one thread.
    """

    NAMES = ("compile", "data", "step", "eval", "checkpoint", "other")

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(self.NAMES, 0.0)
        self._spans = {name: _Span(self, name) for name in self.NAMES}
        self._open = ["other"]
        self._since = time.perf_counter()

    def __call__(self, name: str) -> "_Span":
        """The context that charges `name`. Raises `ConfigError` for a name that is not in `NAMES`."""
        span = self._spans.get(name)
        if span is None:
            raise ConfigError(f"the clock has no account {name!r}{nearest(name, self.NAMES)}")
        return span

    @property
    def phase(self) -> str:
        """What is charged at the moment."""
        return self._open[-1]

    def account(self) -> dict[str, float]:
        """Seconds by name until now, and their sum as "total"."""
        self._charge()
        return {**self._seconds, "total": sum(self._seconds.values())}

    def _charge(self) -> None:
        now = time.perf_counter()
        self._seconds[self._open[-1]] += now - self._since
        self._since = now


class _Span:
    def __init__(self, clock: Clock, name: str) -> None:
        self._clock = clock
        self._name = name

    def __enter__(self) -> None:
        self._clock._charge()
        self._clock._open.append(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clock._charge()
        self._clock._open.pop()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return str(value) if isinstance(value, Path) else value


def _append(path: Path, line: Mapping[str, object]) -> None:
    # Opened each time: `rewind` replaces the file, and a network file system shows it to others on closing.
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(_plain(line), allow_nan=False) + "\n")


def _mend(path: Path) -> None:
    """Cuts off what follows the last newline, or the next line would be glued to it."""
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
