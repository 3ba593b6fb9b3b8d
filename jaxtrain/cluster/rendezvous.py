"""How the processes of a run meet, agree on what they run, and hear which of them is lost: lines of JSON over sockets.

jax has a service for this, but whatever goes wrong there ends a process from C++, naming nobody. Process 0 listens at
the coordinator's port until all have come, and leaves the port to jax then; the connections stay.
Not here: how a launcher names the processes, and anything about arrays.
"""

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from jaxtrain.base.config import difference
from jaxtrain.base.errors import ConfigError
from jaxtrain.cluster.environment import Place

EARLY = 75
"""The exit code (EX_TEMPFAIL) of a run that stopped before its last step: run the same command again."""

LOOP = ("data", "step", "other")
"""The phases, in a step's order, in which a process may be taken for stuck. Compiling or saving may last."""

Message = Mapping[str, Any]


class Line:
    """A connection that carries one JSON object a line."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        self.socket, self._rest = connection, b""

    def fileno(self) -> int:
        """For `select`."""
        return self.socket.fileno()

    def send(self, **message: object) -> None:
        """Nothing happens where the other has hung up: reading tells."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[Message] | None:
        """What has come, after waiting for some; None if the other has hung up. ValueError: it speaks otherwise."""
        try:
            data = self.socket.recv(1 << 16)
        except OSError:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [dict(json.loads(line)) for line in lines] if data else None

    def answer(self) -> Message:
        """The next message; {} if there is none, or another language is spoken."""
        try:
            while (messages := self.receive()) == [] and not self._rest.startswith(b"\0"):
                pass
        except (ValueError, TypeError):
            return {}
        return messages[0] if messages else {}


@dataclass
class Member:
    """A process as process 0 knows it."""

    line: Line
    name: str
    hello: Message
    heard: float = field(default_factory=time.monotonic)
    step: int = 0
    phase: str = "start"
    still: float = 0.0
    """Seconds for which step and phase have not changed."""
    done: bool = False

    def __str__(self) -> str:
        return f"{self.name}, last heard of in step {self.step} ({self.phase})"


class Lost(Exception):
    """Why all must stop, and with which exit code."""

    def __init__(self, why: str, code: int, whose: Sequence[Member] = ()) -> None:
        super().__init__(why)
        self.code, self.whose = code, whose


