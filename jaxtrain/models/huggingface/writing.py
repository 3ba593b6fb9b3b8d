"""A model of ours as a folder in the format of `transformers`, tensor by tensor."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtrain.base.errors import ConfigError, cannot_write
from jaxtrain.base.files import atomic_folder, write_json
from jaxtrain.base.tensors import write_tensors
from jaxtrain.models.huggingface.architectures import ARCHITECTURES, Imported, architecture_of
from jaxtrain.models.huggingface.reading import WHOLE, is_transposed, leading, parameters, read_object
from jaxtrain.models.variables import Variables
from jaxtrain.sharding.layout import path_name

BESIDE = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "generation_config.json",
)
"""Patterns of the files that a folder has for its tokenizer and for generation."""

REPLACED = ("rope_parameters", "dtype", "auto_map", "quantization_config", "layer_types", "_name_or_path")
"""Settings that are not taken from another folder: the model decides them, or they were that folder's own."""


def to_hugging_face(model: Imported, variables: Variables, folder: Path | str, like: Path | str | None = None) -> None:
    """Write a model and its variables as a folder that `transformers` reads, with the bits that the variables have.

    like: another such folder, from which the tokenizer's files come and the settings that a model does not decide, such
        as the ids of special tokens.

    Raises ConfigError for a model that no architecture computes, for other variables than its own, for arrays of which
    other processes hold parts, and for a folder that holds files already.
    """
    name, folder = architecture_of(model), Path(folder)
    architecture = ARCHITECTURES[name]
    arrays = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables.params)}
    leaves = parameters(model)
    _check(model, arrays, {path: leaf.value for path, leaf in leaves.items()})
    places: dict[str, tuple[str, tuple[int, ...]]] = {}
    kinds: dict[str, jax.ShapeDtypeStruct] = {}
    for path, leaf in leaves.items():
        stacked = arrays[path].shape[: leading(leaf.axes)]
        for layer, place in enumerate(np.ndindex(stacked)):
            tensor = architecture.names[path].format(layer)
            shape = arrays[path].shape[len(stacked) :]
            places[tensor] = path, place
            kinds[tensor] = jax.ShapeDtypeStruct(shape[::-1] if is_transposed(path) else shape, arrays[path].dtype)

    def value(tensor: str) -> np.ndarray:
        path, place = places[tensor]
        array = np.asarray(arrays[path][place])
        return array.T if is_transposed(path) else array

    settings = {} if like is None else read_object(Path(like) / "config.json")
    settings = {key: known for key, known in settings.items() if key not in REPLACED} | {
        "architectures": [name],
        "model_type": architecture.kind,
        "torch_dtype": str(model.blocks.precision.params),
        **architecture.settings(model),
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as temporary:
            write_json(temporary / "config.json", settings)
            write_tensors(temporary / WHOLE, kinds, value)
            for file in (file for pattern in BESIDE for file in Path(like or os.devnull).glob(pattern)):
                shutil.copyfile(file, temporary / file.name)
    except OSError as error:
        raise cannot_write(str(folder), error) from error


def _check(model: Imported, arrays: Mapping[str, Any], leaves: Mapping[str, Any]) -> None:
    for path in sorted(arrays.keys() | leaves.keys()):
        found, wanted = (None if path not in named else list(named[path].shape) for named in (arrays, leaves))
        if found != wanted:
            raise ConfigError(f"to_hugging_face: {path} is {found}, that of {type(model).__name__} {wanted}")
        if not getattr(arrays[path], "is_fully_addressable", True):
            raise ConfigError(f"to_hugging_face: other processes hold parts of {path}: restore the run in one process")
