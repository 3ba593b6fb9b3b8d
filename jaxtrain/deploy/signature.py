"""What a bundle takes and gives: raw inputs, the tensors that its graphs read, outputs; and raw inputs as tensors.

Needs numpy alone: loaders, servers and tests read it without jax. Not here: what is computed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.files import read_json
from jaxtrain.deploy.generation import Generation
from jaxtrain.deploy.inputs import Input, Tensor, TokenIds, with_encode
from jaxtrain.deploy.numeric import INPUT_KINDS
from jaxtrain.deploy.values import check_keys, checked_name, is_size, quoted

FORMAT = 1

OTHER_SIGNATURE = "it takes or gives other arrays than signature.json says"
"""The message for a graph whose inputs or outputs differ from those of the signature."""

Row = Mapping[str, Any]
"""One raw input, by the names of the signature's inputs."""


@dataclass(frozen=True)
class Signature:
    """What a bundle takes and gives."""

    name: str
    inputs: tuple[Input, ...]
    tensors: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch: int = 1
    generation: Generation | None = None
    """Of a language model: how it continues texts."""

    def to_json(self) -> dict[str, Any]:
        """The content of signature.json."""
        parts = {name: [each.to_json() for each in getattr(self, name)] for name in ("inputs", "tensors", "outputs")}
        more = {} if self.generation is None else {"generation": self.generation.to_json()}
        return {"format": FORMAT, "name": self.name, **parts, "max_batch": self.max_batch, **more}

    @classmethod
    def from_json(cls, value: Any, where: str = "signature") -> "Signature":
        """Raises ConfigError, naming the place, for what `to_json` does not write."""
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: it is no JSON object")
        check_format(value, where)
        check_keys(value, {"format", "name", "inputs", "tensors", "outputs", "max_batch"}, {"generation"}, where)
        for part in ("inputs", "tensors", "outputs"):
            if not (isinstance(value[part], list) and value[part] and all(isinstance(x, dict) for x in value[part])):
                raise ConfigError(f"{where}.{part}: it is no list of objects")
        inputs = tuple(_input(each, f"{where}.inputs.{n}") for n, each in enumerate(value["inputs"]))
        tensors, outputs = (
            tuple(Tensor.from_json(each, f"{where}.{part}.{n}") for n, each in enumerate(value[part]))
            for part in ("tensors", "outputs")
        )
        if not is_size(value["max_batch"]):
            raise ConfigError(f"{where}.max_batch: {value['max_batch']!r} is no number of rows")
        for part, names in {
            "inputs": [each.name for each in inputs],
            "tensors": [each.name for each in tensors],
            "outputs": [each.name for each in outputs],
        }.items():
            if len(set(names)) < len(names):
                raise ConfigError(f"{where}.{part}: {names} has a name twice")
        made = [each.spec() for each in inputs]
        if sorted(made, key=repr) != sorted(tensors, key=repr):
            raise ConfigError(f"{where}.tensors: they differ from the tensors that the inputs become")
        generation = None
        if value.get("generation") is not None:
            generation = Generation.from_json(value["generation"], inputs, f"{where}.generation")
        return cls(checked_name(value["name"], where), inputs, tensors, outputs, value["max_batch"], generation)

    @classmethod
    def read(cls, path: Path) -> "Signature":
        """From a signature.json; tokenizers are read from the same folder. Raises ConfigError."""
        found = cls.from_json(read_json(path), str(path))
        return found.with_tokenizers(path.parent)

    def with_tokenizers(self, folder: Path) -> "Signature":
        """With the tokenizers of a bundle's folder, so that texts are read. Raises ConfigError for one that is none."""
        inputs = tuple(with_encode(each, folder) if isinstance(each, TokenIds) else each for each in self.inputs)
        return replace(self, inputs=inputs)

    def rows(self, values: Sequence[Any] | Mapping[str, Sequence[Any]]) -> list[Row]:
        """Raw inputs as rows: a sequence of objects by name; of bare values where there is one input; or a mapping of
        columns. Raises ConfigError for other names, and for columns of different lengths.
        """
        names = [each.name for each in self.inputs]
        if isinstance(values, Mapping):
            self._check_names(values)
            lengths = {name: len(column) for name, column in values.items()}
            if len(set(lengths.values())) > 1:
                raise ConfigError(f"the inputs have different numbers of rows: {lengths}")
            return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
        if isinstance(values, str | bytes):
            raise ConfigError("give a list of inputs, even of one")
        found = []
        for number, value in enumerate(values):
            if not isinstance(value, Mapping):
                if len(names) > 1:
                    raise ConfigError(f"row {number}: give an object with {', '.join(names)}")
                value = {names[0]: value}
            found.append(value)
        return found

    def tensors_of(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        """The tensors of raw inputs, by name. Raises ConfigError, naming row and input, for what cannot be one."""
        if not rows:
            raise ConfigError("there are no inputs: give at least one")
        columns: dict[str, list[np.ndarray]] = {each.name: [] for each in self.inputs}
        for number, row in enumerate(rows):
            try:
                if not isinstance(row, Mapping):
                    raise ConfigError(f"give an object with {', '.join(columns)}, not {quoted(row)}")
                self._check_names(row)
                for each in self.inputs:
                    columns[each.name].append(each.row(row.get(each.name)))
            except ConfigError as error:
                raise ConfigError(f"row {number}: {error}" if len(rows) > 1 else str(error)) from error
        return {each.tensor: np.concatenate([x[None] for x in columns[each.name]]) for each in self.inputs}

    def _check_names(self, row: Row) -> None:
        names = [each.name for each in self.inputs]
        for name in row:
            if name not in names:
                raise ConfigError(f"there is no input {quoted(name)}{nearest(quoted(name)[1:-1], names)}")
        for each in self.inputs:
            if each.name not in row and not getattr(each, "missing", False):
                raise ConfigError(f"input {each.name!r} is missing: the model reads {', '.join(names)}")


class NewerFormat(ConfigError):
    """A file is of a format that this version cannot read yet; it is not damaged."""


def check_format(value: Mapping[str, Any], where: str) -> None:
    """Raises NewerFormat for a file of a newer format, and ConfigError for one without."""
    found = value.get("format")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ConfigError(f"{where}: its format is {quoted(found)}, which is none")
    if found > FORMAT:
        raise NewerFormat(
            f"{where}: it is of format {found}, and this version of jaxtrain reads {FORMAT}: update jaxtrain"
        )


def _input(value: Mapping[str, Any], where: str) -> Input:
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in INPUT_KINDS:
        raise ConfigError(f"{where}.kind: {kind!r} is none of {', '.join(INPUT_KINDS)}")
    made = INPUT_KINDS[kind]
    known = {each.name: each for each in fields(made) if each.repr}
    needed = {name for name, each in known.items() if each.default is each.default_factory}
    check_keys(value, {"kind", *needed}, set(known) - needed, where)
    given: dict[str, Any] = {
        name: tuple(each) if isinstance(each, list) else each for name, each in value.items() if name != "kind"
    }
    for name in ("name", "tensor"):
        checked_name(given[name], where)
    for name in ("shape", "range", "values"):
        if name in given and not isinstance(given[name], tuple):
            raise ConfigError(f"{where}.{name}: {given[name]!r} is no list")
    try:
        found = made(**given)
        found.check()
    except (TypeError, ConfigError) as error:
        raise ConfigError(f"{where}: {error}") from error
    return found
