"""A process as the owner of a run folder: what its lock file holds, and whether it lives. Not here: the lock."""

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
    """A process that owns, or owned, a run folder."""

    host: str
    pid: int
    machine: str
    """The running system and its process ids' namespace: where two are equal, so are the processes that they see."""
    started: str
    """When the process started, in ticks of that system; "" where that is not known."""
    token: str
    since: str
    """When it took the lock by its own clock: for people."""
    state: str = HELD

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host}, since {self.since}"

    def text(self, beats: int) -> bytes:
        """What the lock file holds; as long after any number of heartbeats."""
        return json.dumps({**vars(self), "heartbeat": f"{beats:012d}"}).encode() + b"\n"

    def seen(self) -> bool | None:
        """Whether it lives; None where only its heartbeat can say."""
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
    """The running system and the namespace of its process ids; the host's name where /proc is not there."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def process_start(pid: int) -> tuple[str, str]:
    """The state of a process, such as Z for one that is dead, and when it started, in ticks; "" where not known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]


def parsed(content: bytes) -> Owner | None:
    """The owner; None for what is no owner, such as a file that is being written."""
    try:
        value: Any = json.loads(content)
        del value["heartbeat"]
        owner = Owner(**value)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    texts = (owner.host, owner.machine, owner.started, owner.since, owner.state)
    known = all(isinstance(text, str) for text in (*texts, owner.token)) and isinstance(owner.pid, int)
    return owner if known and 0 < owner.pid < 1 << 31 and re.fullmatch("[0-9a-f]{32}", owner.token) else None
