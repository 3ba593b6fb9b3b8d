"""README and docs: every block runs as it stands, and every link, name, path, flag and quoted message exists."""

import ast
import contextlib
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import QUICK

from jaxtrain.cli.main import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

RUN = {"bash", "python"}
SHOWN = {"text", "console"}
"""Languages of blocks that need a cluster or change the repository, or are no code."""

FOREIGN = {
    "--with": "uv",
    **dict.fromkeys(("--golden", "--rows", "--file"), "scripts/cpp/predict.cpp"),
    "--ignore-scripts": "npm",
    "--model-repository": "Triton",
    "--tyro-print-completion": "tyro, on every command line that it makes",
    "--update-goldens": "tests/conftest.py",
}
"""Flags in the docs that are not jaxtrain's, and whose they are."""

VERBS = (
    "",
    "train experiments/digits.py",
    "train experiments/char_lm.py",
    "train experiments/sentiment.py",
    "train experiments/recipes/gan.py",
    "explain experiments/digits.py",
    "verify experiments/digits.py",
    "evaluate",
    "report",
    "predict",
    "export",
    "memory experiments/digits.py",
    "verify-resume experiments/digits.py",
    "sweep",
    "launch slurm-sweep",
    "replay",
    "generate",
    "runs",
    "watch",
    "lineage",
    *(f"checkpoints {verb}" for verb in ("list", "verify", "prune", "restore-to")),
    *(f"data {verb}" for verb in ("build", "card", "check", "diff", "bench experiments/digits.py")),
    *(f"launch {platform}" for platform in ("slurm", "k8s", "tpu", "local")),
    "compare",
    "diff",
    "sweep experiments/digits.py",
)

# `pip install uv && uv run …` installs into this test's own environment: `uv run` is given the programs that are there,
# full trainings of experiments/ take three steps, long evaluations few rows, and the tests are collected, not run within themselves.
SHIM = f"""#!/usr/bin/env bash
set -e
shift
case "$1" in
  pytest) exec {sys.executable} -m pytest --collect-only -q {ROOT}/tests/test_layout*.py ;;
  jaxtrain)
    shift
    if [[ "$1 $2" == "train experiments/char_lm.py"* && "$*" != *--evals.validation.source.count* ]]; then
      set -- "$@" --evals.validation.source.count 64 --evals.test.source.count 64
    fi
    if [ "$1" = train ] && [[ "$2" == experiments/* || "$2" == research/* ]] && ! [[ "$*" == *--steps* || "$*" == *--help* ]]; then
      set -- "$@" --steps 3 --optimizer.schedule.warmup 0
    fi
    exec {sys.executable} -m jaxtrain "$@" ;;
  *) exec {sys.executable} "${{@:2}}" ;;
esac
"""


def blocks(page: Path) -> list[tuple[str, str]]:
    return FENCE.findall(page.read_text())


def prose(page: Path) -> str:
    """A page without its blocks and, in the changelog's tables, without the names that are gone."""
    text = FENCE.sub("", page.read_text())
    return re.sub(r"^\|[^|]*\|", "|", text, flags=re.MULTILINE) if page.stem == "CHANGELOG" else text


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


LONG = ("sweeps", "lineage", "bundle", "command-line", "compare", "many-machines", "onnx")
"""Pages that take half a minute or more; other tests run most of what they hold. So do the tutorials."""


def running(page: Path) -> Any:
    slow = page.name == "concepts.md" or any(language == "bash" for language, _ in blocks(page))
    full = page.stem in LONG or page.stem.startswith("tutorial-")
    marks = [pytest.mark.full] if full else [pytest.mark.slow] if slow else []
    return pytest.param(page, id=page_id(page), marks=marks)


def test_the_readme_begins_with_the_two_commands_and_is_short() -> None:
    commands = [
        line for language, text in blocks(ROOT / "README.md") if language == "bash" for line in text.splitlines()
    ]
    assert commands[:2] == [
        "pip install uv && uv run jaxtrain train experiments/sentiment.py",
        "pip install uv && uv run pytest",
    ]
    assert len((ROOT / "README.md").read_text().splitlines()) <= 250


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_a_page_holds_only_languages_that_are_run_or_shown(page: Path) -> None:
    assert {language for language, _ in blocks(page)} <= RUN | SHOWN
    assert FENCE.sub("", page.read_text()).count("```") == 0


