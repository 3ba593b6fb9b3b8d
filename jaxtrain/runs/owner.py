"""The owner of a run folder: the content of its lock file, and whether the process is alive. Imports no jax.

Not here: taking the lock (`lock`).
"""

import json
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtrain.base.errors import ConfigError
from jaxtrain.runs.heartbeat import Beat, read_beat

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

    def text(self, beat: Beat) -> bytes:
        """The content of the lock file, of the same length for every heartbeat."""
        return json.dumps({**vars(self), "heartbeat": beat.to_json()}).encode() + b"\n"

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


def beat_of(content: bytes) -> Beat | None:
    """The heartbeat in a lock file; None for any other content."""
    try:
        return read_beat(json.loads(content)["heartbeat"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def last_lock(folder: Path) -> tuple[Path, bytes] | None:
    """The file of the present owner, and its content; None without any."""
    path = folder / "lock.json"
    content = _lock_content(path)
    if content is None:
        return None
    for _ in range(1000):
        after = successor(folder, content)
        following = _lock_content(after)
        if following is None:
            break
        path, content = after, following
    return path, content


def successor(folder: Path, content: bytes) -> Path:
    """The file by which a process takes over the lock with this content."""
    return folder / f"lock.json.{token_of(content)}"


def _lock_content(path: Path) -> bytes | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # does not block on a named pipe
    except FileNotFoundError:
        return b"" if path.is_symlink() else None  # a dangling link is a damaged lock
    try:
        return os.read(file, 4096)
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder, and not the lock of its owner: move it away") from None
    finally:
        os.close(file)


def token_of(content: bytes) -> str:
    """The token in a lock file; "unreadable" for any other content."""
    owner = parsed(content)
    return owner.token if owner else "unreadable"
