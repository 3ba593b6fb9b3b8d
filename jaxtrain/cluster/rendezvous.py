"""The client side of rendezvous and failure detection: join the others, send heartbeats, exit when the run aborts.

Not here: when the run aborts (`server`), and how a launcher names the processes (`environment`).
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxtrain.base.errors import ConfigError, ExitCode, Retry
from jaxtrain.cluster.connection import Connection, Message, heartbeat_interval, readable, silence_limit
from jaxtrain.cluster.environment import ProcessInfo
from jaxtrain.cluster.server import Server
from jaxtrain.cluster.stop import StopSignal
from jaxtrain.cluster.watchdog import last_words, write_stacks

ReportError = Callable[[BaseException], int]
"""Prints an error for the user, and returns the exit code."""

RECONNECT_SECONDS = 0.3


class Client(threading.Thread):
    """A process's connection to the server: sends heartbeats, ends this process when the server aborts the run, and
    answers the messages by which all processes agree on a step to stop at.
    """

    def __init__(
        self, connection: Connection, server: Server | None, limit: float, name: str, stop: StopSignal
    ) -> None:
        """`server`: the server in this process, if it is process 0. `limit`: as in `Server`."""
        super().__init__(daemon=True)
        self._connection, self._server, self._limit, self._name = connection, server, limit, name
        self._signal, self._done = stop, False
        self._leaving = threading.Event()
        """Set once another thread than this one ends the process, with its own reason and exit code."""
        self._process_0 = "process 0"
        """The last known status of process 0."""

    def run(self) -> None:
        """Send heartbeats and listen, until all processes are done."""
        interval, progress, since = heartbeat_interval(self._limit), self._signal.progress(), time.monotonic()
        last_heard, last_sent = since, 0.0
        while True:
            messages = self._connection.receive() if readable([self._connection], interval) else []
            now = time.monotonic()
            if messages is None and self._limit:
                self._abort_without_server(f"{self._process_0}, has died")
            if messages is None or any(self._is_last(message) for message in messages):
                return
            last_heard = now if messages else last_heard
            if 0 < self._limit < now - last_heard:
                self._abort_without_server(f"no heartbeat for {self._limit:g} s from {self._process_0}")
            if (current := self._signal.progress()) != progress:
                progress, since = current, now
            if now - last_sent > interval or self._done:
                last_sent, (step, phase) = now, progress
                self._connection.send(step=step, phase=phase, unchanged=now - since, done=self._done)

    def _is_last(self, message: Message) -> bool:
        """Act on a message of the server. True for the last one, after which all processes are done."""
        match message:
            case {"abort": reason, "code": code}:
                self._abort(reason, code, message.get("stacks", False))
            case {"hold": _}:
                self._connection.send(promised=self._signal.promise())
            case {"stop_at": place, "code": code}:
                self._signal.stop_at(place, code)
            case {"heartbeat": status}:
                self._process_0 = status
        return "all_done" in message

    def ask_to_stop(self, code: int) -> None:
        """Ask all processes, including this one, to stop at a common place with this exit code."""
        self._connection.send(stop=code)

    def report_failure(self, error: BaseException, report: ReportError) -> None:
        """End this process because of an error, and then the others. Returns only where no heartbeats are sent.

        The error may be a consequence: a collective fails when another process dies. So this first waits for the
        server, which would abort the run and name that process; `report` is not called then.
        """
        if not self._limit or not self.is_alive():
            return
        if not isinstance(error, ConfigError | Retry | KeyboardInterrupt):
            time.sleep(self._limit + 1 if _may_be_consequence(error) else 2)
        self._leave(f"{type(error).__name__}: {error}", report(error))

    def _leave(self, message: str, code: int) -> None:
        self._leaving.set()
        self._connection.send(failed=message[:2000], code=code)
        self._exit(code)

    def leave(self, message: str, code: int) -> None:
        """End this process at once, and then the others."""
        again = ": run the same command again" if code == ExitCode.RETRY else ""
        print(f"jaxtrain: {message}{again}", file=sys.stderr)
        self._leave(message, code)

    def report_overdue(self, phase: str, deadline: float) -> None:
        """Have the server end all processes, since a phase of this one takes longer than its deadline."""
        self._connection.send(overdue=phase, deadline=deadline)

    def finish(self) -> None:
        """Wait until all processes are done; until then a failure of one still ends all."""
        self._done = True
        self.join()

    def disconnect(self) -> None:
        """Leave the run. Process 0 waits first until the server has informed the others."""
        self._wait_for_server()
        self._connection.close()

    def _wait_for_server(self) -> None:
        if self._server is not None:
            self._server.join(5)

    def _abort_without_server(self, reason: str) -> None:
        """End this process, whose server is lost; if it has heard a signal, with the exit code of that."""
        self._abort(reason, self._signal.code or ExitCode.RETRY)

    def _abort(self, reason: str, code: int, stacks: bool = False) -> None:
        if self._leaving.is_set():  # what was heard is the answer to this, or the connection that is being closed
            threading.Event().wait()
        reason += f"; {write_stacks(reason)}" if stacks else ""
        again = ": run the same command again to resume" if code == ExitCode.RETRY else ""
        print(f"jaxtrain: {reason}. {self._name} stops too, with exit code {code:d}{again}", file=sys.stderr)
        last_words(reason)
        self._exit(code)

    def _exit(self, code: int) -> None:
        """Exit without jax's shutdown, which would wait for lost processes."""
        self._wait_for_server()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def join(info: ProcessInfo, facts: Mapping[str, Any], join_seconds: float, deadline: float, stop: StopSignal) -> Client:
    """Block until all processes of the run have joined, and check that their `facts` are equal.

    join_seconds: how long to wait for the last process.
    deadline: all processes end within this many seconds of the loss of one; 0 leaves this to jax.
    stop: the signal by which all processes stop at the same step.

    Raises ConfigError where facts or process ids contradict each other, Retry where a process does not join.
    """
    host, _, port = (info.coordinator_address or "").rpartition(":")
    name = f"process {info.process_id} (host {socket.gethostname()}, pid {os.getpid()})"
    end, server, limit = time.monotonic() + join_seconds, None, silence_limit(deadline)
    reason = "nobody answers"
    while time.monotonic() < end:
        if info.process_id == 0 and server is None:
            # The port may be taken by another process 0, whose server then reports that two have the same id.
            with contextlib.suppress(OSError):
                server = Server(info.num_processes, int(port), join_seconds, limit)
                server.start()
        try:
            connection = Connection(socket.create_connection((host.strip("[]"), int(port)), timeout=5))
            reason = "another program answers there, or a run that has already started"
            if "welcome" in connection.receive_one():
                own = dict(process_id=info.process_id, num_processes=info.num_processes, name=name, facts=facts)
                connection.send(**own)
                connection.socket.settimeout(join_seconds + 10)
                return _started(connection.receive_one(), Client(connection, server, limit, name, stop), stop)
            connection.close()
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(RECONNECT_SECONDS)
    raise Retry(
        f"{name} of {info.num_processes} found no coordinator at {info.coordinator_address} in "
        f"{join_seconds:g} s: {reason}. Check that process 0 runs, that every host can resolve {host}, and that no "
        f"firewall blocks port {port}; JAXTRAIN_JOIN_SECONDS sets how long to wait"
    )


def _started(answer: Message, client: Client, stop: StopSignal) -> Client:
    if "joined" in answer:
        client.start()
        stop.ask_others, stop.leave = client.ask_to_stop, client.leave
        return client
    client.disconnect()
    if answer.get("code") == ExitCode.USER_ERROR:
        raise ConfigError(answer["abort"])
    raise Retry(answer.get("abort", "process 0 has died while it waited for the others"))


def _may_be_consequence(error: BaseException) -> bool:
    """Whether an error may come from a collective with a process that died."""
    if "RESOURCE_EXHAUSTED" in str(error):
        return False
    return isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
