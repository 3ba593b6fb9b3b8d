"""The yardstick: that it counts by its rules, and that the code meets it."""

import ast
import subprocess
import sys
from pathlib import Path

import measure
import pytest
import source_counts
import touched

COUNTED = '''
CONSTANT: int = 1  # type: ignore
T = TypeVar("T")


def f(x):
    """Two
    lines."""
    # A comment.
    for y in x:

        if y and x or CONSTANT:
            return 1 if x else [z for z in x if z]


class C:
    """A class."""

    field: int
    other: str = "with words"

    @property
    def g(self):
        def inner():
            """One line."""
            return lambda: 1

        return inner
'''


@pytest.fixture
def counted(tmp_path: Path) -> Path:
    file = tmp_path / "counted.py"
    file.write_text(COUNTED)
    return file


def test_lines_of_a_function_are_counted_from_def_to_end_without_docstrings(counted: Path) -> None:
    assert len(source_counts.line_numbers(source_counts.definition(counted, "f"))) == 6
    assert len(source_counts.line_numbers(source_counts.definition(counted, "C.g"))) == 5


def test_branches_are_statements_and_conditional_expressions_and_those_in_expressions_apart(counted: Path) -> None:
    function = source_counts.definition(counted, "f")
    assert source_counts.branches(function) == 3  # for, if, if-else
    assert source_counts.hidden_branches(function) == 4  # and, or, the comprehension's for and if


def test_code_lines_are_those_without_blanks_comments_and_docstrings(counted: Path) -> None:
    assert source_counts.code_lines(counted) == 2 + 4 + 3 + 5
    assert source_counts.all_lines(counted) == len(COUNTED.splitlines())


def test_fields_top_names_and_ignored_types_are_found(counted: Path) -> None:
    assert source_counts.fields(source_counts.definition(counted, "C")) == ["field", "other"]
    assert source_counts.top_names(counted) == {"CONSTANT", "f", "C"}
    assert source_counts.ignored_types([counted]) == 1


def test_a_name_counts_as_defined_twice_where_two_modules_define_it_not_where_one_imports_it(tmp_path: Path) -> None:
    for name, text in {"a": "def f(): ...\ndef g(): ...", "b": "from a import g\nclass f: ...", "c": "h = 1"}.items():
        (tmp_path / f"{name}.py").write_text(text)
    assert source_counts.names_defined_twice(tmp_path) == {"f": ["a.py", "b.py"]}


def test_a_line_belongs_to_its_innermost_function_or_to_the_outermost_around_it(counted: Path) -> None:
    lines = [(str(counted), number) for number, line in enumerate(COUNTED.splitlines(), 1) if "lambda" in line]
    assert list(source_counts.functions_at(lines, outermost=False)[counted]) == ["C.g.inner"]
    assert list(source_counts.functions_at(lines, outermost=True)[counted]) == ["C.g"]
    assert source_counts.functions_at([(str(counted), 2)], outermost=True) == {}


def test_a_name_that_is_gone_is_an_error_with_the_nearest_one(counted: Path) -> None:
    with pytest.raises(source_counts.NotFound, match=r"counted.py defines no 'C.gg'; nearest: C.g"):
        source_counts.definition(counted, "C.gg")
    with pytest.raises(source_counts.NotFound, match=r"no .*count.py; nearest: counted.py"):
        source_counts.definition(counted.parent / "count.py", "f")


PROGRAM = '''
import jax
import jax.numpy as jnp


def matmul(x):
    return jnp.dot(x, x)


def loss(x):
    """Not counted."""
    return matmul(x).sum()


def never():
    return 0


def compiled():
    matmul(jnp.ones((2, 2)))  # in no gradient
    return jax.jit(lambda x: jax.grad(loss)(x))


def main():
    compiled()(jnp.ones((3, 3)))


main()
'''


