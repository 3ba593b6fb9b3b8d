"""ONNX without the packages that make it: their folder, the runtime, and what the gate of int8 sees."""

import base64
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtrain import ConfigError
from jaxtrain.base.errors import Damaged
from jaxtrain.deploy.generation import StepGraph
from jaxtrain.deploy.inputs import Tensor, Text
from jaxtrain.deploy.kserve import inference_service
from jaxtrain.deploy.onnx import conversion
from jaxtrain.deploy.onnx import environment as of_onnx
from jaxtrain.deploy.onnx.int8 import Compared, Int8Gate, compare_outputs
from jaxtrain.deploy.onnx.runtime import OnnxModel, names_of_outputs
from jaxtrain.deploy.signature import Signature
from jaxtrain.deploy.triton import config_pbtxt
from jaxtrain.models import Precision
from jaxtrain.models.layers import Stack, dot, plain_graph

ROOT = Path(__file__).parents[1]

GRAPH = base64.b64decode(
    "CAoSADpfChEKAXgKAXcSAXkiBk1hdE11bBIBZyoTCAIIARABQgF3SggAAABAAABAQFoYCgF4EhMKEQgBEg0KBxIFYmF0Y2gKAggC"
    "YhgKAXkSEwoRCAESDQoHEgViYXRjaAoCCAFCBAoAEBU="
)
"""y = x · (2, 3), of two numbers x a row."""

INSTALLER = """#!{python}
import hashlib, pathlib, sys, time
with open({log!r}, "a") as log:
    print(*sys.argv[1:], file=log)
if {fails}:
    sys.exit("error: Failed to fetch: `https://pypi.org/simple/one/`\\n  dns error: failed to lookup address")
folder = pathlib.Path(sys.argv[sys.argv.index("--target") + 1])
time.sleep({seconds})
(folder / "one-1.0.dist-info").mkdir()
(folder / "one-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\\nName: one\\nVersion: 1.0\\n")
(folder / "one.py").write_text("x = 1\\n")
(folder / "one-1.0.dist-info" / "RECORD").write_text("one.py,sha256=,6\\none-1.0.dist-info/RECORD,,\\n")
"""


