"""Weights as a file of safetensors: a header of JSON, then the bytes of every array. Needs numpy alone.

Format: https://huggingface.co/docs/safetensors. The package of that name has no bfloat16 for numpy. Not here: paths.
"""

import json
import math
from collections.abc import Mapping

import numpy as np

from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.deploy.values import np_dtype

_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
}

_ALIGN = 8  # bytes: the arrays begin at a multiple


def weights_bytes(weights: Mapping[str, np.ndarray]) -> bytes:
    """The content of a file with these arrays, in the order of their names. Raises ConfigError for other dtypes."""
    names, header, parts, begin = {name: code for code, name in _DTYPES.items()}, {}, [], 0
    for path, x in sorted(weights.items()):
        if x.dtype.name not in names:
            raise ConfigError(f"the weight {path} is of {x.dtype}, which a bundle does not hold")
        parts.append(np.ascontiguousarray(x).tobytes())
        offsets = [begin, begin := begin + len(parts[-1])]
        header[path] = {"dtype": names[x.dtype.name], "shape": list(x.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // _ALIGN) * _ALIGN)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def read_weights(content: bytes, file: str) -> dict[str, np.ndarray]:
    """The arrays of a file, which are views of its content. Raises Damaged where it is none."""
    size = int.from_bytes(content[:8], "little")
    try:
        header, found, end = json.loads(content[8 : 8 + size]), {}, 8 + size
        entries = [(path, entry) for path, entry in header.items() if path != "__metadata__"]
        for path, entry in sorted(entries, key=lambda each: each[1]["data_offsets"][0]):
            dtype, shape = np_dtype(_DTYPES[entry["dtype"]]), [int(n) for n in entry["shape"]]
            begin, stop = (8 + size + int(offset) for offset in entry["data_offsets"])
            count = math.prod(shape)
            if min(shape, default=0) < 0 or begin != end or stop - begin != count * dtype.itemsize:
                raise ValueError(f"{path} is not where it should be")
            found[path], end = np.frombuffer(content, dtype, count, begin).reshape(shape), stop
        if end != len(content):
            raise ValueError(f"{len(content) - end} bytes are of no array")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(file, None, f"it is no .safetensors of weights ({error})") from error
    return found
