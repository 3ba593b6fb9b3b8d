"""What `jaxtrain launch slurm-sweep` and `k8s-sweep` write: jobs whose tasks are drivers of one sweep."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import films
import kubernetes_validate
import pytest
import yaml

from jaxtrain.base.errors import ConfigError
from jaxtrain.cli.main import main
from jaxtrain.launch.sweep.jobs import KubernetesSweep, SlurmSweep
from jaxtrain.launch.sweep.wanted import Wanted

FILMS = f"{Path(__file__).parent / 'films.py'}"

GRID = Wanted(grid=("optimizer.schedule.peak=1e-3,1e-2", "seed=0,1"), metric="test/accuracy", mode="max")


@pytest.fixture
def printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """What `jaxtrain launch` prints, in this process and an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*words: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["jaxtrain", "launch", *words])
        main()
        found = capsys.readouterr()
        return found.out, found.err

    return call


def test_an_array_of_slurm_starts_one_driver_in_each_task(printed: Callable[..., tuple[str, str]], tmp_path: Path):
    words = ["--grid", "optimizer.schedule.peak=1e-3,1e-2", "seed=0,1", "--drivers", "3", "--gpus", "2"]
    script, said = printed("slurm-sweep", FILMS, *words, "--run", "a sweep", "--", "--steps", "7")
    assert "films: 4 trials, 3 drivers of 2 at once" in said
    lines = script.splitlines()
    for line in (
        "#SBATCH --array=0-2",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --requeue",
        "#SBATCH --ntasks-per-node=1",
    ):
        assert line in lines
    checker = Path(sys.executable).parent / "shellcheck"
    subprocess.run([checker, "--severity=warning", "-"], input=script, text=True, check=True)
    (tmp_path / "srun").write_text(
        '#!/bin/sh\nwhile [ "$1" != bash ]; do echo "$1"; shift; done; shift 4; printf \'%s\\n\' "$@"'
    )
    (tmp_path / "srun").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True, env=environment)
    assert "--output=a sweep/logs/driver-%a.log" in done.stdout.splitlines()
    driver = done.stdout.splitlines()[3:]
    expected = ["jaxtrain", "sweep", FILMS, "--out", "a sweep", "--no-wait", *words[:3], "--", "--steps", "7"]
    assert driver == expected


def test_a_job_of_kubernetes_has_one_pod_a_driver_and_does_not_restart_what_would_fail_again():
    job = KubernetesSweep(experiment="films.py", image="i", claim="c", wanted=GRID, drivers=5, gpus=1, restarts=7)
    manifest = yaml.safe_load(job.render("# head"))
    kubernetes_validate.validate(manifest, "1.33", strict=True)
    spec: dict[str, Any] = manifest["spec"]
    assert (spec["completions"], spec["parallelism"], spec["backoffLimitPerIndex"]) == (5, 5, 7)
    rule = spec["podFailurePolicy"]["rules"][0]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailIndex", [1, 2, 3, 4, 5])
    container = spec["template"]["spec"]["containers"][0]
    assert container["command"] == shlex.split(
        "jaxtrain sweep films.py --out /runs/films --no-wait --grid optimizer.schedule.peak=1e-3,1e-2 seed=0,1 "
        "--metric=test/accuracy --mode=max"
    )
    assert container["env"] == []  # drivers are no processes of one run
    spec["template"]["spec"]["nodeSelektor"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, "1.33", strict=True)


def test_a_slice_of_several_hosts_is_refused():
    with pytest.raises(ConfigError, match="has 4 hosts: a trial of a sweep has devices of one host"):
        KubernetesSweep(experiment="films.py", image="i", claim="c", wanted=GRID, tpu="v5p:2x2x4")
    KubernetesSweep(experiment="films.py", image="i", claim="c", wanted=GRID, tpu="v5e:2x4")


def test_a_driver_divides_the_gpus_of_its_host():
    job = SlurmSweep(experiment="films.py", wanted=GRID, gpus=8)
    assert len(job.slots(films.main())) == 8
    with pytest.raises(ConfigError, match="2 trials of 2 GPUs each, and this machine has 2"):
        SlurmSweep(experiment="films.py", wanted=GRID, gpus=2, workers=2).slots(films.wide())


def test_what_the_drivers_would_refuse_is_refused_before(
    printed: Callable[..., tuple[str, str]], capsys: pytest.CaptureFixture[str]
):
    for words, message in (
        (["--grid", "sede=1"], "did you mean 'seed'?"),
        (["--grid", "microbatches=3"], "microbatches: 3 do not divide a batch of 8"),
        (["--grid", "seed=0", "--metric", "test/acuracy", "--mode", "max"], "did you mean 'test/accuracy'?"),
        (["--grid", "seed=0", "--", "--run", "x"], "every trial has a run of its own"),
    ):
        with pytest.raises(SystemExit) as stopped:
            printed("slurm-sweep", FILMS, *words)
        assert stopped.value.code == 2
        found = capsys.readouterr()
        assert message in " ".join(found.err.replace("│", " ").split())
        assert found.out == ""
