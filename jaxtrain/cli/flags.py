"""Rules for tyro by which the fields of an experiment become flags. Not here: the verbs."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, get_type_hints

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from jaxtrain.base.errors import ConfigError
from jaxtrain.cli.rules import HELP, OwnRules, own_errors, shared_rules
from jaxtrain.data.transforms.fitted import FittedTransform
from jaxtrain.experiment.experiment import Experiment, Runtime
from jaxtrain.experiment.files import Origin, load
from jaxtrain.experiment.origins import given_paths


@dataclass(frozen=True)
class Chosen(OwnRules):
    """An experiment after its flags were applied, and the file that it came from."""

    experiment: Experiment
    origin: Origin

    @classmethod
    def rules(cls, words: Sequence[str], verb: str) -> ConstructorRegistry:
        return registry(chosen(words, verb))


Fields = Annotated[Chosen, tyro.conf.arg(name="")]
"""The type of a verb's parameter that takes an experiment's file and flags for all fields of the experiment."""


def chosen(words: Sequence[str], verb: str) -> Chosen | None:
    """The experiment that the first word names: its values are the defaults of the flags, which are parsed later.

    None where help without an experiment is requested. Raises ConfigError where no experiment is named.
    """
    if words and not words[0].startswith("-"):
        experiment, origin = load(words[0])
        return Chosen(experiment, replace(origin, flags=given_paths(experiment, words[1:])))
    if any(word in HELP for word in words):
        return None
    example = " ".join(["jaxtrain", verb, "experiments/digits.py", *words])
    raise ConfigError(f"{verb}: name an experiment's file first, FILE[:FUNCTION], as in: {example}")


def parse(where: str, flags: Sequence[str]) -> Chosen:
    """The experiment that `jaxtrain train` would train with this file and these flags, without --run and --verify."""
    words = [where, *flags]
    with own_errors():
        return tyro.cli(Chosen, args=words, prog="jaxtrain train", registry=registry(chosen(words, "train")))


def registry(default: Chosen | None) -> ConstructorRegistry:
    """The rules that turn `Chosen` into flags, with the values of `default`, and those that all verbs share.

    Call tyro inside of `own_errors`, since the rules raise errors about values as `_Refused`.
    """
    rules = shared_rules()
    rules.primitive_rule(lambda info: _file(default) if info.type is Origin else None)
    rules.struct_rule(lambda info: _experiment_fields(default) if info.type is Chosen else None)
    rules.struct_rule(_without_fitted)
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
