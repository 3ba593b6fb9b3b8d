"""What Triton and KServe read of a repository of bundles, by their own clients' definitions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxtrain.deploy.inputs import Category, Tensor, Text, TokenIds
from jaxtrain.deploy.kserve import inference_service
from jaxtrain.deploy.numeric import Array, Image, Number
from jaxtrain.deploy.signature import Signature
from jaxtrain.deploy.triton import config_pbtxt

SIGNATURE = Signature(
    "films",
    (
        Text(name="text", tensor="text", bytes=8),
        TokenIds(name="words", tensor="words", tokenizer="tokenizer.json", length=4),
        Image(name="image", tensor="image", shape=(8, 8, 1), dtype="float32", range=(0, 16)),
        Array(name="x", tensor="x", shape=(2, 3), dtype="int8"),
        Number(name="age", tensor="age"),
        Category(name="colour", tensor="colour", values=("red", "blue")),
    ),
    (
        Tensor("text", "uint8", (8,)),
        Tensor("words", "int32", (4,)),
        Tensor("image", "float32", (8, 8, 1)),
        Tensor("x", "int8", (2, 3)),
        Tensor("age", "float32", ()),
        Tensor("colour", "int32", ()),
    ),
    (
        Tensor("probabilities", "float32", (2,), ("bad", "good")),
        Tensor("value", "float32", ()),
        Tensor("image", "float32", (8, 8, 1)),  # as an autoencoder gives
    ),
    16,
)

PARSE = """
import importlib.util, json, pathlib, sys
from google.protobuf import json_format, text_format
file = pathlib.Path(importlib.util.find_spec("tritonclient").submodule_search_locations[0], "grpc", "model_config_pb2.py")
spec = importlib.util.spec_from_file_location("model_config_pb2", file)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(json_format.MessageToJson(text_format.Parse(sys.stdin.read(), module.ModelConfig()), indent=None))
"""

WALK = """
import importlib.machinery, json, sys, types
found = importlib.machinery.PathFinder.find_spec("kserve", sys.path)
package = types.ModuleType("kserve")  # without what it imports to serve models
package.__path__ = found.submodule_search_locations
sys.modules["kserve"] = package
import importlib, pkgutil
names = [each.name for each in pkgutil.iter_modules([package.__path__[0] + "/models"])]

def model(name):
    file = "".join("_" + c.lower() if c.isupper() else c for c in name).strip("_").replace("v1_beta1", "v1beta1")
    return getattr(importlib.import_module(f"kserve.models.{file}"), name)

def walk(kind, value, where):
    types_ = kind.openapi_types
    by_key = {key: name for name, key in kind.attribute_map.items()}
    given = {}
    for key, inner in value.items():
        if key not in by_key:
            raise SystemExit(f"{where}.{key} is not known")
        wanted = types_[by_key[key]]
        if wanted == "str":
            assert isinstance(inner, str), (where, key)
        elif wanted.startswith("V1beta1"):
            inner = walk(model(wanted), inner, f"{where}.{key}")
        given[by_key[key]] = inner
    return kind(**given)  # raises ValueError where a required field is None

made = walk(model("V1beta1InferenceService"), json.load(sys.stdin), "service")
print(json.dumps([made.kind, made.spec.predictor.model.model_format.name, made.spec.predictor.model.storage_uri]))
"""


def python(code: str, given: str, folder: Path, bare: str, *packages: str) -> str:
    """Runs code in an environment that uv makes for it, with a package without what it needs, and others with it."""
    install = [
        "uv",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--python",
        sys.executable,
        "--target",
        str(folder),
        bare,
    ]
    subprocess.run(install, cwd=folder, check=True)
    command = [
        "uv",
        "run",
        "--no-project",
        "--quiet",
        "--python",
        sys.executable,
        *(f"--with={each}" for each in packages),
    ]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [*command, "python", "-c", code],
        input=given,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_triton_reads_the_config(tmp_path):
    found = json.loads(python(PARSE, config_pbtxt(SIGNATURE), tmp_path, "tritonclient==2.73.0", "protobuf>=6"))
    assert (found["name"], found["backend"], found["defaultModelFilename"]) == ("films", "onnxruntime", "model.onnx")
    assert found["maxBatchSize"] == 16
    assert found["dynamicBatching"] == {}
    shapes = {each["name"]: (each["dataType"], [int(n) for n in each["dims"]]) for each in found["input"]}
    assert shapes == {
        "text": ("TYPE_UINT8", [8]),
        "words": ("TYPE_INT32", [4]),
        "image": ("TYPE_FP32", [8, 8, 1]),
        "x": ("TYPE_INT8", [2, 3]),
        "age": ("TYPE_FP32", [1]),
        "colour": ("TYPE_INT32", [1]),
    }
    assert {each["name"] for each in found["input"] if "reshape" in each} == {"age", "colour"}
    assert [(each["name"], each["dims"]) for each in found["output"]] == [
        ("probabilities", ["2"]),
        ("value", ["1"]),
        ("output/image", ["8", "8", "1"]),
    ]
    names = [each["name"] for each in [*found["input"], *found["output"]]]
    assert len(set(names)) == len(names)


@pytest.mark.slow
def test_kserve_knows_every_field_of_the_manifest(tmp_path):
    given = json.dumps(inference_service(SIGNATURE, "s3://bucket/models", "films"))
    found = python(WALK, given, tmp_path, "kserve==0.21.0", "kubernetes", "six")
    assert json.loads(found) == ["InferenceService", "triton", "s3://bucket/models"]
