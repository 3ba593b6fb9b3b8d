"""What messages say to install: every extra that a module names is there, and holds the package."""

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
INSIDE = {"fsspec": "s3fs"}
"""Packages that another one of an extra brings along."""


def test_an_extra_that_a_message_names_holds_the_package():
    found = []
    for file in sorted((ROOT / "jaxtrain").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "needs":
                _, package, extra = (ast.unparse(each).removeprefix("f").strip("'\"") for each in node.args)
                name = package.split()[0].lower()
                held = {re.split(r"[<>=\[ ]", each)[0].lower() for each in EXTRAS.get(extra, [])}
                found.append((file.name, name, extra, INSIDE.get(name, name) in held))
    assert len(found) >= 10
    assert [each[:3] for each in found if not each[3]] == []


def test_an_extra_that_a_page_names_is_there():
    named = set()
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for extras in re.findall(r"jaxtrain\[([\w,]+)\]|\.\[([\w,]+)\]", page.read_text()):
            named |= {each for part in extras for each in part.split(",") if each}
    assert named
    assert named <= EXTRAS.keys()
