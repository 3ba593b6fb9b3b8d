"""How processes meet and whom they take for lost: process 0's side, spoken to over real sockets by hand."""

import socket
import threading
import time
from collections.abc import Callable, Iterator

import launch
import pytest

from jaxtrain.base.errors import ConfigError
from jaxtrain.cluster.environment import Place
from jaxtrain.cluster.rendezvous import Hub, Line, meet


class Door:
    """A hub for two processes, and lines to it."""

    def __init__(self, seconds: float = 20, watch: float = 0.4) -> None:
        self.port = launch.free_port()
        self.hub = Hub(2, self.port, seconds, watch)
        self.hub.start()
        self.lines: list[Line] = []

    def line(self) -> Line:
        """A new connection, welcomed."""
        line = Line(socket.create_connection(("127.0.0.1", self.port)))
        self.lines.append(line)
        assert line.answer() == {"welcome": True}
        return line

    def hello(self, process: int, count: int = 2, **facts: object) -> Line:
        """A connection that has said who it is."""
        line = self.line()
        line.send(process=process, count=count, name=f"process {process} (host h)", facts=facts)
        return line

    def both(self) -> tuple[Line, Line]:
        """Two processes that have met."""
        lines = self.hello(0), self.hello(1)
        assert [line.answer()["go"] for line in lines] == ["process 0 (host h)"] * 2
        return lines


@pytest.fixture
def open_door() -> Iterator[Callable[..., Door]]:
    """Makes doors that are closed after the test."""
    doors: list[Door] = []

    def make(**limits: float) -> Door:
        doors.append(Door(**limits))
        return doors[-1]

    yield make
    for door in doors:
        for line in door.lines:
            line.socket.close()
        door.hub.join(10)
        assert not door.hub.is_alive()


def word(line: Line, step: int, phase: str, still: float = 0, done: bool = False) -> None:
    """What a process says of itself."""
    line.send(step=step, phase=phase, still=still, done=done)


def stop(line: Line, name: str = "stop") -> dict[str, object]:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        for message in line.receive() or ():
            if name in message:
                return dict(message)
    raise AssertionError(f"no {name} came")


def test_two_processes_with_one_number_are_told_so(open_door: Callable[..., Door]) -> None:
    door = open_door()
    lines = [door.hello(1), door.hello(1)]
    for line in lines:
        assert line.answer() == {
            "stop": "two processes have the number 1: process 1 (host h) and process 1 (host h)",
            "code": 2,
        }


def test_processes_that_were_told_of_different_numbers_are_told_so(open_door: Callable[..., Door]) -> None:
    assert "was told of 3 processes, process 0 of 2" in open_door().hello(1, count=3).answer()["stop"]


def test_what_differs_from_process_0_is_named(open_door: Callable[..., Door]) -> None:
    door = open_door()
    lines = [door.hello(0, jax="1", seed=3), door.hello(1, jax="2", seed=3)]
    for line in lines:
        answer = line.answer()
        assert answer["code"] == 2
        assert answer["stop"].startswith("process 1 (host h) does not run what process 0 (host h) runs")
        assert answer["stop"].endswith("\n  jax: 1 → 2")


def test_who_has_not_come_in_time_is_named(open_door: Callable[..., Door]) -> None:
    answer = open_door(seconds=0.5).hello(0).answer()
    assert answer == {"stop": "after 0.5 s of waiting, process 1 has not come; here: process 0 (host h)", "code": 1}


def test_strangers_at_the_door_do_no_harm(open_door: Callable[..., Door]) -> None:
    door = open_door()
    door.line().socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
    door.line().socket.sendall(b"{}\n")
    door.line().socket.sendall(b"5\n")
    door.line().socket.close()
    door.both()


def test_a_long_hello_that_comes_in_parts_is_understood(open_door: Callable[..., Door]) -> None:
    door = open_door()
    lines = door.hello(0, text="x" * 300_000), door.hello(1, text="x" * 300_000)
    assert all("go" in line.answer() for line in lines)


def test_the_port_is_free_for_jax_when_all_have_come(open_door: Callable[..., Door]) -> None:
    door = open_door()
    lines = door.both()
    socket.create_server(("127.0.0.1", door.port)).close()
    assert all(line.receive() for line in lines)


def test_a_clean_end_of_both_ends_the_watch(open_door: Callable[..., Door]) -> None:
    door = open_door()
    first, second = door.both()
    word(first, 3, "other", done=True)
    word(second, 3, "other", done=True)
    stop(second, "all_done")
    door.hub.join(5)
    assert not door.hub.is_alive()


def test_a_process_that_hangs_up_has_died_and_one_that_failed_says_why(open_door: Callable[..., Door]) -> None:
    first, second = open_door().both()
    word(second, 7, "step")
    second.socket.close()
    assert stop(first) == {"stop": "process 1 (host h), last heard of in step 7 (step), has died", "code": 75}
    first, second = open_door().both()
    second.send(failed="ConfigError: no", code=2)
    assert stop(first)["stop"].endswith("failed: ConfigError: no")


def test_silence_is_noticed(open_door: Callable[..., Door]) -> None:
    first, _ = open_door().both()
    for _ in range(20):
        word(first, 1, "step")
        time.sleep(0.05)
    assert stop(first)["stop"].startswith("nothing was heard for 0.4 s of process 1 (host h)")


@pytest.mark.parametrize(
    ("mine", "other", "stuck"),
    [
        ((5, "data"), (5, "step"), True),
        ((5, "data"), (6, "step"), True),
        ((5, "other"), (6, "step"), True),
        ((5, "data"), (5, "data"), False),
        ((5, "step"), (6, "step"), False),
        ((5, "checkpoint"), (6, "step"), False),
        ((5, "data"), (4, "checkpoint"), False),
        ((0, "start"), (0, "compile"), False),
        ((0, "compile"), (1, "step"), False),
    ],
)
def test_a_process_that_others_wait_for_is_stuck_unless_it_compiles_or_saves(
    mine: tuple[int, str], other: tuple[int, str], stuck: bool, open_door: Callable[..., Door]
) -> None:
    door = open_door()
    first, second = door.both()
    for number in range(10):
        word(first, *other, still=number)
        word(second, *mine, still=number)
        time.sleep(0.02)
    word(first, *other, still=9, done=True)
    word(second, *mine, still=9, done=True)
    if stuck:
        assert "the others have waited for 0.4 s for process 1 (host h)" in stop(first)["stop"]
    else:
        stop(first, "all_done")


def test_a_coordinator_that_is_not_there_is_said_with_its_address() -> None:
    place = Place("here", f"127.0.0.1:{launch.free_port()}", 2, 1)
    with pytest.raises(SystemExit, match=f"no coordinator at {place.address} in 0.5 s: Connection refused. Check"):
        meet(place, {}, 0.5, 0)


def test_process_0_whose_port_is_taken_is_told_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answers() -> None:
            with other.accept()[0] as visitor:
                visitor.sendall(b"\0\0\4")  # as jax's own service does

        thread = threading.Thread(target=answers)
        thread.start()
        with pytest.raises(SystemExit, match="another program answers there, or a run that goes on already"):
            meet(Place("here", f"127.0.0.1:{other.getsockname()[1]}", 2, 0), {}, 0.2, 0)
        thread.join()


def test_a_mistake_that_process_0_finds_is_a_config_error(open_door: Callable[..., Door]) -> None:
    door = open_door()
    door.hello(1)
    with pytest.raises(ConfigError, match="two processes have the number 1"):
        meet(Place("here", f"127.0.0.1:{door.port}", 2, 1), {}, 5, 0)
