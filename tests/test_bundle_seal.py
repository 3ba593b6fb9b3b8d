"""The hash that a manifest holds of itself is checked in JavaScript as in Python."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from programs import program

from jaxtrain.base.files import digest, json_text
from jaxtrain.deploy.manifest import BundleManifest, files_of

MODULE = Path(__file__).parents[1] / "jaxtrain" / "deploy" / "client" / "module"

pytestmark = pytest.mark.slow

ODD = {
    "z": [1, 1.0, 1e22, 1e-7, -0.0, 10**30, True, None, [], {}, [[]], {"b": {}, "a": [1, {"": ""}]}],
    "\U0001f642": "astral comes after \uffee in Python and before it in JavaScript",
    "\uffee": 'quotes " \\ \n é \ud800 , : { } [ ]',
    "sha256": {"sha256": "inside of another object it stays"},
    "10": 1,
    "9": 2,
    "__proto__": 3,
    "": 4,
}


def in_node(code: str, *words: str) -> Any:
    done = subprocess.run(
        [program("node"), "--input-type=module", "-e", code, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_javascript_writes_json_as_python_sorts_it():
    code = f"""
        import {{ sealedText }} from "{MODULE / "seal.js"}";
        console.log(JSON.stringify(sealedText(process.argv[1])));
    """
    facts = {"name": "x", "odd": ODD}
    assert in_node(code, json_text({**facts, "sha256": "0"})) == json.dumps(facts, sort_keys=True)


LOADED = f"""
    import {{ Bundle }} from "{MODULE / "index.js"}";
    import {{ folder }} from "{MODULE / "node.js"}";
    const create = async () => {{ throw new Error("verified up to the graph"); }};
    let found = null;
    try {{
      await Bundle.load(folder(process.argv[1]), {{ ort: {{ InferenceSession: {{ create }} }} }});
    }} catch (error) {{ found = [error.name, error.message]; }}
    console.log(JSON.stringify(found));
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    text = {"name": "text", "kind": "text", "tensor": "text", "bytes": 4}
    tensor = {"name": "text", "dtype": "uint8", "shape": ["batch", 4]}
    out = {"name": "score", "dtype": "float32", "shape": ["batch"]}
    parts = {"format": 1, "name": "model", "inputs": [text], "tensors": [tensor], "outputs": [out], "max_batch": 1}
    examples = [{"name": "one", "inputs": {"text": "a"}, "outputs": {"score": 0.5}}]
    (tmp_path / "signature.json").write_text(json.dumps(parts))
    (tmp_path / "golden.json").write_text(json.dumps({"format": 1, "examples": examples}))
    (tmp_path / "model.onnx").write_bytes(b"graph")
    BundleManifest("model", "1", {"jax": "1.0"}, {"step": 3, **ODD}, "é", files_of(tmp_path)).write(tmp_path)
    return tmp_path


def test_a_manifest_that_python_wrote_is_verified(folder):
    assert in_node(LOADED, str(folder)) == ["Damaged", in_node(LOADED, str(folder))[1]]
    assert "verified up to the graph" in in_node(LOADED, str(folder))[1]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"step": 3', '"step": 4'),
        lambda text: text.replace("1e+22", "1e22"),
        lambda text: text.replace('"version": "1"', '"version": "1",\n "version": "1"'),
        lambda text: text.replace(digest(b"graph", length=64), digest(b"other", length=64)),
        lambda text: text[: text.rindex(",")] + "\n}\n",
        lambda text: text.replace('"step": 3', '"step": ' + "[" * 50_000 + "]" * 50_000),
    ],
)
def test_a_manifest_that_was_changed_together_with_a_file_is_refused(change, folder):
    before = (folder / "manifest.json").read_text()
    after = change(before)
    assert after != before
    (folder / "manifest.json").write_text(after)
    (folder / "model.onnx").write_bytes(b"other" if digest(b"other", length=64) in after else b"graph")
    kind, message = in_node(LOADED, str(folder))
    assert kind == "Damaged"
    assert "manifest.json" in message
    assert "it is not what was written" in message