class Hub(threading.Thread):
    """Process 0's: whom all others are connected to, and who decides that all stop."""

    def __init__(self, count: int, port: int, seconds: float, watch: float) -> None:
        """Raises OSError where the port is taken."""
        super().__init__(daemon=True)
        self._count, self._seconds, self._limit = count, seconds, watch
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._listener = socket.create_server(("", port), family=family, backlog=count + 8, dualstack_ipv6=both)
        self._new: list[Line] = []
        self._members: dict[int, Member] = {}

    def run(self) -> None:
        """Gather all, then watch them until all are done or one is lost."""
        try:
            with self._listener:
                self._gather()
            self._tell(go=self._members[0].name)
            if self._limit:
                self._watch()
            self._tell(all_done=True)
        except Lost as lost:
            self._tell(stop=str(lost), code=lost.code)
            # With this process goes jax's service, and then the others end without a word: they go first.
            first = self._members.get(0)
            others = [member.line for member in self._members.values() if member not in (first, *lost.whose)]
            end = time.monotonic() + 3
            while others and time.monotonic() < end:
                gone = [line for line in _ready(others, 0.1) if line.receive() is None]
                others = [line for line in others if line not in gone]
        finally:
            for line in self._lines():
                line.socket.close()

    def _lines(self) -> list[Line]:
        return [*self._new, *(member.line for member in self._members.values())]

    def _tell(self, **message: object) -> None:
        for line in self._lines():
            line.send(**message)

    def _gather(self) -> None:
        end = time.monotonic() + self._seconds
        while len(self._members) < self._count:
            ready = _ready([self._listener, *self._new], end - time.monotonic())
            if not ready:
                here = ", ".join(member.name for _, member in sorted(self._members.items()))
                missing = ", ".join(str(process) for process in range(self._count) if process not in self._members)
                raise Lost(f"after {self._seconds:g} s of waiting, process {missing} has not come; here: {here}", 1)
            for one in ready:
                if isinstance(one, Line):
                    self._welcome(one)
                else:
                    self._new.append(Line(self._listener.accept()[0]))
                    self._new[-1].send(welcome=True)
        first, *others = (self._members[process] for process in range(self._count))
        differ = [
            f"{other.name} does not run what {first.name} runs; what differs ({first.name} → {other.name}):\n{text}"
            for other in others
            if (text := difference(first.hello["facts"], other.hello["facts"]))
        ]
        if differ:
            raise Lost("\n".join(differ[:3]), 2)

    def _welcome(self, line: Line) -> None:
        try:
            messages = line.receive()
            if messages == []:
                return
            hello = messages[0] if messages else {}
            process, count, name = hello["process"], hello["count"], hello["name"]
        except (ValueError, KeyError, TypeError):  # somebody who came to the wrong door
            self._new.remove(line)
            line.socket.close()
            return
        if process in self._members:
            raise Lost(f"two processes have the number {process}: {self._members[process].name} and {name}", 2)
        if count != self._count:
            raise Lost(f"{name} was told of {count} processes, process 0 of {self._count}", 2)
        self._members[process] = Member(line, name, hello)
        self._new.remove(line)

    def _watch(self) -> None:
        beat, told = _beat(self._limit), 0.0
        while not all(member.done for member in self._members.values()):
            ready = _ready([member.line for member in self._members.values()], beat)
            # Everything is read before anybody is judged: it may be this process that had been asleep.
            for member in self._members.values():
                if member.line in ready:
                    self._hear(member)
            now = time.monotonic()
            for member in self._members.values():
                if now - member.heard > self._limit:
                    raise Lost(f"nothing was heard for {self._limit:g} s of {member}", EARLY, [member])
            self._judge()
            if now - told > beat:
                told, first = now, self._members[0]
                self._tell(beat=str(first))

    def _hear(self, member: Member) -> None:
        messages = member.line.receive()
        if messages is None:
            raise Lost(f"{member}, has died", EARLY, [member])
        for message in messages:
            if "failed" in message:
                raise Lost(f"{member}, failed: {message['failed']}", message["code"])
            member.step, member.phase, member.still = message["step"], message["phase"], message["still"]
            member.heard, member.done = time.monotonic(), message["done"]

    def _judge(self) -> None:
        members = self._members.values()
        if any(member.still < self._limit or member.phase not in LOOP for member in members):
            return
        at = [(member.step, LOOP.index(member.phase)) for member in members]
        stuck = [member for member, where in zip(members, at, strict=True) if where == min(at)]
        if min(at) < max(at) and stuck[0].phase != "step":
            raise Lost(f"the others have waited for {self._limit:g} s for {'; '.join(map(str, stuck))}", EARLY, stuck)


