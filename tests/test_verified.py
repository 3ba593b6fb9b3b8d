"""What is remembered of verified experiments; `train --verify`, and the line where nothing is remembered."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from jaxtrain import MEGATRON, ConfigError, Experiment, Layout
from jaxtrain.analysis.verify import meshes_like
from jaxtrain.base.errors import ExitCode
from jaxtrain.cli import first
from jaxtrain.cli.first import fields, verify_first
from jaxtrain.cli.main import run
from jaxtrain.experiment import verified
from jaxtrain.experiment.files import load
from jaxtrain.experiment.verified import is_verified, remember_verified
from jaxtrain.train import train

ROOT = Path(__file__).parents[1]
BOTH = {"data": 4, "fsdp": 2}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])  # which `verify` changes


def on(mesh: dict[str, int], **more: Any) -> Experiment:
    return replace(tiny.main(), layout=Layout(mesh), evals={}, steps=3, **more)


@pytest.mark.parametrize(
    ("mesh", "small"),
    [
        ({}, []),
        ({"data": 1, "tensor": 1}, []),
        ({"data": -1}, [{"data": 4}]),
        ({"fsdp": 2}, [{"fsdp": 2}]),
        ({"data": 16, "tensor": 2}, [{"data": 4, "tensor": 2}]),
        ({"data": -1, "tensor": 8}, [{"data": 4, "tensor": 2}, {"data": 2, "tensor": 4}]),
        ({"data": 6, "fsdp": 9, "tensor": 1}, [{"data": 2, "fsdp": 3}]),
        ({"data": -1, "fsdp": 4, "tensor": 8}, [{"data": 2, "fsdp": 2, "tensor": 2}]),
    ],
    ids=str,
)
def test_small_meshes_have_the_axes_of_a_mesh_and_sizes_that_divide_its_own(mesh, small):
    assert meshes_like(mesh) == small


def test_an_experiment_is_verified_on_the_axes_of_a_mesh_whatever_their_sizes():
    one = on(BOTH)
    assert not is_verified(one, BOTH)
    remember_verified(one, {"fsdp": 2, "data": 2})
    assert is_verified(one, BOTH)
    assert is_verified(one, {"data": 64, "fsdp": 8, "tensor": 1})
    assert is_verified(replace(one, steps=7, layout=Layout({"data": -1, "fsdp": 4})), BOTH)
    assert not is_verified(one, {"data": 2, "fsdp": 2, "tensor": 2})
    assert not is_verified(one, {"data": 8})


def test_it_is_not_where_what_it_computes_or_where_its_arrays_live_differs(monkeypatch):
    one = on(BOTH)
    remember_verified(one, BOTH)
    assert not is_verified(replace(one, microbatches=2), BOTH)
    assert not is_verified(replace(one, layout=Layout(BOTH, MEGATRON)), BOTH)
    real = verified.version
    monkeypatch.setattr(verified, "version", lambda name: "0.99" if name == "jax" else real(name))
    assert not is_verified(one, BOTH)


def test_it_is_not_once_the_file_of_its_model_is_edited(tmp_path):
    file = tmp_path / "edited.py"
    text = (
        "from dataclasses import dataclass, replace\nimport sys\nimport tiny\n"
        "from jaxtrain import Experiment\nfrom jaxtrain.models import Transformer\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Own(Transformer):\n    pass\n\n\n"
        "def main() -> Experiment:\n    one = tiny.main()\n    blocks = one.task.model.blocks\n"
        "    return replace(one, task=replace(one.task, model=Own(vocab=64, blocks=blocks)))\n"
    )
    file.write_text(text)
    one, _ = load(str(file))
    remember_verified(one, BOTH)
    assert is_verified(one, BOTH)
    file.write_text(text + "\n# another line\n")
    assert not is_verified(one, BOTH)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "cache").write_text("a file, where a folder should be")
    remember_verified(on(BOTH), BOTH)
    assert not is_verified(on(BOTH), BOTH)


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_training_on_several_axes_says_in_one_line_that_they_were_never_verified(tmp_path, capsys):
    train(on(BOTH), tmp_path / "never")
    [line] = [line for line in capsys.readouterr().err.splitlines() if "never_verified" in line]
    assert line == "never_verified  axes data × fsdp  command jaxtrain verify, or train --verify"
    assert [event["axes"] for event in events(tmp_path / "never") if event["kind"] == "never_verified"] == [
        "data × fsdp"
    ]
    train(on({"data": 8}), tmp_path / "one_axis")
    remember_verified(on(BOTH), BOTH)
    train(on(BOTH), tmp_path / "known")
    assert "never_verified" not in capsys.readouterr().err


def test_the_words_that_verify_gets_are_those_of_the_experiment():
    words = [
        "--debug",
        "train",
        "a.py:one",
        "--steps",
        "3",
        "--run",
        "runs/a",
        "--verify",
        "--layout.mesh",
        "data",
        "2",
        "fsdp",
        "2",
        "--run=runs/b",
    ]
    assert list(fields(words)) == ["a.py:one", "--steps", "3", "--layout.mesh", "data", "2", "fsdp", "2"]


class Process:
    """Instead of `subprocess.run`: ends with this code."""

    def __init__(self, code: int) -> None:
        self.code, self.commands = code, list[list[str]]()

    def __call__(self, command: list[str], env: dict[str, str], **_: Any) -> subprocess.CompletedProcess:
        assert env["JAX_PLATFORMS"] == "cpu"
        self.commands.append(command[3:])
        return subprocess.CompletedProcess(command, self.code, "a table\nthe end\n", "an error\n")


def test_train_verify_compares_one_step_on_small_meshes_in_a_process_of_its_own(monkeypatch, capsys):
    process = Process(0)
    monkeypatch.setattr(first.subprocess, "run", process)
    words = ["train", "tiny.py", "--verify"]
    assert verify_first(on({"data": -1, "fsdp": 4}), words) == ExitCode.FINISHED
    flags = ["--devices", "8", "--updates", "1", "--meshes", "data 4 fsdp 2", "data 2 fsdp 4"]
    assert process.commands == [["verify", "tiny.py", *flags]]
    said = capsys.readouterr().err
    assert said == "--verify: one step on data 4 fsdp 2, data 2 fsdp 4, beside one device\nthe end\n"
    remember_verified(on(BOTH), BOTH)
    assert verify_first(on(BOTH), words) == ExitCode.FINISHED
    assert verify_first(on({}), words) == ExitCode.FINISHED
    assert len(process.commands) == 1


@pytest.mark.parametrize(("code", "expected"), [(1, ExitCode.FAILED), (2, ExitCode.USER_ERROR), (-9, ExitCode.FAILED)])
def test_where_it_fails_nothing_is_trained_and_its_output_is_shown(code, expected, monkeypatch, capsys):
    monkeypatch.setattr(first.subprocess, "run", Process(code))
    assert verify_first(on(BOTH), ["train", "tiny.py", "--verify"]) == expected
    said = capsys.readouterr().err
    assert "a table\nthe end\nan error\n" in said
    assert "--verify failed, so nothing was trained or written" in said


def test_of_several_processes_only_the_first_verifies(monkeypatch):
    process = Process(0)
    monkeypatch.setattr(first.subprocess, "run", process)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    for number in ("1", "0"):
        monkeypatch.setenv("JAX_PROCESS_ID", number)
        assert verify_first(on(BOTH), ["train", "tiny.py", "--verify"]) == ExitCode.FINISHED
        assert len(process.commands) == (number == "0")


def loops(folder: Path) -> Path:
    """An experiment file of a loop over time that trains as one device on three axes, of one that does not, and of a
    transformer that sends more than needed.
    """
    file = folder / "loops.py"
    file.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from jaxtrain import Experiment\nfrom test_scan_over_time import ALL, experiment\n"
        "\n\n"
        "def right() -> Experiment:\n    return experiment(True, ALL)\n\n\n"
        "def wrong() -> Experiment:\n    return experiment(False, ALL)\n\n\n"
        "def more() -> Experiment:\n    from test_verify import Misnamed, with_model\n\n"
        '    return with_model(Misnamed, kernel="up", axes=("mlp", "embed"))\n'
    )
    return file


@pytest.mark.slow
def test_the_command_verify_remembers_what_passed_and_fails_on_what_did_not(tmp_path):
    file, flags = loops(tmp_path), ["--updates", "1", "--meshes", "data 2 fsdp 2 tensor 2"]
    mesh = {"data": 4, "fsdp": 4, "tensor": 2}
    assert run(["verify", f"{file}:right", *flags]) == ExitCode.FINISHED
    assert is_verified(load(f"{file}:right")[0], mesh)
    assert run(["verify", f"{file}:wrong", *flags]) == ExitCode.FAILED
    assert not is_verified(load(f"{file}:wrong")[0], mesh)


@pytest.mark.slow
def test_the_command_verify_fails_on_what_is_sent_beyond_what_is_needed_only_if_strict(tmp_path):
    words = ["verify", f"{loops(tmp_path)}:more", "--updates", "1", "--meshes", "tensor 8"]
    assert run(words) == ExitCode.FINISHED
    assert run([*words, "--strict"]) == ExitCode.FAILED


def test_no_update_at_all_cannot_be_compared():
    with pytest.raises(ConfigError, match=r"--updates 0: give at least 1"):
        run(["verify", str(ROOT / "tests" / "tiny.py"), "--updates", "0"])


def test_a_job_for_a_cluster_takes_verify_among_the_flags_of_train(capsys):
    run(["launch", "slurm", str(ROOT / "tests" / "tiny.py:data"), "--nodes", "2", "--", "--verify", "--steps", "5"])
    assert "--verify --steps 5" in capsys.readouterr().out


@pytest.mark.slow
def test_train_verify_verifies_once_and_a_wrong_model_is_not_trained(tmp_path):
    file = loops(tmp_path)
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}

    def start(function: str) -> subprocess.CompletedProcess:
        folder = str(tmp_path / function)
        command = [sys.executable, "-m", "jaxtrain", "train", f"{file}:{function}", "--verify", "--run", folder]
        return subprocess.run(command, env={**os.environ, **flags}, capture_output=True, text=True, check=False)

    done = start("right")
    assert done.returncode == 0, done.stderr
    assert "--verify: one step on data 2 fsdp 2 tensor 2, beside one device" in done.stderr
    assert "The mesh trains as one device does" in done.stderr
    assert "never_verified" not in done.stderr
    assert "--verify" not in start("right").stderr
    done = start("wrong")
    assert done.returncode == 1
    assert "the first gradient differs by" in done.stderr
    assert "--verify failed, so nothing was trained or written" in done.stderr
    assert not (tmp_path / "wrong").exists()
