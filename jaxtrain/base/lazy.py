"""Packages whose names are imported on first use, so that importing the package imports no library.

The names are listed once, in the package's `__init__.pyi`, as `from module import Name as Name`. Type checkers and
editors read the same file.
"""

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The functions `__getattr__` and `__dir__` and the list `__all__` of a package that has an `__init__.pyi`.

    package: its full name, with the module already in `sys.modules`.
    """
    module = sys.modules[package]
    stub = ast.parse(Path(str(module.__file__)).with_suffix(".pyi").read_text(encoding="utf-8"))
    lines = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    sources = {alias.name: str(node.module) for node in lines for alias in node.names}

    def load(name: str) -> Any:
        if name not in sources:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=module)
        source = sources[name]
        found = importlib.import_module(f"{source}.{name}" if source == package else source)
        value = found if source == package else getattr(found, name)
        setattr(module, name, value)  # the next use finds it there
        return value

    return load, lambda: sorted({*vars(module), *sources}), sorted(sources)
