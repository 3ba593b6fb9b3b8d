"""A recipe with state of its own, killed and resumed by the same command, ends as an uninterrupted run."""

import subprocess
import sys
from pathlib import Path

import jax
import launch
import numpy as np
import orbax.checkpoint as ocp
import pytest
from test_recipes import RECIPES

from jaxtrain.runs.json_lines import read_lines

FLAGS = ("--steps", "10", "--save-every", "3", "--log-every", "1", "--data.batch-size", "16")
WARMUP = ("--optimizer.schedule.warmup", "2")


def trained(recipe: str, run: Path, *flags: str, killed_after: int | None = None) -> None:
    """`jaxtrain train` in a process of its own, to the end or until it is killed with -9."""
    how = ["-m", "jaxtrain"] if killed_after is None else ["-c", launch.killed(killed_after)]
    done = subprocess.run(
        [sys.executable, *how, "train", str(RECIPES / f"{recipe}.py"), "--run", str(run), *FLAGS, *WARMUP, *flags],
        env=launch.environment(2),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == (0 if killed_after is None else -9), done.stderr


def leaves(run: Path) -> dict[str, bytes]:
    """Every array of the last checkpoint by its path, read by orbax alone."""
    with ocp.StandardCheckpointer() as reader:
        saved = reader.restore((run / "checkpoints" / "10" / "state").absolute())
    words = {name: jax.random.key_data(x) if name == "key" else x for name, x in saved.items()}
    return {name: np.asarray(x).tobytes() for name, x in words.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "state", "flags"),
    [
        ("batch_norm", "model_state/", ("--task.model.widths", "8", "16")),
        ("mean_teacher", "model_state/teacher/", ("--task.model.blocks.width", "16")),
    ],
)
def test_a_recipe_killed_and_resumed_has_the_bits_of_an_uninterrupted_run(
    recipe: str, state: str, flags: tuple[str, ...], tmp_path: Path
) -> None:
    trained(recipe, tmp_path / "whole", *flags)
    trained(recipe, tmp_path / "run", *flags, killed_after=8)
    trained(recipe, tmp_path / "run", *flags)
    begun = [line["step"] for line in read_lines(tmp_path / "run" / "events.jsonl") if line["kind"] == "begun"]
    assert begun[0] == 0
    assert begun[1] in (3, 6)  # that of step 6 may not have been durable yet
    whole, run = leaves(tmp_path / "whole"), leaves(tmp_path / "run")
    assert [name for name in whole if whole[name] != run[name]] == []
    assert whole.keys() == run.keys()
    assert any(name.startswith(state) for name in run)
    assert launch.losses(tmp_path / "run") == launch.losses(tmp_path / "whole")
