"""A phase that hangs ends the process with 75, and leaves the stacks of all threads; in processes of their own."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import launch
import pytest
from cluster import until

from jaxtrain.base.errors import Retry
from jaxtrain.cluster import watchdog
from jaxtrain.cluster.watchdog import Watchdog
from jaxtrain.experiment import Deadlines


class Watched:
    """A watchdog that tells what it would end the process with."""

    def __init__(self, folder: Path, **deadlines: float) -> None:
        self.at, self.left = (7, "data"), threading.Event()
        self.said: list[tuple[str, int]] = []
        self.dog = Watchdog(deadlines, lambda: self.at)
        self.dog.folder, self.dog.leave = folder, self._leave

    def _leave(self, message: str, code: int) -> None:
        self.said.append((message, code))
        self.left.set()


def test_past_a_deadline_step_phase_and_the_place_of_the_stacks_are_said(tmp_path: Path) -> None:
    watched = Watched(tmp_path, data=0.3, other=0)
    with watched.dog:
        assert watched.left.wait(20)
    [(message, code)] = watched.said
    assert code == 75
    assert message.startswith("step 7 hangs: data takes longer than deadlines.data, 0.3 s; the stacks")
    assert str(tmp_path / "stacks.txt") in message
    stacks = (tmp_path / "stacks.txt").read_text()
    assert "test_past_a_deadline_step_phase_and_the_place" in stacks  # the main thread's


@pytest.mark.slow
def test_steps_batches_and_other_phases_begin_anew_and_0_is_no_deadline(tmp_path: Path) -> None:
    watched = Watched(tmp_path, data=0.8, eval=0.8, step=0, other=0)
    never = threading.Event()
    with watched.dog:
        for number in range(8):
            watched.at = (number, "data")
            never.wait(0.2)
        watched.at = (8, "eval")
        for _ in range(8):
            watchdog.beat()
            never.wait(0.2)
        watched.at = (8, "step")
        never.wait(1.6)
        assert not watched.said
        watched.at = (8, "eval")
        assert watched.left.wait(20)


def test_before_the_end_the_run_writes_what_it_knows_unless_that_hangs_or_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "LAST_WORDS", 0.2)
    told: list[str] = []

    def fails(why: str) -> None:
        told.append(why)
        raise RuntimeError(why)

    def hangs(why: str) -> None:
        told.append(why)
        threading.Event().wait(100)

    for write in (told.append, fails, hangs, None):
        watched = Watched(tmp_path, data=0.1)
        with watched.dog:
            watchdog.write_at_end(write)
            assert watched.left.wait(20)
    assert told == ["step 7 hangs: data takes longer than deadlines.data, 0.1 s"] * 3
    watchdog.last_words("without a watchdog, as in a notebook, nothing is called")


def test_a_folder_that_another_process_has_taken_over_is_not_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def taken() -> None:
        raise Retry("it was taken over")

    watched, told = Watched(tmp_path, data=0.1), list[str]()
    with watched.dog:
        watchdog.stacks_into(tmp_path, taken)
        watchdog.write_at_end(told.append)
        assert watched.left.wait(20)
    assert (told, list(tmp_path.iterdir())) == ([], [])
    assert "test_a_folder_that_another_process_has_taken_over" in capfd.readouterr().err


def test_of_several_processes_the_server_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "MARGIN", 0.1)
    watched, asked = Watched(tmp_path, data=0.3), []
    watched.dog.ask_others = lambda phase, limit: asked.append((phase, limit, list(watched.said)))
    with watched.dog:
        assert watched.left.wait(20)
    assert asked == [("data", 0.3, [])]


def test_the_main_thread_is_watched_only_within_the_context(tmp_path: Path) -> None:
    watched = Watched(tmp_path, data=0.2)
    with watched.dog:
        pass
    assert not watched.dog.is_alive()
    assert not watched.left.wait(0.5)


HOLDS_THE_INTERPRETER = """
import ctypes
from jaxtrain.cluster import watchdog
watchdog.MARGIN = 0.3
with watchdog.Watchdog({"data": 0.5}, lambda: (7, "data")):
    ctypes.PyDLL(None).sleep(100)
"""


@pytest.mark.slow
def test_a_call_into_c_that_keeps_the_interpreters_lock_ends_with_75_and_stacks_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOLDS_THE_INTERPRETER], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 75
    assert 'File "<string>", line 6 in <module>' in done.stderr


@pytest.mark.parametrize("phase", ["compile", "restore", "data", "step", "eval", "save", "other", "join", "lock"])
def test_every_phase_has_a_deadline_of_its_own(phase: str) -> None:
    assert getattr(Deadlines(**{phase: 5}), phase) == 5
    assert getattr(Deadlines(), phase) > 0


@pytest.mark.slow
def test_a_source_that_hangs_ends_the_command_with_75_and_stacks_in_the_run_folder(tmp_path: Path) -> None:
    process = launch.start("main", tmp_path / "run", "--deadlines.data", "3", program=launch.STUCK.format(step=5))
    printed = process.communicate(timeout=100)[0]
    assert process.returncode == 75, printed
    assert "data takes longer than deadlines.data, 3 s; the stacks of its threads are in" in printed
    assert "in stuck" in (tmp_path / "run" / "stacks.txt").read_text()
    flight = json.loads((tmp_path / "run" / "flight.json").read_text())
    assert (flight["step"], flight["unread"]) == (4, [])
    assert flight["why"] == "step 4 hangs: data takes longer than deadlines.data, 3 s"
    assert [step["step"] for step in flight["steps"]] == [1, 2, 3, 4]
    assert len(flight["steps"][3]["examples"]) == 16
    assert not [path.name for path in (tmp_path / "run").iterdir() if ".tmp" in path.name]


@pytest.mark.slow
def test_of_two_processes_both_write_their_stacks_and_the_one_that_has_not_arrived_is_named(tmp_path: Path) -> None:
    run, port = tmp_path / "run", launch.free_port()
    started = [
        launch.start("data", run, "--deadlines.data", "3", program=program, process=number, processes=2, port=port)
        for number, program in enumerate([None, launch.STUCK.format(step=5)])
    ]
    printed = [process.communicate(timeout=100)[0] for process in started]
    assert [process.returncode for process in started] == [75, 75], printed
    for text in printed:
        assert "process 1 (host" in text
        assert "takes longer than deadlines.data, 3 s; " in text
    assert "in stuck" in (run / "stacks-1.txt").read_text()
    until((run / "stacks.txt").is_file, 5, lambda: "process 0 wrote no stacks")
    flight = json.loads((run / "flight.json").read_text())
    assert "process 1 (host" in flight["why"]
    assert [step["step"] for step in flight["steps"]][:5] == [1, 2, 3, 4, 5]  # the fifth waits for process 1
    assert [step["step"] for step in flight["steps"] if "loss" in step] == [1, 2, 3, 4]
    assert [each.partition(": ")[0] for each in flight["unread"]] == [f"step {n}" for n in (5, 6)][
        : len(flight["unread"])
    ]
