"""The page of a bundle in a headless Chromium, its module in Node: the answers of Python, and no other host is asked."""

import json
import shutil
import subprocess
import sys
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Page, Site, page
from programs import program
from test_bundle import forged

from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.deploy.client import runtime
from jaxtrain.deploy.client.web import write_web
from jaxtrain.deploy.onnx.environment import onnx_environment
from jaxtrain.deploy.signature import Signature

HERE = Path(__file__).parent

BROWSERS_OWN = ("google.com", "googleapis.com", "gvt1.com", "gstatic.com")
"""Hosts that Chromium asks by itself, for its clock and updates; the page's own requests are counted apart."""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles made by hand, with ONNX Runtime's outputs as the expected ones."""
    folder = tmp_path_factory.mktemp("bundles")
    paths = f"{onnx_environment()}:{HERE.parent}"
    for kind in ("text", "table", "image", "language"):
        command = [sys.executable, str(HERE / "handmade.py"), str(folder / kind), kind]
        subprocess.run(command, env={"PYTHONPATH": paths, "PATH": "/usr/bin:/bin"}, check=True)
    return folder


@pytest.fixture(scope="module")
def sites(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sites")
    for bundle in bundles.iterdir():
        write_web(bundle, folder / bundle.name)
    return folder


def expected(bundle: Path, value: Any) -> np.ndarray:
    """What ONNX Runtime in Python computes for a raw input."""
    from jaxtrain.deploy.onnx.runtime import OnnxModel

    signature = Signature.read(bundle / "signature.json")
    found = OnnxModel(bundle / "model.onnx").run(signature.tensors_of(signature.rows([value])))
    return found[signature.outputs[0].name][0]


def scores(tab: Page) -> dict[str, float]:
    code = (
        "JSON.stringify([...document.querySelectorAll('.score')].map((e) => [e.dataset.name, Number(e.dataset.score)]))"
    )
    return dict(json.loads(tab.run(code)))


def answer(tab: Page, change: str) -> dict[str, float]:
    """The scores after a change of the form."""
    old = "JSON.stringify([...document.querySelectorAll('.score')].map((e) => e.dataset.score))"
    tab.run(f"window.before = {old}; {change}; 0")
    tab.wait(f"window.before !== {old}")
    return scores(tab)


def typed(name: str, text: str) -> str:
    """Code that enters a text into a field."""
    field = f"document.querySelector('[name={name}]')"
    return f"{field}.value = {json.dumps(text)}; {field}.dispatchEvent(new Event('input', {{bubbles: true}}))"


def asked_by_page(tab: Page) -> set[str]:
    """The hosts of all requests that the page made, as the browser saw them."""
    sent = [event["params"]["request"]["url"] for event in tab.events if event["method"] == "Network.requestWillBeSent"]
    return {url.split("/")[2] for url in sent if not url.startswith(("data:", "blob:"))}


@pytest.mark.slow
def test_the_page_answers_as_python_asks_no_other_host_and_works_without_a_network(
    bundles: Path, sites: Path, tmp_path: Path
):
    site = Site(sites / "text")
    with page(site, tmp_path) as tab:
        tab.open()
        tab.wait("document.querySelector('.score')")
        for text in ("Adorei! Se eu pudesse dar 1000 estrelas não daria nenhuma :)", "I loved it!", "🙂", "x" * 100):
            wanted = expected(bundles / "text", text)
            found = answer(tab, typed("text", text))
            assert [found["negative"], found["positive"]] == pytest.approx(wanted.tolist(), abs=1e-4)
        tab.wait("document.getElementById('offline').textContent.startsWith('It is kept')")
        tab.run("fetch('https://example.com').catch(() => 0)")
        assert any("Content Security Policy" in each for each in tab.problems())
        site.open, before = False, len(site.asked)
        tab.run("window.old = true")
        tab.send("Page.reload")
        tab.wait("window.old === undefined && document.querySelector('.score')")
        found = answer(tab, typed("text", "I loved it!"))
        wanted = expected(bundles / "text", "I loved it!")
        assert [found["negative"], found["positive"]] == pytest.approx(wanted.tolist(), abs=1e-4)
        assert asked_by_page(tab) <= {"localhost:8000", "example.com"}  # the latter is what was tried above
        assert [each for each in site.asked[before:] if "localhost" in each and "/offline.js" not in each] == []
    assert [each for each in site.elsewhere if not any(own in each for own in BROWSERS_OWN)] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["table", "image", "language"])
