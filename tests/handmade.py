"""Makes a small bundle by hand, with every kind of input that a page has a field for: `python handmade.py FOLDER KIND`.

It needs onnx and onnxruntime, which compute the expected outputs; no jax and no training.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from jaxtrain.deploy.golden import GoldenExample, golden_json, odd_rows
from jaxtrain.deploy.inputs import Category, Input, Tensor, Text
from jaxtrain.deploy.manifest import BundleManifest, files_of
from jaxtrain.deploy.numeric import Array, Image, Number
from jaxtrain.deploy.signature import Signature

CLASSES = ("negative", "positive")

KINDS: dict[str, tuple[tuple[Input, ...], dict[str, Any]]] = {
    "text": ((Text(name="text", tensor="text", bytes=64),), {"text": "Adorei!"}),
    "table": (
        (
            Number(name="age", tensor="age", integer=True),
            Category(name="colour", tensor="colour", values=("red", "café"), first=1, unknown=0),
            Array(name="x", tensor="x", shape=(3,), dtype="float32"),
        ),
        {"age": 30, "colour": "café", "x": [0.5, -1, 2]},
    ),
    "image": (
        (Image(name="image", tensor="image", shape=(8, 8, 1), dtype="uint8", range=(0, 16)),),
        {"image": [[[(x * y) % 17] if 2 < x < 5 else [0] for x in range(8)] for y in range(8)]},
    ),
    "language": (
        (Text(name="text", tensor="text", bytes=8, keep="last", least=1),),
        {"text": "ab"},
    ),
}


def main(folder: Path, kind: str) -> None:
    inputs, usual = KINDS[kind]
    tensors = tuple(each.spec() for each in inputs)
    if kind == "language":
        outputs = (Tensor("log_probabilities", "float32", (256,)),)
    else:
        outputs = (Tensor("probabilities", "float32", (2,), CLASSES),)
    signature = Signature(kind, inputs, tensors, outputs, 4)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(graph(signature))
    rows = {"usual": usual, **odd_rows(signature, usual)}
    rows = {name: row for name, row in rows.items() if "large" not in name and "small" not in name}
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    found: Any = session.run(None, signature.tensors_of([*rows.values()]))[0]
    examples = [GoldenExample(name, row, {outputs[0].name: found[n]}) for n, (name, row) in enumerate(rows.items())]
    texts = {"signature.json": signature.to_json(), "golden.json": golden_json(examples), "metrics.json": {"format": 1}}
    for name, value in texts.items():
        (folder / name).write_text(json.dumps(value))
    BundleManifest(kind, "1", {}, {"step": 0}, "none stated", files_of(folder)).write(folder)


def graph(signature: Signature) -> bytes:
    """All numbers of a row times fixed weights, and a softmax."""
    names, nodes, width = [], [], 0
    for each in signature.tensors:
        size = int(np.prod(each.shape, dtype=int))
        nodes.append(helper.make_node("Cast", [each.name], [f"{each.name}/f"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Reshape", [f"{each.name}/f", f"{each.name}/shape"], [f"{each.name}/flat"]))
        names.append((f"{each.name}/shape", np.array([-1, size])))
        width += size
    classes = signature.outputs[0].shape[0]
    weights = np.sin(np.arange(width * classes, dtype=np.float32)).reshape(width, classes) / 30
    flat = [f"{each.name}/flat" for each in signature.tensors]
    kind = "Softmax" if classes == 2 else "LogSoftmax"
    nodes += [
        helper.make_node("Concat", flat, ["all"], axis=1),
        helper.make_node("MatMul", ["all", "weights"], ["scores"]),
        helper.make_node(kind, ["scores"], [signature.outputs[0].name], axis=-1),
    ]
    types = {name: helper.np_dtype_to_tensor_dtype(np.dtype(name)) for name in ("uint8", "int32", "float32")}

    def info(each: Tensor) -> Any:
        return helper.make_tensor_value_info(each.name, types[each.dtype], ["batch", *each.shape])

    constants = [numpy_helper.from_array(x, name) for name, x in [*names, ("weights", weights)]]
    made = helper.make_graph(
        nodes, "handmade", [*map(info, signature.tensors)], [*map(info, signature.outputs)], constants
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
