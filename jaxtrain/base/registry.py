"""Short names of the values that are saved, so that code can move without breaking what was saved.

A dataclass of this package is saved by its class name, any other as `module:Name`. Not here: their fields.
"""

import dataclasses
import functools
import importlib
import pkgutil
import sys
from typing import Any

from jaxtrain.base.errors import ConfigError, nearest

ROOMS = ("sharding", "models", "tasks", "optimizers", "data", "datasets", "experiment", "runs.trackers")
"""The subpackages that define dataclasses which are saved."""

RENAMED: dict[str, str] = {"Part": "DataFile"}
"""The present name of each class that older versions saved by another name."""


def name_of(kind: type) -> str:
    """The name by which a dataclass is saved. Raises ConfigError for a local class, which could not be loaded."""
    if "<locals>" in kind.__qualname__:
        raise ConfigError(f"{kind.__qualname__} cannot be found again: define it at the top of its file")
    if kind.__module__.partition(".")[0] == __name__.partition(".")[0]:
        return kind.__qualname__
    return f"{kind.__module__}:{kind.__qualname__}"


def find_kind(name: str) -> Any:
    """The dataclass that was saved by this name.

    A user's class must be imported already, by the experiment file or a module that it imports: a name in a run folder
    never causes an import. Raises ConfigError where there is no such class.
    """
    module, _, path = name.rpartition(":")
    if not module:
        return _own_kind(RENAMED.get(name, name))
    if module not in sys.modules:
        raise ConfigError(
            f"{path} comes from the module {module!r}, which is not imported: name the experiment file, or a file that "
            "imports it, with --code FILE"
        )
    found = vars(sys.modules[module]).get(path)  # not getattr, by which a module with lazy names would import
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ConfigError(f"{path!r} is not a dataclass of {module}{nearest(path, _dataclasses(module))}")
    return found


def _own_kind(name: str) -> Any:
    found = own_kinds()
    if name not in found:
        raise ConfigError(f"this version of jaxtrain has no {name!r}{nearest(name, found, listed=False)}")
    return found[name]


@functools.cache
def own_kinds() -> dict[str, type]:
    """Every dataclass of the package that may be saved, by its class name."""
    package = __name__.partition(".")[0]
    found: dict[str, type] = {}
    for room in ROOMS:
        module = importlib.import_module(f"{package}.{room}")
        below = pkgutil.walk_packages(getattr(module, "__path__", []), f"{module.__name__}.")
        for name in (module.__name__, *(each.name for each in below)):
            importlib.import_module(name)
            for kind in _dataclasses(name).values():
                assert found.setdefault(kind.__qualname__, kind) is kind, f"two classes named {kind.__qualname__}"
    return found


def _dataclasses(module: str) -> dict[str, type]:
    """The public dataclasses that a module defines."""
    return {
        name: value
        for name, value in vars(sys.modules[module]).items()
        if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == module and name[0] != "_"
    }