class Watch(threading.Thread):
    """A process's connection to process 0, once all have met: it beats, and ends this process when one is lost."""

    def __init__(self, line: Line, hub: Hub | None, limit: float, name: str) -> None:
        super().__init__(daemon=True)
        self._line, self._hub, self._limit, self._own = line, hub, limit, name
        self.progress: Callable[[], tuple[int, str]] = lambda: (0, "start")
        """The step and phase that the main thread is in."""
        self._done = False

    def run(self) -> None:
        """Beat and listen."""
        if not self._limit:
            return
        beat, last, since = _beat(self._limit), self.progress(), time.monotonic()
        heard, told, first = since, 0.0, "process 0"
        while True:
            messages = self._line.receive() if _ready([self._line], beat) else []
            now = time.monotonic()
            if messages is None:
                self._end(f"{first}, has died", EARLY)
            for message in messages or ():
                if "stop" in message:
                    self._end(message["stop"], message["code"])
                if "all_done" in message:
                    return
                heard, first = now, message.get("beat", first)
            if now - heard > self._limit:
                self._end(f"nothing was heard for {self._limit:g} s of {first}", EARLY)
            if (at := self.progress()) != last:
                last, since = at, now
            if now - told > beat or self._done:
                told = now
                self._line.send(step=last[0], phase=last[1], still=now - since, done=self._done)

    def _end(self, why: str, code: int) -> None:
        again = ": run the same command again, and it goes on" if code == EARLY else ""
        print(f"jaxtrain: {why}. {self._own} stops too, with code {code}{again}", file=sys.stderr)
        self._leave(code)

    def hang_up(self) -> None:
        """No longer take part; where this is process 0, once the others know."""
        if self._hub is not None:
            self._hub.join(5)
        self._line.socket.close()

    def _leave(self, code: int) -> None:
        """End without jax's goodbye, which waits for those that are lost."""
        self.hang_up()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def failed(self, error: BaseException, tell: Callable[[BaseException], int]) -> None:
        """This process cannot go on: the others stop too. Returns only if nobody watches.

        `tell` says why and gives the exit code. An error may be but an echo of another process's end: then that is
        said instead, when it is known.
        """
        if not self.is_alive():
            return
        if not isinstance(error, ConfigError | KeyboardInterrupt):
            time.sleep(self._limit + 1 if "RESOURCE_EXHAUSTED" not in str(error) and _echo(error) else 2)
        code = tell(error)
        self._line.send(failed=f"{type(error).__name__}: {error}"[:2000], code=code)
        self._leave(code)

    def finished(self) -> None:
        """Wait until all are done, still watching: jax's own goodbye is then short."""
        self._done = True
        self.join()


def meet(place: Place, facts: Mapping[str, Any], seconds: float, watch: float) -> Watch:
    """All processes of a run, come together within `seconds`, with the same `facts`; one that is lost is noticed within
    `watch` seconds.

    Raises ConfigError where they do not fit together, and SystemExit with a message where some do not come.
    """
    host, _, port = (place.address or "").rpartition(":")
    name = f"process {place.process} (host {socket.gethostname()}, pid {os.getpid()})"
    # What is noticed after this time is said, to all, before `watch` is over.
    end, hub, limit, reason = time.monotonic() + seconds, None, 0.7 * watch, "nobody answers"
    while time.monotonic() < end:
        if place.process == 0 and hub is None:
            with contextlib.suppress(OSError):  # somebody else has the port: perhaps another process 0, who will say so
                hub = Hub(place.count, int(port), seconds, limit)
                hub.start()
        try:
            line = Line(socket.create_connection((host.strip("[]"), int(port)), timeout=5))
            reason = "another program answers there, or a run that goes on already"
            if "welcome" in line.answer():
                line.send(process=place.process, count=place.count, name=name, facts=facts)
                line.socket.settimeout(seconds + 10)
                return _admitted(line.answer(), Watch(line, hub, limit, name))
            line.socket.close()
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(0.3)
    raise SystemExit(
        f"jaxtrain: {name} of {place.count} found no coordinator at {place.address} in {seconds:g} s: {reason}. Check "
        f"that process 0 runs, that {host} is its host's name for all hosts, and that no firewall closes port {port}; "
        "JAXTRAIN_JOIN_SECONDS is how long to wait"
    )


def _admitted(answer: Message, watch: Watch) -> Watch:
    if "go" in answer:
        watch.start()
        return watch
    watch.hang_up()
    if answer.get("code") == 2:
        raise ConfigError(answer["stop"])
    raise SystemExit(f"jaxtrain: {answer.get('stop', 'process 0 has died while it waited for the others')}")


def _ready(lines: Sequence[Any], seconds: float) -> list[Any]:
    """Those of which something can be read, waiting for the first."""
    with selectors.DefaultSelector() as selector:
        for line in lines:
            selector.register(line, selectors.EVENT_READ)
        return [key.fileobj for key, _ in selector.select(max(seconds, 0))]


def _beat(limit: float) -> float:
    return min(limit / 8, 5)


def _echo(error: BaseException) -> bool:
    """Whether an error comes from communication between devices."""
    return isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
