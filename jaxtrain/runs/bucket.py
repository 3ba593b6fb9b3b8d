"""Checkpoints on a bucket: one sent, fetched, set aside, removed. Not here: which, when, and what becomes of errors."""

import contextlib
import itertools
import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from jaxtrain.base.checksums import MANIFEST, Manifest
from jaxtrain.base.errors import ConfigError, Damaged, DamagedCheckpoint
from jaxtrain.base.files import atomic_write, digest
from jaxtrain.base.packages import needs
from jaxtrain.experiment.saved import METRICS
from jaxtrain.runs.retention import saving, set_aside
from jaxtrain.runs.saving import sync_folder

RUN_FILES = ("experiment.json", "metrics.jsonl", "events.jsonl", "steps.bin")
"""What is sent of a run's folder beside its checkpoints."""

_BLOCK = 8 << 20  # bytes that are copied at once

_STEP = re.compile(r"0|[1-9][0-9]{0,8}")


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it. Raises ConfigError where it is unknown or not installed."""
    protocol = url.partition("://")[0]
    folders = {"auto_mkdir": True} if protocol == "file" else {}
    with needs(f"checkpoints in {url!r}", f"fsspec with {protocol}://", "bucket"):
        from fsspec.core import url_to_fs

        try:
            return url_to_fs(url.rstrip("/"), use_listings_cache=False, skip_instance_cache=True, **folders)
        except ValueError as error:
            raise ConfigError(f"checkpoints: {url!r} cannot be used: {error}") from error


class Bucket:
    """The checkpoints of one run below a URL, a folder per step. One without its manifest, which is sent last, is not
    complete. A method raises what the file system raises, of any library.
    """

    def __init__(self, url: str, fingerprint: str) -> None:
        """`fingerprint`: of the run's experiment."""
        self.url, (self._fs, self._root) = url.rstrip("/"), file_system(url)
        self._owner = json.dumps({"fingerprint": fingerprint}).encode()
        self.sent: dict[int, str] = {}
        """A hash of the manifest of each step that is there for certain."""
        self._files: dict[str, tuple[int, int]] = {}
        """Size and time of each of the run's files that is there for certain."""

    def check_owner(self, write: bool) -> bool:
        """Whether it is marked as this experiment's. Raises ConfigError for one of another. write: mark one of none."""
        found = self._read("run.json")
        if found is None and write:
            self._fs.pipe_file(f"{self._root}/run.json", self._owner)
        elif found not in (None, self._owner):
            raise ConfigError(
                f"checkpoints: {self.url} holds those of another experiment (its run.json has another fingerprint): "
                "give each run a prefix of its own"
            )
        return found is not None or write

    def steps(self) -> list[int]:
        """The steps of the checkpoints, ascending, those that are not complete too."""
        try:
            names = [name.rstrip("/").rpartition("/")[2] for name in self._fs.ls(self._root, detail=False)]
        except FileNotFoundError:
            return []
        return sorted(int(name) for name in names if _STEP.fullmatch(name))

    def is_complete(self, step: int) -> bool:
        """Whether a step has its manifest."""
        return self._read(f"{step}/{MANIFEST}") is not None

    def scores(self, steps: Sequence[int], metric: str | None) -> dict[int, float]:
        """The value of a metric of each of these steps that has a finite one."""
        found: dict[int, float] = {}
        for step in steps if metric is not None else []:
            with contextlib.suppress(ValueError, TypeError, LookupError, RecursionError):
                found[step] = float(json.loads(self._read(f"{step}/{METRICS}") or b"{}")[metric])
        return {step: score for step, score in found.items() if math.isfinite(score)}

    def send(self, checkpoint: Path) -> None:
        """Send a checkpoint, unless it is there. Raises Damaged where its bytes are not those of its manifest."""
        step, text = int(checkpoint.name), (checkpoint / MANIFEST).read_bytes()
        if self.sent.get(step) == digest(text):
            return
        self.sent.pop(step, None)
        if (before := self._read(f"{step}/{MANIFEST}")) != text and (manifest := Manifest.read(checkpoint)) is not None:
            if before is not None:
                self._fs.rm_file(f"{self._root}/{step}/{MANIFEST}")
            for name, known in manifest.files.items():
                with (checkpoint / name).open("rb") as source, self._fs.open(f"{self._root}/{step}/{name}", "wb") as to:
                    _copy(source, to, known, str(checkpoint / name))
            self._fs.pipe_file(f"{self._root}/{step}/{MANIFEST}", text)
        self.sent[step] = digest(text)

    def send_files(self, run: Path) -> None:
        """Send what of a run's files has changed since they were sent."""
        for path in [run / name for name in RUN_FILES if (run / name).is_file()]:
            if self._files.get(path.name) != (state := (path.stat().st_size, path.stat().st_mtime_ns)):
                self._fs.pipe_file(f"{self._root}/run/{path.name}", path.read_bytes())
                self._files[path.name] = state

    def fetch_files(self, run: Path) -> list[str]:
        """Fetch what a run's folder lacks of its files, whose names are returned."""
        found = [(name, self._read(f"run/{name}")) for name in RUN_FILES if not os.path.lexists(run / name)]
        for name, data in found:
            if data is not None:
                with atomic_write(run / name) as temporary:
                    temporary.write_bytes(data)
        return [name for name, data in found if data is not None]

    def fetch(self, step: int, checkpoints: Path) -> bool:
        """Fetch a checkpoint into a folder, in place of one of its name, which is set aside, and verify it meanwhile.

        False for one that is not complete; raises DamagedCheckpoint, and then the folder is as it was.
        """
        if (text := self._read(f"{step}/{MANIFEST}")) is None:
            return False
        target, name = checkpoints / str(step), MANIFEST
        partial = saving(target)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            (partial / MANIFEST).write_bytes(text)
            manifest = Manifest.read(partial)  # refuses names that lead out of the folder
            for name, known in manifest.files.items() if manifest is not None else ():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                with self._opened(f"{step}/{name}") as source, (partial / name).open("wb") as to:
                    _copy(source, to, known, name)
                    to.flush()
                    os.fsync(to.fileno())
            if target.exists():
                set_aside(target, checkpoints.parent / "damaged")
            os.rename(partial, target)
            sync_folder(checkpoints)
        except Damaged as fault:
            raise DamagedCheckpoint(f"{self.url}/{step}/{name}", None, fault.why) from fault
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return True

    def remove(self, step: int) -> None:
        """Remove a checkpoint, its manifest first."""
        self.sent.pop(step, None)
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{step}/{MANIFEST}")
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(f"{self._root}/{step}", recursive=True)

    def set_aside(self, step: int, folder: str = "damaged") -> str:
        """Move a checkpoint to where it is none, beside those of its name there. Returns its new place."""
        names = (f"{folder}/{step}{'' if number == 1 else f'-{number}'}" for number in itertools.count(1))
        place = next(name for name in names if not self._fs.exists(f"{self._root}/{name}"))
        for name in self._fs.find(f"{self._root}/{step}"):
            self._fs.cp_file(name, f"{self._root}/{place}{name.partition(f'{self._root}/{step}')[2]}")
        self.remove(step)
        return f"{self.url}/{place}"

    def _opened(self, name: str) -> BinaryIO:
        try:
            return self._fs.open(f"{self._root}/{name}", "rb")
        except FileNotFoundError:
            raise Damaged(name, None, "it is missing") from None

    def _read(self, name: str) -> bytes | None:
        try:
            return self._fs.cat_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return None


def _copy(source: BinaryIO, to: BinaryIO, known: tuple[int, int], name: str) -> None:
    """Copy a file of known size and crc32. Raises Damaged where its bytes are others."""
    size, crc = 0, 0
    while (block := source.read(_BLOCK)) and size <= known[0]:
        size, crc = size + len(block), zlib.crc32(block, crc)
        to.write(block)
    if (size, crc) != tuple(known):
        raise Damaged(name, None, "its bytes have changed since it was written: its size or checksum differs")