def test_a_table_a_drawing_and_a_prompt_are_answered(kind: str, bundles: Path, sites: Path, tmp_path: Path):
    site = Site(sites / kind)
    with page(site, tmp_path) as tab:
        tab.open()
        tab.wait("document.querySelector('.score')")
        if kind == "table":
            found = answer(tab, typed("age", "55"))
            wanted = expected(bundles / kind, {"age": 55, "colour": "café", "x": [0.5, -1, 2]})
            assert [found["negative"], found["positive"]] == pytest.approx(wanted.tolist(), abs=1e-4)
            tab.run(typed("age", "5.5") + "; 0")
            tab.wait("document.getElementById('mistake').textContent.includes('has to be an integer')")
        elif kind == "image":
            before = scores(tab)
            tab.run("document.querySelector('.draw').scrollIntoView()")
            box = json.loads(tab.run("JSON.stringify(document.querySelector('.draw').getBoundingClientRect())"))
            for event, part in (
                ("mousePressed", 0.2),
                ("mouseMoved", 0.5),
                ("mouseMoved", 0.8),
                ("mouseReleased", 0.8),
            ):
                x, y = box["x"] + part * box["width"], box["y"] + part * box["height"]
                tab.send("Input.dispatchMouseEvent", type=event, x=x, y=y, button="left", buttons=1, clickCount=1)
            tab.wait(f"Number(document.querySelector('.score').dataset.score) !== {max(before.values())}")
            assert sum(scores(tab).values()) == pytest.approx(1, abs=1e-5)
        else:
            greedy = b"ab"
            while len(greedy) < 9:
                greedy += bytes([int(np.argmax(expected(bundles / kind, greedy)))])
            begins = greedy.decode(errors="replace")[:-2]  # the last letter may be half written
            tab.run("document.querySelector('#continue button').click()")
            tab.wait(f"document.querySelector('[name=text]').value.startsWith({json.dumps(begins)})")
        assert asked_by_page(tab) == {"localhost:8000"}


NODE = """
import { readFileSync } from "node:fs";
import * as ort from "./ort.mjs";
import { Bundle } from "%(module)s/index.js";
import { folder } from "%(module)s/node.js";
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmBinary = readFileSync("ort.wasm");
const bundle = await Bundle.load(folder(process.argv[2]), { ort });
console.log(JSON.stringify({ answers: await bundle.answers(JSON.parse(process.argv[3])), apart: bundle.difference }));
process.exit(0);
"""


def in_node(tmp_path: Path, bundle: Path, values: Any) -> subprocess.CompletedProcess[str]:
    files = runtime.web_runtime()
    shutil.copyfile(files / "ort.wasm.js", tmp_path / "ort.mjs")
    shutil.copyfile(files / "ort.wasm", tmp_path / "ort.wasm")
    module = HERE.parent / "jaxtrain/deploy/client/module"
    (tmp_path / "run.mjs").write_text(NODE % {"module": module})
    command = [program("node"), "run.mjs", str(bundle), json.dumps(values)]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)


@pytest.mark.slow
def test_node_answers_as_python(bundles: Path, tmp_path: Path):
    texts = ["Adorei! Se eu pudesse dar 1000 estrelas não daria nenhuma :)", "", "🙂"]
    found = json.loads(in_node(tmp_path, bundles / "text", texts).stdout)
    assert found["apart"] < 1e-5
    for text, each in zip(texts, found["answers"], strict=True):
        wanted = expected(bundles / "text", text)
        assert [*each["probabilities"].values()] == pytest.approx(wanted.tolist(), abs=1e-4)
        assert [*each["probabilities"]] == ["negative", "positive"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "change", "why"),
    [
        ("model.onnx", lambda content: content[:-1] + b"\0", "its sha256 differs"),
        ("model.onnx", lambda content: content[:-1], "bytes, of"),
        ("golden.json", lambda content: b"", "it has 0 bytes, of"),
        ("signature.json", lambda content: content.replace(b"text", b"next"), "its sha256 differs"),
        ("manifest.json", lambda content: content[:40], "it is not what was written"),
        ("manifest.json", lambda content: content.replace(b'"format": 1', b'"format": 2'), "update jaxtrain"),
    ],
)
def test_a_damaged_file_is_refused_in_node(file, change, why, bundles: Path, tmp_path: Path):
    bundle = shutil.copytree(bundles / "text", tmp_path / "bundle")
    (bundle / file).write_bytes(change((bundle / file).read_bytes()))
    done = in_node(tmp_path, bundle, ["a"])
    assert done.returncode != 0
    assert why in done.stderr


@pytest.mark.slow
def test_a_golden_example_with_another_output_is_refused_in_node(bundles: Path, tmp_path: Path):
    bundle = shutil.copytree(bundles / "text", tmp_path / "bundle")
    golden = json.loads((bundle / "golden.json").read_text())
    golden["examples"][1]["outputs"]["probabilities"][0] += 0.01
    (bundle / "golden.json").write_text(json.dumps(golden))
    manifest = json.loads((bundle / "manifest.json").read_text())
    from jaxtrain.base.files import file_sha256

    size = (bundle / "golden.json").stat().st_size
    manifest["files"]["golden.json"] = {"sha256": file_sha256(bundle / "golden.json"), "bytes": size}
    forged(bundle, lambda facts: facts.update(files=manifest["files"]))
    assert "of golden example 1 (" in in_node(tmp_path, bundle, ["a"]).stderr


