"""Groups of verbs as tyro's subcommands, and finding the verb that a command line names."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import FunctionType
from typing import Annotated, Any, TypeVar

import tyro
from tyro.extras import SubcommandApp

from jaxtrain.base.errors import ConfigError, nearest

Verb = TypeVar("Verb", bound=FunctionType)

RunFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
"""A positional argument of verbs: the folder of a run."""

Code = Annotated[str | None, tyro.conf.arg(metavar="FILE[:FUNCTION]")]
"""A flag of verbs: an experiment's file."""


class Verbs:
    """Verbs and groups of verbs by name. A verb is a function: its parameters are flags, its docstring is the help."""

    def __init__(self, help: str) -> None:
        self.help = help
        self._named: dict[str, FunctionType | Verbs | tuple[str, str]] = {}

    def verb(self, function: Verb) -> Verb:
        """Decorator: adds a function under its own name, with hyphens."""
        self._named[function.__name__.replace("_", "-")] = function
        return function

    def group(self, name: str, verbs: "Verbs") -> None:
        """Adds a group."""
        self._named[name] = verbs

    def late(self, name: str, module: str, attribute: str | None = None) -> None:
        """Adds the verb or group that is the attribute of a module (by default the verb's name), which is imported when
        it is first needed.
        """
        self._named[name.replace("_", "-")] = (module, attribute or name)

    def find(self, words: Sequence[str]) -> tuple[list[str], "FunctionType | Verbs"]:
        """The leading words that name a verb or a group, and that verb or group. Raises ConfigError for others."""
        if not words or words[0].startswith("-"):
            return [], self
        if words[0] not in self._named:
            raise ConfigError(f"there is no verb {words[0]!r}{nearest(words[0], self._named)}")
        found = self._get(words[0])
        path, verb = found.find(words[1:]) if isinstance(found, Verbs) else ([], found)
        return [words[0], *path], verb

    def _get(self, name: str) -> "FunctionType | Verbs":
        found = self._named[name]
        if isinstance(found, tuple):
            made: Any = getattr(importlib.import_module(found[0]), found[1])
            found = self._named[name] = made
        return found

    def app(self, path: Sequence[str] = ()) -> SubcommandApp:
        """The verbs as tyro's subcommands; with a path, only the verb that it names, so that no other is suggested."""
        app = SubcommandApp()
        for name in path[:1] or self._named:
            found = self._get(name)
            if isinstance(found, Verbs):
                app.command(found.app(path[1:]), name=name, help=found.help)
            else:
                summary = (found.__doc__ or "").partition("\n\n")[0]
                app.command(name=name, help=None if path else summary)(found)
        return app
