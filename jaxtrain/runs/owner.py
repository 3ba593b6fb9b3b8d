"""The owner of a run folder: the content of its lock file, and whether the process is alive. Not here: the lock."""

import json
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HELD, FREE = "held", "free"


@dataclass(frozen=True)
class Owner:
    """A process that owns or owned a run folder."""

    host: str
    pid: int
    machine: str
    """An id of the running system and its PID namespace: processes with the same one see the same processes."""
    started: str
    """When the process started, in clock ticks of the system; "" if unknown."""
    token: str
    since: str
    """When it took the lock, by its own clock; for messages only."""
    state: str = HELD

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host}, since {self.since}"

    def text(self, beats: int) -> bytes:
        """The content of the lock file, of the same length for any number of heartbeats."""
        return json.dumps({**vars(self), "heartbeat": f"{beats:012d}"}).encode() + b"\n"

    def seen(self) -> bool | None:
        """Whether the process is alive; None if only its heartbeat can tell."""
        if self.state == FREE:
            return False
        if self.machine != machine():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return None
        state, started = process_start(self.pid)
        if state in ("Z", "X") or (started and self.started and started != self.started):
            return False
        return True if started and self.started else None


def machine() -> str:
    """An id of the running system and its PID namespace; the host name on systems without /proc."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def process_start(pid: int) -> tuple[str, str]:
    """The state of a process, such as Z for a dead one, and its start time in clock ticks; "" where unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]


def parsed(content: bytes) -> Owner | None:
    """The owner in a lock file; None for any other content, such as a file that is being written."""
    try:
        value: Any = json.loads(content)
        del value["heartbeat"]
        owner = Owner(**value)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    texts = (owner.host, owner.machine, owner.started, owner.since, owner.state)
    known = all(isinstance(text, str) for text in (*texts, owner.token)) and isinstance(owner.pid, int)
    return owner if known and 0 < owner.pid < 1 << 31 and re.fullmatch("[0-9a-f]{32}", owner.token) else None
