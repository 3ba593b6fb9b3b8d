"""Joining processes and stopping them; real processes that train as one does, and name the one that is lost."""

import contextlib
import json
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import launch
import pytest
from cluster import until
from proxy import Proxy

from jaxtrain.cluster.environment import ADDRESS, COUNT, PROCESS_ID
from jaxtrain.cluster.processes import join_processes
from jaxtrain.cluster.stop import StopSignal

DEADLINE = 6
"""Seconds after the loss of a process in which all others must have exited."""

EXIT_SECONDS = 60
"""After this time a test fails. Much more than the deadline, since other tests may run too."""


def test_a_single_process_does_not_wait_and_prints_the_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (ADDRESS, COUNT, PROCESS_ID):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    stop = StopSignal()
    with join_processes(lambda: pytest.fail("there is nothing to compare"), 60, lambda error: 1, stop):
        assert stop.ask_others is None
    assert "SLURM job 42 has 4 tasks, but srun did not start this process" in capsys.readouterr().err


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    run = tmp_path_factory.mktemp("single") / "run"
    launch.train("main", run)
    return run


def lose_one(function: str, run: Path, programs: Sequence[str | None]) -> tuple[list[int], list[str]]:
    """Processes of a run, of which one has a program that makes it die or hang: exit codes, and what they printed."""
    port = launch.free_port()
    started = [
        launch.start(
            function,
            run,
            "--deadline",
            str(DEADLINE),
            program=program,
            process=number,
            processes=len(programs),
            port=port,
        )
        for number, program in enumerate(programs)
    ]
    try:
        while not run.with_name("gone").exists() and started[0].poll() is None:
            time.sleep(0.05)
        for process, program in zip(started, programs, strict=True):
            if program is None:
                process.wait(timeout=EXIT_SECONDS)
    finally:
        for process, program in zip(started, programs, strict=True):
            if program is not None:
                process.kill()
    return [process.wait() for process in started], [process.communicate()[0] for process in started]


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(single: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    printed = launch.train("tensor", run, processes=2)
    assert "ended  step 12  of 12" in printed
    assert launch.relative_difference(run, single) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize(("function", "processes", "process"), [("data", 2, 0), ("both", 4, 2)])
def test_when_a_process_is_killed_the_others_name_it_and_exit_and_two_resume_to_the_same_losses(
    single: Path, tmp_path: Path, function: str, processes: int, process: int
) -> None:
    run = tmp_path / "run"
    programs = [launch.killed(7) if number == process else None for number in range(processes)]
    codes, printed = lose_one(function, run, programs)
    assert codes == [-signal.SIGKILL if program else 75 for program in programs], printed
    for text, program in zip(printed, programs, strict=True):
        reason = rf"process {process} \(host .*, pid \d+\), last heard from in step \d \(\w+\), has died"
        assert program or re.search(rf"jaxtrain: {reason}\. process", text), text
        assert program or "run the same command again" in text
    # It is process 0 that records.
    assert (run / "flight.json").exists() == (process != 0)
    if processes == 4:
        flight = json.loads((run / "flight.json").read_text())
        assert re.match(rf"process {process} \(.* has died$|.*Error: ", flight["why"]), flight["why"]
        assert [step["step"] for step in flight["steps"]][:7] == [1, 2, 3, 4, 5, 6, 7]
        launch.train("fsdp", run, processes=2)
        assert launch.relative_difference(run, single) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "message"),
    [
        (launch.killed(7, by="SIGSTOP"), r"no heartbeat for 4\.2 s from process 1 \("),
        (launch.STUCK.format(step=7), r"have waited for 4\.2 s for process 1 \(.* in step 6 \(data\)"),
    ],
    ids=["stopped", "stuck in reading"],
)
def test_a_process_that_hangs_is_named_after_seven_tenths_of_the_deadline(
    tmp_path: Path, program: str, message: str
) -> None:
    codes, printed = lose_one("data", tmp_path / "run", [None, program])
    assert codes[0] == 75, printed
    assert re.search(message, printed[0]), printed
    flight = json.loads((tmp_path / "run" / "flight.json").read_text())
    assert re.search(message, flight["why"])
    assert [step["step"] for step in flight["steps"]][:6] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_others_with_its_message_and_exit_code(tmp_path: Path) -> None:
    port = launch.free_port()
    program = launch.FAILING.format(step=3, error="ValueError('a bug')")
    other = launch.start("data", tmp_path / "run", process=0, processes=2, port=port)
    failing = launch.start("data", tmp_path / "run", program=program, process=1, processes=2, port=port)
    printed = [process.communicate(timeout=120)[0] for process in (other, failing)]
    assert (other.returncode, failing.returncode) == (1, 1), printed
    assert re.search(r"jaxtrain: process 1 \(.* failed: ValueError: a bug\. process 0 .*with exit code 1\n", printed[0])
    assert "Traceback" not in "".join(printed)
    assert "ValueError: a bug" in (tmp_path / "run" / "traceback-1.txt").read_text()


