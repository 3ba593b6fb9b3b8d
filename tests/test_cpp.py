"""The C++ program: what it refuses, and with which exit code. Its answers are in tests/test_paths.py."""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from programs import program
from test_bundle import forged, rewritten
from test_bundle_seal import ODD

from jaxtrain.base.files import digest
from jaxtrain.deploy.onnx.environment import onnx_environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def predict() -> str:
    """The program, built."""
    program("g++")
    return subprocess.run([ROOT / "scripts/cpp/build"], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles made by hand, with ONNX Runtime's outputs as the expected ones."""
    folder = tmp_path_factory.mktemp("bundles")
    variables = {**os.environ, "PYTHONPATH": f"{onnx_environment()}:{ROOT}"}
    for kind in ("text", "table"):
        subprocess.run([sys.executable, ROOT / "tests/handmade.py", folder / kind, kind], env=variables, check=True)
    return folder


def run(predict: str, *words: Any, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([predict, *map(str, words)], input=given, capture_output=True, text=True)


def seal(bundle: Path, file: str) -> None:
    """Writes size and hash of a file that was changed into the manifest, as somebody would who means harm."""
    rewritten(bundle, file, (bundle / file).read_bytes())


def test_it_compiles_without_warnings():
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    done = subprocess.run([program("g++"), *flags, ROOT / "scripts/cpp/predict.cpp"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_texts_are_answered_and_golden_examples_are_counted(predict: str, bundles: Path):
    done = run(predict, bundles / "text", "--golden")
    assert done.stdout.startswith("14 golden examples, largest difference ")
    done = run(predict, bundles / "text", "Adorei!", "")
    first, second = [json.loads(line)["probabilities"] for line in done.stdout.splitlines()]
    golden = json.loads((bundles / "text" / "golden.json").read_text())["examples"]
    expected = {each["name"]: each["outputs"]["probabilities"] for each in golden}
    assert first == pytest.approx(expected["usual"], abs=1e-6)
    assert second == pytest.approx(expected["text: empty"], abs=1e-6)
    assert run(predict, bundles / "text").returncode == 2


@pytest.mark.parametrize(
    ("file", "change", "code", "why"),
    [
        ("model.onnx", lambda content: content[:-1], 1, "bytes, of"),
        ("model.onnx", lambda content: content[:-1] + b"\0", 1, "its sha256 is not that of what was written"),
        ("golden.json", lambda content: content.replace(b"usual", b"other"), 1, "its sha256 is not that of what was"),
        ("signature.json", lambda content: b"", 1, "it has 0 bytes, of"),
        ("manifest.json", lambda content: content[:40], 1, "no JSON at byte 40"),
        ("manifest.json", lambda content: content.replace(b'"format": 1', b'"format": 2'), 2, "this program reads 1"),
        ("manifest.json", lambda content: content.replace(b"model.onnx", b"model.onny"), 1, "its checksum differs"),
        ("manifest.json", lambda content: content.replace(b'"sha256"', b'"sha255"'), 1, "its checksum differs"),
        ("manifest.json", lambda content: content.replace(b"{", b'{"format": 1,', 1), 1, "a name twice"),
        ("manifest.json", lambda content: b"[]", 1, "manifest.json: it is not what was written"),
    ],
)
def test_a_damaged_file_is_refused(file, change, code, why, predict: str, bundles: Path, tmp_path: Path):
    bundle = shutil.copytree(bundles / "text", tmp_path / "bundle")
    (bundle / file).write_bytes(change((bundle / file).read_bytes()))
    done = run(predict, bundle, "a")
    assert (done.returncode, done.stdout) == (code, "")
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("file", "change", "code", "why"),
    [
        ("model.onnx", lambda content: content[:200], 1, "ONNX Runtime: "),
        (
            "golden.json",
            lambda content: content.replace(b"[0.", b"[1."),
            1,
            "of golden example 0 (usual), probabilities is",
        ),
        ("golden.json", lambda content: b'{"format": 1, "examples": []}', 1, "golden.json: it holds no examples"),
        ("golden.json", lambda content: content.replace(b'": {"text"', b'": {"next"'), 1, "there is no input 'next'"),
        (
            "golden.json",
            lambda content: content.replace(b'"format": 1', b'"format": 2'),
            2,
            "it is of format 2, and this",
        ),
        ("signature.json", lambda content: content.replace(b"probabilities", b"others"), 1, "it has no others"),
    ],
)
def test_a_file_that_somebody_else_wrote_is_refused(file, change, code, why, predict, bundles: Path, tmp_path: Path):
    bundle = shutil.copytree(bundles / "text", tmp_path / "bundle")
    (bundle / file).write_bytes(change((bundle / file).read_bytes()))
    seal(bundle, file)
    done = run(predict, bundle, "a")
    assert (done.returncode, done.stdout) == (code, "")
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_file_that_was_changed_together_with_its_hash_in_the_manifest_is_refused(
    predict: str, bundles: Path, tmp_path: Path
):
    bundle = shutil.copytree(bundles / "text", tmp_path / "bundle")
    content = (bundle / "golden.json").read_bytes().replace(b'"usual"', b'"other"')
    old, new = (digest(each, length=64) for each in ((bundle / "golden.json").read_bytes(), content))
    (bundle / "golden.json").write_bytes(content)
    manifest = (bundle / "manifest.json").read_text()
    assert old in manifest
    (bundle / "manifest.json").write_text(manifest.replace(old, new))
    done = run(predict, bundle, "a")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{bundle}/manifest.json: it is not what was written: its checksum differs\n"
    seal(bundle, "golden.json")
    assert run(predict, bundle, "a").returncode == 0


def test_the_hash_of_a_manifest_is_that_of_what_python_writes(predict: str, bundles: Path, tmp_path: Path):
    bundle = shutil.copytree(bundles / "text", tmp_path / "bundle")
    odd = {name: value for name, value in ODD.items() if "\ud800" not in str(value)}  # C++ reads no half of a pair
    forged(bundle, lambda facts: facts.update(lineage={"step": 0, **odd}))
    assert run(predict, bundle, "--golden").stderr == ""


@pytest.mark.parametrize("name", ["../golden.json", "/etc/passwd", "a/../b", "", "a//b", "a\\b", "manifest.json"])
def test_a_manifest_that_leads_out_of_its_folder_is_refused(name: str, predict: str, bundles: Path, tmp_path: Path):
    bundle = shutil.copytree(bundles / "text", tmp_path / "bundle")
    forged(bundle, lambda facts: facts["files"].update({name: {"bytes": 1, "sha256": ""}}))
    done = run(predict, bundle, "a")
    assert done.returncode == 1
    assert "is no path of a file inside of the bundle" in done.stderr


def test_a_graph_is_a_file_of_the_bundle(predict: str, bundles: Path, tmp_path: Path):
    bundle = shutil.copytree(bundles / "text", tmp_path / "bundle")
    assert "has no model.int8.onnx: export it" in run(predict, "--file", "model.int8.onnx", bundle, "a").stderr
    (bundle / "more").mkdir()
    rewritten(bundle, "more/model.onnx", (bundle / "model.onnx").read_bytes())
    done = run(predict, "--file", "more/model.onnx", bundle, "a")
    assert (done.returncode, done.stderr) == (2, "give the name of a file, without / and \\\n")


EXTERNAL = """
import sys
import onnx
model = onnx.load(sys.argv[1])
onnx.save(model, sys.argv[1], save_as_external_data=True, location="weights", size_threshold=100)
"""


def test_a_graph_whose_weights_are_in_another_file_is_refused(predict: str, bundles: Path, tmp_path: Path):
    bundle = shutil.copytree(bundles / "text", tmp_path / "bundle")
    variables = {**os.environ, "PYTHONPATH": str(onnx_environment())}
    subprocess.run([sys.executable, "-c", EXTERNAL, bundle / "model.onnx"], env=variables, check=True)
    seal(bundle, "model.onnx")
    done = subprocess.run([predict, ".", "a"], cwd=bundle, capture_output=True, text=True)  # beside the weights
    assert (done.returncode, done.stdout) == (1, "")
    assert "/dev/null/weights" in done.stderr


def test_an_output_may_have_the_name_of_an_input(predict: str, bundles: Path, tmp_path: Path):
    bundle = shutil.copytree(bundles / "table", tmp_path / "bundle")
    for file, new in (("model.onnx", b"output/colour"), ("signature.json", b"colour"), ("golden.json", b"colour")):
        content = (bundle / file).read_bytes()
        assert b"probabilities" in content
        (bundle / file).write_bytes(content.replace(b"probabilities", new))  # of the same length in the graph
        seal(bundle, file)
    done = run(predict, bundle, "--rows", given='{"age": 30, "colour": "red", "x": [0, 1, 2]}')
    assert (done.returncode, [*json.loads(done.stdout)]) == (0, ["colour"]), done.stderr


def test_a_folder_that_is_no_bundle_is_a_mistake(predict: str, tmp_path: Path):
    done = run(predict, tmp_path, "a")
    assert (done.returncode, done.stderr) == (2, f"{tmp_path}/manifest.json cannot be read\n")


def test_bad_rows_are_refused_one_by_one(predict: str, bundles: Path):
    rows = {
        '{"age": 30, "colour": "café", "x": [0.5, -1, 2]}': "",
        '{"age": 30.5, "colour": "red", "x": [0.5, -1, 2]}': "input 'age': it has to be an integer",
        '{"age": null, "colour": "red", "x": [0.5, -1, 2]}': "input 'age': it is missing",
        '{"age": 1, "colour": 3, "x": [0.5, -1, 2]}': "input 'colour': it is none of its values",
        '{"age": 1, "colour": "cafe\u0301", "x": [0.5, -1, 2]}': "unless its characters are written in another way",
        '{"age": 1, "colour": "red", "x": [0.5, -1, {"float": "nan"}]}': "input 'x': it has to be finite numbers",
        '{"age": 1, "colour": "red", "x": [0.5, -1, NaN]}': "no JSON at byte",
        '{"age": 1, "colour": "red", "x": [0.5, -1, 1e39]}': "input 'x': it has a number beyond float32",
        '{"age": 1, "colour": "red", "x": [0.5, -1]}': "input 'x': it has 2 parts, not 3",
        '{"age": 1, "colour": "red", "x": [0.5, "1", 2]}': "input 'x': it has to be numbers",
        '{"agee": 1, "colour": "red", "x": [0.5, 1, 2]}': "there is no input 'agee'",
        '{"colour": "red", "x": [0.5, 1, 2]}': "input 'age' is missing",
        '{"age": 1, "colour": "red", "x": [0, 1, {"float": "x"}]}': "input 'x': it has to be numbers",
        "[1]": "it is no object",
        "": "no JSON at byte 0",
        "[" * 200: "too deep",
    }
    done = run(predict, bundles / "table", "--rows", given="".join(f"{row}\n" for row in rows))
    assert (done.returncode, done.stderr) == (1, "")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for (row, why), each in zip(rows.items(), found, strict=True):
        assert why in each["error"] if why else [*each] == ["probabilities"], (row, each)


def test_bytes_of_texts_are_base64(predict: str, bundles: Path):
    content = b"\xff\0 \xc3"
    rows = [{"text": {"base64": base64.b64encode(content).decode()}}, {"text": {"base64": "a"}}, {"text": "\ud800"}]
    done = run(predict, bundles / "text", "--rows", given="".join(json.dumps(row) + "\n" for row in rows))
    first, *others = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(first["probabilities"]) == pytest.approx(1)
    assert [each["error"] for each in others] == [
        "input 'text': it is no base64",
        "no JSON at byte 16: half of a surrogate pair",
    ]
