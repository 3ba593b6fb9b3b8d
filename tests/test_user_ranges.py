"""Ranges in a user's own classes, in an experiment file and on the command line."""

import sys
from pathlib import Path

import jax
import pytest
import tiny

from jaxtrain.base.errors import ConfigError
from jaxtrain.cli import main as cli
from jaxtrain.experiment.files import load

USER = """from dataclasses import dataclass
from typing import Annotated

import optax
import tiny
from dataclasses import replace

from jaxtrain.base.ranges import Fraction, PositiveInt, Range
from jaxtrain.experiment import Experiment
from jaxtrain.optimizers import ConstantRate, Schedule, Standard


@dataclass(frozen=True, kw_only=True)
class Steps(Schedule):
    every: Annotated[int, Range(at_least=2, hint="else use ConstantRate")] = 5
    factor: Fraction = 0.5

    def after(self, steps):
        return optax.exponential_decay(self.peak, self.every, self.factor, staircase=True)


@dataclass(frozen=True, kw_only=True)
class Signs(Standard):
    schedule: Schedule = Steps()
    beta: Fraction = 0.9

    def scale(self):
        return optax.scale_by_sign()


def main() -> Experiment:
    return replace(tiny.main(), optimizer=Signs())
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a user's own optimizer, in the working directory."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_ranges.py").write_text(USER)
    return tmp_path / "own_ranges.py"


def test_a_users_class_is_checked_at_its_line_of_the_experiment_file(file: Path) -> None:
    assert load(str(file))[0].steps == tiny.main().steps
    file.write_text(USER.replace("Signs()", "Signs(schedule=Steps(every=1))"))
    with pytest.raises(ConfigError) as refused:
        load(str(file))
    says = "own_ranges.py, line 32: Steps.every: 1 is not at least 2 (else use ConstantRate)"
    assert str(refused.value).endswith(says)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--optimizer.clip -1", "Signs.clip: -1.0 is not above 0 (None: no clipping)"),
        ("--optimizer.beta 1.5", "Signs.beta: 1.5 is not from 0 to 1"),
        ("--optimizer.schedule.every 1", "Steps.every: 1 is not at least 2 (else use ConstantRate)"),
        ("--optimizer.schedule.peak nan", "Steps.peak: nan is not a finite number at least 0"),
        ("--task.model.blocks.heads 0", "Blocks.heads: 0 is not at least 1"),
        ("--steps 10000000000", "Experiment.steps: 10000000000 is not from 1 to 2,147,483,647 (an i32 counts"),
        ("--data.seed -1", "Pipeline.seed: -1 is not from 0 to 4,294,967,295 (seeds are u32)"),
        ("--layout.mesh data 0", "Layout.mesh.data: 0 is not at least 1 (-1: the devices that are left)"),
    ],
)
def test_on_the_command_line_it_ends_with_2_before_any_device_is_used(
    flags: str, says: str, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {id(array) for array in jax.live_arrays()}
    monkeypatch.setattr(sys, "argv", ["jaxtrain", "train", file.name, *flags.split()])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert stopped.value.code == 2
    assert says in printed
    assert [array for array in jax.live_arrays() if id(array) not in before] == []
    assert sorted(path.name for path in file.parent.iterdir() if path.suffix != "" or path.name == "runs") == [
        file.name
    ]


def test_help_shows_plain_types(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["jaxtrain", "train", file.name, "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    shown = capsys.readouterr().out
    for flag in ("--steps INT", "--optimizer.clip {None}|FLOAT", "--optimizer.beta FLOAT", "--layout.mesh [NAME INT"):
        assert flag in shown
    assert "Annotated" not in shown
    assert "Range(" not in shown
