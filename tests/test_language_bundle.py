"""Bundles of language models continue texts as their run does, by the graphs with a cache; the reference is the graph
without one, which reads the whole text anew for each token.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_bundle import Made, flip, forged, rewritten
from test_cli import call
from test_client import ask
from test_generate_text import TEXTS, experiment, text

from jaxtrain import ConfigError, Experiment
from jaxtrain.base.errors import Damaged, Diverged
from jaxtrain.data import train_bpe
from jaxtrain.deploy.bundle import Bundle
from jaxtrain.deploy.export import export_run
from jaxtrain.deploy.generation import Generation
from jaxtrain.deploy.greedy import StepPair, prompt_tensors
from jaxtrain.deploy.inputs import Text
from jaxtrain.deploy.language import language_graphs
from jaxtrain.deploy.onnx.int8 import Int8Gate
from jaxtrain.deploy.predictor import Predictor
from jaxtrain.deploy.signature import Signature
from jaxtrain.generation import Sampling
from jaxtrain.models import Experts
from jaxtrain.train import train

GREEDY, DRAWN = Sampling(temperature=0), Sampling(temperature=0.8, top_k=40, top_p=0.9, min_p=0.01)
PROMPTS = ["good", "a\nb and so", "", "½ 空"]
__all__ = ["call"]  # the fixture


def made(folder: Path, one: Experiment, gate: Int8Gate | None = None) -> Made:
    run, _ = train(one, folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxtrain.deploy.batch_curve._SECONDS", 0.0)
        patch.setattr("jaxtrain.deploy.batch_curve.SIZES", (1,))
        export_run(run, folder / "out", "words", gate=gate)
    return Made(folder / "run", folder / "out")


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("words"), experiment())


@pytest.fixture
def copy(words: Made, tmp_path: Path) -> Path:
    """A version folder of its own."""
    return Path(shutil.copytree(words.folder, tmp_path / "copy"))


def uncached(bundle: Bundle, prompt: str, tokens: int) -> list[int]:
    """The likeliest tokens, each by the whole graph, which reads all bytes before it."""
    ids = list(prompt.encode())
    for _ in range(tokens):
        scores = bundle.predict([bytes(ids)])["log_probabilities"][0]
        ids.append(int(scores[:256].argmax()))
    return ids[len(prompt.encode()) :]


def test_greedy_tokens_are_those_of_the_whole_graph(words: Made):
    bundle = Bundle(words.out)
    for prompt in ("good", "½ 空", "the last one of"):
        wanted = uncached(bundle, prompt, 6)
        assert 0 not in wanted
        whole = bytes([*prompt.encode(), *wanted]).decode(errors="replace")
        assert prompt + bundle.generate([prompt], 6, GREEDY)[0] == whole


def test_texts_are_those_of_the_run(words: Made):
    bundle = Bundle(words.out)
    for sampling, seed in ((GREEDY, 0), (DRAWN, 3), (Sampling(), 2**32 - 1)):
        expected = text(words.run, *PROMPTS, tokens=9, sampling=sampling, seed=seed, stop=("e",))
        found = bundle.generate(PROMPTS, 9, sampling, seed, ("e",))
        assert [prompt + each for prompt, each in zip(PROMPTS, found, strict=True)] == expected
    assert bundle.generate(["good"], sampling=GREEDY) == [text(words.run, "good", sampling=GREEDY)[0][4:]]


def test_the_command_prints_what_it_does_for_the_run(call, words: Made):
    flags = [
        "good",
        "bad",
        "",
        "--tokens",
        7,
        "--top-p",
        0.9,
        "--min-p",
        0.01,
        "--top-k",
        50,
        "--seed",
        5,
        "--stop",
        "o",
    ]
    found = call("generate", words.out, *flags)
    assert found.code == 0
    assert found.out == call("generate", words.run, *flags).out


REFUSED = {
    ("good", "--step", "2"): "--step: a bundle is of one step",
    ("good", "--mesh", "data 1"): "--mesh: a bundle has graphs for one device",
    ("good", "--context", "25"): "--context 25: the bundle has room for 24 tokens: generate from its run",
    ("good", "--tokens", "25"): "4 tokens of a prompt and 25 more are above 24, and the bundle has room for 24 tokens: "
    "give --tokens 20, or with its run, --context 29 goes beyond what it trained on",
    ("x" * 24,): "a prompt has 24 tokens, and the bundle has room for 24 tokens",
    ("good", "--backend", "onnx"): "has no model.onnx",
}


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_what_a_bundle_cannot_do_is_refused_by_name(call, words: Made, arguments: tuple[str, ...]):
    found = call("generate", words.out, *arguments)
    assert (found.code, found.out) == (2, "")
    assert REFUSED[arguments] in found.err


def test_what_python_cannot_do_is_one_message(words: Made):
    bundle = Bundle(words.out)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"prompts": "good"}, "give a list of prompts"),
        ({"prompts": []}, "give a list of prompts"),
        ({"prompts": ["good"], "tokens": 0}, "0 tokens: give at least 1"),
        ({"prompts": ["good"], "sampling": Sampling(stop=(256,))}, "Sampling.stop: tokens are whole numbers from 0 to"),
    ]
    for more, why in cases:
        with pytest.raises(ConfigError, match=why):
            bundle.generate(**more)


def test_a_prompt_that_the_model_has_no_token_for_is_refused(words: Made, monkeypatch: pytest.MonkeyPatch):
    bundle = Bundle(words.out)
    with pytest.raises(ConfigError, match="prompt 1 is no Unicode text"):
        bundle.generate(["good", "\udcff"])
    generation = bundle.signature.generation
    assert generation is not None
    small = dataclasses.replace(generation, logits=dataclasses.replace(generation.logits, shape=(100,)))
    monkeypatch.setattr(bundle, "signature", dataclasses.replace(bundle.signature, generation=small))
    with pytest.raises(ConfigError, match="generate: prompt 0: tokens are whole numbers from 0 to 99"):
        bundle.generate(["good"])


def test_a_run_has_no_backend(call, words: Made):
    found = call("generate", words.run, "good", "--backend", "onnx")
    assert found.code == 2
    assert "is a run: export it" in found.err


def test_the_signature_says_how_texts_are_continued(words: Made):
    found = json.loads((words.folder / "signature.json").read_text())["generation"]
    key = {"name": "key_0", "dtype": "float32", "shape": ["batch", 2, 24, 8]}
    logits = {"name": "logits", "dtype": "float32", "shape": ["batch", 320]}
    length = {"name": "length", "dtype": "int32", "shape": ["batch"]}
    recent = {"name": "recent", "dtype": "int32", "shape": ["batch", 1]}
    cache = [key, length, recent, {**key, "name": "value_0"}]
    assert found == {
        "prompt": 24,
        "context": 24,
        "vocab": 256,
        "stop": 0,
        "begins": True,
        "tokens": "bytes",
        "prefill_inputs": [
            {"name": "tokens", "dtype": "int32", "shape": ["batch", 24]},
            {"name": "lengths", "dtype": "int32", "shape": ["batch"]},
        ],
        "prefill_outputs": [logits, *cache],
        "decode_inputs": [{"name": "token", "dtype": "int32", "shape": ["batch"]}, *cache],
        "decode_outputs": [logits, *cache],
    }


FORGED: dict[str, tuple[str, Any, str]] = {
    "no number": ("prompt", "24", "generation.prompt"),
    "a prompt above the context": ("prompt", 25, "generation.prompt"),
    "no number of tokens": ("vocab", "256", "generation.prompt"),
    "more tokens than logits": ("vocab", 321, "generation.vocab"),
    "a stop that is no token": ("stop", 256, "generation.stop"),
    "a beginning without a separator": ("stop", None, "generation.begins"),
    "another tokenizer": ("tokens", "tokenizer.json", "generation.tokens"),
    "no cache": ("prefill_outputs", [], "generation.prefill_outputs"),
    "another cache": ("decode_inputs", [], "generation.decode_inputs"),
    "no object": ("decode_outputs", 3, "generation.decode_outputs"),
    "a name that is not known": ("steps", 3, "has a 'steps'"),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_signature_that_no_exporter_writes_is_refused(what: str, words: Made):
    name, value, why = FORGED[what]
    found = json.loads((words.folder / "signature.json").read_text())["generation"]
    inputs = (Text(name="text", tensor="text", bytes=25, keep="last", least=1),)
    assert Generation.from_json(found, inputs, "generation").to_json() == found
    with pytest.raises(ConfigError, match=why):
        Generation.from_json({**found, name: value}, inputs, "generation")


def test_javascript_refuses_the_same_with_the_same_message(words: Made):
    whole = json.loads((words.folder / "signature.json").read_text())
    made = [{**whole, "generation": {**whole["generation"], name: value}} for name, value, _ in FORGED.values()]
    made += [{**whole, "generation": {}}, {**whole, "generation": [1]}]
    found = ask([{"question": "signature", "signature": each, "where": "here"} for each in [*made, whole]])
    for each, answer in zip(made, found, strict=False):
        with pytest.raises(ConfigError) as error:
            Signature.from_json(each, "here")
        assert answer == {"error": str(error.value), "kind": "ConfigError"}
    assert "error" not in found[-1]


@pytest.mark.parametrize("name", ["prefill.stablehlo", "decode.stablehlo"])
def test_a_damaged_graph_is_refused(name: str, copy: Path):
    content = (copy / name).read_bytes()
    flip(copy / name, len(content) // 2)
    with pytest.raises(Damaged, match=rf"{name}: its bytes have changed"):
        Bundle(copy)
    other = {"prefill.stablehlo": "decode.stablehlo", "decode.stablehlo": "prefill.stablehlo"}[name]
    rewritten(copy, name, (copy / other).read_bytes())
    with pytest.raises(Damaged, match=rf"{name}: it was not made for"):
        Bundle(copy)
    (copy / name).unlink()
    forged(copy, lambda facts: facts["files"].pop(name))
    with pytest.raises(Damaged, match=rf"{name}: it is missing"):
        Bundle(copy)


GOLDEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another token": (
        lambda one: one["tokens"].__setitem__(-1, one["tokens"][-1] ^ 1),
        r"of golden text 0, token \d is",
    ),
    "another first logit": (
        lambda one: one["first"].__setitem__(7, one["first"][7] + 0.01),
        "logit of 7 before token 0",
    ),
    "another last logit": (
        lambda one: one["last"].__setitem__(9, one["last"][9] - 0.01),
        r"logit of 9 before token \d",
    ),
    "no tokens": (lambda one: one["tokens"].clear(), "it is no prompt with its tokens and logits"),
    "fewer logits": (lambda one: one["first"].pop(), "it is no prompt with its tokens and logits"),
    "a token of no vocabulary": (lambda one: one["prompt"].__setitem__(0, 320), "it is no prompt with its tokens"),
}


@pytest.mark.parametrize("what", GOLDEN)
def test_golden_texts_that_are_not_what_the_graphs_compute_are_refused(what: str, copy: Path):
    change, why = GOLDEN[what]
    golden = json.loads((copy / "golden.json").read_text())
    assert len(golden["texts"]) >= 4
    assert max(len(each["tokens"]) for each in golden["texts"]) > 1
    change(golden["texts"][0])
    rewritten(copy, "golden.json", json.dumps(golden).encode())
    with pytest.raises(Damaged, match=why):
        Bundle(copy)


def test_golden_texts_are_what_the_whole_graph_computes(words: Made):
    bundle = Bundle(words.out)
    texts = [each for each in json.loads((words.folder / "golden.json").read_text())["texts"] if each["prompt"] != [0]]
    assert {len(each["prompt"]) for each in texts} >= {1, 3, 12}
    for each in texts:
        ids = bytes(each["prompt"])
        scores = bundle.predict([ids + bytes(each["tokens"][:n]) for n in range(len(each["tokens"]))])
        log_probabilities = scores["log_probabilities"]
        assert log_probabilities[:, :256].argmax(1).tolist() == each["tokens"]
        for logits, found in ((each["first"], log_probabilities[0]), (each["last"], log_probabilities[-1])):
            exact = np.array(logits) - np.log(np.exp(np.array(logits)).sum())
            np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)


def test_the_cache_is_replaced_in_place_on_the_device(words: Made):
    bundle = Bundle(words.out)
    generation = bundle.signature.generation
    assert generation is not None
    first = bundle.steps.prefill(prompt_tensors(generation, [[5, 9], [7]]))
    cache = {name: x for name, x in first.items() if name != "logits"}
    bundle.steps.decode({"token": np.array([3, 4], np.int32), **cache})
    assert {*cache} == {"length", "recent", "key_0", "value_0"}
    assert all(x.is_deleted() for x in cache.values())


def test_logits_that_are_not_finite_end_with_the_prompt_that_has_them(words: Made, monkeypatch: pytest.MonkeyPatch):
    bundle = Bundle(words.out)
    logits = np.zeros((2, 320), np.float32)
    logits[1] = np.nan
    monkeypatch.setattr(bundle, "_steps", StepPair(lambda _: {"logits": logits}, lambda _: {"logits": logits}))
    with pytest.raises(Diverged, match="prompt 1 are not finite"):
        bundle.generate(["good", "bad"], 3)


def test_where_two_tokens_are_always_equally_likely_there_is_no_golden_text(words: Made):
    weights = {path: np.zeros_like(x) for path, x in load_file(words.folder / "weights.safetensors").items()}
    found = language_graphs(Predictor.of(experiment(), weights), [{"text": "good"}], weights)
    assert found == "of every golden prompt, two next tokens are equally likely"


def test_a_model_without_a_cache_exports_and_says_why_it_continues_nothing(tmp_path: Path, caplog):
    one = experiment()
    model: Any = one.task.model
    blocks = dataclasses.replace(model.blocks, experts=Experts(count=2, capacity=1.0))
    task = dataclasses.replace(one.task, model=dataclasses.replace(model, blocks=blocks))
    found = made(tmp_path, dataclasses.replace(one, task=task))
    assert "the bundle cannot continue texts: experts.capacity: 1.0 drops tokens" in caplog.text
    assert not (found.folder / "prefill.stablehlo").exists()
    bundle = Bundle(found.out)
    assert bundle.signature.generation is None
    with pytest.raises(ConfigError, match="has no graphs that continue texts: it is of no language model with a cache"):
        bundle.generate(["good"])


def test_a_model_of_subword_tokens_continues_by_the_tokenizer_in_its_bundle(tmp_path: Path):
    tokenizer = train_bpe(TEXTS, 300, tmp_path / "bpe.json")
    found = made(tmp_path, experiment(tokenizer, tmp_path))
    expected = text(found.run, "good film", "", tokens=8, sampling=GREEDY)
    Path(tokenizer.path).unlink()
    bundle = Bundle(found.out)
    assert bundle.signature.generation is not None
    assert bundle.signature.generation.tokens == "tokenizer.json"
    continued = bundle.generate(["good film", ""], 8, GREEDY)
    assert ["good film" + continued[0], continued[1]] == expected
