"""The server on process 0: every process connects to it, and it decides when the run must abort.

jax's coordination service does this too, but on any failure it ends every process from C++ without naming the one that
failed. The server listens on the coordinator's port until all processes have joined, then frees the port for jax and
keeps its connections. Not here: the client side (`rendezvous`).
"""

import socket
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtrain.base.config import difference
from jaxtrain.base.errors import ExitCode
from jaxtrain.cluster.connection import Connection, Message, heartbeat_interval, readable
from jaxtrain.cluster.facts import clock_warnings

LOOP_PHASES = ("data", "step", "other")
"""The phases of a step, in order. Only in these may a process be called stuck: compiling or saving may take long."""

PHASES = ("compile", "restore", *LOOP_PHASES, "eval", "save")
"""All phases, in order."""

EXIT_SECONDS = 3
"""How long process 0 waits for the others to exit before it exits itself."""


@dataclass
class Status:
    """What is known of a process from its last heartbeat."""

    name: str
    last_heard: float
    """By `time.monotonic`."""
    step: int = 0
    phase: str = "start"
    unchanged: float = 0.0
    """Seconds for which step and phase have not changed."""
    done: bool = False

    def __str__(self) -> str:
        return f"{self.name}, last heard from in step {self.step} ({self.phase})"


class RunAborted(Exception):
    """The reason why all processes must exit, and their exit code.

    unresponsive: ids of processes that will not exit by themselves; process 0 does not wait for them.
    stacks: whether every process first writes the stacks of its threads.
    """

    def __init__(self, reason: str, code: int, unresponsive: Collection[int] = (), stacks: bool = False) -> None:
        super().__init__(reason)
        self.code, self.unresponsive, self.stacks = code, unresponsive, stacks


