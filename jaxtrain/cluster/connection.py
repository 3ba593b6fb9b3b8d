"""Newline-delimited JSON over TCP: the protocol between the processes of a run and the server on process 0.

In the order of a run:

| from   | message                               | meaning                                                          |
|--------|---------------------------------------|------------------------------------------------------------------|
| server | welcome                               | you are connected to a jaxtrain server                           |
| client | process_id, num_processes, name, facts | this process, and the facts that must be equal in all of them   |
| server | joined                                | all processes have joined with equal facts; the name of process 0 |
| client | step, phase, unchanged, done          | heartbeat; for how many seconds step and phase have not changed  |
| server | heartbeat                             | heartbeat; the last status of process 0                          |
| client | stop                                  | a signal came: stop all processes with this exit code            |
| server | hold                                  | promise not to pass the next place where you may stop            |
| client | promised                              | the number of that place                                         |
| server | stop_at, code                         | the highest promised place: all stop there, with this exit code  |
| client | failed, code                          | an error ends this process with this exit code                   |
| client | overdue, deadline                     | the phase of this name takes longer than its deadline            |
| server | abort, code, stacks                   | the reason why all must exit, the exit code, and whether to      |
|        |                                       | write the stacks of all threads first                            |
| server | all_done                              | every process has finished                                       |
"""

import contextlib
import json
import selectors
import socket
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]


class Connection:
    """A TCP connection that carries one JSON object a line."""

    def __init__(self, connected: socket.socket) -> None:
        connected.settimeout(10)
        self.socket, self._partial = connected, b""

    def fileno(self) -> int:
        """The socket's file descriptor, for `readable`."""
        return self.socket.fileno()

    def send(self, **message: object) -> None:
        """Send a message. An error is ignored: the next `receive` finds the connection closed."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[Message] | None:
        """Block for data, and return the messages that are complete; None if the connection is closed.

        Raises ValueError or TypeError for anything but JSON objects.
        """
        try:
            data = self.socket.recv(1 << 16)
        except OSError:
            return None
        *lines, self._partial = (self._partial + data).split(b"\n")
        return [dict(json.loads(line)) for line in lines] if data else None

    def receive_one(self) -> Message:
        """Block for the next message; {} if the connection closes or carries another protocol."""
        try:
            while (messages := self.receive()) is not None:
                if messages:
                    return messages[0]
                if self._partial.startswith(b"\0"):  # a frame of gRPC, which jax's coordination service speaks
                    return {}
        except (ValueError, TypeError):
            return {}
        return {}

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


def readable(sources: Sequence[Any], seconds: float) -> list[Any]:
    """The connections and sockets with something to read, after at most `seconds` of waiting for the first."""
    with selectors.DefaultSelector() as selector:
        for source in sources:
            selector.register(source, selectors.EVENT_READ)
        return [key.fileobj for key, _ in selector.select(max(seconds, 0))]


def silence_limit(deadline: float) -> float:
    """Seconds without a heartbeat or progress after which a process counts as dead, so that all processes have exited
    within `deadline` seconds.
    """
    return 0.7 * deadline


def heartbeat_interval(limit: float) -> float:
    """Seconds between two heartbeats. limit: seconds of silence after which a process counts as dead; 0 is never."""
    return min(limit / 8, 5) if limit else 5
