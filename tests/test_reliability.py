"""docs/reliability.md: every promise names a test that exists, and its tables and numbers are those of the code."""

import ast
import re
from pathlib import Path

import pytest
import soak

from jaxtrain.base.errors import ExitCode
from jaxtrain.cluster import stop
from jaxtrain.experiment.experiment import Deadlines
from jaxtrain.launch.job import should_restart
from jaxtrain.optimizers import recorded
from jaxtrain.runs import lock, steps_log

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "reliability.md").read_text()
NAMED = re.compile(r"`tests/(test_\w+\.py)::(\w+)`")
GROUPS = (
    *("One writer", "Signals", "Checkpoints", "Non-finite and spikes", "Flight recorder and replay", "Watchdog"),
    *("Orphans", "Memory", "Metrics", "Untrusted folders", "One way to fail"),
)


def section(heading: str) -> str:
    return PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def rows(heading: str) -> list[list[str]]:
    """The cells of the table in a section."""
    lines = [line for line in section(heading).splitlines() if line.startswith("| ") and not line.startswith("|---")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[1:]]


def missing(page: str) -> list[str]:
    """The tests that a page names and that do not exist."""
    found = []
    for file, name in NAMED.findall(page):
        path = ROOT / "tests" / file
        tree = ast.parse(path.read_text()) if path.is_file() else ast.Module([], [])
        if name not in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}:
            found.append(f"{file}::{name}")
    return found


def test_every_test_that_holds_a_promise_exists() -> None:
    assert missing(PAGE) == []
    gone = "`tests/test_lock.py::test_gone` `tests/test_gone.py::test_gone`"
    assert missing(gone) == ["test_lock.py::test_gone", "test_gone.py::test_gone"]


@pytest.mark.parametrize("group", GROUPS)
def test_every_promise_of_a_group_names_its_test(group: str) -> None:
    promises = re.split(r"^- ", section(group), flags=re.MULTILINE)[1:]
    assert promises
    assert [promise for promise in promises if not NAMED.search(promise)] == []


def test_the_table_of_exit_codes_is_that_of_the_code_and_says_what_a_launcher_does() -> None:
    table = rows("Exit codes")
    assert {int(code): name.strip("`") for code, name, *_ in table} == {int(code): code.name for code in ExitCode}
    assert {int(code): again.startswith("yes") for code, *_, again in table} == {
        int(code): should_restart(code) for code in ExitCode
    }


def test_every_file_that_a_run_may_leave_is_in_a_table() -> None:
    readme = (ROOT / "README.md").read_text().partition("\n## The run folder\n")[2].partition("\n## ")[0]
    own = {name for cells in rows("Files of a run folder") for name in re.findall(r"`([^`]+)`", cells[0])}
    known = {name.rstrip("/") for name in {*own, *re.findall(r"`([^`]+)`", readme)}}
    left = {re.sub(r"-\d+(?=\.)", "", name) for name in soak.RUN_FILES if not name.endswith(".py")}
    assert left - known == set()
    texts = " ".join(path.read_text() for path in (ROOT / "jaxtrain").rglob("*.py"))
    stems = {re.split(r"[-.]", name.rstrip("/"))[0] for name in own}
    assert {stem for stem in stems if stem not in texts} == set()


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("`--deadlines.lock` seconds ({})", Deadlines().lock),
        ("`--deadlines.step {}`", Deadlines().step),
        ("after {} s without a heartbeat", int(lock.SILENT)),
        ("within {} s where the compiler runs", int(stop.GRACE)),
        ("those of more than {:,} numbers", recorded.SAMPLED),
        ("every step in {} bytes", steps_log.RECORD.itemsize),
    ],
)
def test_a_number_of_the_page_is_that_of_the_code(words: str, value: int) -> None:
    assert " ".join(words.format(value).split()) in " ".join(PAGE.split())


def test_times_in_words_are_those_of_the_code() -> None:
    assert (stop.ECHO, Deadlines().step, Deadlines().save) == (0.5, 30 * 60, 2 * 3600)
