"""Measures the code by the yardstick: each number beside its target.

    python scripts/measure.py                 everything; the runs take one to two minutes
    python scripts/measure.py --no-runs       only what is counted in the source
    python scripts/measure.py --check         also exits with code 1 where a target is missed
    python scripts/measure.py --peer nanodo --step train.py:_train_step --run ".venv/bin/python run_nanodo.py"

A peer's package is counted by the same rules as ours, and with `--run` traced by the same rule. No number of ours is
written down here. Two kinds of lines of a step are counted:

* *to read*: the functions that are on the stack when the first matmul of the step is traced, from the command line to
  the model, each counted whole, with the function that it stands in and without docstrings. Their names are printed.
* *run*: the functions that the command enters at all from its first line to its last (data, checkpoints and evaluation
  too), found by `sys.setprofile` in `called.py`.

Beside ours stand the best of the field, measured by these rules on 26 Nov 2026: nanodo at 10aefde (run: two steps of its
`train_and_evaluate` with mock data, under jax 0.4.31) and Kauldron at c9b3ec8 (without its main.py, which Python 3.13
does not parse). What is marked as quoted is from a review of 25 Nov 2026 and not measured here.
"""

import argparse
import ast
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import source_counts as count
from touched import KINDS, ROOT, add, environment

PACKAGE = ROOT / "jaxtrain"
CALLED = Path(__file__).resolve().parent / "called.py"
MOST_LINES, MOST_ENTRIES = 300, 20

READ = "lines to read, command line to matmul"
RUN = "lines run in two steps"
HOPS = "hops from the command line to jit"

MEASURED = {
    "train step: lines / branches": "28 / 1 nanodo; 45 / 0 Kauldron",
    "loop: lines / branches": "158 / 12 Kauldron; 179 / 20 nanodo",
    "code lines": "1,111 nanodo; 25,132 Kauldron",
    READ: "306 in 7 functions, 3 files nanodo",
    RUN: "1,029 in 53 functions, 10 files nanodo",
    "  those files whole: lines / code lines": "1,684 / 1,084 nanodo",
}
"""Measured by this script, by the question."""

QUOTED = {  # not measured here
    "fields of the root config": "19 torchtitan",
    "type-ignores": "282 torchtitan",
    "code lines": "29,081 Levanter; 65,878 torchtitan",
}
"""Of torchtitan of 2026-08 and Levanter of 2025-09."""


@dataclass(frozen=True)
class Row:
    """One question of the yardstick; `met` is None where there is no target, or nothing was run."""

    question: str
    found: str
    target: str = ""
    met: bool | None = None
    details: Sequence[str] = ()
    """Printed below the table."""


@dataclass(frozen=True)
class Package:
    """A package to measure: its folder, and where in it step, loop and root config are, as `file.py:name`."""

    folder: Path
    step: str | None = None
    loop: str | None = None
    config: str | None = None

    def definition(self, where: str) -> count.Definition:
        """What `file.py:name` names. Raises NotFound with the nearest name."""
        file, _, name = where.partition(":")
        return count.definition(self.folder / file, name)


OURS = Package(PACKAGE, "step.py:train_step", "train.py:train", "experiment/experiment.py:Experiment")


def caps() -> dict[str, int]:
    """The most code lines of each room: `CODE_LINES` of tests/test_rooms.py, the one place where they are written."""
    file = ROOT / "tests" / "test_rooms.py"
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CODE_LINES":
            return ast.literal_eval(node.value)
    raise count.NotFound(f"{file} has no CODE_LINES")