def a_bundle(folder: Path, **files: bytes) -> Path:
    """A bundle whose graph nobody reads."""
    text = {"name": "text", "kind": "text", "tensor": "text", "bytes": 4}
    tensor = {"name": "text", "dtype": "uint8", "shape": ["batch", 4]}
    out = {"name": "probabilities", "dtype": "float32", "shape": ["batch", 2]}
    parts = {"format": 1, "name": "<model>", "inputs": [text], "tensors": [tensor], "outputs": [out], "max_batch": 1}
    made = {"signature.json": json.dumps(parts).encode(), "golden.json": b"{}", "metrics.json": b"{}", **files}
    folder.mkdir()
    for name, content in made.items():
        (folder / name).write_bytes(content)
    from jaxtrain.base.files import digest

    known = {name: {"sha256": digest(content, length=64), "bytes": len(content)} for name, content in made.items()}
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "name": "model", "files": known}))
    return folder


@pytest.fixture
def no_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small files in the place of ONNX Runtime's."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    for name in ("ort.wasm.js", "ort.wasm", "ort.webgpu.js", "ort.webgpu.wasm"):
        (folder / name).write_text(name)
    monkeypatch.setattr("jaxtrain.deploy.client.web.web_runtime", lambda: folder)
    return folder


def test_a_page_holds_its_files_their_hashes_and_no_address_of_another_host(tmp_path: Path, no_runtime: Path):
    made = write_web(a_bundle(tmp_path / "bundle", **{"model.onnx": b"graph"}), tmp_path / "site")
    site = json.loads((made / "site.json").read_text())
    assert site["graphs"] == ["model.onnx"]
    found = {each.relative_to(made).as_posix() for each in made.rglob("*") if each.is_file()}
    assert found == {*site["files"], "site.json", "offline.js"}
    worker = (made / "offline.js").read_text()
    assert all(f'"{name}"' in worker for name in site["files"])
    assert '"@site@"' not in worker
    assert '"ort/ort.webgpu.wasm": {"sha256"' in worker
    assert site["files"]["ort/ort.webgpu.wasm"]["later"] is True
    assert "later" not in site["files"]["ort/ort.wasm"]
    texts = [each.read_text() for each in made.rglob("*") if each.suffix in (".js", ".html", ".css", ".svg")]
    assert not any("https://" in text for text in texts)
    assert {text.count("http://") for text in texts} <= {0, 1}  # of SVG, and the address to open a page at
    html = (made / "index.html").read_text()
    assert "&lt;model&gt;" in html
    assert "connect-src 'self'" in html
    assert "unsafe-inline" not in html


def test_what_cannot_be_a_page_is_refused(tmp_path: Path, no_runtime: Path):
    with pytest.raises(ConfigError, match=r"has no model\.onnx"):
        write_web(a_bundle(tmp_path / "none"), tmp_path / "site")
    bundle = a_bundle(tmp_path / "bundle", **{"model.onnx": b"graph"})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(ConfigError, match="holds files"):
        write_web(bundle, tmp_path / "full")
    (bundle / "model.onnx").write_bytes(b"other")
    with pytest.raises(Damaged, match=r"model\.onnx"):
        write_web(bundle, tmp_path / "site")
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_outputs_that_javascript_has_no_array_for_are_refused(dtype: str, tmp_path: Path, no_runtime: Path):
    parts = json.loads((a_bundle(tmp_path / "usual") / "signature.json").read_text())
    parts["outputs"][0]["dtype"] = dtype
    files = {"model.onnx": b"graph", "signature.json": json.dumps(parts).encode()}
    with pytest.raises(ConfigError, match=f"JavaScript has no {dtype}.*, the dtype of probabilities"):
        write_web(a_bundle(tmp_path / "bundle", **files), tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_without_a_network_the_command_is_named_and_a_file_that_somebody_brought_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def offline(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(ConfigError, match=r"npm pack onnxruntime-web@1\.30\.0"):
        runtime.web_runtime()
    folder = tmp_path / "jaxtrain" / "web"
    folder.mkdir(parents=True)
    (folder / "onnxruntime-web-1.30.0.tgz").write_bytes(b"other")
    with pytest.raises(ConfigError, match="is not the one that is known"):
        runtime.web_runtime()
    assert [each.name for each in folder.iterdir()] == ["onnxruntime-web-1.30.0.tgz"]
