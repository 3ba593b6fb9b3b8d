"""Words of a command line as raw inputs of a bundle. Needs no jax."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.data.sources.base import raw_text
from jaxtrain.deploy.golden import decoded
from jaxtrain.deploy.inputs import Input, Text, TokenIds
from jaxtrain.deploy.numeric import Image
from jaxtrain.deploy.signature import Row, Signature
from jaxtrain.deploy.values import json_value


def raw_inputs_of(signature: Signature, words: Sequence[str]) -> list[Row]:
    """A row for each word: a text, the path of a file with a text, an image or an array (.npy), or an object of JSON
    with all inputs, in itself or in a file .json. Raises ConfigError where it is none of these.
    """
    return [_row(signature, word) for word in words]


def _row(signature: Signature, word: str) -> Row:
    names = [each.name for each in signature.inputs]
    in_file = word.endswith(".json") and os.path.isfile(word)
    if in_file or word.lstrip().startswith("{"):
        try:
            found = decoded(json_value(Path(word).read_text(encoding="utf-8") if in_file else word))
        except (ValueError, RecursionError) as error:
            if in_file or len(names) > 1:
                raise ConfigError(f"{word} is no JSON ({error})") from error
            found = None
        if isinstance(found, dict) and (in_file or len(names) > 1 or found.keys() & {*names}):
            return found
    if len(names) > 1:
        raise ConfigError(f"{word}: the model reads {', '.join(names)}: give a JSON object with these, or a file .json")
    return {names[0]: _value(signature.inputs[0], word)}


def _value(kind: Input, word: str) -> Any:
    if isinstance(kind, Text | TokenIds):
        return raw_text(word, as_bytes=isinstance(kind, Text) and os.path.isfile(word))
    if not os.path.isfile(word):
        try:
            return decoded(json_value(word))
        except (ValueError, RecursionError):
            what = "files of images or .npy" if isinstance(kind, Image) else "numbers, or files .npy"
            raise ConfigError(f"this model reads {what}, and there is no file {word}") from None
    try:
        return np.load(word, mmap_mode="r", allow_pickle=False) if word.endswith(".npy") else Path(word).read_bytes()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{word} cannot be read as {kind.name!r}: {error}") from error
