"""A short soak: `scripts/soak.py` for as long as you like."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import launch
import pytest
import soak as script
from soak import CODES, SCENARIOS, SIGNALS, ending_all, soak


@pytest.mark.slow
def test_runs_that_are_killed_in_every_way_end_as_those_left_alone_and_leave_nothing(tmp_path: Path) -> None:
    """In one process on two devices, then in two processes."""
    with ending_all():
        assert (
            soak(4, ["SIGKILL", "SIGTERM", "SIGINT twice", "worker", "coordinator"], 0, tmp_path, scenarios=(1, 2))
            == []
        )


def test_the_soak_knows_every_way_to_stop_and_runs_in_one_and_two_processes_and_on_two_meshes() -> None:
    assert {"SIGKILL", "SIGTERM", "SIGINT", "SIGUSR1", "SIGTERM twice", "SIGINT twice"} < CODES.keys()
    assert CODES.keys() - SIGNALS.keys() == {"worker"}
    assert {processes for _, _, processes in SCENARIOS} == {1, 2}
    assert len({function for function, *_ in SCENARIOS}) == 3


HEARS = """
import os, signal, sys
signal.signal({number}, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""A shell has its background jobs ignore Ctrl-C. Not by `preexec_fn`: jax warns of forks once it has its threads."""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_soak_that_is_interrupted_ends_what_it_started(number: signal.Signals, tmp_path: Path) -> None:
    soak = [sys.executable, str(Path(script.__file__)), "--kills", "1"]
    command = [sys.executable, "-c", HEARS.format(number=int(number)), *soak]
    mark = {**os.environ, "TMPDIR": str(tmp_path), "JAXTRAIN_SOAK_TEST": str(tmp_path)}
    with subprocess.Popen(
        command,
        env=mark,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while len(marked(tmp_path)) < 2 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(60) != 0
    assert marked(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def marked(folder: Path) -> list[str]:
    """The processes whose environment names a folder."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if f"JAXTRAIN_SOAK_TEST={folder}\0".encode() in variables:
            found.append(pid)
    return found


DIES_LAST = """
import atexit, os, signal
import jaxtrain.cli.main  # whose own functions at exit are called after this one
atexit.register(os.kill, os.getpid(), signal.SIGKILL)
from jaxtrain.__main__ import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1])
def test_a_process_that_dies_once_all_have_finished_harms_no_other(dies: int, tmp_path: Path) -> None:
    port = launch.free_port()
    started = [
        launch.start(
            "data",
            tmp_path / "run",
            "--steps=2",
            program=DIES_LAST if process == dies else None,
            process=process,
            processes=2,
            port=port,
        )
        for process in range(2)
    ]
    try:
        printed = [process.communicate(timeout=90)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == ([-9, 0] if dies == 0 else [0, -9]), "\n".join(printed)
