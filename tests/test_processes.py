"""Real processes that talk over a socket train as one process does."""

from pathlib import Path

import launch
import pytest


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("alone") / "run"
    launch.train("main", run)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("function", ["data", "fsdp", "tensor"])
def test_two_processes_give_the_losses_of_one(alone: Path, tmp_path: Path, function: str) -> None:
    run = tmp_path / "run"
    printed = launch.train(function, run, processes=2)
    assert "ended  step 12  of 12" in printed
    assert launch.relative_difference(run, alone) < 2e-5
