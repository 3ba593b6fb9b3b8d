"""Wishes to stop, and what a process says of itself to the others."""

import os
import signal

import pytest

from jaxtrain.cluster.environment import ADDRESS, COUNT, PROCESS
from jaxtrain.cluster.processes import Stop, together


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)], ids=["INT", "TERM", "USR1"]
)
def test_a_signal_is_a_wish_to_stop_with_an_exit_code_of_its_own(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with Stop() as stop:
        assert not stop.wanted(1, every=1)
        os.kill(os.getpid(), number)
        assert stop.wanted(2, every=10)
        assert stop.code == code
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once() -> None:
    with Stop():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_process_alone_waits_for_nobody_and_hears_what_was_expected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (ADDRESS, COUNT, PROCESS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    with together(lambda: pytest.fail("nothing is to be compared"), 60, lambda error: 1) as stop:
        assert stop.code == 0
    assert "SLURM job 42 has 4 tasks, but srun did not start this process" in capsys.readouterr().err
