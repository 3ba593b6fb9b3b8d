"""A folder of `config.json` and safetensors as a model of ours: each process reads the slices that its devices hold.

Nothing in the folder is run: no pickle, no code of its own.
"""

import functools
import itertools
import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.files import check_file_name, read_json
from jaxtrain.base.tensors import StoredTensor, stored_tensors
from jaxtrain.models.huggingface.architectures import ARCHITECTURES, BUFFERS, UNUSED, Architecture, Imported, Settings
from jaxtrain.models.params import STACKED, insert
from jaxtrain.models.variables import Variables
from jaxtrain.sharding.feed import check_numbers, put_slices
from jaxtrain.sharding.layout import AxisNamed, Layout, named_leaves, path_name

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"


def leading(axes: tuple[str | None, ...]) -> int:
    """How many dims of a parameter number the blocks that it is stacked of."""
    return sum(name in STACKED for name in axes)


def is_transposed(path: str) -> bool:
    """Whether a parameter of ours is the transpose of the tensor."""
    return path.endswith("/kernel")


class StoredParameter(NamedTuple):
    """A parameter as a folder has it: one tensor, or one a layer."""

    tensors: tuple[StoredTensor, ...]
    stacked: bool
    transposed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the parameter."""
        inner = self.tensors[0].shape[:: -1 if self.transposed else 1]
        return (len(self.tensors), *inner) if self.stacked else inner

    def read(self, shape: tuple[int, ...], dtype: np.dtype, index: tuple[slice, ...]) -> np.ndarray:
        """A slice of the parameter in a shape that may split the dim of layers in two."""
        ranges = [range(*part.indices(size)) for part, size in zip(index, shape, strict=True)]
        outer = len(shape) - len(self.tensors[0].shape)
        out = np.empty([len(part) for part in ranges], dtype)
        inner = [slice(part.start, part.stop) for part in ranges[outer:]][:: -1 if self.transposed else 1]
        for place in itertools.product(*(enumerate(part) for part in ranges[:outer])):
            layer = np.ravel_multi_index([number for _, number in place], shape[:outer]) if place else 0
            read = self.tensors[int(layer)].read(inner)
            with np.errstate(over="ignore"):  # what is beyond the dtype is named when all have been read
                out[tuple(at for at, _ in place)] = read.T if self.transposed else read
        return out


class Folder:
    """A folder in the format of `transformers`. Opening it reads `config.json` and the headers of the tensors' files.

    Raises ConfigError for what is not read here, naming it; Damaged for files that are not whole.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._settings = Settings(self.path / "config.json", read_object(self.path / "config.json"))
        self._architecture = self._find_architecture()
        self.model: Imported = self._architecture.configured(self._settings)
        self.stored, self._others = self._by_path(self._all_tensors())

    def read(self, path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        """The parameter at this path in the shards and the dtype of the leaf, each read from its part of the files."""
        return put_slices(leaf, functools.partial(self.stored[path].read, leaf.shape, leaf.dtype))

    def check(self, model: Imported, leaves: Mapping[str, AxisNamed]) -> None:
        """Raises ConfigError where these parameters of a model and the tensors of the folder do not belong together."""
        wrong = []
        for path, leaf in leaves.items():
            shape, stored = leaf.value.shape, self.stored.get(path)
            if count := leading(leaf.axes):
                shape = (math.prod(shape[:count]), *shape[count:])
            if stored is None:
                wrong.append(f"  {self._architecture.names.get(path, path)}: missing")
            elif stored.shape != shape:
                order = slice(None, None, -1 if stored.transposed else 1)
                found, wanted = list(stored.tensors[0].shape), list(shape[stored.stacked :][order])
                wrong.append(f"  {stored.tensors[0].name}: {found}, wanted {wanted}")
        more = [self.stored[path].tensors[0].name for path in self.stored.keys() - leaves.keys()] + self._others
        unused = [name for name in more if any(fnmatchcase(name, pattern) for pattern in UNUSED)]
        wrong += [f"  {name}: the model has no such tensor" for name in more if name not in unused]
        if wrong:
            tail = [f"  and {len(wrong) - 20} more"] if len(wrong) > 20 else []
            head = f"{self.path} does not fit {type(model).__name__}:"
            raise ConfigError("\n".join([head, *sorted(wrong)[:20], *tail]))
        if unused:
            logging.getLogger("jaxtrain.models").warning("%s: not used: %s", self.path, ", ".join(sorted(unused)))

    def _find_architecture(self) -> Architecture:
        file, values = self._settings.file, self._settings.values
        names = values.get("architectures")
        if not isinstance(names, list) or len(names) != 1 or names[0] not in ARCHITECTURES:
            name = str(names[0]) if isinstance(names, list) and names else ""
            raise ConfigError(f"{file}: architectures is {names!r}{nearest(name, ARCHITECTURES)}")
        for key in ("auto_map", "quantization_config"):
            if values.get(key):
                raise ConfigError(f"{file}: {key}: neither code of its own is run nor quantized weights are read")
        return ARCHITECTURES[names[0]]

    def _all_tensors(self) -> dict[str, StoredTensor]:
        """The tensors of all files, by name."""
        if not (index := self.path / INDEX).is_file():
            if not (file := self.path / WHOLE).is_file():
                pickles = [each.name for each in self.path.glob("*.bin")]
                instead = f"{pickles[0]} is a pickle, which can run code: save it as safetensors" if pickles else "none"
                raise ConfigError(f"{self.path} has neither {WHOLE} nor {INDEX}: {instead}")
            return _renamed(stored_tensors(file))
        files = read_object(index).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
            raise ConfigError(f"{index}: weight_map is not the file of each tensor")
        for file in set(files.values()):
            check_file_name(file, f"{index}: weight_map")
            if not file.endswith(".safetensors") or not (self.path / file).is_file():
                raise ConfigError(f"{index}: {file} is not a .safetensors of this folder")
        opened = {file: stored_tensors(self.path / file) for file in sorted(set(files.values()))}
        found = {name: tensor for tensors in opened.values() for name, tensor in tensors.items()}
        for name in files.keys() ^ found.keys() | {name for name, file in files.items() if name not in opened[file]}:
            raise ConfigError(f"{index}: {name} is not in the file that it names, or it names none for it")
        if len(found) < sum(map(len, opened.values())):
            raise ConfigError(f"{index}: two files have a tensor of the same name")
        return _renamed(found)

    def _by_path(self, tensors: Mapping[str, StoredTensor]) -> tuple[dict[str, StoredParameter], list[str]]:
        """The parameters by our paths, and the names of the other tensors."""
        layers, stored, used = self.model.blocks.layers, {}, set()
        for path, pattern in self._architecture.names.items():
            names = [pattern.format(number) for number in range(layers)] if "{}" in pattern else [pattern]
            found = [tensors[name] for name in names if name in tensors]
            if not found:
                continue
            used.update(names)
            for name in names:
                if name not in tensors:
                    raise ConfigError(f"{self.path}: {name} is missing")
                if tensors[name].shape != found[0].shape or tensors[name].dtype != found[0].dtype:
                    one = f"{found[0].name} is {found[0].dtype} {list(found[0].shape)}"
                    raise ConfigError(f"{self.path}: {one}, but {name} {tensors[name].dtype} {tensors[name].shape}")
            stored[path] = StoredParameter(tuple(found), "{}" in pattern, is_transposed(path))
        left = tensors.keys() - used
        return stored, [name for name in left if not any(fnmatchcase(name, pattern) for pattern in BUFFERS)]


def read_object(file: Path) -> dict[str, Any]:
    """A file with one JSON object. Raises ConfigError for any other."""
    if not isinstance(found := read_json(file), dict):
        raise ConfigError(f"{file} is no JSON object")
    return found


def _renamed(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Old files have the names of the first BERT for the parameters of layer norms."""
    old = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    new = {name: functools.reduce(lambda name, pair: name.replace(*pair), old.items(), name) for name in tensors}
    return {new[name]: tensor for name, tensor in tensors.items()}


def hugging_face_model(folder: Path | str) -> Imported:
    """The model that a folder of `transformers` has weights of; its parameters are bf16 where all of those are.

    It may be changed by `dataclasses.replace` in what the folder does not decide: dropout, remat, a BERT's pooling.
    Raises ConfigError for architectures and options that no model here has, naming them.
    """
    opened = Folder(folder)
    if {tensor.dtype for stored in opened.stored.values() for tensor in stored.tensors} != {"BF16"}:
        return opened.model
    precision = replace(opened.model.blocks.precision, params="bfloat16")
    return replace(opened.model, blocks=replace(opened.model.blocks, precision=precision))


def from_hugging_face(
    folder: Path | str,
    layout: Layout | None = None,
    model: Imported | None = None,
    devices: list[jax.Device] | None = None,
) -> tuple[Imported, Variables]:
    """The model and its (plain) variables, each array in its shards: no process reads more than its devices hold.

    model: that of `hugging_face_model(folder)`, changed; None is that itself.
    devices: those of the layout's mesh; None is all.

    Raises ConfigError where folder and model do not fit, naming the tensors; Damaged for files that are not whole, and
    for NaN.
    """
    opened, model, layout = Folder(folder), model or hugging_face_model(folder), layout or Layout()
    leaves = parameters(model)
    opened.check(model, leaves)
    mesh = layout.make_mesh(devices)
    params: dict[str, Any] = {}
    for path, leaf in leaves.items():
        sharding = NamedSharding(mesh, layout.spec(leaf.axes, mesh.shape, leaf.value.shape, path))
        wanted = jax.ShapeDtypeStruct(leaf.value.shape, leaf.value.dtype, sharding=sharding)
        array = opened.read(path, wanted)
        check_numbers(path, array, str(folder))
        insert(params, path.split("/"), array)
    return model, Variables(params, {})


def parameters(model: Imported) -> dict[str, AxisNamed]:
    """Shape, dtype and names of the dims of a model's parameters, by path."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    named = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens))
    return {path_name(path): leaf for path, leaf in named_leaves(named.params)}
