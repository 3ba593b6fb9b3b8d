"""Jobs that `jaxtrain launch slurm` writes, submitted to a real SLURM."""

import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import launch
import pytest
from cluster import Slurm, until

from jaxtrain.reports.sweep.read import read_sweep

pytestmark = pytest.mark.slow

SLOWLY = """
import os
import time
from dataclasses import dataclass, replace

import tiny

from jaxtrain.experiment import Experiment


@dataclass(frozen=True)
class Slowly(tiny.Counting):
    def __getitem__(self, index):
        time.sleep(float(os.environ["PAUSE"]))
        return super().__getitem__(index)


def main() -> Experiment:
    one = tiny.fsdp()
    return replace(one, data=replace(one.data, source=Slowly(100)), steps=20)
"""
"""The experiment of tests/tiny.py, slowed down, so that there is time to disturb it."""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "slowly.py").write_text(SLOWLY)
    with Slurm(folder) as slurm:
        slurm.environment.update(launch.environment(1), PATH=slurm.environment["PATH"], PAUSE="0.2")
        slurm.environment["PYTHONPATH"] = f"{launch.HERE.parent}:{launch.HERE}"
        yield slurm


def submit(slurm: Slurm, run: str, *flags: str) -> str:
    """The number of a job of two tasks."""
    words = ["launch", "slurm", "slowly.py", "--processes", "2", "--run", run, "--submit", *flags]
    return slurm("jaxtrain", *words, check=True, cwd=slurm.folder).split()[-1]


def logs(slurm: Slurm, job: str, run: str) -> str:
    """All logs of a job."""
    files = [*slurm.folder.glob(f"slurm-*-{job}.log"), *sorted((slurm.folder / run / "logs").glob("*"))]
    return "\n".join([str(slurm.job(job)), *(file.read_text() for file in files)])


def step(slurm: Slurm, run: str) -> int:
    """The last step that a run has recorded."""
    return max(launch.losses(slurm.folder / run), default=0) if (slurm.folder / run / "metrics.jsonl").exists() else 0


def trained(slurm: Slurm, job: str, run: str, least: int) -> None:
    """Wait until a job has trained this step of its run."""
    until(lambda: step(slurm, run) >= least, 240, lambda: logs(slurm, job, run))


def requeued(slurm: Slurm, job: str, run: str, restarts: int) -> None:
    """Wait until a job is requeued, and spare it the two minutes that SLURM has it wait, but for some seconds: in the
    second in which it ended, slurmd takes the new start for one that was revoked.
    """
    until(lambda: slurm.job(job)["Restarts"] == str(restarts), 60, lambda: logs(slurm, job, run))
    slurm("scontrol", "update", f"JobId={job}", "StartTime=now+3", check=True)


def ended(slurm: Slurm, job: str, run: str, state: str) -> str:
    """Wait until a job is in this final state; all its logs."""
    until(lambda: slurm.job(job)["JobState"] == state, 240, lambda: logs(slurm, job, run))
    return logs(slurm, job, run)