def test_a_trace_finds_what_is_entered_the_way_to_jit_and_the_way_to_the_first_matmul_of_a_gradient(
    tmp_path: Path,
) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "program.py").write_text(PROGRAM)
    package = tmp_path / "package"
    trace = measure.trace(package, [sys.executable, "package/program.py"], tmp_path)
    assert {name for _, _, name in trace.functions} == {
        *("main", "compiled", "compiled.<locals>.<lambda>", "loss", "matmul")
    }
    assert [[name for _, _, name in stack] for stack in trace.jits] == [["main", "compiled"]]
    assert [name for _, _, name in trace.matmul] == ["main", "compiled.<locals>.<lambda>", "loss", "matmul"]
    rows = {row.question: row for row in measure.trace_rows(package, trace)}
    assert rows[measure.READ].found == "9 in 4 functions, 1 files"
    assert rows[measure.RUN].found == "9 in 4 functions, 1 files"
    assert rows[measure.HOPS].found == "program.py → jit"


def test_a_command_that_trains_nothing_or_fails_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "nothing.py").write_text("def f(): ...\nf()\n")
    traced = measure.trace(tmp_path, [sys.executable, "nothing.py"], tmp_path)
    with pytest.raises(RuntimeError, match="trains nothing"):
        list(measure.trace_rows(tmp_path, traced))
    (tmp_path / "fails.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(RuntimeError, match=r"fails.py failed"):
        measure.trace(tmp_path, [sys.executable, "fails.py"], tmp_path)


def test_touched_files_are_new_and_changed_ones(tmp_path: Path) -> None:
    files = {"before/same.py": "1", "before/changed.py": "1", "before/removed.py": "1"}
    files |= {"after/same.py": "1", "after/changed.py": "2", "after/x/new.py": "1", "after/__pycache__/new.pyc": "1"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert touched.touched(tmp_path / "before", tmp_path / "after") == ["changed.py", "x/new.py"]


def test_every_addition_is_a_file_that_parses_and_an_experiment() -> None:
    for kind in touched.KINDS:
        files = [file.relative_to(touched.ADDITIONS / kind) for file in (touched.ADDITIONS / kind).rglob("*.py")]
        assert Path("experiments/added.py") in files
        for file in files:
            ast.parse((touched.ADDITIONS / kind / file).read_text())


def test_check_exits_with_one_where_a_target_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    missed = [measure.Row("files", "3", "≤ 2", met=False)]
    monkeypatch.setattr(measure, "static_rows", lambda: missed)
    assert measure.main(["--no-runs"]) == 0
    assert measure.main(["--no-runs", "--check"]) == 1
    monkeypatch.setattr(measure, "static_rows", lambda: [measure.Row("files", "1", "≤ 2", met=True)])
    assert measure.main(["--no-runs", "--check"]) == 0


def test_a_peer_is_counted_by_the_same_rules(counted: Path) -> None:
    command = [sys.executable, measure.__file__, "--peer", str(counted.parent), "--step", "counted.py:f"]
    done = subprocess.run([*command, "--config", "counted.py:C"], capture_output=True, text=True, check=True)
    rows = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    assert "6 / 3 (+ 4 in expressions)" in rows["train step: lines / branches"]
    assert " 2 " in rows["fields of the root config"]
    wrong = subprocess.run([*command[:-1], "counted.py:ff"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert wrong.stderr.endswith("defines no 'ff'; nearest: f\n")


STATIC = [row for row in measure.static_rows() if row.met is not None]


@pytest.mark.parametrize("row", STATIC, ids=lambda row: row.question)
def test_the_code_meets_its_yardstick(row: measure.Row) -> None:
    assert row.met, f"{row.question}: {row.found}, not {row.target}: {', '.join(row.details)}"


def test_a_room_without_a_cap_and_one_above_it_miss_their_targets(tmp_path: Path) -> None:
    for name in ("capped", "above", "unknown"):
        (tmp_path / f"{name}.py").write_text("x = 1\ny = 2\n")
    rows = {row.question: row.met for row in measure.room_rows(tmp_path, {"capped": 2, "above": 1, "planned": 5})}
    assert rows == {
        "code lines: capped": True,
        "code lines: above": False,
        "code lines: unknown": False,
        "entries at the top": True,
    }


@pytest.mark.slow
def test_the_code_meets_the_yardstick_of_what_is_run() -> None:
    missed = [f"{row.question}: {row.found}, not {row.target}" for row in measure.run_rows() if row.met is False]
    assert missed == []
