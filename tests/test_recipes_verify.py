"""`jaxtrain verify` says of every experiment in experiments/recipes that it trains as one device."""

import re
from pathlib import Path

import pytest
from test_recipes import RECIPES

from jaxtrain.base.errors import ExitCode
from jaxtrain.cli.main import run

EXPERIMENTS = [
    f"{file.stem}:{function}"
    for file in sorted(RECIPES.glob("*.py"))
    for function in re.findall(r"^def (\w+)\(\) -> Experiment:", file.read_text(), re.MULTILINE)
]
"""All that are there, so that a new one needs no line here."""


def test_every_recipe_has_an_experiment() -> None:
    assert {name.partition(":")[0] for name in EXPERIMENTS} == {file.stem for file in RECIPES.glob("*.py")}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_recipe_trains_on_a_mesh_of_three_axes_as_on_one_device(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where it is remembered
    monkeypatch.setenv("XLA_FLAGS", "")  # which `verify` changes, after jax has read it
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "teacher").touch()  # its hash is in fingerprints; `verify` trains from drawn parameters
    file, _, function = name.partition(":")
    words = ["verify", f"{RECIPES / file}.py:{function}", "--updates", "2", "--meshes", "data 2 fsdp 2 tensor 2"]
    assert run(words) == ExitCode.FINISHED, capsys.readouterr().out
    assert "The mesh trains as one device does" in capsys.readouterr().out
