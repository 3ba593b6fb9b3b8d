"""Changes one thing of the library at a time and runs the tests that should notice.

    python scripts/mutate.py --list                       every listed mutant
    python scripts/mutate.py                              all of them: hours on two cores
    python scripts/mutate.py --only remat --only "warm*"  those whose name, file or reason holds this
    python scripts/mutate.py --delete jaxtrain/step.py    each statement that can be left out, deleted by itself

`mutants.toml` lists what is chosen or guarded: a file, a text that occurs in it exactly once, what stands there instead,
the tests that can notice (arguments of pytest), and why it matters. A text that is not found exactly once is an error
that names file and nearest line, so a refactoring cannot leave a mutant behind unseen. Files are changed in temporary
copies of the repository, never in the repository itself.

Why not a kept library (both tried on tasks/metrics.py, 41 lines, with its 21 tests of 4 to 11 s, on two cores):

* mutmut 3.8 forks a process that has imported jax, which deadlocks: of 23 mutants in seven minutes three "timed out"
  that a fresh process decides in seconds, then it hung. Nor does it know statements, only operators and literals.
* cosmic-ray 8.7 works: 75 mutants in five minutes, a process for each. Its operators are those of arithmetic and
  comparison: it cannot say "remat is not applied", "nothing is donated", "the metrics are not rewound" or "the state is
  saved before", which is what the tests of compiled programs have to notice, and where a mutant costs minutes of
  compilation, its hundreds for a file are too many. For a small pure file it is the better tool:
  `uv run --with cosmic-ray cosmic-ray init config.toml session.sqlite` in a copy of the repository.
"""

import argparse
import ast
import difflib
import fnmatch
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent
MUTANTS = Path(__file__).resolve().parent / "mutants.toml"

Outcome = Literal["killed", "survived", "timed out"]


class Stale(Exception):
    """A mutant that no longer fits its file."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change, and the tests that should notice it."""

    name: str
    file: str
    """Of the repository."""
    old: str
    """Occurs exactly once in the file."""
    new: str
    tests: str
    """Arguments of pytest."""
    why: str = ""

    def applied(self, text: str) -> str:
        """The text of the file with the change. Raises Stale where `old` is not in it exactly once."""
        count = text.count(self.old)
        if count == 1:
            return text.replace(self.old, self.new)
        if count > 1:
            numbers = [line_of(text, at) for at in _occurrences(text, self.old)]
            raise Stale(f"{self.name}: {self.file} has it {count} times, in lines {numbers}: {self.old!r}")
        number, line = nearest_line(text, self.old)
        raise Stale(f"{self.name}: {self.file} has no {self.old!r}; nearest is line {number}: {line.strip()!r}")


def _occurrences(text: str, part: str) -> list[int]:
    return [at for at in range(len(text)) if text.startswith(part, at)]


def line_of(text: str, at: int) -> int:
    """The number of the line that holds this position."""
    return text.count("\n", 0, at) + 1


def nearest_line(text: str, part: str) -> tuple[int, str]:
    """The line of a text that is most like the longest line of `part`, and its number."""
    wanted = max(part.splitlines(), key=len, default="").strip()

    def likeness(line: str) -> float:
        match = difflib.SequenceMatcher(None, line.strip(), wanted, autojunk=False)
        return match.find_longest_match().size + match.ratio()

    numbered = list(enumerate(text.splitlines(), 1))
    return max(numbered, key=lambda each: likeness(each[1]))


def listed(file: Path = MUTANTS) -> list[Mutant]:
    """The mutants of a list. Raises Stale for two of one name and for unknown or missing keys."""
    mutants: list[Mutant] = []
    for entry in tomllib.loads(file.read_text())["mutant"]:
        try:
            mutants.append(Mutant(**entry))
        except TypeError as error:
            raise Stale(f"{file}: {entry.get('name')!r}: {error}") from None
    names = [mutant.name for mutant in mutants]
    if twice := {name for name in names if names.count(name) > 1}:
        raise Stale(f"{file}: two mutants are named {', '.join(sorted(twice))}")
    return mutants


def deletions(file: str, text: str, tests: str) -> list[Mutant]:
    """Each statement of a function whose deletion leaves a program that may run: calls, checks, and what is assigned
    again, to itself or to a part of something. A deleted statement is `pass`.
    """
    lines, found = text.splitlines(keepends=True), []
    for function in ast.walk(ast.parse(text)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            bound = {argument.arg for argument in [*function.args.args, *function.args.kwonlyargs]}
            for node in _statements(function.body):
                if _deletable(node, bound):
                    first, last = node.lineno, node.end_lineno or node.lineno
                    before, old = "".join(lines[: first - 1]), "".join(lines[first - 1 : last])
                    new = f"{' ' * node.col_offset}pass\n"
                    # The whole file is the text that occurs once: the same statement may stand there twice.
                    rest = "".join(lines[last:])
                    name = f"{file}:{first} {function.name}: {' '.join(old.split())[:80]}"
                    found.append(Mutant(name=name, file=file, old=text, new=before + new + rest, tests=tests))
                bound |= _stored(node)
    return found


def _stored(node: ast.AST) -> set[str]:
    """The names that a statement assigns."""
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)}


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for name in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(node, name, []))
            for handler in getattr(node, "handlers", []):
                yield from _statements(handler.body)


