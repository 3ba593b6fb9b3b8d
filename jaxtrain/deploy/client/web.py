"""Writes a static page that runs a bundle in the browser: `jaxtrain export --web`.

The page's files are copied, none is built; all that it reads is beside it. Not here: what the page does.
"""

import json
import shutil
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from jaxtrain.base.errors import ConfigError, Damaged, cannot_write
from jaxtrain.base.files import atomic_folder, digest, file_sha256, read_json, remove_unfinished
from jaxtrain.deploy.client.runtime import web_runtime
from jaxtrain.deploy.inputs import TokenIds
from jaxtrain.deploy.manifest import INT8_FILE, MODEL_FILE
from jaxtrain.deploy.signature import Signature

_HERE = Path(__file__).parent

GRAPHS = (MODEL_FILE, INT8_FILE)
"""Those that a browser runs, the first by default."""

_NEEDED = ("signature.json", "golden.json", "metrics.json")

_MORE = ("MODEL_CARD.md", "LICENSE")

_GENERATION = ("prefill.onnx", "decode.onnx", "weights.safetensors")
"""What continues texts, where the first is there."""

WORKER = "offline.js"

_LATER = ("ort/ort.webgpu", *(f"model/{name}" for name in _GENERATION))
"""What begins with these is kept for use without a network only once it was used: most visitors never do."""


def write_web(bundle: Path, out: Path) -> Path:
    """Writes the page of a bundle (a version folder) into `out`, a folder that is new or empty; returns it.

    Raises ConfigError for a bundle without an ONNX graph, inputs that a browser cannot take, and where ONNX Runtime
    for browsers cannot be fetched; Damaged for a file that is not what was exported.
    """
    known = read_json(bundle / "manifest.json")["files"]
    signature = Signature.read(bundle / "signature.json")
    if GRAPHS[0] not in known:
        raise ConfigError(f"{bundle} has no {GRAPHS[0]}, which the page runs: export it again where ONNX can be made")
    if odd := [each.name for each in (*signature.tensors, *signature.outputs) if each.dtype == "bfloat16"]:
        raise ConfigError(f"{bundle}: JavaScript has no bfloat16, the dtype of {', '.join(odd)}")
    if odd := [each.name for each in signature.outputs if each.dtype == "float16"]:
        raise ConfigError(f"{bundle}: JavaScript has no float16 for outputs, the dtype of {', '.join(odd)}")
    graphs = [name for name in GRAPHS if name in known]
    tokenizers = [each.tokenizer for each in signature.inputs if isinstance(each, TokenIds)]
    model = ["manifest.json", *_NEEDED, *graphs, *tokenizers, *(name for name in _MORE if name in known)]
    model += _GENERATION if _GENERATION[0] in known else ()
    runtime = web_runtime()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(out)
        with atomic_folder(out) as folder:
            shutil.copytree(_HERE / "page", folder, dirs_exist_ok=True)
            shutil.copytree(_HERE / "module", folder / "client", ignore=shutil.ignore_patterns("node.*"))
            shutil.copytree(runtime, folder / "ort")
            (folder / "model").mkdir()
            for name in model:
                shutil.copyfile(bundle / name, folder / "model" / name)
            _check_copied(folder / "model", known)
            _describe(folder, signature, graphs)
    except OSError as error:
        if out.is_dir() and any(out.iterdir()):
            raise ConfigError(f"{out} holds files: give a new folder for the page") from error
        raise cannot_write(f"the page in {out}", error) from error
    return out


def _check_copied(folder: Path, known: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises Damaged for a file whose sha256 differs from the manifest's."""
    for file in folder.iterdir():
        if file.name in known and file_sha256(file) != known[file.name]["sha256"]:
            raise Damaged(str(file.name), None, "its bytes are not those that were exported: its sha256 differs")


def _describe(folder: Path, signature: Signature, graphs: list[str]) -> None:
    """Writes the files that say what the page holds."""
    page = folder / "index.html"
    page.write_text(page.read_text(encoding="utf-8").replace("@title@", escape(signature.name)), encoding="utf-8")
    app = {"name": signature.name, "start_url": ".", "display": "standalone"}
    icon = {"src": "icon.svg", "sizes": "any", "type": "image/svg+xml"}
    (folder / "site.webmanifest").write_text(json.dumps({**app, "icons": [icon]}), encoding="utf-8")
    files = _files(folder)
    engines = {"wasm": "ort/ort.wasm", "webgpu": "ort/ort.webgpu.wasm"}
    site = {"format": 1, "name": signature.name, "graphs": graphs, "wasm": engines, "files": files}
    (folder / "site.json").write_text(json.dumps(site, indent=1), encoding="utf-8")
    kept = _files(folder)
    version = digest(json.dumps(kept, sort_keys=True), length=16)
    worker = folder / WORKER
    text = worker.read_text(encoding="utf-8").replace('"@site@"', json.dumps({"version": version, "files": kept}))
    worker.write_text(text, encoding="utf-8")


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file but the service worker, which names them."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file != folder / WORKER:
            path = file.relative_to(folder).as_posix()
            found[path] = {"sha256": file_sha256(file), "bytes": file.stat().st_size}
            if path.startswith(_LATER):
                found[path]["later"] = True
    return found
