"""The JavaScript module of a bundle: its tensors, token ids and messages are those of Python, in Node."""

import base64
import importlib
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import program
from test_signature import ALL, TEXT, edited, signature

from jaxtrain.base.errors import ConfigError
from jaxtrain.deploy.inputs import Category, Input, Text
from jaxtrain.deploy.manifest import BundleManifest, files_of
from jaxtrain.deploy.numeric import Array, Audio, Image, Number
from jaxtrain.deploy.signature import Signature

HERE = Path(__file__).parent

pytestmark = pytest.mark.slow  # it needs Node


def ask(questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers of the JavaScript module."""
    text = json.dumps(questions)
    command = [program("node"), str(HERE / "client.mjs")]
    found = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return json.loads(found.stdout)


def as_json(value: Any) -> Any:
    """A raw value as tests/client.mjs reads it."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, str):
        units = np.frombuffer(value.encode("utf-16-le", "surrogatepass"), np.uint16).tolist()
        return {"units": units} if any(0xD800 <= each < 0xE000 for each in units) else value
    if isinstance(value, dict):
        return {name: as_json(each) for name, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return as_json(value.tolist())
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return {"bigint": str(value)} if isinstance(value, int) and abs(value) > 2**53 else value


def python_tensors(made: Signature, values: Any) -> list[dict[str, Any]] | str:
    """The tensors as tests/client.mjs gives them, or the message."""
    try:
        tensors = made.tensors_of(made.rows(values))
    except ConfigError as error:
        return str(error)
    return [
        {
            "name": name,
            "dtype": x.dtype.name,
            "shape": [*x.shape],
            "base64": base64.b64encode(np.ascontiguousarray(x).tobytes()).decode(),
        }
        for name, x in tensors.items()
    ]


def dtype_cases() -> list[tuple[Input, Any]]:
    found: list[tuple[Input, Any]] = []
    rng = np.random.default_rng(0)
    for dtype in ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "bfloat16", "float32"):
        kind = Array(name="x", tensor="x", shape=(4,), dtype=dtype, missing=True)
        rows: list[Any] = [[0, 1, 0, 1], [0, 1, True, False], [1, 2, 3, 255], [-1, 0, 1, 127], [0.5, 1, 2, 3], [1, 2]]
        rows += [[0, 0, 0, limit] for limit in (65535, 65536, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 62, -(1 << 31))]
        rows += [[math.nan, 0, 0, None], [0, 0, math.inf, 0], [65503.9, 65519.99, 65520, 0], [6e-8, 2.9e-8, -6e-5, 0.1]]
        rows += [rng.normal(size=4) * 10.0 ** rng.integers(-9, 5) for _ in range(12)]
        rows += [[1e-40, -0.0, 3.4028235677973366e38, 1], [1e39, 0, 0, 0], [3.39e38, 0, 1, 2]]
        taken = rows if dtype != "bfloat16" else [row for row in rows if not any(abs(x or 0) > 3e38 for x in row)]
        found += [(kind, row) for row in taken]
    return found


def long_texts() -> list[tuple[Input, Any]]:
    texts = [
        "",
        "a",
        "é" * 5,
        "🙂🙃 👩‍👩‍👧‍👦 🇧🇷 ½",
        "Sa\u0303o Paulo",
        "שלום",
        "\0\0",
        "\ufeffBOM",
        b"\xff\xfe\xe9",
        b"",
        "x" * 5 + "🙂",
        "a\ud800b",
        "\udc00",
    ]
    kinds = [
        Text(name="text", tensor="text", bytes=n, keep=keep, least=least)
        for n in (1, 6, 64)
        for keep in ("first", "last")
        for least in (0, 1, 3)
    ]
    return [(kind, text) for kind in kinds for text in [*texts, 3, None, ["a"]]]


def odd_values() -> list[tuple[Input, Any]]:
    age, count = Number(name="age", tensor="age", missing=True), Number(name="count", tensor="count", integer=True)
    colour = Category(name="colour", tensor="colour", values=("red", "café", "red"), first=1, unknown=0)
    closed = Category(name="size", tensor="size", values=(3, 5, 70), first=-2)
    names = Category(name="n", tensor="n", values=tuple(["alpha", "beta", "gamma", "delta", "kappa", "lambda"]))
    pixels = Image(name="image", tensor="image", shape=(2, 2, 1), dtype="float32", range=(0, 0.1))
    bits = Image(name="image", tensor="image", shape=(1, 1, 3), dtype="uint8", range=(0, 16), missing=True)
    wave = Audio(name="wave", tensor="wave", samples=3, rate=8000)
    ids = ALL.inputs[-1]
    values: list[Any] = [
        *(0, 1, -1, 0.1, 1 << 24, (1 << 24) + 1, 1e300, 1e-300, math.nan, math.inf, -math.inf, None, True, False),
        *(
            "",
            "red",
            "Red",
            "cafe\u0301",
            "blue",
            "alpha",
            "alhpa",
            "zzz",
            "3",
            "don't",
            "a\ud800",
            b"red",
            b"\xef\xbb\xbfred",
            b"\xff",
            b"caf\xc3\xa9",
            b"e\xe2\x82\xff",
        ),
        *([], [1], [1, 2, 3], [[1], [2]], [1, [2]], [[1, 2], [3]], [1, "2"], [None], [1.5, 2, 3], [1, 2, 3, 4, 5, 6]),
        *(
            [[[0], [0.1]], [[0.05], [0.1]]],
            [[[0], [0.2]], [[1], [0]]],
            [[[1, 2, 16]]],
            [[[1, 2, 17]]],
            [[[None, 1, 2]]],
        ),
        *([0.5, -0.5, 0.25], [1, 2, math.nan], [1 << 40], [-1, 5], [1 << 31], [-(1 << 31)], 1 << 62, [[[[1]]]]),
    ]
    kinds = (age, count, colour, closed, names, pixels, bits, wave, ids)
    return [(kind, value) for kind in kinds for value in values if not differs(kind, value)]


def differs(kind: Input, value: Any) -> bool:
    """Bytes are an array of numbers in JavaScript, and only texts and encoded images in Python."""
    ragged = isinstance(kind, Category) and value in ([1, [2]], [[1, 2], [3]])
    return ragged or (isinstance(value, bytes) and not isinstance(kind, Text | Category | Image))


CASES = [*dtype_cases(), *long_texts(), *odd_values()]

DECODED = "cannot be read as an image"
"""Encoded images are read in Python alone."""


def test_raw_values_become_the_same_bytes_or_the_same_message():
    signatures = [signature(kind) for kind, _ in CASES]
    pairs = zip(signatures, CASES, strict=True)
    questions = [
        {"question": "tensors", "signature": made.to_json(), "values": as_json([value])} for made, (_, value) in pairs
    ]
    different = []
    for made, (kind, value), found in zip(signatures, CASES, ask(questions), strict=True):
        wanted = python_tensors(made, [value])
        if isinstance(wanted, str) and DECODED in wanted:
            assert "encoded image" in found["error"]
            continue
        same = found.get("answer", found.get("error")) == wanted
        if not same and not (isinstance(wanted, str) and same_message(wanted, found.get("error", ""))):
            different.append((kind, value, wanted, found))
    assert len(CASES) > 700
    assert different == [], "\n".join(
        f"{kind}\n  {value!r}\n  {wanted}\n  {found}" for kind, value, wanted, found in different
    )


def same_message(python: str, found: str) -> bool:
    """Whether messages say the same: after these words each has what its language knows, and numbers have one kind."""
    for words in ("it is no Unicode text: ", "its bytes are no UTF-8 text", "it has to be numbers, not", "do not fit"):
        if words in python:
            return words in found and python.partition(words)[0] == found.partition(words)[0]
    return python == found


EDITS: list[tuple[str, Any]] = [
    ("format", 2),
    ("format", "1"),
    ("name", "../x"),
    ("name", "a\nb"),
    ("name", 3),
    ("inputs", []),
    ("inputs.0.kind", "video"),
    ("inputs.0.kind", []),
    ("inputs.0.missing", 3),
    ("inputs.0.more", 3),
    ("inputs.0.name", ...),
    ("inputs.1.name", "age"),
    ("inputs.2.values", [[]]),
    ("inputs.2.values", "red"),
    ("inputs.4.range", [1, 0]),
    ("inputs.4.range", [0, "1"]),
    ("inputs.4.shape", [2, 2, 7]),
    ("inputs.4.shape", 4),
    ("inputs.5.shape", [-2]),
    ("inputs.5.dtype", "object"),
    ("inputs.7.samples", 0),
    ("inputs.8.tokenizer", "../tokenizer.json"),
    ("inputs.8.length", -1),
    ("tensors.0.shape", ["batch", 7]),
    ("tensors.0.shape", [1]),
    ("tensors.0.dtype", "complex64"),
    ("tensors.0.name", "other"),
    ("outputs.0.classes", [1]),
    ("outputs.0.classes", ["a", "b", "c", "d", "e", "f", "g"]),
    ("outputs.0", 3),
    ("max_batch", 0),
    ("max_batch", ...),
    ("generation", 3),
    ("maximal_batch", 1),
]


def test_a_signature_that_python_refuses_is_refused_with_the_same_message():
    made = [edited(path, value) for path, value in EDITS]
    found = ask([{"question": "signature", "signature": each, "where": "here"} for each in made])
    for each, answer in zip(made, found, strict=True):
        with pytest.raises(ConfigError) as error:
            Signature.from_json(each, "here")
        assert answer == {"error": str(error.value), "kind": "ConfigError"}


def test_rows_of_other_names_and_lengths_are_refused_with_the_same_message():
    two = signature(*ALL.inputs[:2])
    given: list[tuple[Signature, Any]] = [
        (two, []),
        (two, [{"age": 1}]),
        (two, [{"count": 1, "agee": 1}]),
        (two, [{"count": 1, "zzzzz": 1}]),
        (two, [{"count": 1}, {"count": "x"}]),
        (two, [1]),
        (two, {"age": [1, 2], "count": []}),
        (two, {"age": [1, 2], "count": [1, 2]}),
        (two, {"count": [1, 2]}),
        (signature(TEXT), ["a", {"text": "b"}, b"c"]),
        (signature(TEXT), "a text"),
    ]
    questions = [
        {"question": "tensors", "signature": made.to_json(), "values": as_json(values)} for made, values in given
    ]
    for (made, values), found in zip(given, ask(questions), strict=True):
        assert found.get("answer", found.get("error")) == python_tensors(made, values)


def test_a_prompt_is_a_text_its_bytes_or_token_ids_of_the_vocabulary():
    bytes_, ids = signature(TEXT).to_json(), signature(ALL.inputs[-1]).to_json()
    utf8 = "é".encode()
    cases: list[tuple[Any, Any, Any]] = [
        (bytes_, [0, 255], [0, 255]),
        (bytes_, [5, 256], "generate: token 256 is outside of the vocabulary of 256"),
        (bytes_, [-1], "generate: token -1 is outside of the vocabulary of 256"),
        (bytes_, [1.5], "generate: 1.5 is no token"),
        (bytes_, [None], "generate: None is no token"),
        (bytes_, ["3"], 'generate: "3" is no token'),
        (bytes_, 5, "generate: a prompt is 5: give a text, its bytes or a list of token ids"),
        (bytes_, None, "generate: a prompt is None: give a text, its bytes or a list of token ids"),
        (bytes_, utf8, [0xC3, 0xA9]),
        (ids, 5, "generate: a prompt is 5: give a text, its bytes or a list of token ids"),
        (ids, utf8, [0xE9]),
        (ids, "é", [0xE9]),
        (ids, b"\xff", f"input '{ALL.inputs[-1].name}': its bytes are no UTF-8 text"),
        (ids, "\u0100", "generate: token 256 is outside of the vocabulary of 256"),
    ]
    made = [
        {"question": "prompt", "signature": each, "prompt": as_json(prompt), "vocabulary": 256}
        for each, prompt, _ in cases
    ]
    for (_, prompt, wanted), found in zip(cases, ask(made), strict=True):
        right = {"answer": wanted} if isinstance(wanted, list) else {"error": wanted, "kind": "ConfigError"}
        assert found == right, prompt


def test_a_float_of_golden_json_is_one_that_is_not_finite():
    written = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    others: list[Any] = ["", "0x10", "1.5", "toString", "NaN", None, [], ["nan"], 1.5, True]
    found = ask([{"question": "decoded", "value": {"float": each}} for each in (*written, *others)])
    assert found[:3] == [{"answer": each} for each in written.values()]
    assert {each.get("kind") for each in found[3:]} == {"ConfigError"}
    assert found[4]["error"] == "a value: its float is '0x10', none of nan, inf and -inf"


def loaded(folder: Path, changes: dict[str, dict[str, Any]], file: str) -> dict[str, Any]:
    """What loading a bundle of few parts says, some of which are others. It has no graph to run."""
    out = {"name": "score", "dtype": "float32", "shape": ["batch"]}
    examples = [{"name": "one", "inputs": {"text": "a"}, "outputs": {"score": 0.5}}]
    parts: dict[str, dict[str, Any]] = {
        "signature.json": {**signature(TEXT).to_json(), "name": "model", "outputs": [out]},
        "golden.json": {"format": 1, "examples": examples},
        "metrics.json": {"format": 1, "int8_tolerance": 0.1},
        "model.onnx": {},
        "model.int8.onnx": {},
    }
    for name, each in parts.items():
        (folder / name).write_text(json.dumps({**each, **changes.get(name, {})}))
    BundleManifest("model", "1", {}, {"step": 1}, "none", files_of(folder)).write(folder)
    files = {each.name: each.read_text() for each in folder.iterdir()}
    return ask([{"question": "load", "files": files, "file": file}])[0]


INT8 = "model.int8.onnx"


@pytest.mark.parametrize(
    ("changes", "file", "message"),
    [
        ({}, "model.onnx", "model.onnx: ONNX Runtime does not load it (verified up to the graph)"),
        ({}, INT8, f"{INT8}: ONNX Runtime does not load it (verified up to the graph)"),
        (
            {"signature.json": {"outputs": [{"name": "score", "dtype": "float16", "shape": ["batch"]}]}},
            "model.onnx",
            "JavaScript has no float16 for outputs, the dtype of score",
        ),
        (
            {"signature.json": {"name": "other"}},
            "model.onnx",
            "signature.json: it is of another model than manifest.json",
        ),
        ({"metrics.json": {"int8_tolerance": None}}, INT8, "metrics.json: its 'int8_tolerance' is None"),
        ({"metrics.json": {"int8_tolerance": -1}}, INT8, "metrics.json: its 'int8_tolerance' is -1"),
        ({"metrics.json": {"int8_tolerance": 1e300}}, INT8, "metrics.json: its 'int8_tolerance' is 1e+300"),
        (
            {"golden.json": {"examples": [{"name": "one", "inputs": {}, "outputs": {"score": {"float": ""}}}]}},
            "model.onnx",
            "golden.json: example 0: its float is '', none of nan, inf and -inf",
        ),
    ],
)
def test_a_bundle_that_javascript_cannot_show_or_trust_is_refused(changes, file: str, message: str, tmp_path: Path):
    assert loaded(tmp_path, changes, file)["error"] == message


TEXTS = [
    "",
    " ",
    "a",
    "Hello, world!  It's 2026 — I'LL see; don't. ",
    "  two  spaces\tand\ttabs \n\n new lines\r\n",
    "Adorei! Se eu pudesse dar 1000 estrelas não daria nenhuma :)",
    "🙂🙃 👩‍👩‍👧‍👦 🇧🇷 ½ ² ①",
    "Sa\u0303o Paulo, cafe\u0301, ﬁn",
    "שלום עולם, مرحبا ١٢٣",
    "日本語のテキスト、です。",
    "ΑΣ ὈΔΥΣΣΕΎΣ İstanbul ſtraße K",
    "\ufeffBOM \u0085 \u00a0 \u2028 \u3000 x",
    "<s>special</s> and <mask>, a<mask>b <mask> word wordy word_ ▁low",
    "lower lowest newer newest widest " * 20,
    "\0\x01\x7f\x9f",
    "_snake_case CamelCase 3.14e-10 1,000,000 x=y+z; // ok?!?!",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab",
    "LET LETTER LE LE LE LE'LLE we'LLET you'LLE",
]
CORPUS = [*TEXTS, "low lower lowest new newer newest wide widest", "o cinema é bom, não é? it's what they'd said"] * 3


def tokenizers_made() -> dict[str, Any]:
    """Tokenizers of many kinds, trained on the spot."""
    library: Any = importlib.import_module("tokenizers")
    models, pre, norm, post, train = (
        library.models,
        library.pre_tokenizers,
        library.normalizers,
        library.processors,
        library.trainers,
    )
    llama = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

    def made(pre_tokenizer: Any, normalizer: Any = None, processor: Any = None, special: Any = (), **model: Any) -> Any:
        found = library.Tokenizer(models.BPE(**model))
        found.pre_tokenizer = pre_tokenizer
        if normalizer is not None:
            found.normalizer = normalizer
        alphabet = pre.ByteLevel.alphabet() if not model else []
        suffix = {"end_of_word_suffix": model["end_of_word_suffix"]} if "end_of_word_suffix" in model else {}
        prefix = {"continuing_subword_prefix": "##"} if "continuing_subword_prefix" in model else {}
        trainer = train.BpeTrainer(
            vocab_size=500,
            initial_alphabet=alphabet,
            special_tokens=list(special),
            show_progress=False,
            **suffix,
            **prefix,
        )
        found.train_from_iterator(CORPUS, trainer)
        if processor is not None:
            found.post_processor = processor(found)
        return found

    def template(found: Any) -> Any:
        pairs = [(name, found.token_to_id(name)) for name in ("<s>", "</s>")]
        return post.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=pairs)

    def roberta(found: Any) -> Any:
        return post.RobertaProcessing(("</s>", found.token_to_id("</s>")), ("<s>", found.token_to_id("<s>")))

    special = ("<unk>", "<s>", "</s>", "<mask>")
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    found = {
        "gpt2": made(pre.ByteLevel(add_prefix_space=False)),
        "gpt2, space": made(pre.ByteLevel(add_prefix_space=True), processor=roberta, special=special),
        "llama3": made(
            pre.Sequence([pre.Split(library.Regex(llama), "isolated"), pre.ByteLevel(False, use_regex=False)]),
            processor=template,
            special=special,
        ),
        "metaspace": made(pre.Metaspace(), norm.NFKC(), template, special, unk_token="<unk>", fuse_unk=True),
        "metaspace, first": made(pre.Metaspace(prepend_scheme="first"), special=special, unk_token="<unk>"),
        "metaspace, never": made(
            pre.Metaspace(prepend_scheme="never", split=False), special=special, unk_token="<unk>"
        ),
        "llama2": made(
            None,
            norm.Sequence([norm.Prepend("▁"), norm.Replace(" ", "▁")]),
            special=[*special, *fallback],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        ),
        "words": made(
            pre.Whitespace(),
            norm.Sequence([norm.NFD(), norm.Lowercase(), norm.StripAccents(), norm.Strip()]),
            special=special,
            unk_token="<unk>",
            end_of_word_suffix="</w>",
        ),
        "prefixes": made(
            pre.Sequence([pre.WhitespaceSplit(), pre.Digits(True), pre.Punctuation("contiguous")]),
            norm.NFC(),
            special=special,
            unk_token="<unk>",
            continuing_subword_prefix="##",
        ),
        "digits": made(
            pre.Sequence([pre.Digits(False), pre.Split("e", "merged_with_previous"), pre.ByteLevel(False)]),
            norm.Replace(library.Regex(r"\s+"), " "),
            special=special,
        ),
        "inverted": made(
            pre.Sequence([pre.Split(library.Regex(r"\p{L}+"), "removed", invert=True), pre.ByteLevel(False)])
        ),
    }
    added = library.AddedToken
    found["gpt2"].add_tokens(
        [added("word", single_word=True), added(" low", normalized=True), added("Paulo", lstrip=True)]
    )
    found["metaspace"].add_tokens([added("<mask>", lstrip=True, special=True), added("ﬁn", normalized=True)])
    found["llama3"].add_special_tokens([added("<mask>", rstrip=True), added("new", single_word=True), added("newe")])
    found["words"].enable_truncation(7)
    found["gpt2, space"].enable_truncation(6, direction="left")
    found["gpt2, space"].enable_padding(pad_id=3, length=9)
    found["prefixes"].enable_padding(pad_id=3, direction="left", pad_to_multiple_of=8)
    return found


def test_texts_become_the_same_token_ids_as_by_the_library():
    made = tokenizers_made()
    questions = [
        {"question": "tokens", "tokenizer": json.loads(each.to_str()), "texts": TEXTS} for each in made.values()
    ]
    for (name, each), found in zip(made.items(), ask(questions), strict=True):
        assert "error" not in found, (name, found["error"])
        for text, ids in zip(TEXTS, found["answer"], strict=True):
            assert ids == each.encode(text).ids, (
                name,
                text,
                [each.id_to_token(id) for id in ids],
                each.encode(text).tokens,
            )