def _deletable(node: ast.stmt, bound: set[str]) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call | ast.Await)
    if isinstance(node, ast.If):
        return not node.orelse
    if isinstance(node, ast.Assign):
        return set().union(*map(_stored, node.targets)) <= bound
    return isinstance(node, ast.AugAssign | ast.Assert | ast.Delete)


def chosen(mutants: Sequence[Mutant], only: Sequence[str]) -> list[Mutant]:
    """Those whose name, file or reason holds one of these words or fits one of these patterns; all without any."""

    def fits(mutant: Mutant, word: str) -> bool:
        held = (mutant.name, mutant.file, mutant.why)
        return any(word in text or fnmatch.fnmatch(text, word) for text in held)

    return [mutant for mutant in mutants if not only or any(fits(mutant, word) for word in only)]


def copied(root: Path, folder: Path) -> None:
    """A copy of the files of a repository that git knows or would add."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listing.stdout.decode().split("\0")):
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)


def tested(folder: Path, tests: str, limit: float) -> tuple[Outcome, str]:
    """Whether the tests of a copy fail, and the end of what they print; slow ones are run if no other one fails.

    Raises Stale where pytest finds no tests.
    """
    ends: list[tuple[Outcome, str]] = []
    for marks in [""] if " -m " in tests else ["", " -m slow"]:
        code, out = _pytest(folder, tests + marks, limit)
        if code == 4:  # wrong arguments
            raise Stale(f"pytest {tests} found no tests:\n{out}")
        if code != 5:  # there are such tests
            ends.append(("timed out" if code is None else "killed" if code else "survived", out))
            if code != 0:
                break
    if not ends:
        raise Stale(f"pytest {tests} found no tests")
    return ends[-1]


def _pytest(folder: Path, arguments: str, limit: float) -> tuple[int | None, str]:
    """The exit status of pytest, None after `limit` seconds, and the end of what it prints."""
    # -n 0: one process, which -x stops at once.
    command = [sys.executable, "-m", "pytest", *shlex.split(arguments), "-x", "-q", "-p", "no:cacheprovider", "-n", "0"]
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # tests start processes of their own
        out, _ = process.communicate()
        return None, out[-2000:]
    return process.returncode, out[-2000:]


def run(
    root: Path, mutants: Sequence[Mutant], limit: float, jobs: int, baseline: bool
) -> Iterator[tuple[Mutant, Outcome, float]]:
    """The outcome of every mutant and the seconds it took, each as soon as it is known.

    baseline: first run the tests unchanged, each set once. Raises Stale where they fail: every mutant would be "killed".
    """
    for mutant in mutants:  # before anything runs
        mutant.applied((root / mutant.file).read_text())
    with tempfile.TemporaryDirectory() as temporary:
        free: SimpleQueue[Path] = SimpleQueue()
        for number in range(jobs):
            copied(root, Path(temporary) / str(number))
            free.put(Path(temporary) / str(number))

        def unchanged(tests: str) -> None:
            folder = free.get()
            outcome, out = tested(folder, tests, limit)
            free.put(folder)
            if outcome != "survived":
                wrong = "fails" if outcome == "killed" else f"takes longer than {limit:.0f} s"
                raise Stale(f"pytest {tests} {wrong} without any change:\n{out}")

        def one(mutant: Mutant) -> tuple[Mutant, Outcome, float]:
            folder, began = free.get(), time.monotonic()
            file = folder / mutant.file
            before = file.read_text()
            try:
                file.write_text(mutant.applied(before))
                return mutant, tested(folder, mutant.tests, limit)[0], time.monotonic() - began
            finally:
                file.write_text(before)
                free.put(folder)

        with ThreadPoolExecutor(jobs) as pool:
            if baseline:
                list(pool.map(unchanged, dict.fromkeys(mutant.tests for mutant in mutants)))
            yield from pool.map(one, mutants)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 1 where a mutant survives, 2 where the list does not fit the code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="part of a name, file or reason")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument("--delete", metavar="FILE", help="delete single statements of this file instead")
    parser.add_argument("--tests", help="with --delete: arguments of pytest; by default those listed for the file")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at once")
    parser.add_argument("--limit", type=float, default=600, help="seconds for a mutant")
    parser.add_argument("--no-baseline", action="store_true", help="do not first run the tests unchanged")
    given = parser.parse_args(arguments)
    try:
        mutants = listed()
        if given.delete:
            tests = given.tests or " ".join(dict.fromkeys(m.tests for m in mutants if m.file == given.delete))
            if not tests:
                raise Stale(f"mutants.toml lists no tests for {given.delete}: give them with --tests")
            mutants = deletions(given.delete, (ROOT / given.delete).read_text(), tests)
        mutants = chosen(mutants, given.only)
        if not mutants:
            raise Stale(f"no mutant has {' or '.join(given.only)} in its name, file or reason")
        if given.list:
            print("\n".join(f"{mutant.file}  {mutant.name}" for mutant in mutants))
            return 0
        killed = 0
        for mutant, outcome, seconds in run(ROOT, mutants, given.limit, given.jobs, not given.no_baseline):
            killed += outcome == "killed"
            why = f"  ({mutant.why})" if mutant.why and outcome != "killed" else ""
            print(f"{outcome:9}  {seconds:5.0f} s  {mutant.name}{why}", flush=True)
    except Stale as error:
        print(f"mutate: {error}", file=sys.stderr)
        return 2
    print(f"killed {killed} of {len(mutants)} ({killed / len(mutants):.0%})")
    return int(killed < len(mutants))


if __name__ == "__main__":
    sys.exit(main())