@pytest.mark.slow
def test_processes_that_do_not_run_the_same_exit_before_anything_is_written(tmp_path: Path) -> None:
    port = launch.free_port()
    flags = ("--seed", "1", "--log-every", "2")
    started = [
        launch.start("data", tmp_path / "run", process=0, processes=2, port=port),
        launch.start("data", tmp_path / "run", *flags, program=launch.OTHER_VERSION, process=1, processes=2, port=port),
    ]
    printed = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [2, 2], printed
    for text in printed:
        assert "  seed: 0 → 1\n" in text
        assert "  runtime.log_every: 1 → 2\n" in text
        assert re.search(r"  jax: .* → 0\.10\.1\n", text)
        assert "Traceback" not in text
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_id_given_twice_and_a_coordinator_that_does_not_answer_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXTRAIN_JOIN_SECONDS", "5")
    unmet = launch.start("data", tmp_path / "run", process=1, processes=2, port=launch.free_port())
    monkeypatch.setenv("JAXTRAIN_JOIN_SECONDS", "100")
    port = launch.free_port()
    twice = [launch.start("data", tmp_path / "run", process=0, processes=2, port=port) for _ in range(2)]
    for process in twice:
        text = process.communicate(timeout=60)[0]
        assert process.returncode == 2, text
        assert "jaxtrain: two processes have the id 0: process 0 (host" in text
    text = unmet.communicate(timeout=60)[0]
    assert unmet.returncode == 75, text
    assert "found no coordinator at 127.0.0.1:" in text
    assert "Traceback" not in text


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [5, 0], ids=["for 5 s", "for good"])
def test_a_connection_to_the_coordinator_that_is_cut_changes_nothing_in_5_s_and_else_ends_all_with_75(
    tmp_path: Path, seconds: int
) -> None:
    run, port = tmp_path / "run", launch.free_port()
    steps, deadline = ("60", "60") if seconds else ("1000000", str(DEADLINE))
    with Proxy(port) as proxy:
        started = [
            launch.start("data", run, "--steps", steps, "--deadline", deadline, process=number, processes=2, port=at)
            for number, at in enumerate([port, proxy.port])
        ]
        while not (run / "metrics.jsonl").is_file() and started[0].poll() is None:
            time.sleep(0.05)
        proxy.cut.set()
        if seconds:
            time.sleep(seconds)
            proxy.cut.clear()
        printed = [process.communicate(timeout=100)[0] for process in started]
    assert [process.returncode for process in started] == [0 if seconds else 75] * 2, printed
    if seconds:
        assert max(launch.losses(run)) == 60
    else:
        assert "no heartbeat for 4.2 s from process 1 (" in printed[0]
        assert "no heartbeat for 4.2 s from process 0 (" in printed[1]


def marked(mark: str) -> list[str]:
    """The command lines of the processes that have this text in their environment, but for dead ones."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


@pytest.mark.slow
def test_a_worker_that_hangs_in_one_of_two_processes_ends_both_with_75_and_is_named_and_none_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, port = f"JAXTRAIN_TEST={tmp_path}", launch.free_port()
    monkeypatch.setenv(*mark.split("=", 1))
    flags = ("--deadline", str(DEADLINE))
    started = [
        launch.start("hanging", tmp_path / "run", *flags, process=number, processes=2, port=port) for number in (0, 1)
    ]
    printed = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [75, 75], printed
    for text in printed:
        assert re.search(r"have waited for 4\.2 s for process \d \(.* in step \d \(data\)", text), text
        assert "Traceback" not in text
    until(lambda: not marked(mark), 30, lambda: f"left: {marked(mark)}")
    flight = json.loads((tmp_path / "run" / "flight.json").read_text())
    assert "have waited for 4.2 s" in flight["why"]
