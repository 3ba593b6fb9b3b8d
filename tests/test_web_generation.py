"""A language model continues texts in Node and in a headless Chromium as it does in Python, token for token."""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Site, page
from programs import program
from test_bundle import rewritten
from test_cli import call
from test_generate_text import experiment, text
from test_language_bundle import DRAWN, GREEDY, PROMPTS, Made, made
from test_predictor import few
from test_sampling import kept_by_numpy

from jaxtrain import load
from jaxtrain.base.errors import Damaged
from jaxtrain.deploy.bundle import Bundle
from jaxtrain.deploy.client import runtime
from jaxtrain.deploy.client.web import write_web
from jaxtrain.deploy.export import export_run
from jaxtrain.deploy.onnx.int8 import Int8Gate
from jaxtrain.train import train

HERE = Path(__file__).parent
__all__ = ["call"]  # the fixture

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("words"), experiment(), Int8Gate())


NODE = """
import { readFileSync } from "node:fs";
import * as ort from "./ort.mjs";
import { Bundle } from "%(module)s/index.js";
import { folder } from "%(module)s/node.js";
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmBinary = readFileSync("ort.wasm");
const bundle = await Bundle.load(folder(process.argv[2]), { ort });
const found = [];
for (const [prompt, options] of JSON.parse(process.argv[3])) {
  const [pieces, ids] = [[], []];
  try {
    for await (const { token, text } of bundle.generate(prompt, options)) {
      pieces.push(text);
      if (token !== null) ids.push(token);
    }
    found.push({ pieces, ids });
  } catch (error) {
    found.push({ error: `${error.name}: ${error.message}` });
  }
}
console.log(JSON.stringify(found));
process.exit(0);
"""