def _comparable(expected: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The facts of two processes that are compared: not the clocks, and only packages that both have imported."""
    packages = [one.get("packages", {}) for one in (expected, found)]
    both = packages[0].keys() & packages[1].keys()
    first, second = (
        {name: value for name, value in one.items() if name not in ("clock", "packages")}
        | {name: own[name] for name in sorted(both)}
        for one, own in zip((expected, found), packages, strict=True)
    )
    return first, second


def compare_facts(facts: Mapping[str, Mapping[str, Any]]) -> str:
    """A text that says what differs from the first process, for at most three others; "" where nothing differs.

    facts: the facts of each process by its name: plain values by path.
    """
    (first, expected), *others = facts.items()
    differences = [
        f"{name} does not run what {first} runs; what differs ({first} → {name}):\n{text}"
        for name, found in others
        if (text := difference(*_comparable(expected, found)))
    ]
    return "\n".join(differences[:3])


def find_silent(statuses: Sequence[Status], now: float, limit: float) -> list[int]:
    """The ids of processes without a heartbeat for more than `limit` seconds."""
    return [process for process, status in enumerate(statuses) if now - status.last_heard > limit]


def find_stuck(statuses: Sequence[Status], limit: float) -> list[int]:
    """The ids of the processes that all others wait for, if no process has made progress for `limit` seconds.

    These are the ones furthest behind; none where those are within a step, in which all wait for each other.
    """
    if any(status.unchanged < limit or status.phase not in LOOP_PHASES for status in statuses):
        return []
    positions = [(status.step, LOOP_PHASES.index(status.phase)) for status in statuses]
    behind = [process for process, position in enumerate(positions) if position == min(positions)]
    if len(behind) == len(statuses) or statuses[behind[0]].phase == "step":
        return []
    return behind


def overdue(process: int, phase: str, deadline: float, statuses: Sequence[Status]) -> str:
    """The reason to abort when a process is in a phase for longer than its deadline, with those it may wait for."""
    own = statuses[process]
    behind = [str(each) for each in statuses if _position(each) < _position(own)]
    ahead = [each.name for each in statuses if _position(each) > _position(own)]
    text = f"{own.name}, in step {own.step} ({phase}), takes longer than deadlines.{phase}, {deadline:g} s; "
    if behind:
        return f"{text}not arrived there: {'; '.join(behind)}"
    return text + (f"further: {', '.join(ahead)}" if ahead else "all others are there too")


def _position(status: Status) -> tuple[int, int]:
    return status.step, PHASES.index(status.phase) if status.phase in PHASES else 0


class Server(threading.Thread):
    """Waits until all processes have joined, compares their facts, then watches their heartbeats."""

    def __init__(self, num_processes: int, port: int, join_seconds: float, limit: float) -> None:
        """`limit`: seconds without heartbeats or progress after which the run aborts; 0 is never.

        Raises OSError where the port is taken.
        """
        super().__init__(daemon=True)
        self._processes, self._join_seconds, self._limit = range(num_processes), join_seconds, limit
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self._listener = socket.create_server(("", port), family=family, backlog=num_processes + 8, dualstack_ipv6=dual)
        self._unknown: list[Connection] = []
        """Connections of processes that have not said yet which they are."""
        self._connections: dict[int, Connection] = {}
        self._statuses: dict[int, Status] = {}
        self._facts: dict[int, Mapping[str, Any]] = {}
        self._stop_code: int | None = None
        """The exit code of a requested stop; None while there is none."""
        self._promised: dict[int, int] = {}
        """For each process, the place that it has promised not to pass before all have agreed where to stop."""
        self._ahead: dict[str, float] = {}
        """Seconds that each process's clock is ahead of this one's, by process name."""

    def run(self) -> None:
        """Serve from the first connection until the run ends or aborts."""
        try:
            with self._listener:
                self._join()
            self._broadcast(joined=self._statuses[0].name)
            self._watch()
            self._broadcast(all_done=True)
        except RunAborted as abort:
            self._broadcast(abort=str(abort), code=abort.code, **({"stacks": True} if abort.stacks else {}))
            # jax's coordination service ends with this process, and would kill the others before they print the reason.
            self._wait_for_exit({*self._connections} - {0, *abort.unresponsive})
        finally:
            for connection in [*self._unknown, *self._connections.values()]:
                connection.close()

    def _broadcast(self, **message: object) -> None:
        for connection in [*self._unknown, *self._connections.values()]:
            connection.send(**message)

    def _join(self) -> None:
        end = time.monotonic() + self._join_seconds
        while len(self._connections) < len(self._processes):
            ready = readable([self._listener, *self._unknown], end - time.monotonic())
            if not ready:
                raise RunAborted(self._absent(), ExitCode.RETRY)
            for source in ready:
                if source is self._listener:
                    self._unknown.append(Connection(self._listener.accept()[0]))
                    self._unknown[-1].send(welcome=True)
                else:
                    self._identify(source)
        facts = {self._statuses[process].name: self._facts[process] for process in self._processes}
        if text := compare_facts(facts):
            raise RunAborted(text, ExitCode.USER_ERROR)
        for warning in clock_warnings(self._ahead):
            print(f"jaxtrain: {warning}", file=sys.stderr)

    def _absent(self) -> str:
        absent = ", ".join(str(process) for process in self._processes if process not in self._statuses)
        joined = ", ".join(status.name for _, status in sorted(self._statuses.items()))
        return f"after {self._join_seconds:g} s process {absent} has not joined; joined: {joined}"

    def _identify(self, connection: Connection) -> None:
        """Read which process a connection belongs to; disconnect it if it does not speak the protocol."""
        try:
            messages = connection.receive()
            if messages == []:
                return
            message = messages[0] if messages else {}
            process, count, name = message["process_id"], message["num_processes"], message["name"]
            facts = message["facts"]
        except (ValueError, KeyError, TypeError):
            self._unknown.remove(connection)
            connection.close()
            return
        if process in self._statuses:
            twice = f"two processes have the id {process}: {self._statuses[process].name} and {name}"
            raise RunAborted(twice, ExitCode.USER_ERROR)
        if count != len(self._processes):
            counts = f"{name} was started as one of {count} processes, process 0 as one of {len(self._processes)}"
            raise RunAborted(counts, ExitCode.USER_ERROR)
        self._statuses[process] = Status(name, time.monotonic())
        self._facts[process] = facts
        if isinstance(clock := facts.get("clock"), int | float):
            self._ahead[name] = clock - time.time()
        self._connections[process] = connection
        self._unknown.remove(connection)

    def _watch(self) -> None:
        interval, last_sent = heartbeat_interval(self._limit), 0.0
        while not all(status.done for status in self._statuses.values()):
            ready = readable([*self._connections.values()], interval)
            # Read all messages before looking for silence: it may be this process that was suspended.
            for process, connection in [*self._connections.items()]:
                if connection in ready:
                    self._receive(process)
            now, statuses = time.monotonic(), [self._statuses[process] for process in self._processes]
            if self._limit and (silent := find_silent(statuses, now, self._limit)):
                names = "; ".join(str(statuses[process]) for process in silent)
                raise RunAborted(f"no heartbeat for {self._limit:g} s from {names}", ExitCode.RETRY, silent)
            if self._limit and (stuck := find_stuck(statuses, self._limit)):
                names = "; ".join(str(statuses[process]) for process in stuck)
                raise RunAborted(
                    f"all others have waited for {self._limit:g} s for {names}", ExitCode.RETRY, stuck, stacks=True
                )
            if now - last_sent > interval:
                last_sent = now
                self._broadcast(heartbeat=str(statuses[0]))

    def _receive(self, process: int) -> None:
        status, messages = self._statuses[process], self._connections[process].receive()
        if messages is None and not self._limit:
            self._connections.pop(process)
            status.done = True
        elif messages is None:
            raise RunAborted(f"{status}, has died", ExitCode.RETRY, [process])
        for message in messages or ():
            if "overdue" in message:
                statuses = [self._statuses[each] for each in self._processes]
                text = overdue(process, message["overdue"], message["deadline"], statuses)
                raise RunAborted(text, ExitCode.RETRY, stacks=True)
            if "failed" in message:
                raise RunAborted(f"{status}, failed: {message['failed']}", message["code"])
            if "stop" in message or "promised" in message:
                self._agree_to_stop(process, message)
                continue
            status.step, status.phase, status.unchanged = message["step"], message["phase"], message["unchanged"]
            status.last_heard, status.done = time.monotonic(), message["done"]

    def _agree_to_stop(self, process: int, message: Message) -> None:
        if "stop" in message and self._stop_code is None:
            self._stop_code = message["stop"]
            self._broadcast(hold=True)
        if "promised" in message:
            self._promised[process] = message["promised"]
            if len(self._promised) == len(self._processes):
                self._broadcast(stop_at=max(self._promised.values()), code=self._stop_code)

    def _wait_for_exit(self, processes: Collection[int]) -> None:
        end = time.monotonic() + EXIT_SECONDS
        running = [self._connections[process] for process in processes]
        while running and time.monotonic() < end:
            closed = [connection for connection in readable(running, 0.1) if connection.receive() is None]
            running = [connection for connection in running if connection not in closed]
