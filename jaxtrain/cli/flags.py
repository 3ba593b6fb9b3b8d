"""Rules for tyro by which the fields of an experiment become flags. Not here: the verbs."""

import contextlib
import dataclasses
import functools
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from jaxtrain.base.errors import ConfigError
from jaxtrain.data.transforms.fitted import FittedTransform
from jaxtrain.experiment.experiment import Experiment, Runtime
from jaxtrain.experiment.files import Origin, load

HELP = ("-h", "--help")


@dataclass(frozen=True)
class Chosen:
    """An experiment after its flags were applied, and the file that it came from."""

    experiment: Experiment
    origin: Origin


Fields = Annotated[Chosen, tyro.conf.arg(name="")]
"""The type of a verb's parameter that takes an experiment's file and flags for all fields of the experiment."""


def chosen(words: Sequence[str], verb: str) -> Chosen | None:
    """The experiment that the first word names: its values are the defaults of the flags, which are parsed later.

    None where help without an experiment is requested. Raises ConfigError where no experiment is named.
    """
    if words and not words[0].startswith("-"):
        return Chosen(*load(words[0]))
    if any(word in HELP for word in words):
        return None
    example = " ".join(["jaxtrain", verb, "experiments/digits.py", *words])
    raise ConfigError(f"{verb}: name an experiment's file first, FILE[:FUNCTION], as in: {example}")


def parse(where: str, flags: Sequence[str]) -> Chosen:
    """The experiment that `jaxtrain train` would train with this file and these flags, without --run and --verify."""
    words = [where, *flags]
    with own_errors():
        return tyro.cli(Chosen, args=words, prog="jaxtrain train", registry=registry(chosen(words, "train")))


class _Refused(Exception):
    """Carries a ConfigError through tyro, which catches any ValueError and prints a message of its own."""


@contextlib.contextmanager
def own_errors() -> Generator[None]:
    """Around a call of tyro with the rules of `registry`: a ConfigError about a value is raised unchanged."""
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


def registry(default: Chosen | None) -> ConstructorRegistry:
    """The rules that turn `Chosen` into flags, with the values of `default`, and mappings into pairs of words.

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
    rules.primitive_rule(lambda info: _file(default) if info.type is Origin else None)
    rules.struct_rule(lambda info: _experiment_fields(default) if info.type is Chosen else None)
    rules.struct_rule(_without_fitted)
    rules.struct_rule(carried)  # tyro tries the rule that was added last first
    return rules


_FILE: Any = Annotated[Origin, tyro.conf.Positional, tyro.conf.arg(metavar="FILE[:FUNCTION]")]
_FLAT_RUNTIME: Any = Annotated[Runtime, tyro.conf.arg(name="")]


def _file(default: Chosen | None) -> PrimitiveConstructorSpec:
    """The positional argument that names the experiment, which is loaded already."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="FILE",
        instance_from_str=lambda words: default and default.origin,
        is_instance=lambda value: isinstance(value, Origin),
        str_from_instance=lambda value: [str(value)],
    )


def _experiment_fields(default: Chosen | None) -> StructConstructorSpec:
    """The file and, if its experiment is loaded, every field of that; the flags of `Runtime` have no prefix."""
    file = StructFieldSpec(
        name="origin",
        type=_FILE,
        default=tyro.MISSING,
        helptext="The experiment's file, and its function unless that is main or the first; goes before all flags. "
        "With it, --help lists every field of the experiment, each of which is a flag.",
    )
    if default is None:
        return StructConstructorSpec(instantiate=Chosen, fields=(file,))
    experiment = default.experiment
    info = StructTypeInfo.make(type(experiment), experiment, in_union_context=False)
    spec = ConstructorRegistry.get_struct_spec(info)
    assert isinstance(spec, StructConstructorSpec)
    flat = [replace(field, type=_FLAT_RUNTIME) if field.name == "runtime" else field for field in spec.fields]

    def make(origin: Origin, **values: Any) -> Chosen:
        return Chosen(spec.instantiate(**values), origin)

    return StructConstructorSpec(instantiate=make, fields=(file, *flat))


def _without_fitted(info: StructTypeInfo) -> StructConstructorSpec | None:
    """A fitted transform without a flag for its fitted values."""
    if not isinstance(info.default, FittedTransform):
        return None
    hints = get_type_hints(type(info.default), include_extras=True)
    kept = [field.name for field in fields(info.default) if field.name != "fitted"]
    flags = (StructFieldSpec(name, hints[name], getattr(info.default, name)) for name in kept)
    return StructConstructorSpec(instantiate=functools.partial(replace, info.default), fields=tuple(flags))


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
