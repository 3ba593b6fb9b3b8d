"""Jobs that `jaxtrain launch slurm` writes, submitted to a real SLURM."""

import json
import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import launch
import pytest
from cluster import Slurm, until

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
"""The experiment of tests/tiny.py, so slow that something can happen to it on its way."""


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


def said(slurm: Slurm, job: str, run: str) -> str:
    """All logs of a job."""
    logs = [*slurm.folder.glob(f"slurm-*-{job}.log"), *sorted((slurm.folder / run / "logs").glob("*"))]
    return "\n".join([str(slurm.job(job)), *(log.read_text() for log in logs)])


def step(slurm: Slurm, run: str) -> int:
    """The last step that a run has recorded."""
    return max(launch.losses(slurm.folder / run), default=0) if (slurm.folder / run / "metrics.jsonl").exists() else 0


def trained(slurm: Slurm, job: str, run: str, least: int) -> None:
    """Wait until a job has come to this step of its run."""
    until(lambda: step(slurm, run) >= least, 240, lambda: said(slurm, job, run))


def ended(slurm: Slurm, job: str, run: str, state: str) -> str:
    """Wait until a job is in this state, to which nothing follows; all it said."""
    until(lambda: slurm.job(job)["JobState"] == state, 240, lambda: said(slurm, job, run))
    return said(slurm, job, run)


def processes(run: str) -> list[int]:
    """The trainings that run here, by the folder of their run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if run.encode() in words and words[1:3] == [b"-m", b"jaxtrain"]:
            found.append(int(folder.name))
    return sorted(found)


def test_a_killed_and_a_warned_job_come_back_and_end_as_if_undisturbed(slurm: Slurm) -> None:
    job = submit(slurm, "disturbed")
    trained(slurm, job, "disturbed", 6)
    os.kill(processes("disturbed")[-1], signal.SIGKILL)
    until(lambda: slurm.job(job)["Restarts"] == "1", 60, lambda: said(slurm, job, "disturbed"))
    trained(slurm, job, "disturbed", 10)
    slurm("scancel", "--signal=USR1", job, check=True)
    told = ended(slurm, job, "disturbed", "COMPLETED")
    assert slurm.job(job)["Restarts"] == "2"
    assert told.count("to be run again") == 2
    assert told.count("stopped after step") == 2  # both tasks of the start that was warned
    events = [json.loads(line) for line in (slurm.folder / "disturbed" / "events.jsonl").read_text().splitlines()]
    first, second, third = [event["step"] for event in events if event["kind"] == "begun"]
    assert first == 0
    assert third > max(second, 8)
    assert f"SLURM job {job}: process 1 of 2" in told

    words = ["launch", "local", "slowly.py", "--processes", "2", "--run", "undisturbed"]
    slurm.environment["PAUSE"] = "0"
    slurm("jaxtrain", *words, check=True, cwd=slurm.folder)
    slurm.environment["PAUSE"] = "0.2"
    assert launch.relative_difference(slurm.folder / "disturbed", slurm.folder / "undisturbed") < 2e-5


def test_a_mistake_is_not_tried_again(slurm: Slurm) -> None:
    job = submit(slurm, "disturbed", "--", "--seed", "9")
    told = ended(slurm, job, "disturbed", "FAILED")
    assert "is a run of another experiment" in told
    shown = slurm.job(job)
    assert (shown["Restarts"], shown["ExitCode"]) == ("0", "2:0")


def program(slurm: Slurm, name: str, text: str) -> str:
    """A program in a training's place, which has its arguments."""
    (slurm.folder / name).write_text(f"sleep 1\n{text}\n")
    return f"bash {name}"


def test_a_mistake_of_one_task_outranks_the_deaths_that_follow_it(slurm: Slurm) -> None:
    mistaken = program(slurm, "mistaken.sh", "[ $SLURM_PROCID = 0 ] && exit 2; sleep 60")
    job = submit(slurm, "mistaken", "--program", mistaken)
    ended(slurm, job, "mistaken", "FAILED")
    assert (slurm.job(job)["Restarts"], slurm.job(job)["ExitCode"]) == ("0", "2:0")


def test_a_job_that_keeps_dying_is_given_up(slurm: Slurm) -> None:
    job = submit(slurm, "dying", "--restarts", "0", "--program", program(slurm, "dying.sh", "kill -9 $$"))
    assert "exit code 137; restarted 0 times already, so not again" in ended(slurm, job, "dying", "FAILED")


def test_a_cancelled_job_does_not_come_back(slurm: Slurm) -> None:
    text = "trap 'echo saved; exit 75' TERM; echo runs; while true; do sleep 0.1; done"
    job = submit(slurm, "cancelled", "--program", program(slurm, "waiting.sh", text))
    until(lambda: said(slurm, job, "cancelled").count("runs\n") == 2, 60, lambda: said(slurm, job, "cancelled"))
    slurm("scancel", job, check=True)
    until(lambda: said(slurm, job, "cancelled").count("saved\n") == 2, 60, lambda: said(slurm, job, "cancelled"))
    ended(slurm, job, "cancelled", "CANCELLED")
    until(lambda: "idle" in slurm("sinfo", "-h", "-o", "%T"), 30, lambda: said(slurm, job, "cancelled"))
    assert (slurm.job(job)["JobState"], slurm.job(job)["Restarts"]) == ("CANCELLED", "0")


def test_a_training_in_an_allocation_without_srun_is_alone(slurm: Slurm) -> None:
    train = ["jaxtrain", "train", "slowly.py", "--run", "alone", "--steps", "3"]
    told = slurm(
        "salloc",
        "--ntasks=2",
        "bash",
        "-c",
        f'echo "tasks $SLURM_NTASKS"; {shlex.join(train)} 2>&1',
        check=True,
        cwd=slurm.folder,
    )
    assert "tasks 2\n" in told
    assert "mesh {'fsdp': 1}" in told