def source_rows(package: Package) -> Iterator[Row]:
    """What is counted in the source of any package."""
    files = count.python_files(package.folder)
    if package.step:
        node = package.definition(package.step)
        size, ways = len(count.line_numbers(node)), count.branches(node)
        found = f"{size} / {ways} (+ {count.hidden_branches(node)} in expressions)"
        yield Row("train step: lines / branches", found, "≤ 20 / 0", size <= 20 and ways == 0)
    if package.loop:
        node = package.definition(package.loop)
        size, ways = len(count.line_numbers(node)), count.branches(node)
        found = f"{size} / {ways} (+ {count.hidden_branches(node)} in expressions)"
        yield Row("loop: lines / branches", found, "≤ 50 / ≤ 6", size <= 50 and ways <= 6)
    if package.config:
        names = count.fields(package.definition(package.config))
        yield Row("fields of the root config", str(len(names)), "≤ 12", len(names) <= 12, names)
    size = count.ignored_types(files)
    yield Row("type-ignores", str(size), "0", size == 0)
    size = count.names_used(files, "TYPE_CHECKING")
    yield Row("TYPE_CHECKING guards", str(size), "0", size == 0)
    yield Row("files / lines", f"{len(files)} / {sum(map(count.all_lines, files)):,}")
    yield Row("code lines", f"{sum(map(count.code_lines, files)):,}")
    sizes = {str(file.relative_to(package.folder)): count.all_lines(file) for file in files}
    long = [f"{name} {size}" for name, size in sizes.items() if size > MOST_LINES]
    yield Row(f"files over {MOST_LINES} lines", str(len(long)), "0", not long, long)
    longest = count.longest(package.folder)
    found = [f"{where} {size} / {ways}" for size, ways, where in longest[:5]]
    yield Row("longest function: lines / branches", f"{longest[0][0]} / {longest[0][1]}", details=found)
    twice = {
        name: places
        for name, places in count.names_defined_twice(package.folder).items()
        if sum(not place.startswith("cli/") for place in places) > 1  # the command line names its verbs as they are
    }
    public = [f"{name}: {', '.join(places)}" for name, places in twice.items() if name[0] != "_"]
    private = [f"{name}: {', '.join(places)}" for name, places in twice.items() if name[0] == "_"]
    yield Row("names defined in more than one module", str(len(public)), "0", not public, public)
    yield Row("  and private ones", str(len(private)), details=private)


def room_rows(package: Path, caps: dict[str, int]) -> Iterator[Row]:
    """Code lines of each room of ours, and entries at the top."""
    found = count.code_lines_by_entry(package)
    for room in sorted(found.keys() | caps.keys(), key=lambda room: [*caps].index(room) if room in caps else -1):
        if room not in caps:
            yield Row(f"code lines: {room}", str(found[room]), "a cap in CODE_LINES", False)
        elif room in found:
            yield Row(f"code lines: {room}", f"{found[room]:,}", f"≤ {caps[room]:,}", found[room] <= caps[room])
    yield Row("entries at the top", str(len(found)), f"≤ {MOST_ENTRIES}", len(found) <= MOST_ENTRIES)


@dataclass(frozen=True)
class Trace:
    """What `called.py` wrote of one command."""

    functions: list[tuple[str, int, str]]
    jits: list[list[tuple[str, int, str]]]
    matmul: list[tuple[str, int, str]]


