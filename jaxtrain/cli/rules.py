"""Rules for tyro that all verbs share: own messages for wrong values, and mappings as pairs of words.

Imports no jax, so that verbs which only read files start quickly. Not here: the fields of an experiment as flags
(`flags`).
"""

import contextlib
import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, get_args, get_origin

from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructTypeInfo,
)

from jaxtrain.base.errors import ConfigError

HELP = ("-h", "--help")


class OwnRules(ABC):
    """The type of a verb's parameter that needs rules of its own."""

    @classmethod
    @abstractmethod
    def rules(cls, words: Sequence[str], verb: str) -> ConstructorRegistry:
        """The rules for a command line whose verb is followed by `words`."""


def rules_of(verb: Any, words: Sequence[str], name: str) -> ConstructorRegistry:
    """The rules for a verb of this name, which `words` follow: those of its parameter's type, or those of all verbs."""
    for hint in getattr(verb, "__annotations__", {}).values():
        for kind in get_args(hint)[:1]:
            if isinstance(kind, type) and issubclass(kind, OwnRules):
                return kind.rules(words, name)
    return shared_rules()


class _Refused(Exception):
    """Carries a ConfigError through tyro, which catches any ValueError and prints a message of its own."""


@contextlib.contextmanager
def own_errors() -> Generator[None]:
    """Around a call of tyro with these rules: a ConfigError about a value is raised unchanged."""
    try:
        yield
    except _Refused as refused:
        raise refused.args[0] from None


class _Carried(functools.partial[Any]):
    """Wraps a function so that tyro does not catch its ConfigErrors. A `partial`, since tyro shows the docstring of
    the function inside one.
    """

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        try:
            return super().__call__(*arguments, **named)
        except ConfigError as error:
            raise _Refused(error) from error


def shared_rules() -> ConstructorRegistry:
    """The rules of all verbs.

    Call tyro inside of `own_errors`, since the rules raise errors about values as `_Refused`.
    """
    rules, inside = ConstructorRegistry(), set[Any]()

    def carried(info: StructTypeInfo) -> StructConstructorSpec | None:
        if info.type in inside or not dataclasses.is_dataclass(info.type):
            return None  # left to the next rule
        inside.add(info.type)
        spec = ConstructorRegistry.get_struct_spec(info)
        inside.remove(info.type)
        assert isinstance(spec, StructConstructorSpec)
        return replace(spec, instantiate=_Carried(spec.instantiate))

    rules.primitive_rule(_pairs)
    rules.struct_rule(carried)
    return rules


def _pairs(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """A mapping from names to plain values is set as a whole by pairs of words: `--layout.mesh data 2 tensor 4`.

    Without this rule tyro would make a flag for each key that the experiment's mapping has.
    """
    if info.type_origin not in (Mapping, dict):
        return None
    name, value = get_args(info.type)
    value = get_args(value)[0] if get_origin(value) is Annotated else value  # its range is checked by the dataclass
    kinds = get_args(value) or (value,)
    if name is not str or not set(kinds) <= {int, str, bool}:
        return None

    def read(words: list[str]) -> dict[str, Any]:
        if len(words) % 2:
            raise ConfigError(f"{' '.join(words)}: give pairs of a name and a value, such as {_pairs_example(kinds)}")
        names = words[::2]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ConfigError(f"{' '.join(words)}: {twice[0]!r} is given twice")
        return {name: _value(word, kinds, name) for name, word in zip(names, words[1::2], strict=True)}

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME VALUE …]" if str in kinds else "[NAME INT …]",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda value: [str(word) for pair in value.items() for word in pair],
    )


def _value(word: str, kinds: Sequence[type], name: str) -> str | int | bool:
    if bool in kinds and word in ("True", "False", "true", "false"):
        return word.lower() == "true"
    if int in kinds:
        try:
            return int(word)
        except ValueError:
            if str not in kinds:
                message = f"{name} {word}: {word!r} is not a whole number; give pairs such as {_pairs_example(kinds)}"
                raise ConfigError(message) from None
    return word


def _pairs_example(kinds: Sequence[type]) -> str:
    return "NAME VALUE" if str in kinds else "data 2 tensor 4"
