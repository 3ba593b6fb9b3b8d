"""What a run folder says of the code, packages and hardware that it was made with."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxtrain.base.provenance import environment, revision

Git = Callable[..., str]


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Git:
    """Runs git in a new repository with one commit, in a subfolder of which the test runs."""

    def run(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    run("init")
    (tmp_path / "code.py").write_text("one\n")
    run("add", ".")
    run("commit", "-m", "first")
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    return run


def test_the_environment_is_json_with_packages_hardware_and_only_the_variables_that_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JAX_SOMETHING", "1")
    monkeypatch.setenv("UNRELATED_SECRET", "1")
    found = json.loads(json.dumps(environment()))
    assert found.keys() == {
        "git",
        "command",
        "folder",
        "python",
        "platform",
        "hostname",
        "packages",
        "variables",
        "hardware",
    }
    assert found["packages"]["numpy"]
    assert found["variables"]["JAX_SOMETHING"] == "1"
    assert "UNRELATED_SECRET" not in found["variables"]
    assert found["hardware"]["devices"] == 8
    assert found["hardware"]["memory_bytes"] > 1e8


def test_revision_diff_and_untracked_files_are_those_of_the_repository_around(tmp_path: Path, git: Git) -> None:
    (tmp_path / "code.py").write_text("two\n")
    (tmp_path / "nächstes.py").write_text("")
    found = environment()["git"]
    assert found["revision"] == git("rev-parse", "HEAD").strip()
    assert "-one\n+two\n" in found["diff"]
    assert found["untracked"] == ["nächstes.py"]


def test_a_revision_says_whether_anything_was_changed_or_added(tmp_path: Path, git: Git) -> None:
    head = git("rev-parse", "HEAD").strip()
    assert revision() == head
    (tmp_path / "new.py").write_text("")
    assert revision() == f"{head} with changes"
    (tmp_path / "new.py").unlink()
    (tmp_path / "code.py").write_text("two\n")
    assert revision() == f"{head} with changes"


def test_without_a_repository_or_without_git_there_is_no_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert (environment()["git"], revision()) == (None, None)
    monkeypatch.setenv("PATH", "")
    assert (environment()["git"], revision()) == (None, None)
