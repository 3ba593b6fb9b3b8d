"""Joining a run and detecting failures: the decisions as pure functions, and the server by real sockets."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import launch
import numpy as np
import pytest
from proxy import Proxy

from jaxtrain.base.errors import ConfigError, ExitCode, Retry
from jaxtrain.cluster.connection import Connection, Message, heartbeat_interval, silence_limit
from jaxtrain.cluster.environment import ProcessInfo
from jaxtrain.cluster.facts import check_same_devices, clock_warnings, process_facts
from jaxtrain.cluster.rendezvous import Client, join
from jaxtrain.cluster.server import Server, Status, compare_facts, find_silent, find_stuck, overdue
from jaxtrain.cluster.stop import StopSignal


def test_equal_facts_differ_in_nothing() -> None:
    assert compare_facts({"process 0": {"seed": 3}, "process 1": {"seed": 3}}) == ""


def test_every_fact_that_differs_from_process_0_is_named_with_both_values() -> None:
    facts = {"process 0": {"jax": "1", "seed": 3}, "process 1": {"jax": "2", "seed": 3}, "process 2": {"seed": 3}}
    assert compare_facts(facts).splitlines() == [
        "process 1 does not run what process 0 runs; what differs (process 0 → process 1):",
        "  jax: 1 → 2",
        "process 2 does not run what process 0 runs; what differs (process 0 → process 2):",
        "  jax: 1 → —",
    ]


def test_only_the_first_three_processes_that_differ_are_named() -> None:
    text = compare_facts({f"process {number}": {"seed": number} for number in range(6)})
    assert [line for line in text.splitlines() if line.startswith("  ")] == [
        "  seed: 0 → 1",
        "  seed: 0 → 2",
        "  seed: 0 → 3",
    ]


def test_a_process_is_silent_when_its_last_heartbeat_is_older_than_the_limit() -> None:
    statuses = [Status("a", last_heard=99.0), Status("b", last_heard=94.9), Status("c", last_heard=95.0)]
    assert find_silent(statuses, now=100.0, limit=5.0) == [1]


STUCK = {
    "reads, while the others wait in the same step": ((5, "data"), (5, "step"), True),
    "reads, while the others are a step further": ((5, "data"), (6, "step"), True),
    "hangs between two phases": ((5, "other"), (6, "step"), True),
    "reads, as all others do": ((5, "data"), (5, "data"), False),
    "waits in a collective": ((5, "step"), (6, "step"), False),
    "saves": ((5, "save"), (6, "step"), False),
    "waits for another that saves": ((5, "data"), (4, "save"), False),
    "has not started, while others compile": ((0, "start"), (0, "compile"), False),
    "compiles": ((0, "compile"), (1, "step"), False),
}


@pytest.mark.parametrize(("own", "others", "stuck"), STUCK.values(), ids=STUCK)
def test_a_process_is_stuck_if_others_wait_for_it_and_it_neither_compiles_nor_saves(
    own: tuple[int, str], others: tuple[int, str], stuck: bool
) -> None:
    def statuses(unchanged: float) -> list[Status]:
        return [Status("", 0.0, step, phase, unchanged) for step, phase in (others, own, others)]

    assert find_stuck(statuses(9.0), limit=9.0) == ([1] if stuck else [])
    assert find_stuck(statuses(8.9), limit=9.0) == []


def test_no_process_is_stuck_while_any_makes_progress() -> None:
    waiting = Status("", 0.0, 6, "step", unchanged=100.0)
    reading = Status("", 0.0, 5, "data", unchanged=1.0)
    assert find_stuck([waiting, reading, waiting], limit=9.0) == []


@pytest.mark.parametrize("deadline", [1, 60, 600])
def test_what_is_detected_late_can_still_be_reported_within_the_deadline(deadline: float) -> None:
    limit = silence_limit(deadline)
    # A heartbeat just before death, the limit, and up to one interval each until server and client look again.
    assert limit + 3 * heartbeat_interval(limit) < deadline


class Packets:
    """A socket that receives these packets, and fails the test where more are waited for."""

    def __init__(self, *packets: bytes) -> None:
        self.packets = list(packets)

    def settimeout(self, seconds: float) -> None:
        pass

    def recv(self, size: int) -> bytes:
        assert self.packets, "it waits for more"
        return self.packets.pop(0)


@pytest.mark.parametrize(
    ("packets", "message"),
    [
        ([b'{"a": 1}\n{"b": 2}\n'], {"a": 1}),
        ([b'{"a"', b": 1}", b"\n"], {"a": 1}),
        ([b'{"a": 1}', b""], {}),
        ([b"\0\0\4\0"], {}),
        ([b"HTTP/1.1 200 OK\r\n"], {}),
        ([b"[5]\n"], {}),
    ],
    ids=["two in a packet", "one in three packets", "cut off", "gRPC", "HTTP", "no object"],
)
def test_a_message_is_a_line_of_json_and_other_protocols_are_recognised_at_once(
    packets: list[bytes], message: Message
) -> None:
    connected: Any = Packets(*packets)
    assert Connection(connected).receive_one() == message


class Harness:
    """A server for two processes, and connections to it."""

    def __init__(self, join_seconds: float = 20, limit: float = 10) -> None:
        self.port = launch.free_port()
        self.server = Server(2, self.port, join_seconds, limit)
        self.server.start()
        self.connections: list[Connection] = []

    def connect(self, port: int | None = None) -> Connection:
        """A connection that the server has welcomed."""
        connection = Connection(socket.create_connection(("127.0.0.1", port or self.port)))
        self.connections.append(connection)
        assert connection.receive_one() == {"welcome": True}
        return connection

    def join(self, process: int, num_processes: int = 2, port: int | None = None, **facts: object) -> Connection:
        """A connection that has said which process it belongs to."""
        connection = self.connect(port)
        name = f"process {process} (host h)"
        connection.send(process_id=process, num_processes=num_processes, name=name, facts=facts)
        return connection

    def join_both(self) -> tuple[Connection, Connection]:
        """Two processes that have joined."""
        both = self.join(0), self.join(1)
        assert [connection.receive_one() for connection in both] == [{"joined": "process 0 (host h)"}] * 2
        return both


@pytest.fixture
def harness() -> Iterator[Callable[..., Harness]]:
    """Makes harnesses, which are closed after the test."""
    made: list[Harness] = []

    def make(**limits: float) -> Harness:
        made.append(Harness(**limits))
        return made[-1]

    yield make
    for one in made:
        for connection in one.connections:
            connection.close()
        one.server.join(10)
        assert not one.server.is_alive()


def heartbeat(connection: Connection, step: int, phase: str, unchanged: float = 0, done: bool = False) -> None:
    connection.send(step=step, phase=phase, unchanged=unchanged, done=done)


def receive(connection: Connection, kind: str) -> Message:
    """The next message of a kind; waits as long as the socket does."""
    while (messages := connection.receive()) is not None:
        for message in messages:
            if kind in message:
                return message
    raise AssertionError(f"the connection was closed without a message {kind!r}")


def test_two_processes_with_the_same_id_are_named(harness: Callable[..., Harness]) -> None:
    made = harness()
    for connection in [made.join(1), made.join(1)]:
        assert connection.receive_one() == {
            "abort": "two processes have the id 1: process 1 (host h) and process 1 (host h)",
            "code": 2,
        }


def test_processes_with_different_numbers_of_processes_are_named(harness: Callable[..., Harness]) -> None:
    assert harness().join(1, num_processes=3).receive_one() == {
        "abort": "process 1 (host h) was started as one of 3 processes, process 0 as one of 2",
        "code": 2,
    }


def test_different_facts_abort_the_run_as_a_user_error(harness: Callable[..., Harness]) -> None:
    made = harness()
    for connection in [made.join(0, jax="1", seed=3), made.join(1, jax="2", seed=3)]:
        message = connection.receive_one()
        assert message["code"] == 2
        assert message["abort"].startswith("process 1 (host h) does not run what process 0 (host h) runs")
        assert message["abort"].endswith("\n  jax: 1 → 2")


def test_a_process_that_does_not_join_in_time_is_named(harness: Callable[..., Harness]) -> None:
    assert harness(join_seconds=0.5).join(0).receive_one() == {
        "abort": "after 0.5 s process 1 has not joined; joined: process 0 (host h)",
        "code": 75,
    }


def test_connections_that_do_not_speak_the_protocol_do_no_harm(harness: Callable[..., Harness]) -> None:
    made = harness()
    made.connect().socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
    made.connect().socket.sendall(b"{}\n")
    made.connect().socket.sendall(b"5\n")
    made.connect().close()
    made.join_both()


def test_a_message_longer_than_a_packet_is_put_together(harness: Callable[..., Harness]) -> None:
    made = harness()
    connections = made.join(0, text="x" * 300_000), made.join(1, text="x" * 300_000)
    assert all("joined" in connection.receive_one() for connection in connections)


def test_the_port_is_free_for_jax_once_all_have_joined(harness: Callable[..., Harness]) -> None:
    made = harness()
    made.join_both()
    socket.create_server(("127.0.0.1", made.port)).close()


def test_the_server_stops_when_all_processes_are_done(harness: Callable[..., Harness]) -> None:
    made = harness()
    first, second = made.join_both()
    heartbeat(first, 3, "other", done=True)
    heartbeat(second, 3, "other", done=True)
    assert receive(second, "all_done") == {"all_done": True}
    made.server.join(5)
    assert not made.server.is_alive()


def test_a_process_whose_connection_closes_has_died(harness: Callable[..., Harness]) -> None:
    first, second = harness().join_both()
    heartbeat(second, 7, "step")
    second.close()
    assert receive(first, "abort") == {
        "abort": "process 1 (host h), last heard from in step 7 (step), has died",
        "code": 75,
    }


def test_a_process_that_fails_gives_its_error_and_exit_code_to_all(harness: Callable[..., Harness]) -> None:
    first, second = harness().join_both()
    second.send(failed="ConfigError: no", code=2)
    assert receive(first, "abort") == {
        "abort": "process 1 (host h), last heard from in step 0 (start), failed: ConfigError: no",
        "code": 2,
    }


def test_a_signal_in_one_process_stops_all_at_the_last_place_that_any_promised(harness: Callable[..., Harness]) -> None:
    first, second = harness().join_both()
    second.send(stop=75)
    for connection, place in ((first, 7), (second, 5)):
        assert receive(connection, "hold")
        connection.send(promised=place)
    for connection in (first, second):
        assert receive(connection, "stop_at") == {"stop_at": 7, "code": 75}
    first.close()


def test_a_process_without_heartbeats_aborts_the_run(harness: Callable[..., Harness]) -> None:
    first, _ = harness(limit=0.4).join_both()
    assert receive(first, "abort")["abort"].startswith("no heartbeat for 0.4 s from process 0 (host h), last heard")


def test_a_process_that_keeps_the_others_waiting_aborts_the_run(harness: Callable[..., Harness]) -> None:
    first, second = harness(limit=10).join_both()
    heartbeat(first, 6, "step", unchanged=10)
    heartbeat(second, 5, "data", unchanged=10)
    assert receive(first, "abort") == {
        "abort": "all others have waited for 10 s for process 1 (host h), last heard from in step 5 (data)",
        "code": 75,
        "stacks": True,
    }


def test_a_phase_beyond_its_deadline_aborts_the_run_with_stacks_and_names_who_has_not_arrived(
    harness: Callable[..., Harness],
) -> None:
    first, second = harness().join_both()
    heartbeat(second, 6, "data")
    heartbeat(first, 6, "step")
    first.send(overdue="step", deadline=30)
    assert receive(second, "abort") == {
        "abort": "process 0 (host h), in step 6 (step), takes longer than deadlines.step, 30 s; not arrived there: "
        "process 1 (host h), last heard from in step 6 (data)",
        "code": 75,
        "stacks": True,
    }


def test_of_a_process_beyond_its_deadline_that_is_the_last_those_that_are_further_are_named() -> None:
    statuses = [Status("a", 0.0, 6, "step"), Status("b", 0.0, 6, "data")]
    assert overdue(1, "data", 5, statuses).endswith("deadlines.data, 5 s; further: a")
    assert overdue(0, "step", 5, [statuses[0]] * 2).endswith("; all others are there too")


def test_versions_are_compared_of_packages_that_both_have_imported_and_clocks_are_not_facts() -> None:
    first = {"packages": {"a": "1", "b": "2"}, "clock": 5.0}
    assert compare_facts({"process 0": first, "process 1": {"packages": {"b": "2", "c": "3"}, "clock": 9.0}}) == ""
    text = compare_facts({"process 0": first, "process 1": {"packages": {"a": "7"}, "clock": 5.0}})
    assert text.splitlines()[1:] == ["  a: 1 → 7"]


def test_a_clock_that_differs_by_more_than_a_minute_is_said_and_no_error(
    harness: Callable[..., Harness], capsys: pytest.CaptureFixture[str]
) -> None:
    made, now = harness(), time.time()
    both = made.join(0, clock=now), made.join(1, clock=now - 86400)
    assert all("joined" in connection.receive_one() for connection in both)
    assert "the clock of process 1 (host h) is 86400 s behind that of process 0" in capsys.readouterr().err
    assert clock_warnings({"process 1": 59.0}) == []


@pytest.mark.parametrize("days", [1, -1])
def test_jumps_of_the_time_of_day_lose_no_process(
    days: int, harness: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = harness(limit=5).join_both()
    began = time.time()
    monkeypatch.setattr(time, "time", lambda: began + days * 86400)
    for connection in (first, second):
        heartbeat(connection, 3, "other")
    for connection in (first, second):
        heartbeat(connection, 3, "other", done=True)
    receive(first, "all_done")


def test_environments_differ_in_what_changes_the_program_and_not_in_what_names_the_process() -> None:
    same = {"JAX_PROCESS_ID": "1", "JAX_COORDINATOR_ADDRESS": "x:1", "JAX_COMPILATION_CACHE_DIR": "/a", "HOME": "/b"}
    dumps = {"XLA_FLAGS": "--xla_dump_to=/tmp/1 --xla_a=1 --xla_b --xla_a=2"}
    changes = {"JAX_ENABLE_X64": "1", "JAX_DEFAULT_PRNG_IMPL": "rbg", "XLA_PYTHON_CLIENT_ALLOCATOR": "platform"}
    found = process_facts({**same, **dumps, **changes})
    assert {name: value for name, value in found.items() if name.startswith(("JAX_", "XLA_"))} == {
        **changes,
        "XLA_FLAGS --xla_a": "2",
        "XLA_FLAGS --xla_b": "given",
    }
    for name in ("enable_x64", "default_prng_impl", "default_matmul_precision", "threefry_partitionable"):
        assert f"jax.config.jax_{name}" in found
    assert not [name for name in found if "cache_dir" in name or "log_compiles" in name]
    assert found["packages"]["numpy"] == np.__version__


def test_other_kinds_or_numbers_of_devices_are_named_with_both_values() -> None:
    def devices(*kinds: tuple[int, str]) -> Any:
        return [SimpleNamespace(process_index=process, device_kind=kind) for process, kind in kinds]

    check_same_devices(devices((0, "cpu"), (1, "cpu")))
    for others in [devices((1, "H100"), (1, "H100")), devices((1, "A100"))]:
        with pytest.raises(ConfigError, match=r"devices: 1 x H100 → (2 x H100|1 x A100)$"):
            check_same_devices(devices((0, "H100")) + others)


@pytest.mark.slow
def test_a_connection_that_is_silent_for_less_than_the_limit_changes_nothing_and_one_cut_for_good_is_named(
    harness: Callable[..., Harness],
) -> None:
    made = harness(limit=2)
    with Proxy(made.port) as proxy:
        first, second = made.join(0), made.join(1, port=proxy.port)
        assert [connection.receive_one() for connection in (first, second)] == [{"joined": "process 0 (host h)"}] * 2
        ended = threading.Event()

        def beat(connection: Connection, done: bool = False) -> None:
            while not ended.wait(0.1):
                heartbeat(connection, 3, "step")

        threads = [threading.Thread(target=beat, args=(each,)) for each in (first, second)]
        for thread in threads:
            thread.start()
        proxy.cut.set()
        assert not ended.wait(1)
        proxy.cut.clear()
        assert "heartbeat" in receive(second, "heartbeat")
        made.server.join(1)
        assert made.server.is_alive()
        proxy.cut.set()
        message = receive(first, "abort")
        ended.set()
        for thread in threads:
            thread.join()
        assert message["code"] == 75
        assert message["abort"].startswith("no heartbeat for 2 s from process 1 (host h)")


def test_a_process_in_a_collective_is_not_stuck(harness: Callable[..., Harness]) -> None:
    first, second = harness(limit=10).join_both()
    heartbeat(first, 6, "step", unchanged=10)
    heartbeat(second, 5, "step", unchanged=10)
    heartbeat(first, 6, "step", unchanged=10, done=True)
    heartbeat(second, 5, "step", unchanged=10, done=True)
    receive(first, "all_done")


def test_a_coordinator_that_does_not_answer_is_named_with_its_address() -> None:
    info = ProcessInfo("here", f"127.0.0.1:{launch.free_port()}", 2, 1)
    message = f"no coordinator at {info.coordinator_address} in 0.5 s: Connection refused. Check"
    with pytest.raises(Retry, match=message):
        join(info, {}, join_seconds=0.5, deadline=0, stop=StopSignal())


def test_a_process_0_whose_port_is_taken_by_another_program_reports_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            with other.accept()[0] as visitor:
                visitor.sendall(b"\0\0\4")  # as jax's own service does

        thread = threading.Thread(target=answer)
        thread.start()
        info = ProcessInfo("here", f"127.0.0.1:{other.getsockname()[1]}", 2, 0)
        with pytest.raises(Retry, match="another program answers there, or a run that has already started"):
            join(info, {}, join_seconds=0.2, deadline=0, stop=StopSignal())
        thread.join()


def test_a_user_error_that_the_server_finds_is_a_config_error(harness: Callable[..., Harness]) -> None:
    made = harness()
    made.join(1)
    with pytest.raises(ConfigError, match="two processes have the id 1"):
        join(ProcessInfo("here", f"127.0.0.1:{made.port}", 2, 1), {}, join_seconds=5, deadline=0, stop=StopSignal())


@pytest.mark.parametrize(("heard", "code"), [(0, 75), (130, 130), (75, 75)])
def test_a_process_that_was_interrupted_before_process_0_was_lost_ends_as_interrupted(
    heard: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise SystemExit  # ends the thread, as it would the process

    monkeypatch.setattr("os._exit", end)
    here, there = socket.socketpair()
    stop = StopSignal()
    stop.code = ExitCode(heard)
    there.close()
    with here, pytest.raises(SystemExit):
        Client(Connection(here), None, 2.0, "process 1", stop).run()
    assert codes == [code]
    assert f"process 0, has died. process 1 stops too, with exit code {code}" in capsys.readouterr().err


@pytest.mark.parametrize("answer", [b"", b'{"abort": "process 1 failed", "code": 75}\n'])
def test_the_answer_to_a_process_that_leaves_does_not_change_its_exit_code(
    answer: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    here, there = socket.socketpair()
    client = Client(Connection(here), None, 2.0, "process 1", StopSignal())

    def end(code: int) -> None:
        codes.append(code)
        if threading.current_thread() is not client:  # the other thread hears the server while this one is ending
            there.sendall(answer)
            there.close()
            client.join(0.5)

    monkeypatch.setattr("os._exit", end)
    client.start()
    client.leave("a bug", ExitCode.FAILED)
    assert codes == [1]
    assert "process 1 stops too" not in capsys.readouterr().err
