"""config.pbtxt: what Triton and KServe know of a model, made of its signature. Needs no jax."""

import json
import re
from dataclasses import replace

from jaxtrain.deploy.inputs import Tensor
from jaxtrain.deploy.onnx.runtime import names_of_outputs
from jaxtrain.deploy.signature import Signature

_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "uint16": "TYPE_UINT16",
    "int16": "TYPE_INT16",
    "uint32": "TYPE_UINT32",
    "int32": "TYPE_INT32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float32": "TYPE_FP32",
}


def config_pbtxt(signature: Signature, max_batch: int | None = None) -> str:
    """The config of the ONNX model in the version folders; `max_batch` is the signature's by default."""
    rows = signature.max_batch if max_batch is None else max_batch
    named = zip(signature.outputs, names_of_outputs(signature.tensors, signature.outputs), strict=True)
    outputs = [replace(each, name=name) for each, name in named]
    return (
        f"name: {json.dumps(signature.name)}\n"
        'backend: "onnxruntime"\n'
        'default_model_filename: "model.onnx"\n'
        f"max_batch_size: {rows}\n"
        f"input [{','.join(map(_tensor, signature.tensors))}\n]\n"
        f"output [{','.join(map(_tensor, outputs))}\n]\n"
        "dynamic_batching { }\n"
    )


def max_batch_of(config: str) -> int | None:
    """The rows of a batch that a config says; None where it does not."""
    found = re.search(r"^max_batch_size: (\d{1,9})$", config, re.MULTILINE)
    return int(found[1]) if found else None


def fits_signature(config: str, signature: Signature) -> bool:
    """Whether a config is that of this signature; the rows of a batch may be those of another version."""
    return config == config_pbtxt(signature, max_batch_of(config))


def _tensor(tensor: Tensor) -> str:
    # Triton knows no rows without dims: a number a row is a vector of one to it.
    dims = ", ".join(map(str, tensor.shape)) or "1"
    scalar = "" if tensor.shape else "\n    reshape: { shape: [ ] }"
    return (
        f"\n  {{\n    name: {json.dumps(tensor.name)}\n    data_type: {_TYPES[tensor.dtype]}\n"
        f"    dims: [ {dims} ]{scalar}\n  }}"
    )
