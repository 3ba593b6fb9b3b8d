"""Sweeps whose drivers and trials are killed: real processes, real trainings, real signals."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import launch
import pytest
from cluster import until

from jaxtrain.experiment.experiment import fingerprint
from jaxtrain.experiment.files import load
from jaxtrain.experiment.run_file import read_saved
from jaxtrain.reports.sweep.findings import winner_file
from jaxtrain.reports.sweep.read import read_sweep
from jaxtrain.runs.folder import as_begun

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent

PEAKED = """
import json, math, sys, time
from pathlib import Path

folder = Path(sys.argv[sys.argv.index("--run") + 1])
flags = dict(word[2:].split("=") for word in sys.argv if word.startswith("--") and "=" in word)
folder.mkdir(parents=True)
peak = float(flags["optimizer.schedule.peak"])
(folder / "metrics.jsonl").write_text(json.dumps(dict(step=6, split="test", loss=(math.log10(peak) + 2) ** 2)))
time.sleep(0.05)
"""
"""In place of a training: a loss whose minimum is known, at a peak of 0.01."""


LOCKING = """
import sys, time
from pathlib import Path

from jaxtrain.runs.lock import Lock

folder = Path(sys.argv[sys.argv.index("--run") + 1])
with Lock(0) as lock:
    lock.take(folder)
    with (folder / "starts").open("a") as starts:
        starts.write("began ")
    while not Path("gate").exists():
        time.sleep(0.05)
    (folder / "metrics.jsonl").write_text('{"step": 6, "split": "test", "loss": 1.0}')
    with (folder / "starts").open("a") as starts:
        starts.write("ended ")
