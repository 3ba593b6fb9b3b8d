"""The ways in which a bundle is run: the answers of each to the same raw inputs."""

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Site, page
from programs import node_modules, program

from jaxtrain import ConfigError
from jaxtrain.deploy.bundle import Bundle
from jaxtrain.deploy.golden import decoded, encoded
from jaxtrain.deploy.signature import Signature
from jaxtrain.runs.folder import Run

ROOT = Path(__file__).parents[1]

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Answers:
    """The outputs by name for inputs that are taken, rows on dim 0, and why each of the others is refused."""

    outputs: Mapping[str, np.ndarray]
    refused: Sequence[str]


@dataclass(frozen=True)
class Exported:
    """A run, its version folder and its page."""

    run: Run
    bundle: Path
    page: Path


def in_python(bundle: Bundle, file: str, taken: Rows, refused: Rows) -> Answers:
    why = []
    for row in refused:
        with pytest.raises(ConfigError) as error:
            bundle.predict([row])
        why.append(str(error.value))
    return Answers(bundle.predict(taken), why)


def by_stablehlo(made: Exported, folder: Path, file: str, taken: Rows, refused: Rows) -> Answers:
    return in_python(Bundle(made.bundle), file, taken, refused)


def by_onnx_runtime(made: Exported, folder: Path, file: str, taken: Rows, refused: Rows) -> Answers:
    return in_python(Bundle(made.bundle, backend="onnx", file=file), file, taken, refused)


ANSWERS = """
async (bundle, decoded, { taken, refused }) => {
  const why = [];
  for (const row of refused) {
    try {
      await bundle.predict([decoded(row)]);
      why.push("");
    } catch (error) {
      why.push(error.name === "ConfigError" ? error.message : "");
    }
  }
  const outputs = {};
  const found = await bundle.predict(taken.map(decoded));
  for (const [name, { data }] of Object.entries(found)) outputs[name] = Array.from(data, String);
  return JSON.stringify({ outputs, why });
}
"""
"""JSON has no NaN, so numbers are texts."""

IN_NODE = """
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { Bundle, decoded } from "%(module)s/index.js";
import { folder } from "%(module)s/node.js";
const [modules, path, file, rows] = process.argv.slice(2);
const ort = createRequire(modules + "/")("onnxruntime-node");
const bundle = await Bundle.load(folder(path), { ort, file });
console.log(await (%(answers)s)(bundle, decoded, JSON.parse(readFileSync(rows, "utf8"))));
process.exit(0);
"""

IN_CHROMIUM = """
(async () => {
  const { Bundle, decoded } = await import("/client/index.js");
  const ort = await import("/ort/ort.wasm.js");
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = await (await fetch("/ort/ort.wasm")).arrayBuffer();
  const bundle = await Bundle.load("/model/", { ort, file: %(file)s });
  return (%(answers)s)(bundle, decoded, %(rows)s);
})()
"""


def for_javascript(file: str, taken: Rows, refused: Rows) -> str:
    return json.dumps(encoded({"taken": taken, "refused": refused}))


def from_javascript(made: Exported, text: str) -> Answers:
    found, signature = json.loads(text), Signature.read(made.bundle / "signature.json")
    shapes = {each.name: each.shape for each in signature.outputs}
    outputs = {
        name: np.array([*map(float, data)]).reshape(-1, *shapes[name]) for name, data in found["outputs"].items()
    }
    return Answers(outputs, found["why"])


def in_node(made: Exported, folder: Path, file: str, taken: Rows, refused: Rows) -> Answers:
    (folder / "run.mjs").write_text(
        IN_NODE % {"module": ROOT / "jaxtrain/deploy/client/module", "answers": ANSWERS}, encoding="utf-8"
    )
    (folder / "rows.json").write_text(for_javascript(file, taken, refused))
    command = [program("node"), "run.mjs", str(node_modules().parent), str(made.bundle), file, "rows.json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return from_javascript(made, done.stdout)


def in_chromium(made: Exported, folder: Path, file: str, taken: Rows, refused: Rows) -> Answers:
    rows = for_javascript(file, taken, refused)
    with page(Site(made.page), folder / "profile") as tab:
        tab.open()
        tab.wait("document.querySelector('.score')")
        return from_javascript(
            made, tab.run(IN_CHROMIUM % {"file": json.dumps(file), "answers": ANSWERS, "rows": rows})
        )


def in_cpp(made: Exported, folder: Path, file: str, taken: Rows, refused: Rows) -> Answers:
    program("g++")
    predict = subprocess.run([ROOT / "scripts/cpp/build"], check=True, capture_output=True, text=True).stdout.strip()
    lines = "".join(json.dumps(encoded(row)) + "\n" for row in (*taken, *refused))
    done = subprocess.run(
        [predict, "--file", file, made.bundle, "--rows"], input=lines, capture_output=True, text=True, cwd=folder
    )
    assert (done.returncode, done.stderr) == (1 if refused else 0, "")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    outputs = found[: len(taken)]
    arrays = {name: np.array([decoded(each[name]) for each in outputs]) for name in outputs[0]}
    return Answers(arrays, [each.get("error", "") for each in found[len(taken) :]])


PATHS: Mapping[str, Callable[[Exported, Path, str, Rows, Rows], Answers]] = {
    "StableHLO": by_stablehlo,
    "ONNX Runtime": by_onnx_runtime,
    "Node": in_node,
    "Chromium": in_chromium,
    "C++": in_cpp,
}
