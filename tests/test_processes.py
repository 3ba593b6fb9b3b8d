"""Real processes that talk over a socket train as one process does; when one is lost, the others say so and stop."""

import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import launch
import pytest

WATCH = 6
"""Seconds in which a lost process is noticed."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("alone") / "run"
    launch.train("main", run)
    return run


def together(function: str, run: Path, programs: Sequence[str | None]) -> tuple[list[int], list[str], float]:
    """Processes of a run, some with programs of their own, of which one is lost: exit codes, what they printed, and
    seconds from the loss to the end of the last that has no program.
    """
    place = dict(processes=len(programs), port=launch.free_port())
    started = [
        launch.start(function, run, "--watch", str(WATCH), program=program, process=number, **place)
        for number, program in enumerate(programs)
    ]
    try:
        while not run.with_name("gone").exists() and started[0].poll() is None:
            time.sleep(0.05)
        since = time.monotonic()
        for process, program in zip(started, programs, strict=True):
            if program is None:
                process.wait(timeout=120)
        seconds = time.monotonic() - since
    finally:
        for process, program in zip(started, programs, strict=True):
            if program is not None:
                process.kill()
    return [process.wait() for process in started], [process.communicate()[0] for process in started], seconds


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    printed = launch.train("tensor", run, processes=2)
    assert "ended  step 12  of 12" in printed
    assert launch.relative_difference(run, alone) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize(("function", "processes", "process"), [("data", 2, 0), ("both", 4, 2)])
def test_when_a_process_is_killed_the_others_name_it_and_end_and_two_go_on_to_the_same_losses(
    alone: Path, tmp_path: Path, function: str, processes: int, process: int
) -> None:
    run = tmp_path / "run"
    programs = [launch.killed(7) if number == process else None for number in range(processes)]
    codes, printed, seconds = together(function, run, programs)
    assert codes == [-signal.SIGKILL if program else 75 for program in programs], printed
    assert seconds < WATCH
    for text, program in zip(printed, programs, strict=True):
        said = (
            rf"jaxtrain: process {process} \(host .*, pid \d+\), last heard of in step \d \(\w+\), has died\. process"
        )
        assert program or re.search(said, text), text
        assert program or "run the same command again" in text
    if processes == 4:
        launch.train("fsdp", run, processes=2)
        assert launch.relative_difference(run, alone) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "message"),
    [
        (launch.killed(7, by="SIGSTOP"), r"nothing was heard for .* of process 1 \("),
        (launch.STUCK.format(step=7), r"have waited for .* for process 1 \(.* in step 7 \(data\)"),
    ],
    ids=["stopped", "stuck in reading"],
)
def test_a_process_that_hangs_is_named_in_time(tmp_path: Path, program: str, message: str) -> None:
    codes, printed, seconds = together("data", tmp_path / "run", [None, program])
    assert codes[0] == 75, printed
    assert seconds < WATCH
    assert re.search(message, printed[0]), printed


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_others_with_its_words_and_code(tmp_path: Path) -> None:
    place = dict(processes=2, port=launch.free_port())
    program = launch.FAILING.format(step=3, error="ValueError('a bug')")
    other = launch.start("data", tmp_path / "run", process=0, **place)
    failing = launch.start("data", tmp_path / "run", program=program, process=1, **place)
    printed = [process.communicate(timeout=120)[0] for process in (other, failing)]
    assert (other.returncode, failing.returncode) == (1, 1), printed
    assert re.search(r"jaxtrain: process 1 \(.* failed: ValueError: a bug\. process 0 .*with code 1\n", printed[0])
    assert "Traceback" not in printed[0]
    assert "Traceback" in printed[1]


@pytest.mark.slow
def test_processes_that_do_not_run_the_same_end_before_anything_is_written(tmp_path: Path) -> None:
    place = dict(processes=2, port=launch.free_port())
    flags = ("--seed", "1", "--log-every", "2")
    started = [
        launch.start("data", tmp_path / "run", process=0, **place),
        launch.start("data", tmp_path / "run", *flags, program=launch.OTHER, process=1, **place),
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
def test_one_number_given_twice_and_a_coordinator_that_is_not_there_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXTRAIN_JOIN_SECONDS", "5")
    unmet = launch.start("data", tmp_path / "run", process=1, processes=2, port=launch.free_port())
    monkeypatch.setenv("JAXTRAIN_JOIN_SECONDS", "100")
    place = dict(process=0, processes=2, port=launch.free_port())
    twice = [launch.start("data", tmp_path / "run", **place) for _ in range(2)]
    for process in twice:
        text = process.communicate(timeout=60)[0]
        assert process.returncode == 2, text
        assert "jaxtrain: two processes have the number 0: process 0 (host" in text
    text = unmet.communicate(timeout=60)[0]
    assert unmet.returncode == 1, text
    assert "found no coordinator at 127.0.0.1:" in text
    assert "Traceback" not in text
