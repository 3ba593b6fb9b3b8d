"""Every listed mutant fits the code; and the tool that runs them tells tests that notice from those that do not."""

import ast
import shlex
import subprocess
from pathlib import Path

import mutate
import pytest

ROOT = Path(__file__).resolve().parent.parent
LISTED = mutate.listed()


@pytest.mark.parametrize("file", sorted({mutant.file for mutant in LISTED}))
def test_every_listed_mutant_fits_its_file_and_is_a_program(file: str) -> None:
    text = (ROOT / file).read_text()
    for mutant in LISTED:
        if mutant.file == file:
            changed = mutant.applied(text)
            assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text)), mutant.name


def test_every_listed_mutant_names_test_files_that_there_are() -> None:
    for mutant in LISTED:
        files = [word for word in shlex.split(mutant.tests) if word.endswith(".py")]
        assert files, mutant.name
        assert [file for file in files if not (ROOT / file).is_file()] == [], mutant.name


def mutant(old: str, new: str = "", name: str = "one") -> mutate.Mutant:
    return mutate.Mutant(name=name, file="code.py", old=old, new=new, tests="test_code.py")


def test_a_text_that_is_not_there_is_an_error_with_the_nearest_line() -> None:
    text = "first = 1\nsecond = first + 1\nthird = 3\n"
    with pytest.raises(mutate.Stale, match=r"code.py has no 'second = first \* 1'; nearest is line 2: 'second = f"):
        mutant("second = first * 1").applied(text)


def test_a_text_that_is_there_twice_is_an_error_with_its_lines() -> None:
    with pytest.raises(mutate.Stale, match=r"code.py has it 2 times, in lines \[1, 3\]: 'x = 1'"):
        mutant("x = 1").applied("x = 1\ny = 2\nx = 1\n")


def test_two_mutants_of_one_name_and_unknown_keys_are_errors(tmp_path: Path) -> None:
    entry = '[[mutant]]\nname = "a"\nfile = "f"\nold = "1"\nnew = "2"\ntests = "t"\n'
    (tmp_path / "twice.toml").write_text(entry * 2)
    with pytest.raises(mutate.Stale, match="two mutants are named a"):
        mutate.listed(tmp_path / "twice.toml")
    (tmp_path / "unknown.toml").write_text(entry + 'because = "x"\n')
    with pytest.raises(mutate.Stale, match=r"'a': .*because"):
        mutate.listed(tmp_path / "unknown.toml")


FUNCTION = '''
def f(x, log):
    """Words."""
    y = x
    log(y)
    if x < 0:
        raise ValueError(
            x
        )
    if y:
        x = y + 1
    else:
        x += 2
    for z in x:
        log.last = z
        y, z = z, y
    return y
'''


def test_the_statements_that_can_be_left_out_are_calls_checks_and_second_assignments() -> None:
    found = mutate.deletions("code.py", FUNCTION, "tests")
    assert [each.name.removeprefix("code.py:") for each in found] == [
        "5 f: log(y)",
        "6 f: if x < 0: raise ValueError( x )",
        "11 f: x = y + 1",
        "13 f: x += 2",
        "15 f: log.last = z",
        "16 f: y, z = z, y",
    ]
    lines = found[1].applied(FUNCTION).splitlines()
    assert lines[4:7] == ["    log(y)", "    pass", "    if y:"]
    ast.parse(found[1].applied(FUNCTION))


def test_only_those_are_chosen_whose_name_file_or_reason_is_asked_for() -> None:
    mutants = [mutant("1", name="warm-up"), mutant("2", name="decay")]
    assert mutate.chosen(mutants, []) == mutants
    assert mutate.chosen(mutants, ["warm"]) == mutants[:1]
    assert mutate.chosen(mutants, ["d*y"]) == mutants[1:]
    assert mutate.chosen(mutants, ["code.py"]) == mutants
    assert mutate.chosen(mutants, ["nothing"]) == []


CODE = "def double(x):\n    return 2 * x\n\n\ndef unguarded(x):\n    return x + 1\n\n\ndef loop(n):\n    while n:\n        n -= 1\n"
TESTS = """
import code_under_test as code

def test_double():
    assert code.double(3) == 6

def test_loop():
    code.loop(3)
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    (root / "code_under_test.py").write_text(CODE)
    (root / "test_code.py").write_text(TESTS)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return root


def of(old: str, new: str, tests: str = "test_code.py") -> mutate.Mutant:
    return mutate.Mutant(name=new, file="code_under_test.py", old=old, new=new, tests=tests)


@pytest.mark.slow
def test_a_noticed_mutant_is_killed_another_survives_and_the_repository_is_as_before(repository: Path) -> None:
    mutants = [of("2 * x", "3 * x"), of("x + 1", "x + 2")]
    found = [outcome for _, outcome, _ in mutate.run(repository, mutants, limit=6000, jobs=2, baseline=True)]
    assert found == ["killed", "survived"]
    assert (repository / "code_under_test.py").read_text() == CODE
    assert sorted(path.name for path in repository.iterdir()) == [".git", "code_under_test.py", "test_code.py"]


@pytest.mark.slow
def test_a_mutant_that_never_ends_times_out(repository: Path) -> None:
    [(_, outcome, _)] = mutate.run(repository, [of("n -= 1", "n += 0")], limit=5, jobs=1, baseline=False)
    assert outcome == "timed out"


def test_tests_that_fail_without_any_change_kill_nothing(repository: Path) -> None:
    (repository / "test_code.py").write_text("def test_wrong():\n    assert False\n")
    with pytest.raises(mutate.Stale, match="fails without any change"):
        list(mutate.run(repository, [of("2 * x", "3 * x")], limit=600, jobs=1, baseline=True))


@pytest.mark.slow
def test_tests_that_are_not_there_kill_nothing(repository: Path) -> None:
    for tests in ("test_other.py", "test_code.py -k nothing"):
        with pytest.raises(mutate.Stale, match="found no tests"):
            list(mutate.run(repository, [of("2 * x", "3 * x", tests)], limit=600, jobs=1, baseline=False))


@pytest.mark.slow
def test_the_exit_code_says_whether_all_were_killed(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutate, "ROOT", repository)
    monkeypatch.setattr(mutate, "listed", lambda: [of("2 * x", "3 * x"), of("x + 1", "x + 2")])
    assert mutate.main(["--only", "3 *", "--no-baseline"]) == 0
    assert mutate.main(["--only", "x +", "--no-baseline"]) == 1
    assert mutate.main(["--only", "nothing"]) == 2
    monkeypatch.setattr(mutate, "listed", lambda: [of("4 * x", "3 * x")])
    assert mutate.main(["--no-baseline"]) == 2