def trace(package: Path, command: Sequence[str], folder: Path) -> Trace:
    """What a command, `PYTHON …`, run in `folder` enters of a package. Raises RuntimeError where it fails."""
    python, *arguments = command
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        done = subprocess.run(
            [python, str(CALLED), out.name, str(package.resolve()), *arguments],
            cwd=folder,
            env={**os.environ, **environment(1)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr[-2000:]}")
        return Trace(**json.loads(Path(out.name).read_text()))


def trace_rows(package: Path, trace: Trace) -> Iterator[Row]:
    """What a trace of two steps shows."""
    if not trace.matmul:
        raise RuntimeError("no matmul was traced within jax.grad: what was run trains nothing")
    package = package.resolve()

    def places(stack: Sequence[tuple[str, int, str]]) -> list[str]:
        found = dict.fromkeys(str(Path(file).relative_to(package)) for file, _, _ in stack)
        # __main__.py hears signals and imports the rest; cli/main.py only finds the verb.
        return [file for file in found if file not in ("__main__.py", "cli/main.py")]

    chain = [function for function in trace.matmul if Path(function[0]).is_relative_to(package)]
    read = count.functions_at([(file, line) for file, line, _ in chain], outermost=True)
    names = [
        f"{file.relative_to(package)}:{name} {len(count.line_numbers(node))}"
        for file, found in read.items()
        for name, node in found.items()
    ]
    size = sum(len(count.line_numbers(node)) for found in read.values() for node in found.values())
    found = f"{size} in {len(names)} functions, {len(read)} files"
    yield Row(READ, found, details=names)
    model = sum(
        len(count.line_numbers(node))
        for f, some in read.items()
        for node in some.values()
        if "model" in str(f.relative_to(package))
    )
    yield Row("  of these in models", str(model))
    ran = count.functions_at([(file, line) for file, line, _ in trace.functions], outermost=False)
    lines = sum(len(set().union(*map(count.line_numbers, found.values()))) for found in ran.values())
    functions = sum(map(len, ran.values()))
    yield Row(RUN, f"{lines:,} in {functions} functions, {len(ran)} files")
    whole, code = sum(map(count.all_lines, ran)), sum(map(count.code_lines, ran))
    yield Row("  those files whole: lines / code lines", f"{whole:,} / {code:,}")
    step = [stack for stack in trace.jits if stack[-1][2] != "Program.compiled"]  # that is for what is beside the step
    hops = max(map(places, step), key=len, default=[])
    yield Row(HOPS, " → ".join([*hops, "jit"]), "≤ 3 hops", 0 < len(hops) <= 3)
    where = sorted({places(stack)[-1] for stack in trace.jits})
    yield Row("files that call jit", ", ".join(where), "1", len(where) == 1)


def added_rows() -> Iterator[Row]:
    """Files touched by what is really added to a copy of the repository, and works there."""

    def one(kind: str) -> Row:
        most = 0 if kind == "parallelism" else 1
        with tempfile.TemporaryDirectory() as folder:
            try:
                inside, outside = add(kind, Path(folder))
            except RuntimeError as error:
                return Row(f"files for a new {kind}", "does not work", str(most), False, str(error).splitlines())
        found = f"{len(inside)}, and {len(outside)} outside of jaxtrain/"
        return Row(
            f"files for a new {kind}",
            found,
            f"{most}, and 1",
            (len(inside), len(outside)) == (most, 1),
            inside + outside,
        )

    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(one, KINDS)


def static_rows() -> list[Row]:
    """All rows of ours that are counted in the source."""
    rows = [*source_rows(OURS), *room_rows(PACKAGE, caps())]
    others = [file for name in ("experiments", "scripts", "tests") for file in (ROOT / name).rglob("*.py")]
    size = count.ignored_types(others)
    return [*rows, Row("type-ignores in experiments, scripts, tests", str(size), "0", size == 0)]


def run_rows() -> list[Row]:
    """All rows of ours that need something to be run."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", "jaxtrain", "train", "tests/tiny.py", "--steps", "2", "--run", f"{folder}/run"]
        traced = trace(PACKAGE, [sys.executable, *words], ROOT)
    return [*trace_rows(PACKAGE, traced), *added_rows()]


NOT_RUN = (READ, RUN, HOPS, *(f"files for a new {kind}" for kind in KINDS))


def show(rows: Sequence[Row]) -> str:
    """The table, with the details of each row below it."""
    words = [("question", "found", "target", "met", "the best of the field")]
    for row in rows:
        met = {None: "", True: "yes", False: "NO"}[row.met]
        best = [MEASURED.get(row.question, ""), f"{QUOTED[row.question]} (quoted)" if row.question in QUOTED else ""]
        words.append((row.question, row.found, row.target, met, "; ".join(filter(None, best))))
    widths = [max(len(row[column]) for row in words) for column in range(len(words[0]))]
    lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in words]
    details = [f"\n{row.question.strip()}:\n  " + "\n  ".join(row.details) for row in rows if row.details]
    return "\n".join([*lines, *details])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-runs", action="store_true", help="only what is counted in the source")
    parser.add_argument("--check", action="store_true", help="exit with code 1 where a target is missed")
    parser.add_argument("--peer", type=Path, help="the folder of another package, counted by the same rules")
    parser.add_argument("--step", help="file.py:function of its train step")
    parser.add_argument("--loop", help="file.py:function of its loop")
    parser.add_argument("--config", help="file.py:Class of its root config")
    parser.add_argument("--run", help="a command, PYTHON …, that trains it for two steps from this folder")
    given = parser.parse_args(arguments)
    if given.peer:
        rows = [*source_rows(Package(given.peer, given.step, given.loop, given.config))]
        if given.run:
            rows += trace_rows(given.peer, trace(given.peer, shlex.split(given.run), Path.cwd()))
        print(show([Row(row.question, row.found, details=row.details) for row in rows]))
        return 0
    rows = static_rows()
    rows += [Row(question, "not run") for question in NOT_RUN] if given.no_runs else run_rows()
    print(show(rows))
    return int(given.check and any(row.met is False for row in rows))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except count.NotFound as error:
        sys.exit(f"measure: {error}")
