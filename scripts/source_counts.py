"""Counts of Python source by rules that fit any package: lines, branches, code lines, comments, names, fields.

Not here: which of them matter, and what they should be; that is `measure.py`. Nothing is imported or run.
"""

import ast
import difflib
import io
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Function = ast.FunctionDef | ast.AsyncFunctionDef

NO_CODE = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)

_IGNORED = re.compile(r"\b(type|ty|pyright|mypy|pytype)\s*:\s*(ignore|disable)")

BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)


class NotFound(LookupError):
    """What this script goes by is not in the source (any more); says the nearest name that is."""


def python_files(package: Path) -> list[Path]:
    """Every source file of a package, without tests, which some peers keep beside what they test."""
    files = package.rglob("*.py")
    return sorted(f for f in files if not f.match("*_test.py") and not f.match("test_*.py") and f.name != "conftest.py")


def parsed(file: Path) -> ast.Module:
    """The syntax tree of a file. Raises NotFound where this Python cannot parse it."""
    try:
        return ast.parse(file.read_text(), str(file))
    except SyntaxError as error:
        raise NotFound(f"{file}, line {error.lineno}: Python {sys.version.split()[0]} cannot parse it") from error


def definitions(file: Path) -> dict[str, Definition]:
    """Functions, classes and methods at the top of a file and of its classes, by qualified name."""
    found: dict[str, Definition] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, Definition):
                found[prefix + node.name] = node
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")

    visit(parsed(file).body, "")
    return found


def definition(file: Path, name: str) -> Definition:
    """The definition of this qualified name. Raises NotFound, with the nearest name, where file or name is missing."""
    if not file.is_file():
        near = difflib.get_close_matches(file.name, [other.name for other in file.parent.glob("*.py")], 1, 0.0)
        raise NotFound(f"there is no {file}; nearest: {', '.join(near) or 'nothing'}")
    known = definitions(file)
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.0)
        raise NotFound(f"{file} defines no {name!r}; nearest: {', '.join(near) or 'nothing'}")
    return known[name]


def line_numbers(node: Definition) -> set[int]:
    """The lines of a definition, from its `def` on, without its docstring and those of definitions within it."""
    numbers = set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for inner in ast.walk(node):
        if isinstance(inner, Definition) and (text := _docstring(inner)) is not None:
            numbers -= set(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    return numbers


def _docstring(node: Definition) -> ast.Expr | None:
    first = node.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return first if documented and isinstance(first.value.value, str) else None


def branches(node: ast.AST) -> int:
    """Places where control may go two ways: if, conditional expression, loop, except, case."""
    return sum(isinstance(inner, BRANCHES) for inner in ast.walk(node))


def hidden_branches(node: ast.AST) -> int:
    """Further places within expressions: `and`, `or`, and each `for` and `if` of a comprehension."""
    found = 0
    for inner in ast.walk(node):
        found += len(inner.values) - 1 if isinstance(inner, ast.BoolOp) else 0
        found += 1 + len(inner.ifs) if isinstance(inner, ast.comprehension) else 0
    return found


def code_lines(file: Path) -> int:
    """Lines of a file that hold code: no blank lines, comments or docstrings."""
    text = file.read_text()
    held = {
        line
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in NO_CODE
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            held -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(held)


def all_lines(file: Path) -> int:
    """Lines of a file."""
    return len(file.read_text().splitlines())


def code_lines_by_entry(package: Path) -> dict[str, int]:
    """Code lines of each folder and file at the top of a package, without `__init__.py` and `__main__.py`."""
    found: dict[str, int] = defaultdict(int)
    for file in python_files(package):
        entry = file.relative_to(package).with_suffix("").parts[0]
        if entry not in ("__init__", "__main__"):
            found[entry] += code_lines(file)
    return dict(found)


def ignored_types(files: Iterable[Path]) -> int:
    """Comments that tell a type checker to look away."""
    return sum(
        token.type == tokenize.COMMENT and bool(_IGNORED.search(token.string))
        for file in files
        for token in _tokens(file)
    )


def names_used(files: Iterable[Path], name: str) -> int:
    """How often a name stands in code, imports left out."""
    return sum(
        token.type == tokenize.NAME and token.string == name and "import" not in token.line
        for file in files
        for token in _tokens(file)
    )


def _tokens(file: Path) -> Iterator[tokenize.TokenInfo]:
    yield from tokenize.generate_tokens(io.StringIO(file.read_text()).readline)


def fields(node: Definition) -> list[str]:
    """The fields of a dataclass: annotated names in the body of a class."""
    return [
        inner.target.id
        for inner in node.body
        if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name)
    ]


def top_names(file: Path) -> set[str]:
    """Functions, classes and constants that a file defines at its top; no imports, dunders or type variables."""
    found: set[str] = set()
    for node in parsed(file).body:
        if isinstance(node, Definition):
            found.add(node.name)
        if isinstance(node, ast.Assign | ast.AnnAssign) and not _is_type_variable(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in found if not name.startswith("__")}


def _is_type_variable(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "TypeVar"


def names_defined_twice(package: Path) -> dict[str, list[str]]:
    """Names that more than one module of a package defines at its top, with the modules."""
    found: dict[str, list[str]] = defaultdict(list)
    for file in python_files(package):
        for name in top_names(file):
            found[name].append(str(file.relative_to(package)))
    return {name: files for name, files in sorted(found.items()) if len(files) > 1}


def longest(package: Path) -> list[tuple[int, int, str]]:
    """Lines, branches and place of every function and method of a package, the longest first."""
    found = [
        (len(line_numbers(node)), branches(node), f"{file.relative_to(package)}:{name}")
        for file in python_files(package)
        for name, node in definitions(file).items()
        if isinstance(node, Function)
    ]
    return sorted(found, reverse=True)


def functions_at(places: Sequence[tuple[str, int]], outermost: bool) -> Mapping[Path, dict[str, Function]]:
    """The functions that hold these lines, given as (file, line), by file and qualified name.

    outermost: a function within another stands for the whole of it; else each is its own.
    """
    found: dict[Path, dict[str, Function]] = defaultdict(dict)
    known: dict[str, list[tuple[str, Function, int]]] = {}
    for file, line in places:
        if file not in known:
            known[file] = list(_functions(parsed(Path(file)).body, "", 0))
        around = [(name, node, depth) for name, node, depth in known[file] if _first(node) <= line <= _last(node)]
        if around:
            name, node, _ = (min if outermost else max)(around, key=lambda each: each[2])
            found[Path(file)][name] = node
    return found


def _functions(body: Sequence[ast.AST], prefix: str, depth: int) -> Iterator[tuple[str, Function, int]]:
    for node in body:
        if isinstance(node, Function):
            yield f"{prefix}{node.name}", node, depth
        below = isinstance(node, Function)
        name = f"{prefix}{node.name}." if isinstance(node, Definition) else prefix
        yield from _functions(list(ast.iter_child_nodes(node)), name, depth + below)


def _first(node: Function) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _last(node: Function) -> int:
    return node.end_lineno or node.lineno
