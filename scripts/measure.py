"""Measures the code by the yardstick: `python scripts/measure.py` prints each number beside its target.

The best of the field (July 2026): nanoGPT 4 files / 738 lines for one step with its model, nanodo 10 / 1,586, MaxText
9 / 14,380; train step 29 lines / 1 branch (nanodo); loop 159 / 13 (Kauldron); root config 19 fields (torchtitan).
"""

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from jaxtrain.experiment import Experiment

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jaxtrain"

STEP: dict[str, tuple[str, ...]] = {
    "cli/main.py": ("main", "run", "train"),
    "train.py": ("train",),
    "program.py": ("Program.__init__", "Program.lower"),
    "step.py": ("TrainState", "full_batch", "train_step"),
    "tasks/language.py": ("LanguageModel.read", "LanguageModel.loss"),
    "models/base.py": ("Model.apply",),
}
"""What one reads to follow one step from the command line to the update, up to the model's door."""

MODEL: dict[str, tuple[str, ...]] = {
    "models/transformer.py": ("Block", "TransformerModule"),
    "models/layers.py": ("dot", "Linear", "RMSNorm", "Embedding", "Stack", "rotate"),
    "models/attention.py": ("attention", "_attend", "_scored"),
}
"""What one reads besides to know the transformer: the part that a project replaces."""

NO_CODE = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)

BRANCHES = (ast.If, ast.IfExp, ast.For, ast.While, ast.ExceptHandler, ast.match_case)


@dataclass(frozen=True)
class Row:
    """One question of the yardstick; `met` is None where there is nothing to compare."""

    question: str
    found: str
    target: str
    met: bool | None


def functions(file: Path) -> dict[str, ast.FunctionDef | ast.ClassDef]:
    """Functions, classes and methods of a file by qualified name."""
    found: dict[str, ast.FunctionDef | ast.ClassDef] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[prefix + node.name] = node
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{node.name}.")

    visit(ast.parse(file.read_text()).body, "")
    return found


def lines(node: ast.FunctionDef | ast.ClassDef) -> int:
    """Lines of a definition without its docstring."""
    first = node.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    last = node.end_lineno or node.lineno
    return last - node.lineno + 1 - (((first.end_lineno or 0) - first.lineno + 1) if documented else 0)


def branches(node: ast.AST) -> int:
    """Places where control may go two ways: if, conditional expression, loop, except, case."""
    return sum(isinstance(inner, BRANCHES) for inner in ast.walk(node))


def read(path: dict[str, tuple[str, ...]]) -> tuple[int, int, int]:
    """Files to read, the lines of all of them, and the lines of just the functions on the path."""
    whole = sum(len((PACKAGE / name).read_text().splitlines()) for name in path)
    own = sum(lines(functions(PACKAGE / name)[function]) for name, names in path.items() for function in names)
    return len(path), whole, own


def count(pattern: str) -> int:
    """Lines of the package that match."""
    files = PACKAGE.rglob("*.py")
    return sum(bool(re.search(pattern, line)) for file in files for line in file.read_text().splitlines())


def code_lines(file: Path) -> int:
    """Lines of a file that hold code: no blank lines, comments or docstrings."""
    text = file.read_text()
    held = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in NO_CODE
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            held -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(held)


def code_lines_by_room() -> dict[str, int]:
    """Lines of code of each entry at the top of the package."""
    found: Counter[str] = Counter()
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).with_suffix("").parts[0]
        if room not in ("__init__", "__main__"):
            found[room] += code_lines(file)
    return dict(found)


def rows() -> Iterator[Row]:
    """The whole yardstick."""
    files, whole, own = read(STEP)
    met = files <= 6 and whole <= 700
    yield Row("files / lines for one step, CLI to update", f"{files} / {whole}", "≤ 6 / ≤ 700", met)
    yield Row("  the functions on the way, lines", str(own), "", None)
    files, whole, own = read(STEP | MODEL)
    yield Row("  and the transformer, as peers are counted", f"{files} / {whole}, functions {own}", "", None)
    step = functions(PACKAGE / "step.py")["train_step"]
    size, ways = lines(step), branches(step)
    yield Row("train step: lines / branches", f"{size} / {ways}", "≤ 20 / 0", size <= 20 and ways == 0)
    loop = functions(PACKAGE / "train.py")["train"]
    size, ways = lines(loop), branches(loop)
    yield Row("loop: lines / branches", f"{size} / {ways}", "≤ 50 / ≤ 6", size <= 50 and ways <= 6)
    jits = [str(f.relative_to(PACKAGE)) for f in sorted(PACKAGE.rglob("*.py")) if "jax.jit(" in f.read_text()]
    yield Row(
        "hops, CLI to jit", f"cli → train → {', '.join(jits)}", "cli → train → program.py", jits == ["program.py"]
    )
    size = len(fields(Experiment))
    yield Row("fields of the root config", str(size), "≤ 12", size <= 12)
    size = count(r"#\s*(type|ty|pyright|mypy):\s*ignore")
    yield Row("type-ignores", str(size), "0", size == 0)
    size = count(r"\bTYPE_CHECKING\b")
    yield Row("TYPE_CHECKING guards", str(size), "0", size == 0)
    config = functions(PACKAGE / "base" / "config.py")
    size = sum(lines(config[name]) for name in ("to_json", "from_json"))
    size += sum(map(lines, functions(PACKAGE / "cli" / "flags.py").values()))
    yield Row("lines of config language (JSON and flags)", str(size), "≤ 150", size <= 150)
    size = count("")
    yield Row("lines of the library", f"{size:,}", "≤ 12,000", size <= 12_000)
    yield Row("largest file, lines", _largest(), "", None)
    yield Row("files for a new parallelism", "0: a value of Layout", "0", None)
    yield Row("files for a new model or data set", "1, and its experiment", "1", None)


def _largest() -> str:
    sizes = {str(f.relative_to(PACKAGE)): len(f.read_text().splitlines()) for f in PACKAGE.rglob("*.py")}
    name = max(sizes, key=lambda name: sizes[name])
    return f"{sizes[name]} ({name})"


def main() -> None:
    """Print the table."""
    print(f"{'question':44} {'found':28} {'target':22} met")
    for row in rows():
        met = {None: "", True: "yes", False: "NO"}[row.met]
        print(f"{row.question:44} {row.found:28} {row.target:22} {met}")


if __name__ == "__main__":
    main()
