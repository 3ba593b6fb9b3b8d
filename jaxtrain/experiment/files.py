"""Loads experiment files: from `file.py:function` to the value that the function returns. An error in the file is
reported with its line.
"""

import ast
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import FrameType, FunctionType, ModuleType
from typing import Any, TypeVar, get_type_hints

from jaxtrain.base.config import check_types
from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.files import require_file
from jaxtrain.data.sources.paths import relative_to
from jaxtrain.experiment.experiment import Experiment

T = TypeVar("T")


@dataclass(frozen=True)
class Origin:
    """The file and function that returned a value."""

    file: Path
    function: str
    flags: tuple[str, ...] = ()
    """The paths of the fields that flags of the command line set."""


def load(where: str) -> tuple[Experiment, Origin]:
    """The experiment of `file.py:function`; without a function, that of the file's `main`, else of its first one."""
    return load_kind(where, Experiment)


def load_kind(where: str, kind: type[T]) -> tuple[T, Origin]:
    """`load` for functions that return a `kind`. Relative paths in the value count from the folder of the file."""
    name, _, function = where.partition(":")
    with relative_to(Path(name).resolve().parent):
        return _load_function(name, function, kind)


def _load_function(name: str, function: str, kind: type[T]) -> tuple[T, Origin]:
    module = load_code(Path(name))
    found = functions(module, kind)
    if not found:
        raise ConfigError(f"{name} has no function annotated `-> {kind.__name__}`{_without_annotation(module, kind)}")
    function = function or ("main" if "main" in found else next(iter(found)))
    if function not in found:
        why = nearest(function, found)
        if _own_function(module, function) is not None:
            why = f": {function} is a function that is not annotated `-> {kind.__name__}`"
        raise ConfigError(f"{name} has no {kind.__name__} named {function!r}{why}")
    needed = _needed_arguments(found[function])
    if needed:
        raise ConfigError(
            f"{name}: {function} needs the argument{'s' if len(needed) > 1 else ''} {', '.join(needed)}, but is called "
            "without any: give each a default"
        )
    made = _call(found[function], name)
    if not isinstance(made, kind):
        raise ConfigError(f"{name}: {function} returned a {type(made).__name__}, not {kind.__name__}")
    return made, Origin(Path(name), function)


def _without_annotation(module: ModuleType, kind: type) -> str:
    """A hint for a file whose `main` lacks the annotation; else empty."""
    return f": write `def main() -> {kind.__name__}:`" if _own_function(module, "main") else ""


def _needed_arguments(function: Callable[..., Any]) -> list[str]:
    """The parameters without a default; [] for a decorated function, since its decorator may pass them."""
    if hasattr(function, "__wrapped__"):
        return []
    named = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.default is each.empty and each.kind not in named]


def _check_is_code(file: Path) -> None:
    """Raises ConfigError where this is not a file of Python code, with the name that was probably meant."""
    if os.path.isdir(file):  # `Path.is_dir` raises where a parent cannot be entered
        inside = sorted(path.name for path in file.glob("*.py"))
        raise ConfigError(f"{file} is a folder, not an experiment file; it holds {', '.join(inside) or 'none'}")
    for other in (Path(f"{file}.py"), Path(str(file).replace(".", "/") + ".py")):
        if not os.path.exists(file) and os.path.isfile(other):
            raise ConfigError(f"there is no experiment file {file}; did you mean {str(other)!r}?")
    require_file(file, "experiment file")
    if file.suffix == ".ipynb":
        raise ConfigError(f"{file} is a notebook: write the function in a file .py, and import it in the notebook")


class _Loader(SourceFileLoader):
    """The loader of modules that are experiment files, by which they are recognised."""


def load_code(file: Path) -> ModuleType:
    """An experiment file, imported as a module. Raises ConfigError, with the line, where it is missing or fails."""
    _check_is_code(file)
    if file.stem in sys.stdlib_module_names:
        raise ConfigError(
            f"{file}: there is a Python module {file.stem!r} already, in Python's own library, which worker processes "
            "and other modules import: give the file another name"
        )
    taken = sys.modules.get(file.stem)
    if taken is not None and not isinstance(taken.__loader__, _Loader):
        if Path(taken.__file__ or "").resolve() == file.resolve():
            return taken  # imported already: classes of a second copy would not equal those of the first
        raise ConfigError(f"{file}: there is a Python module {file.stem!r} already: give the file another name")
    loader = _Loader(file.stem, str(file))
    module = importlib.util.module_from_spec(ModuleSpec(file.stem, loader, origin=str(file)))
    module.__file__ = str(file)  # tyro reads the help of a field from the source
    sys.modules[file.stem] = module  # dataclasses look up their module by name
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # worker processes get this path, and import the module by name
    _call(lambda: loader.exec_module(module), str(file))
    _check_imports(file)
    return module


