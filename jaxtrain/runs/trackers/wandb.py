"""Weights & Biases. Its library runs in a process of its own, since its threads, exit handlers and service would
outlive a run whose network is gone; this process can be ended.

Not here: what that process does (`wandb_process`).
"""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxtrain.base.errors import ConfigError
from jaxtrain.base.files import read_json, write_json
from jaxtrain.base.packages import needs
from jaxtrain.runs.trackers.base import TrackedRun, Tracker
from jaxtrain.runs.trackers.mirror import Lines, Sink

_PROGRAM = Path(__file__).with_name("wandb_process.py")


@dataclass(frozen=True, kw_only=True)
class WandB(Tracker):
    """Copies a run to Weights & Biases, or in `mode="offline"` into files below trackers/ in the run folder, which
    `wandb sync` sends later. A run that resumes keeps its id. Logging in is the machine's: `wandb login`, or the
    variable WANDB_API_KEY.
    """

    project: str = "jaxtrain"
    entity: str | None = None
    """The user or team; None is the one that is logged in."""
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: Literal["online", "offline"] = "online"

    def check(self, experiment: Any) -> None:
        with needs("the tracker WandB", "wandb", "wandb"):
            if importlib.util.find_spec("wandb") is None:
                raise ImportError("No module named 'wandb'")

    def connect(self, run: TrackedRun) -> Sink:
        folder = run.folder.absolute() / "trackers"
        folder.mkdir(exist_ok=True)
        options = {
            "id": kept_id(folder / "wandb.json", lambda: uuid.uuid4().hex[:12]),
            "name": run.name,
            "project": self.project,
            "entity": self.entity,
            "group": self.group,
            "tags": list(self.tags),
            "mode": self.mode,
            "dir": str(folder),
            "config": {**run.config, "folder": str(run.folder.absolute())},
        }
        return _Process(options, self.wait)


def kept_id(file: Path, make: Any) -> str:
    """The id of this run in a tool, from a file of the run folder; a new one is made and kept where there is none."""
    with contextlib.suppress(ConfigError):
        found = read_json(file)
        if isinstance(found, dict) and isinstance(found.get("id"), str):
            return found["id"]
    made = make()
    write_json(file, {"id": made})
    return made


class _Process(Sink):
    """The process with the library. It is told what to do by lines of JSON, and answers each with one."""

    def __init__(self, options: Mapping[str, Any], wait: float) -> None:
        # -P: a file wandb.py beside the program, such as ours, must not be taken for the library.
        command = [sys.executable, "-P", str(_PROGRAM), str(os.getpid()), str(wait)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"},
            start_new_session=True,  # Ctrl-C is for the run
        )
        self._options = options

    def open(self) -> None:
        self._ask({"open": self._options})

    def send(self, lines: Sequence[Lines], events: Sequence[Mapping[str, Any]]) -> None:
        self._ask({"log": [[line.step, line.time, dict(line.values)] for line in lines], "events": list(events)})

    def close(self, failed: bool) -> None:
        self._ask({"finish": int(failed)})
        self._process.communicate()

    def abandon(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _ask(self, request: Mapping[str, Any]) -> None:
        """Raises RuntimeError with what the process answers if it fails."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        found = json.loads(answer) if answer.endswith("\n") else {"error": "its process ended"}
        if "error" in found:
            self.abandon()
            with contextlib.suppress(BrokenPipeError):
                self._process.communicate()
            raise RuntimeError(f"wandb: {found['error']}")