def in_node(tmp_path: Path, bundle: Path, *calls: tuple[Any, dict[str, Any]]) -> list[dict[str, Any]]:
    """What `bundle.generate` gives for each prompt and its options."""
    files = runtime.web_runtime()
    shutil.copyfile(files / "ort.wasm.js", tmp_path / "ort.mjs")
    shutil.copyfile(files / "ort.wasm", tmp_path / "ort.wasm")
    module = HERE.parent / "jaxtrain/deploy/client/module"
    (tmp_path / "run.mjs").write_text(NODE % {"module": module})
    done = subprocess.run(
        [program("node"), "run.mjs", str(bundle), json.dumps(calls)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_onnx_continues_as_the_run_and_its_graphs_hold_no_weights_of_their_own(words: Made):
    bundle = Bundle(words.out, backend="onnx")
    for sampling in (GREEDY, DRAWN):
        expected = text(words.run, *PROMPTS, tokens=9, sampling=sampling, seed=3)
        found = bundle.generate(PROMPTS, 9, sampling, 3)
        assert [prompt + each for prompt, each in zip(PROMPTS, found, strict=True)] == expected
    table = 320 * 16 * 4  # bytes of the embedding, which is also that of the logits
    for name in ("prefill.onnx", "decode.onnx"):
        assert b"weights.safetensors" in (words.folder / name).read_bytes()
    whole, parts = ((words.folder / name).stat().st_size for name in ("model.onnx", "decode.onnx"))
    assert parts < whole - table
    assert json.loads((words.folder / "metrics.json").read_text())["generation"]["onnx"].keys() == {"prefill", "decode"}


def test_node_continues_as_python(words: Made, tmp_path: Path):
    calls = [(prompt, {"temperature": 0, "tokens": 9}) for prompt in PROMPTS]
    drawn = {"temperature": 0.8, "topK": 40, "topP": 0.9, "minP": 0.01, "tokens": 9}
    more = [("good", {**drawn, "seed": seed}) for seed in (1, 1, 2)]
    bounded = [("good", {"temperature": 1, "topK": 1, "tokens": 9}), ("good", {"topP": 1e-9, "minP": 1, "tokens": 9})]
    ended = [("good", {"temperature": 0, "tokens": 9, "stop": ["e", "o", "n"]}), ("good", {"temperature": 0})]
    found = in_node(tmp_path, words.folder, *calls, *more, *bounded, *ended)
    for prompt, each in zip(PROMPTS, found, strict=False):
        assert prompt + "".join(each["pieces"]) == text(words.run, prompt, tokens=9, sampling=GREEDY)[0]
        assert "\ufffd" not in "".join(each["pieces"][:-1])
    assert found[4] == found[5] != found[6]
    assert found[7]["ids"] == found[8]["ids"] == found[0]["ids"]
    stopped = text(words.run, "good", tokens=9, sampling=GREEDY, stop=("e", "o", "n"))[0]
    assert "good" + "".join(found[9]["pieces"]) == stopped
    assert "good" + "".join(found[10]["pieces"]) == text(words.run, "good", sampling=GREEDY)[0]


def test_node_draws_from_the_tokens_that_numpy_keeps(words: Made, tmp_path: Path):
    limits = {"temperature": 0.8, "top_k": 9, "top_p": 0.6, "min_p": 0.05}
    named = {"temperature": 0.8, "topK": 9, "topP": 0.6, "minP": 0.05}
    scores = Bundle(words.folder).predict(["good"])["log_probabilities"][0, :256].astype(np.float64)
    kept = kept_by_numpy(scores, **limits)
    chances = np.where(kept, np.exp(scores / 0.8), 0)
    found = in_node(tmp_path, words.folder, *[("good", {**named, "tokens": 1, "seed": n}) for n in range(200)])
    counts = np.bincount([each["ids"][0] for each in found if each["ids"]], minlength=256) / 200
    assert set(counts.nonzero()[0]) <= set(kept.nonzero()[0])
    assert np.abs(counts - chances / chances.sum()).max() < 0.14  # 200 draws: 0.035 is one standard deviation at most


WRONG: list[tuple[tuple[Any, dict[str, Any]], str]] = [
    (("good", {"tokens": 25}), "4 tokens of a prompt and 25 more are above 24, and the bundle has room for 24 tokens"),
    (("x" * 24, {}), "a prompt has 24 tokens, and the bundle has room for 24 tokens: shorten it"),
    (("good", {"tokens": 0}), "tokens is 0, and not a number from 1 on"),
    (("good", {"topP": 1.5}), "topP is 1.5, and not above 0 and at most 1"),
    (("good", {"top_p": 0.5}), "there is no option 'top_p'; known: tokens, temperature"),
    (("good", {"seed": -1}), "seed is -1"),
    (("good", {"stop": "e"}), "stop is 'e', and not a list of texts"),
    ((3, {}), "generate: a prompt is 3: give a text, its bytes or a list of token ids"),
    (([1, 320], {}), "generate: token 320 is outside of the vocabulary of 320"),
    (([1.5], {}), "generate: 1.5 is no token"),
]


def test_what_node_cannot_do_is_one_message(words: Made, tmp_path: Path):
    found = in_node(tmp_path, words.folder, *[each for each, _ in WRONG])
    for each, (_, why) in zip(found, WRONG, strict=True):
        assert each["error"].startswith("ConfigError: ")
        assert why in each["error"]


def test_damaged_graphs_are_refused_by_both(words: Made, tmp_path: Path):
    copy = Path(shutil.copytree(words.folder, tmp_path / "copy"))
    content = (copy / "decode.onnx").read_bytes()
    (copy / "decode.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    [found] = in_node(tmp_path, copy, ("good", {}))
    assert found["error"].startswith("Damaged: decode.onnx: its bytes are not those that were written")
    rewritten(copy, "decode.onnx", (copy / "prefill.onnx").read_bytes())
    [found] = in_node(tmp_path, copy, ("good", {}))
    assert found["error"] == "Damaged: decode.onnx: it takes or gives other arrays than signature.json says"
    with pytest.raises(Damaged, match=r"decode\.onnx: it takes or gives other arrays"):
        Bundle(copy, backend="onnx")
    rewritten(copy, "decode.onnx", content)
    golden = json.loads((copy / "golden.json").read_text())
    golden["texts"][1]["last"][3] += 0.01
    rewritten(copy, "golden.json", json.dumps(golden).encode())
    [found] = in_node(tmp_path, copy, ("good", {}))
    assert "of golden text 1, the logit of 3 before token" in found["error"]
    with pytest.raises(Damaged, match="of golden text 1, the logit of 3 before token"):
        Bundle(copy, backend="onnx")


def test_the_page_of_char_lm_continues_as_its_run(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jaxtrain.deploy.batch_curve._SECONDS", 0.0)
    monkeypatch.setattr("jaxtrain.deploy.batch_curve.SIZES", (1, 16))
    whole = load(str(HERE.parent / "experiments/char_lm.py"))[0]
    optimizer: Any = whole.optimizer
    optimizer = dataclasses.replace(optimizer, schedule=dataclasses.replace(optimizer.schedule, warmup=0))
    evals = {"test": few(whole).evals["test"]}
    run, _ = train(dataclasses.replace(whole, optimizer=optimizer, steps=3, evals=evals), tmp_path / "run")
    folder = export_run(run, tmp_path / "out", "char_lm", gate=Int8Gate())
    wanted = call("generate", tmp_path / "run", "This film is", "--temperature", 0).out.rstrip("\n")
    made_of = json.loads((write_web(folder, tmp_path / "other") / "site.json").read_text())["files"]
    assert {name for name, each in made_of.items() if each.get("later")} == {
        *(f"model/{name}" for name in ("prefill.onnx", "decode.onnx", "weights.safetensors")),
        *("ort/ort.webgpu.js", "ort/ort.webgpu.wasm"),
    }
    site = Site(write_web(folder, tmp_path / "site"))
    with page(site, tmp_path / "profile") as tab:
        tab.open()
        tab.wait("document.querySelector('.score')")
        field = "document.querySelector('[name=text]')"
        tab.run(f"{field}.value = 'This film is'; {field}.dispatchEvent(new Event('input')); 0")
        tab.run("document.querySelector('#continue button').click()")
        begins = json.dumps(wanted.rstrip("\ufffd"))
        tab.wait(
            f"{field}.value.startsWith({begins}) && /^\\d+ tokens/.test(document.querySelector('#continue .count').textContent)"
        )
        tab.run("document.querySelector('#continue button').click()")
    assert any("model/decode.onnx" in each for each in site.asked)