def _check_imports(file: Path) -> None:
    """Raises ConfigError where an import of the file found another module than the one of that name beside the file."""
    nodes = list(ast.walk(ast.parse(file.read_bytes())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    for name in sorted({name.partition(".")[0] for name in names}):
        own, found = file.resolve().parent / name, getattr(sys.modules.get(name), "__file__", None)
        beside = next((path for path in (own.with_suffix(".py"), own / "__init__.py") if path.is_file()), None)
        if beside and found and Path(found).resolve() != beside:
            raise ConfigError(
                f"{file}: `import {name}` gave {found}, not {beside}, which is beside it: rename one of them"
            )


def functions(module: ModuleType, kind: type[T]) -> dict[str, Callable[[], T]]:
    """The functions of an experiment file that are annotated to return this kind of value, in the order of the file.

    Decorated ones count too, if the decorator sets `__wrapped__` as `functools.wraps` and `functools.cache` do.
    """
    own = {name: _own_function(module, name) for name in vars(module)}
    found = {name: inner for name, inner in own.items() if inner is not None and _returns(inner, kind)}
    return {name: getattr(module, name) for name in sorted(found, key=lambda name: found[name].__code__.co_firstlineno)}


def _own_function(module: ModuleType, name: str) -> FunctionType | None:
    """The function of this name that the file defines, without its decorators; None without any."""
    value = getattr(module, name, None)
    inner = inspect.unwrap(value) if callable(value) and not isinstance(value, type) else None
    return inner if isinstance(inner, FunctionType) and inner.__module__ == module.__name__ else None


def _returns(function: FunctionType, kind: type) -> bool:
    """Whether the return annotation of a function, possibly a string, is this class."""
    annotation = function.__annotations__.get("return")
    only = type("Only", (), {"__annotations__": {"return": annotation}})  # annotations of parameters may not resolve
    try:
        return get_type_hints(only, function.__globals__)["return"] is kind
    except (NameError, AttributeError, SyntaxError, TypeError):  # its import may be under `if TYPE_CHECKING`
        return isinstance(annotation, str) and annotation.strip("'\"").rpartition(".")[2] == kind.__name__


def _call(function: Callable[[], Any], name: str) -> Any:
    """Calls a function of the file `name`. Any exception becomes a ConfigError with its line in that file."""
    try:
        return function()
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        trace = list(traceback.walk_tb(error.__traceback__))
        lines = [line for frame, line in trace if Path(frame.f_code.co_filename).name == Path(name).name]
        lines += [error.lineno] if isinstance(error, SyntaxError) and error.lineno else []
        where = f"{name}, line {lines[-1]}" if lines else name
        raise ConfigError(f"{where}: {_explained(error, [frame for frame, _ in trace])}") from error


def _explained(error: Exception | SystemExit, frames: Sequence[FrameType]) -> str:
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, SystemExit):
        return (
            f"it ends the program (sys.exit{f': {error}' * bool(error.code)}): a function of an experiment returns it, "
            "and reads no flags of its own; every field of the experiment is a flag"
        )
    for frame in frames:
        if frame.f_code.co_name == "__post_init__":  # the error may come from a field of the wrong type
            try:
                check_types(frame.f_locals["self"], type(frame.f_locals["self"]).__name__)
            except ConfigError as wrong:
                return str(wrong)
    return f"{type(error).__name__}: {error}{_near(error, frames)}"


def _near(error: Exception, frames: Sequence[FrameType]) -> str:
    """A suggestion, where an error is about an unknown name."""
    seen = {name: value for frame in frames for name, value in (*frame.f_globals.items(), *frame.f_locals.items())}
    if isinstance(error, NameError):
        return nearest(error.name or "", seen, listed=False)
    if isinstance(error, AttributeError):
        return nearest(error.name or "", dir(error.obj), listed=False)
    if found := re.match(r"cannot import name '(\w+)'", str(error)):
        module = sys.modules.get(getattr(error, "name", None) or "")
        return nearest(found[1], getattr(module, "__all__", dir(module)), listed=False)
    if found := re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)):
        kinds = (value if isinstance(value, type) else type(value) for value in seen.values())
        kind = next((kind for kind in kinds if kind.__name__ == found[1]), None)
        return nearest(found[2], inspect.signature(kind).parameters) if kind else ""
    return ""
