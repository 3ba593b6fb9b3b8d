"""Experiment files: `file.py:function` to the value it returns, with whatever is wrong in the file said at its line.

Not here: what an experiment is.
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
    """Where a value came from."""

    file: Path
    function: str


def load(where: str) -> tuple[Experiment, Origin]:
    """The experiment that `file.py:function` names; without a function, the file's `main`, else its first."""
    return load_kind(where, Experiment)


def load_kind(where: str, kind: type[T]) -> tuple[T, Origin]:
    """The same for a function that returns another kind of value. Relative paths count from the folder of the file."""
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
    """A hint for a file whose only lack is an annotation."""
    return f": write `def main() -> {kind.__name__}:`" if _own_function(module, "main") else ""


def _needed_arguments(function: Callable[..., Any]) -> list[str]:
    """The parameters without a default; [] for a decorated function, whose decorator may give them."""
    if hasattr(function, "__wrapped__"):
        return []
    named = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.default is each.empty and each.kind not in named]


def _check_is_code(file: Path) -> None:
    """Raises ConfigError where this is no file of Python code, with what was probably meant."""
    if os.path.isdir(file):  # of Path, it raises where a folder cannot be looked into
        inside = sorted(path.name for path in file.glob("*.py"))
        raise ConfigError(f"{file} is a folder, not an experiment file; it holds {', '.join(inside) or 'none'}")
    for other in (Path(f"{file}.py"), Path(str(file).replace(".", "/") + ".py")):
        if not os.path.exists(file) and os.path.isfile(other):
            raise ConfigError(f"there is no experiment file {file}; did you mean {str(other)!r}?")
    require_file(file, "experiment file")
    if file.suffix == ".ipynb":
        raise ConfigError(f"{file} is a notebook: write the function in a file .py, and import it in the notebook")


class _Loader(SourceFileLoader):
    """Marks the modules that are experiment files."""


def load_code(file: Path) -> ModuleType:
    """The experiment file as a module. Raises ConfigError if it is not there or fails, saying at which line."""
    _check_is_code(file)
    if file.stem in sys.stdlib_module_names:
        raise ConfigError(
            f"{file}: there is a Python module {file.stem!r} already, in Python's own library, which worker processes "
            "and other modules import: give the file another name"
        )
    taken = sys.modules.get(file.stem)
    if taken is not None and not isinstance(taken.__loader__, _Loader):
        if Path(taken.__file__ or "").resolve() == file.resolve():
            return taken  # imported as a module: a second copy of its classes would equal none of the first
        raise ConfigError(f"{file}: there is a Python module {file.stem!r} already: give the file another name")
    loader = _Loader(file.stem, str(file))
    module = importlib.util.module_from_spec(ModuleSpec(file.stem, loader, origin=str(file)))
    module.__file__ = str(file)  # the help of a field is read from its class's source
    sys.modules[file.stem] = module  # dataclasses look their module up by name
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # worker processes import by name, and begin with this path
    _call(lambda: loader.exec_module(module), str(file))
    _check_imports(file)
    return module


def _check_imports(file: Path) -> None:
    """Raises ConfigError where the file imports a module that lies beside it, and another was found."""
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

    Decorated ones too, if the decorator keeps `__wrapped__` as `functools.wraps` and `functools.cache` do.
    """
    own = {name: _own_function(module, name) for name in vars(module)}
    found = {name: inner for name, inner in own.items() if inner is not None and _returns(inner, kind)}
    return {name: getattr(module, name) for name in sorted(found, key=lambda name: found[name].__code__.co_firstlineno)}


def _own_function(module: ModuleType, name: str) -> FunctionType | None:
    """The function that is defined in this file under this name, without its decorators."""
    value = getattr(module, name, None)
    inner = inspect.unwrap(value) if callable(value) and not isinstance(value, type) else None
    return inner if isinstance(inner, FunctionType) and inner.__module__ == module.__name__ else None


def _returns(function: FunctionType, kind: type) -> bool:
    """Whether a function is annotated to return this class, by name or as text."""
    annotation = function.__annotations__.get("return")
    only = type("Only", (), {"__annotations__": {"return": annotation}})  # those of its parameters need not be known
    try:
        return get_type_hints(only, function.__globals__)["return"] is kind
    except (NameError, AttributeError, SyntaxError, TypeError):  # it may be imported for type checkers only
        return isinstance(annotation, str) and annotation.strip("'\"").rpartition(".")[2] == kind.__name__


def _call(function: Callable[[], Any], name: str) -> Any:
    """What a function of the file `name` returns; whatever it raises becomes a ConfigError that says at which line."""
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
        if frame.f_code.co_name == "__post_init__":  # it may have met a value that is not of its field's type
            try:
                check_types(frame.f_locals["self"], type(frame.f_locals["self"]).__name__)
            except ConfigError as wrong:
                return str(wrong)
    return f"{type(error).__name__}: {error}{_near(error, frames)}"


def _near(error: Exception, frames: Sequence[FrameType]) -> str:
    """The name that was probably meant, where an error is about a name that is not there."""
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