@pytest.fixture
def installer(tmp_path, monkeypatch):
    """A uv that installs a package of one file, and a cache of its own; returns how to make it, and its calls."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(of_onnx, "ONNX_PACKAGES", ("one==1.0",))
    log, uv = tmp_path / "log", tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    monkeypatch.setenv("PATH", str(uv.parent))

    def make(fails: bool = False, seconds: float = 0.0) -> Path:
        uv.write_text(INSTALLER.format(python=sys.executable, log=str(log), fails=fails, seconds=seconds))
        uv.chmod(0o755)
        log.write_text("")
        return log

    return make


def test_the_packages_are_installed_once_without_dependencies_into_a_folder_of_the_cache(installer, tmp_path):
    log = installer()
    folder = of_onnx.onnx_environment()
    assert folder == of_onnx.onnx_environment()
    assert folder.parent == tmp_path / "cache" / "jaxtrain"
    assert (folder / "one.py").read_text() == "x = 1\n"
    [call] = log.read_text().splitlines()
    options, target = call.partition(" --target ")[::2]
    assert options == f"pip install --quiet --no-deps --python {sys.executable}"
    assert target.startswith(f"{folder.parent}/.{folder.name}.")
    assert target.endswith(".tmp one==1.0")


def test_two_at_once_install_once(installer):
    log = installer(seconds=0.3)
    found = []
    threads = [threading.Thread(target=lambda: found.append(of_onnx.onnx_environment())) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(log.read_text().splitlines()) == 1
    assert len(found) == 3


@pytest.mark.parametrize("damage", ["short", "gone", "other version"])
def test_a_folder_that_is_not_as_it_was_installed_is_made_again(installer, damage):
    log = installer()
    folder = of_onnx.onnx_environment()
    if damage == "short":
        (folder / "one.py").write_text("x")
    elif damage == "gone":
        (folder / "one.py").unlink()
    else:
        metadata = folder / "one-1.0.dist-info" / "METADATA"
        metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 1.1"))
    assert of_onnx.missing(folder) is not None
    of_onnx.onnx_environment()
    assert of_onnx.missing(folder) is None
    assert len(log.read_text().splitlines()) == 2


def test_what_a_killed_process_left_is_removed(installer):
    installer()
    folder = of_onnx.folder_of_packages()
    left = folder.with_name(f".{folder.name}.123-4.tmp")
    left.mkdir(parents=True)
    of_onnx.onnx_environment()
    assert [each.name for each in folder.parent.iterdir() if each.name.endswith(".tmp")] == []


def test_without_a_network_it_says_the_command_to_type_and_leaves_nothing(installer):
    installer(fails=True)
    with pytest.raises(ConfigError) as error:
        of_onnx.onnx_environment()
    folder = of_onnx.folder_of_packages()
    assert "dns error: failed to lookup address" in str(error.value)
    assert str(error.value).endswith(f"--no-deps --python {sys.executable} --target {folder} one==1.0")
    assert [each.name for each in folder.parent.iterdir()] == [f".{folder.name}.lock"]
    assert len(str(error.value).splitlines()) == 1


def test_without_uv_and_pip_it_says_so(installer, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(of_onnx.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"neither uv nor pip is here.*: uv pip install --no-deps"):
        of_onnx.onnx_environment()


def test_pip_does_where_there_is_no_uv(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(of_onnx.importlib.util, "find_spec", lambda name: object())
    command = of_onnx._installer() or []
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert "--no-deps" in command


def test_a_graph_runs_on_any_number_of_rows_and_names_its_outputs(tmp_path):
    (tmp_path / "model.onnx").write_bytes(GRAPH)
    x = np.array([[1, 1], [0, 2], [-1, 0.5]], np.float32)
    for model in (OnnxModel(tmp_path / "model.onnx"), OnnxModel(GRAPH, threads=1)):
        np.testing.assert_array_equal(model.run({"x": x})["y"], [[5], [6], [-0.5]])
        np.testing.assert_array_equal(model.run({"x": x[:1]})["y"], [[5]])
        options = model._session.get_session_options()
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.intra_op_num_threads == 1


def test_an_output_with_the_name_of_an_input_has_another_one_in_the_graph():
    both = Tensor("image", "float32", (2,))
    assert names_of_outputs((both,), (both, Tensor("latent", "float32", (1,)))) == ["output/image", "latent"]
    config = config_pbtxt(Signature("vae", (), (both,), (both,), 4))
    assert config.count('name: "image"') == config.count('name: "output/image"') == 1


@pytest.mark.parametrize("content", [b"", b"no graph", GRAPH[:-40], GRAPH.replace(b"MatMul", b"MatMux")])
def test_what_is_no_graph_is_damaged(tmp_path, content):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(Damaged, match=r"model\.onnx: ONNX Runtime .* cannot load it"):
        OnnxModel(tmp_path / "model.onnx")


def test_a_graph_of_other_arrays_than_the_signature_says_is_damaged():
    x, y = Tensor("x", "float32", (2,)), Tensor("y", "float32", (1,))
    OnnxModel(GRAPH, takes=StepGraph((x, Tensor("unused", "int32", (3,))), (y,)))
    for inputs, outputs in (
        ((Tensor("x", "float32", (2**31 - 1,)),), (y,)),  # of which no row may be made
        ((Tensor("z", "float32", (2,)),), (y,)),
        ((x,), (y, Tensor("more", "float32", ()))),
    ):
        with pytest.raises(Damaged, match=r"model\.onnx: it takes or gives other arrays than signature.json says"):
            OnnxModel(GRAPH, takes=StepGraph(inputs, outputs))


OUTSIDE = base64.b64decode(
    "CAo6igEKEQoBeAoBdxIBeSIGTWF0TXVsEgFnKj4IAggBEAFCAXdqFwoIbG9jYXRpb24SC291dHNpZGUuYmluagsKBm9mZnNldBIB"
    "MGoLCgZsZW5ndGgSAThwAVoYCgF4EhMKEQgBEg0KBxIFYmF0Y2gKAggCYhgKAXkSEwoRCAESDQoHEgViYXRjaAoCCAFCBAoAEBU="
)
"""The same, whose (2, 3) is in a file outside.bin."""


def test_a_graph_reads_no_data_of_the_folder_that_the_process_is_in(tmp_path, monkeypatch):
    (tmp_path / "outside.bin").write_bytes(np.array([2, 3], np.float32).tobytes())
    monkeypatch.chdir(tmp_path)
    beside = OnnxModel(OUTSIDE, name=str(tmp_path / "model.onnx"))
    np.testing.assert_array_equal(beside.run({"x": np.ones((1, 2), np.float32)})["y"], [[5]])
    (tmp_path / "bundle").mkdir()
    with pytest.raises(Damaged, match=r"bundle/model\.onnx: ONNX Runtime .* cannot load it"):
        OnnxModel(OUTSIDE, name=str(tmp_path / "bundle" / "model.onnx"))


def test_what_the_runtime_cannot_compute_is_damage():
    with pytest.raises(Damaged, match=r"model\.onnx: ONNX Runtime cannot compute it"):
        OnnxModel(GRAPH).run({"x": np.ones((1, 3), np.float32)})


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no ONNX model .*model\.onnx"):
        OnnxModel(tmp_path / "model.onnx")


def test_without_onnxruntime_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"needs onnxruntime: pip install 'jaxtrain\[onnx\]'"):
        OnnxModel(GRAPH)


def test_the_runtime_needs_no_jax(tmp_path):
    (tmp_path / "model.onnx").write_bytes(GRAPH)
    code = (
        "import sys, numpy, pathlib; import jaxtrain.deploy.bundle; import jaxtrain.deploy.onnx.runtime as r; "
        f"m = r.OnnxModel(pathlib.Path({str(tmp_path / 'model.onnx')!r})); "
        "print(m.run({'x': numpy.ones((1, 2), 'f')})['y'].tolist(), *({'jax', 'flax', 'orbax'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["[[5.0]]"]


def test_the_gate_sees_the_worst_of_the_outputs():
    outputs = (Tensor("probabilities", "float32", (2,)), Tensor("ink", "float32", ()))
    wanted = {"probabilities": np.array([[0.6, 0.4], [0.1, 0.9]]), "ink": np.array([1.0, 3.0])}
    found = {"probabilities": np.array([[0.45, 0.55], [0.1, 0.9]]), "ink": np.array([1.0, 3.5])}
    seen = compare_outputs(outputs, wanted, found)
    assert seen.agreement == 0.5
    assert seen.difference == pytest.approx(0.15)
    assert seen.spread == pytest.approx(0.5 / np.sqrt(2))  # the root of (0² + 0.5²) / 2, of a deviation of 1
    logs = compare_outputs(
        (Tensor("log_probabilities", "float32", (2,)),),
        *({"log_probabilities": np.log(x)} for x in (wanted["probabilities"], found["probabilities"])),
    )
    assert logs.difference == pytest.approx(0.15)
    assert logs.spread is None


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (Compared(1.0, 0.01, None), ""),
        (Compared(0.99, 0.1, 0.05), ""),
        (Compared(0.9899, 0.01, None), "0.9899 of rows have the most likely class of f32, of 0.99 at least"),
        (Compared(1.0, float("nan"), None), "a probability differs by nan, of 0.1 at most"),
        (Compared(1.0, 0.11, None), "a probability differs by 0.1100, of 0.1 at most"),
        (Compared(None, None, 0.06), "an output differs by 0.0600 of its standard deviation, of 0.05 at most"),
        (Compared(None, None, float("nan")), "an output differs by nan of its standard deviation, of 0.05 at most"),
    ],
)
def test_the_gate_refuses_what_answers_otherwise(seen, why):
    assert seen.refused(Int8Gate()) == why


def test_the_gate_is_a_value():
    assert Compared(0.95, 0.2, None).refused(Int8Gate(agreement=0.9, difference=0.3)) == ""


class Double(nnx.Module):
    """A block that multiplies by two kernels."""

    def __init__(self, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (3, 3)), axes=("embed", "mlp"))

    def __call__(self, x, keys_B, rows):
        x = jnp.tanh(x @ self.kernel[...])
        return x, {"size": x.sum(1)}


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_plain_graph_has_no_loop_and_the_same_numbers(rounds):
    stack = Stack(Double, 4, nnx.Rngs(0), "none", 1, rounds)
    x = jnp.arange(6.0).reshape(2, 3) / 6

    def run(x):
        return stack(x, None, None)

    looped, losses = run(x)
    assert "scan[" in str(jax.make_jaxpr(run)(x))
    with plain_graph():
        assert "scan[" not in str(jax.make_jaxpr(lambda x: run(x))(x))  # jax remembers the trace of a function
        unrolled, unrolled_losses = run(x)
    np.testing.assert_allclose(unrolled, looped, rtol=1e-6)
    np.testing.assert_allclose(unrolled_losses["size"], losses["size"], rtol=1e-6)
    [kernels] = (np.asarray(leaf).reshape(4, 3, 3) for leaf in jax.tree.leaves(nnx.state(stack)))
    expected = np.asarray(x)
    for kernel in kernels:
        expected = np.tanh(expected @ kernel)
    np.testing.assert_allclose(unrolled, expected, rtol=1e-5)


def test_a_plain_graph_rounds_operands_as_bf16_does_and_multiplies_in_f32():
    x, kernel = (np.array(each, np.float32) for each in ([[1.00390625, 3.0]], [[1.0], [0.33333334]]))
    precision = Precision(compute="bfloat16")
    with plain_graph():
        found = dot(jnp.asarray(x), jnp.asarray(kernel), precision)
        text = str(jax.make_jaxpr(lambda x: dot(x, jnp.asarray(kernel), precision))(x))
    # bf16 has 8 bits: 1.00390625 becomes 1, and a third 0.333984375.
    np.testing.assert_array_equal(found, [[1.0 + 3 * 0.333984375]])
    assert found.dtype == np.float32
    assert "bf16[1,2] = dot_general" not in text
    assert "f32[1,1] = dot_general" in text


def test_what_is_not_here_is_not_checked(installer, tmp_path):
    assert of_onnx.missing(of_onnx.folder_of_packages()) is not None
    assert conversion.can_convert(cast(Any, None)) is None


SIGNATURE = Signature(
    "My films_2",
    (Text(name="text", tensor="text", bytes=8),),
    (Tensor("text", "uint8", (8,)),),
    (Tensor("probabilities", "float32", (2,)),),
    16,
)


def test_a_manifest_for_kserve():
    assert inference_service(SIGNATURE, "s3://bucket/models", "films") == {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "my-films-2", "namespace": "films"},
        "spec": {
            "predictor": {
                "model": {
                    "modelFormat": {"name": "triton"},
                    "protocolVersion": "v2",
                    "runtime": "kserve-tritonserver",
                    "storageUri": "s3://bucket/models",
                }
            }
        },
    }
    with pytest.raises(ConfigError, match=r"'models' is no address"):
        inference_service(SIGNATURE, "models")