@pytest.mark.parametrize("page", [running(page) for page in PAGES if any(kind in RUN for kind, _ in blocks(page))])
def test_every_block_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    for name, text in (("uv", SHIM), ("pip", "#!/bin/sh\ntest \"$*\" = 'install uv'\n")):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    own = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "XLA_FLAGS": QUICK}
    own["JAXTRAIN_DATA"] = str(tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)
    shared = ModuleType("page")  # dataclasses look their module up by name
    monkeypatch.setitem(sys.modules, "page", shared)
    for language, text in blocks(page):
        file = re.match(r"# (\S+\.py)$", text.splitlines()[0])
        if language == "bash":
            done = subprocess.run(
                ["bash", "-e", "-c", text], env=own, capture_output=True, text=True, timeout=300, check=False
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        elif language == "python" and file:
            (tmp_path / file[1]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file[1]).write_text(text)
        elif language == "python":
            exec(compile(text, page_id(page), "exec"), vars(shared))


def headings(page: Path) -> set[str]:
    """The anchors that a forge makes of a page's headings."""
    found = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def broken_links(page: Path) -> list[str]:
    """The links of a page to a file or heading of the repository that is not there."""

    def leads(link: str) -> bool:
        name, _, anchor = link.partition("#")
        file = (page.parent / name).resolve() if name else page
        return file.is_file() and (not anchor or anchor in headings(file))

    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [link for link in links if not link.startswith("https://") and not leads(link)]


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    found: object = importlib.import_module(parts[0])
    for number, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            try:
                importlib.import_module(".".join(parts[:number]))
            except ModuleNotFoundError:
                return False
        found = getattr(found, part)
    return True


def wrong_names(page: Path) -> list[str]:
    """The dotted names of the package, and the paths of the repository, that a page quotes and that are not there."""
    quoted = re.findall(r"`([^`]+)`", prose(page))
    names = [name for words in quoted for name in re.findall(r"^jaxtrain(?:\.\w+)+$", words)]
    folders = r"(?<![\w./])(?:jaxtrain|tests|scripts|experiments|docs|\.ci)/[\w./-]*\w"
    made = {text.splitlines()[0].removeprefix("# ") for each in PAGES for _, text in blocks(each)}  # by a page's block
    paths = [path for words in quoted for path in re.findall(folders, words) if path not in made]
    return [name for name in names if not resolves(name)] + [path for path in paths if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_dotted_name_and_every_path_of_the_repository_exists(page: Path) -> None:
    assert wrong_names(page) == []


def test_the_tests_above_see_what_is_not_there(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A heading: `x`\n[a](page.md#a-heading-x) [b](page.md#heading) [c](gone.md) [d](#a-heading-x)\n")
    assert broken_links(page) == ["page.md#heading", "gone.md"]
    page.write_text(
        "`jaxtrain.step.train_step` `jaxtrain.step.stride` `jaxtrain.places` `tests/tiny.py` `tests/huge.py`"
    )
    assert wrong_names(page) == ["jaxtrain.step.stride", "jaxtrain.places", "tests/huge.py"]
    assert flags("`--log-every 3`, --keep.best. XLA_FLAGS=--xla_force_x=8 a--b") == {"--log-every", "--keep.best"}


def flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9.-]*(?<![.-])(?!\w)", text))


def test_every_flag_in_the_docs_is_in_some_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "300")  # so that no flag is broken over two lines
    for verb in VERBS:
        monkeypatch.setattr(sys, "argv", ["jaxtrain", *verb.split(), "--help"])
        with contextlib.suppress(SystemExit):
            main()
    known = flags(capsys.readouterr().out)
    assert {"--steps", "--layout.mesh", "--nodes", "--tune"} <= known
    used = set[str]().union(*(flags(prose(page) + "\n".join(text for _, text in blocks(page))) for page in PAGES))
    assert used - known - FOREIGN.keys() == set()
    assert FOREIGN.keys() <= used
    assert not FOREIGN.keys() & known


def test_every_message_that_heads_a_section_of_troubleshooting_is_one_of_the_library() -> None:
    quoted = re.findall(r"^### `(.*)`$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    nodes = (node for file in (ROOT / "jaxtrain").rglob("*.py") for node in ast.walk(ast.parse(file.read_text())))
    # Of an f-string these are its words between the values that are filled in.
    library = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert len(quoted) >= 60
    assert [message for message in quoted if not any(message in words for words in library)] == []