"""
"""In place of a training: holds the lock of its run folder until the file `gate` is there."""


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """After a test that failed, its drivers and trials are killed."""
    yield
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(process / "cwd") == str(tmp_path) and int(process.name) != os.getpid():
                os.kill(int(process.name), signal.SIGKILL)


def start(folder: Path, *words: str, program: str | None = None) -> subprocess.Popen[str]:
    """A driver on `folder`/out, with one trial at a time; its trials wait until `folder`/gate is there."""
    own = [] if program is None else ["--program", program]
    where = ["--out", "out", "--workers", "1"]
    return subprocess.Popen(
        [sys.executable, "-m", "jaxtrain", "sweep", str(HERE / "films.py"), *words, *where, *own],
        cwd=folder,
        env={**launch.environment(1), "GATE": str(folder / "gate")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def steps(folder: Path, trial: int) -> int:
    """The last step that a trial has recorded."""
    run = folder / "out" / "trials" / f"{trial:04d}"
    return max(launch.losses(run), default=0) if (run / "metrics.jsonl").exists() else 0


def owner(folder: Path, trial: int) -> int:
    """The process that trains a trial."""
    return json.loads((folder / "out" / "trials" / f"{trial:04d}" / "lock.json").read_text())["pid"]


def begun(folder: Path, trial: int) -> list[int]:
    """The steps from which a trial began and was resumed."""
    events = (folder / "out" / "trials" / f"{trial:04d}" / "events.jsonl").read_text().splitlines()
    return [event["step"] for event in map(json.loads, events) if event["kind"] == "begun"]


def test_a_sweep_survives_a_kill_of_a_trial_and_of_a_driver_and_two_drivers_share_its_work(tmp_path: Path):
    drivers = [start(tmp_path, "--grid", "seed=0,1") for _ in range(2)]
    first, second = drivers
    try:
        until(lambda: min(steps(tmp_path, 1), steps(tmp_path, 2)) >= 3, 100, lambda: "no trial began")
        claims = [claimed_by(tmp_path, number) for number in (1, 2)]
        assert claims[0] != claims[1]  # they share the work
        first, second = (next(driver for driver in drivers if driver.pid == claim) for claim in claims)
        trial = owner(tmp_path, 1)
        os.kill(owner(tmp_path, 2), signal.SIGKILL)  # a trial, which its driver resumes
        os.kill(first.pid, signal.SIGKILL)  # a driver, and its trial, which the other driver resumes
        os.kill(trial, signal.SIGKILL)
        (tmp_path / "gate").touch()
        printed = second.communicate(timeout=120)[0]
    finally:
        for driver in drivers:
            driver.kill()
        first.communicate()
    assert second.returncode == 0, printed
    found = read_sweep(tmp_path / "out")
    assert [(trial.state, trial.values) for trial in found.trials] == [
        ("finished", {"seed": 0}),
        ("finished", {"seed": 1}),
    ]
    for trial in found.trials:
        assert sorted(launch.losses(trial.folder)) == [1, 2, 3, 4, 5, 6]
        origin, again = begun(tmp_path, trial.number)
        assert origin == 0 < again < 6
    winner = found.winner()
    assert winner is not None
    (tmp_path / "winner_of_films.py").write_text(winner_file(found, winner.trials[0].values))
    loaded, _ = load(str(tmp_path / "winner_of_films.py"))
    saved = read_saved(winner.trials[0].folder)
    assert fingerprint(as_begun(loaded, loaded.steps)) == saved["fingerprint"]
    assert "trial 2 ended with exit code 137: it is resumed" in printed
    assert "trial 1 resumed" in printed


def claimed_by(folder: Path, trial: int) -> int:
    """The process of the driver that has a trial."""
    path = sorted((folder / "out" / "claims").glob(f"{trial:04d}.*"))[-1]
    driver = json.loads(path.read_text())["driver"]
    return json.loads((folder / "out" / "drivers" / driver / "lock.json").read_text())["pid"]


def test_a_trial_that_outlives_its_driver_is_waited_for_and_not_trained_twice(tmp_path: Path):
    (tmp_path / "locking.py").write_text(LOCKING)
    words = {"program": f"{sys.executable} locking.py"}
    first = start(tmp_path, "--grid", "seed=0", **words)
    until((tmp_path / "out" / "trials" / "0001" / "starts").exists, 60, lambda: "no trial began")
    first.kill()
    first.communicate()
    second = start(tmp_path, "--grid", "seed=0", **words)
    assert second.stdout is not None
    printed = ""
    while "waiting for it" not in printed:
        printed += (line := second.stdout.readline())
        assert line, printed
    assert "trial 1 is still trained by a process of another driver: waiting for it" in printed
    (tmp_path / "gate").touch()
    printed += second.communicate(timeout=60)[0]
    assert second.returncode == 0, printed
    assert [trial.state for trial in read_sweep(tmp_path / "out").trials] == ["finished"]
    assert (tmp_path / "out" / "trials" / "0001" / "starts").read_text() == "began ended began ended "


def test_two_processes_with_optuna_find_the_optimum_of_a_known_function(tmp_path: Path):
    (tmp_path / "peaked.py").write_text(PEAKED)
    words = ("--adaptive", "24", "optimizer.schedule.peak=1e-5:1:log")
    drivers = [start(tmp_path, *words, program=f"{sys.executable} peaked.py") for _ in range(2)]
    printed = [driver.communicate(timeout=120)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], printed
    found = read_sweep(tmp_path / "out")
    assert [trial.state for trial in found.trials] == ["finished"] * 24
    counts = [text.count(" began: ") for text in printed]
    assert sum(counts) == 24
    assert min(counts) >= 5
    winner = found.winner()
    assert winner is not None
    assert 0.005 < winner.values["optimizer.schedule.peak"] < 0.02
    good = [trial.value is not None and trial.value < 0.25 for trial in found.trials]
    assert sum(good[-8:]) > sum(good[:8])  # it has learned


def test_ctrl_c_stops_the_trials_with_a_checkpoint_and_the_same_command_resumes_them(tmp_path: Path):
    driver = start(tmp_path, "--grid", "seed=0")
    until(lambda: steps(tmp_path, 1) >= 3, 100, lambda: "no trial began")
    driver.send_signal(signal.SIGINT)
    printed = driver.communicate(timeout=60)[0]
    assert driver.returncode == 130, printed
    assert "trial 1 stopped (exit code 130); it will be resumed" in printed
    assert f"stopped; resume with:\njaxtrain sweep {HERE / 'films.py'} --grid seed=0 --out out" in printed
    assert not list((tmp_path / "out" / "results").glob("*"))
    (tmp_path / "gate").touch()
    again = start(tmp_path, "--grid", "seed=0")
    printed = again.communicate(timeout=60)[0]
    assert again.returncode == 0, printed
    assert [trial.state for trial in read_sweep(tmp_path / "out").trials] == ["finished"]
    origin, resumed = begun(tmp_path, 1)
    assert origin == 0 < resumed < 6