def processes(run: str) -> list[int]:
    """The ids of the trainings that run here, by their run folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if run.encode() in words and words[1:3] == [b"-m", b"jaxtrain"]:
            found.append(int(folder.name))
    return sorted(found)


def test_a_job_that_is_killed_and_then_preempted_is_requeued_and_ends_as_if_undisturbed(slurm: Slurm) -> None:
    job = submit(slurm, "disturbed")
    trained(slurm, job, "disturbed", 6)
    os.kill(processes("disturbed")[-1], signal.SIGKILL)
    requeued(slurm, job, "disturbed", 1)
    trained(slurm, job, "disturbed", 10)
    slurm("scancel", "--signal=USR1", job, check=True)
    requeued(slurm, job, "disturbed", 2)
    printed = ended(slurm, job, "disturbed", "COMPLETED")
    assert slurm.job(job)["Restarts"] == "2"
    assert printed.count(": requeued") == 2
    assert printed.count("stopped after step") == 2  # both tasks of the start that was preempted
    events = [json.loads(line) for line in (slurm.folder / "disturbed" / "events.jsonl").read_text().splitlines()]
    first, second, third = [event["step"] for event in events if event["kind"] == "begun"]
    assert first == 0
    assert third > max(second, 8)
    assert f"SLURM job {job}: process 1 of 2" in printed

    words = ["launch", "local", "slowly.py", "--processes", "2", "--run", "undisturbed"]
    slurm.environment["PAUSE"] = "0"
    slurm("jaxtrain", *words, check=True, cwd=slurm.folder)
    slurm.environment["PAUSE"] = "0.2"
    assert launch.relative_difference(slurm.folder / "disturbed", slurm.folder / "undisturbed") < 2e-5


def test_a_user_error_is_not_requeued(slurm: Slurm) -> None:
    job = submit(slurm, "disturbed", "--", "--seed", "9")
    printed = ended(slurm, job, "disturbed", "FAILED")
    assert "is a run of another experiment" in printed
    shown = slurm.job(job)
    assert (shown["Restarts"], shown["ExitCode"]) == ("0", "2:0")


def program(slurm: Slurm, name: str, text: str) -> str:
    """A program in place of a training."""
    (slurm.folder / name).write_text(f"sleep 1\n{text}\n")
    return f"bash {name}"


@pytest.mark.parametrize("code", [2, 4])
def test_an_exit_code_that_forbids_a_restart_outranks_those_of_the_tasks_that_are_killed_next(
    slurm: Slurm, code: int
) -> None:
    fatal = program(slurm, "fatal.sh", f"[ $SLURM_PROCID = 0 ] && exit {code}; sleep 60")
    job = submit(slurm, "fatal", "--program", fatal)
    ended(slurm, job, "fatal", "FAILED")
    assert (slurm.job(job)["Restarts"], slurm.job(job)["ExitCode"]) == ("0", f"{code}:0")


def test_a_job_that_keeps_dying_is_not_requeued_for_ever(slurm: Slurm) -> None:
    job = submit(slurm, "dying", "--restarts", "0", "--program", program(slurm, "dying.sh", "kill -9 $$"))
    assert "exit code 137: not requeued, since it was restarted 0 times already" in ended(slurm, job, "dying", "FAILED")


def test_a_cancelled_job_is_not_requeued(slurm: Slurm) -> None:
    text = "trap 'echo saved; exit 75' TERM; echo runs; while true; do sleep 0.1; done"
    job = submit(slurm, "cancelled", "--program", program(slurm, "waiting.sh", text))
    until(lambda: logs(slurm, job, "cancelled").count("runs\n") == 2, 60, lambda: logs(slurm, job, "cancelled"))
    slurm("scancel", job, check=True)
    until(lambda: logs(slurm, job, "cancelled").count("saved\n") == 2, 60, lambda: logs(slurm, job, "cancelled"))
    ended(slurm, job, "cancelled", "CANCELLED")
    until(lambda: "idle" in slurm("sinfo", "-h", "-o", "%T"), 30, lambda: logs(slurm, job, "cancelled"))
    assert (slurm.job(job)["JobState"], slurm.job(job)["Restarts"]) == ("CANCELLED", "0")


def test_a_training_in_an_allocation_without_srun_has_one_process(slurm: Slurm) -> None:
    train = ["jaxtrain", "train", "slowly.py", "--run", "alone", "--steps", "3"]
    printed = slurm(
        "salloc",
        "--ntasks=2",
        "bash",
        "-c",
        f'echo "tasks $SLURM_NTASKS"; {shlex.join(train)} 2>&1',
        check=True,
        cwd=slurm.folder,
    )
    assert "tasks 2\n" in printed
    assert "mesh {'fsdp': 1}" in printed


TOY = """
import json, sys, time
from pathlib import Path

folder = Path(sys.argv[sys.argv.index("--run") + 1])
folder.mkdir(parents=True)
time.sleep(1)
(folder / "metrics.jsonl").write_text(json.dumps(dict(step=6, split="test", loss=float(sys.argv[-1].split("=")[1]))))
"""
"""In place of a training: its loss is its seed."""


def test_the_tasks_of_an_array_share_the_trials_of_a_sweep(slurm: Slurm) -> None:
    (slurm.folder / "toy.py").write_text(TOY)
    driver = slurm.folder / "bin" / "driver"
    driver.write_text(f'#!/bin/sh\nshift\nexec jaxtrain sweep --program "{sys.executable} toy.py" "$@"\n')
    driver.chmod(0o755)
    films = launch.HERE / "films.py"
    words = ["launch", "slurm-sweep", str(films), "--grid", "seed=3,1,2,4", "--drivers", "2", "--workers", "1"]
    job = slurm("jaxtrain", *words, "--run", "array", "--program", "driver", "--submit", check=True, cwd=slurm.folder)
    number, folder = job.split()[-1], slurm.folder / "array"
    until(lambda: not slurm("squeue", "-h", "-j", number).strip(), 100, lambda: logs(slurm, number, "array"))
    found = read_sweep(folder)
    assert [(trial.state, trial.value) for trial in found.trials] == [("finished", x) for x in (3.0, 1.0, 2.0, 4.0)]
    printed = [(folder / "logs" / f"driver-{task}.log").read_text() for task in (0, 1)]
    assert sorted(text.count(" began: ") for text in printed) in ([1, 3], [2, 2])
