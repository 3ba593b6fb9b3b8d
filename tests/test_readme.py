"""Every command and code block of the README runs, in order, as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import QUICK

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
RUN_LINES = [line for language, text in BLOCKS for line in text.splitlines() if language == "bash"]

# `pip install uv && uv run …` installs into this test's own environment: `uv run` is given the programs that are there,
# full trainings take three steps, long evaluations few rows, and the tests are collected, not run within themselves.
SHIM = f"""#!/usr/bin/env bash
set -e
shift
case "$1" in
  pytest) exec {sys.executable} -m pytest --collect-only -q {ROOT}/tests/test_layout*.py ;;
  jaxtrain)
    shift
    [[ "$1 $2" == "train experiments/char_lm.py"* ]] && set -- "$@" --evals.validation.source.count 64
    if [ "$1" = train ] && ! [[ "$*" == *--steps* || "$*" == *--help* ]]; then
      exec {sys.executable} -m jaxtrain "$@" --steps 3 --optimizer.schedule.warmup 0
    fi
    exec {sys.executable} -m jaxtrain "$@" ;;
  *) exec {sys.executable} "${{@:2}}" ;;
esac
"""


def test_the_readme_names_only_languages_that_are_run_or_drawn() -> None:
    assert {language for language, _ in BLOCKS} == {"bash", "python", "text"}
    assert any(
        line.startswith("pip install uv && uv run jaxtrain train experiments/sentiment.py") for line in RUN_LINES
    )
    assert any(line.startswith("pip install uv && uv run pytest") for line in RUN_LINES)


@pytest.mark.slow
def test_every_block_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    for name, text in (("uv", SHIM), ("pip", "#!/bin/sh\ntest \"$*\" = 'install uv'\n")):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    own = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "XLA_FLAGS": QUICK}
    own["JAXTRAIN_DATA"] = str(tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for language, text in BLOCKS:
        if language == "bash":
            done = subprocess.run(
                ["bash", "-e", "-c", text], env=own, capture_output=True, text=True, timeout=300, check=False
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        elif language == "python":
            exec(compile(text, "README.md", "exec"), names)
