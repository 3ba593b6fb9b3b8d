"""Raw inputs as tensors, by literal values; signature.json, field by field; what is refused, and why."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from jaxtrain.base.errors import ConfigError
from jaxtrain.deploy.inputs import Category, Input, Tensor, Text, TokenIds
from jaxtrain.deploy.numeric import INPUT_KINDS, Array, Audio, Image, Number
from jaxtrain.deploy.signature import Signature

TEXT = Text(name="text", tensor="text", bytes=6)
LAST = Text(name="text", tensor="text", bytes=3, keep="last", least=1)
AGE = Number(name="age", tensor="age", missing=True)
COUNT = Number(name="count", tensor="count", integer=True)
COLOUR = Category(name="colour", tensor="colour", values=("red", "café"), first=1, unknown=0)
CLOSED = Category(name="size", tensor="size", values=(3, 5))
PIXELS = Image(name="image", tensor="image", shape=(2, 2, 1), dtype="float32", range=(0, 1))
X = Array(name="x", tensor="x", shape=(2,), dtype="float32")
IDS = Array(name="ids", tensor="ids", shape=(3,), dtype="int32", range=(0, 9))
WAVE = Audio(name="wave", tensor="wave", samples=3, rate=8000)
TOKENS = TokenIds(name="text", tensor="tokens", tokenizer="tokenizer.json", length=4, pad=-1, keep="last", least=1)
HALF = Array(name="x", tensor="x", shape=(2,), dtype="bfloat16")
OUT = Tensor("probabilities", "float32", (2,), ("negative", "positive"))


def signature(*inputs: Input) -> Signature:
    return Signature("sentiment", inputs, tuple(each.spec() for each in inputs), (OUT,), 32)


@pytest.mark.parametrize(
    ("kind", "value", "row"),
    [
        (TEXT, "abc", [97, 98, 99, 0, 0, 0]),
        (TEXT, "", [0] * 6),
        (TEXT, "xé🙂!", [120, 0xC3, 0xA9, 0xF0, 0x9F, 0x99]),
        (TEXT, b"\xff\xfe", [255, 254, 0, 0, 0, 0]),
        (LAST, "abcdef", [100, 101, 102]),
        (LAST, "a", [97, 0, 0]),
        (AGE, 3, 3.0),
        (AGE, None, math.nan),
        (AGE, math.nan, math.nan),
        (AGE, np.float64(0.1), np.float32(0.1)),
        (COUNT, 1 << 24, 1 << 24),
        (COLOUR, "red", 1),
        (COLOUR, "cafe\u0301", 2),
        (COLOUR, "blue", 0),
        (COLOUR, b"\xff", 0),
        (CLOSED, 5, 1),
        (PIXELS, [[[0], [0.5]], [[1], [0.25]]], [[[0.0], [0.5]], [[1.0], [0.25]]]),
        (X, (1, 2.5), [1.0, 2.5]),
        (IDS, [0, 9, 4], [0, 9, 4]),
        (WAVE, np.array([0.5, -0.5, 0]), [0.5, -0.5, 0.0]),
        (TOKENS, [1, 2], [1, 2, -1, -1]),
        (TOKENS, np.arange(6, dtype=np.uint16), [2, 3, 4, 5]),
    ],
)
def test_a_raw_input_is_this_row(kind, value, row):
    found = kind.row(value)
    assert (found.dtype.name, found.shape) == (kind.spec().dtype, kind.spec().shape)
    np.testing.assert_array_equal(found, np.asarray(row, found.dtype))


@pytest.mark.parametrize(
    ("kind", "value", "why"),
    [
        (TEXT, 3, "input 'text': it has to be a text, not 3"),
        (TEXT, "a\ud800", "it is no Unicode text"),
        (LAST, "", "it is empty"),
        (AGE, math.inf, "it is inf, but has to be finite"),
        (AGE, "3", r'it has to be numbers, not "3"'),
        (AGE, [3], "one number"),
        (AGE, 1e300, "beyond float32"),
        (COUNT, None, "it is missing"),
        (COUNT, 0.5, "integer"),
        (COUNT, (1 << 24) + 1, "integer within ±16,777,216"),
        (COLOUR, 3, "it is 3, none of its values"),
        (COLOUR, 1.5, "neither a text nor an integer"),
        (CLOSED, 4, "it is 4, none of its values; known: 3, 5"),
        (PIXELS, [[[0], [2]], [[1], [0]]], "it holds 2.0, but is on the scale of 0 to 1"),
        (PIXELS, [[[0], [math.nan]], [[1], [0]]], "it holds nan"),
        (PIXELS, [[0, 0], [1, 1]], r"of shape \[2, 2\], not \[2, 2, 1\]"),
        (PIXELS, b"no image", "cannot be read as an image"),
        (X, [1], r"of shape \[1\], not \[2\]"),
        (X, [[1, 2], [3]], "its lists differ in length"),
        (X, [1, "2"], "it has to be numbers"),
        (X, [1, None], "it holds nan"),
        (X, [1, 1 << 70], "it has to be numbers"),
        (X, object(), "it has to be numbers"),
        (IDS, [0, 1, 10], "it holds 10, but is on the scale of 0 to 9"),
        (IDS, [0, 1, 0.5], "its numbers do not fit int32"),
        (WAVE, [0.0] * 2, "3 finite samples"),
        (WAVE, [0.0, math.nan, 1], "3 finite samples"),
        (TOKENS, "text", "its tokenizer is not loaded"),
        (TOKENS, [], "it has 0 tokens, of at least 1"),
        (TOKENS, [1 << 31], "token ids are a list of integers from 0 to 2147483647"),
        (TOKENS, [-1], "token ids are a list of integers from 0 to 2147483647"),
        (replace(TOKENS, vocab=7), [3, 7], "token ids are a list of integers from 0 to 6"),
        (COLOUR, [1, [2]], r"it is \[1, \[2\]\], neither a text nor an integer"),
        (COLOUR, ["red"], r"it is \['red'\], neither a text nor an integer"),
        (HALF, [1.0, math.inf], "it holds inf, but has to be finite numbers"),
        (HALF, np.array([1.0, math.inf], ml_dtypes.bfloat16), "it holds inf, but has to be finite numbers"),
        (HALF, [1.0, 3.4e38], "it has a number beyond bfloat16"),
    ],
)
def test_a_raw_input_of_another_kind_is_refused(kind, value, why):
    with pytest.raises(ConfigError, match=why):
        kind.row(value)


def test_rows_become_tensors_by_name():
    both = signature(AGE, COLOUR)
    found = both.tensors_of([{"age": 1, "colour": "red"}, {"colour": "?"}])
    np.testing.assert_array_equal(found["age"], np.array([1, np.nan], np.float32))
    np.testing.assert_array_equal(found["colour"], np.array([1, 0], np.int32))
    assert both.rows({"age": [1, 2], "colour": ["a", "b"]}) == [
        {"age": 1, "colour": "a"},
        {"age": 2, "colour": "b"},
    ]
    assert signature(TEXT).rows(["a", {"text": "b"}]) == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([], "there are no inputs"),
        ([{"age": 1}], "input 'colour' is missing: the model reads age, colour"),
        ([{"age": 1, "color": "red"}], "there is no input 'color'; did you mean 'colour'?"),
        ([{"age": 1, "colour": "red"}, {"age": "x", "colour": "red"}], "row 1: input 'age'"),
    ],
)
def test_rows_with_other_fields_are_refused(rows, why):
    with pytest.raises(ConfigError, match=re.escape(why)):
        signature(AGE, COLOUR).tensors_of(rows)


def test_bare_values_and_columns_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="row 0: give an object with age, colour"):
        signature(AGE, COLOUR).rows([1])
    with pytest.raises(ConfigError, match="different numbers of rows"):
        signature(AGE, COLOUR).rows({"age": [1], "colour": []})
    with pytest.raises(ConfigError, match="give a list of inputs"):
        signature(TEXT).rows("a text")


def test_an_encoded_image_is_put_on_the_scale():
    import io

    from PIL import Image as Pillow

    file = io.BytesIO()
    Pillow.fromarray(np.array([[0, 255], [51, 102]], np.uint8)).save(file, "PNG")
    np.testing.assert_allclose(PIXELS.row(file.getvalue())[..., 0], [[0, 1], [0.2, 0.4]], rtol=1e-6)
    whole = Image(name="image", tensor="image", shape=(2, 2, 1), dtype="uint8", range=(0, 255))
    assert whole.row(file.getvalue())[..., 0].tolist() == [[0, 255], [51, 102]]


def test_signature_json_is_this():
    made = signature(TEXT).to_json()
    assert made == {
        "format": 1,
        "name": "sentiment",
        "inputs": [{"name": "text", "kind": "text", "tensor": "text", "bytes": 6, "keep": "first", "least": 0}],
        "tensors": [{"name": "text", "dtype": "uint8", "shape": ["batch", 6]}],
        "outputs": [
            {
                "name": "probabilities",
                "dtype": "float32",
                "shape": ["batch", 2],
                "classes": ["negative", "positive"],
            }
        ],
        "max_batch": 32,
    }


ALL = signature(AGE, COUNT, COLOUR, CLOSED, PIXELS, X, IDS, WAVE, TOKENS)


def test_every_kind_is_read_back():
    assert {type(each) for each in [*ALL.inputs, TEXT]} == set(INPUT_KINDS.values())
    assert Signature.from_json(json.loads(json.dumps(ALL.to_json()))) == ALL


def edited(path: str, value: Any) -> Any:
    """ALL's JSON with another value; `...` removes it."""
    made = json.loads(json.dumps(ALL.to_json()))
    *parents, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    node = made
    for part in parents:
        node = node[part]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return made


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("format", 2, "it is of format 2, and this version of jaxtrain reads 1: update jaxtrain"),
        ("format", "1", "its format is '1', which is none"),
        ("name", "../x", "is not a name"),
        ("name", 3, "is no text"),
        ("inputs", [], "it is no list of objects"),
        ("inputs.0.kind", "video", "'video' is none of"),
        ("inputs.0.kind", [], "is none of"),
        ("inputs.0.missing", 3, "true or false"),
        ("inputs.0.more", 3, "it has a 'more', which is not known here"),
        ("inputs.0.name", ..., "it has no 'name'"),
        ("inputs.1.name", "age", "has a name twice"),
        ("inputs.2.values", [[]], "texts or integers"),
        ("inputs.2.values", "red", "is no list"),
        ("inputs.4.range", [1, 0], "is no range"),
        ("inputs.4.range", [0, "1"], "is no range"),
        ("inputs.4.shape", [2, 2, 7], "an image is"),
        ("inputs.4.shape", 4, "is no list"),
        ("inputs.5.shape", [-2], "is no kind of array"),
        ("inputs.5.dtype", "object", "is no kind of array"),
        ("inputs.5.dtype", ["f"], "is no kind of array"),
        ("inputs.7.samples", 0, "no sound"),
        ("inputs.8.tokenizer", "../tokenizer.json", "no name of a file in the bundle"),
        ("inputs.8.length", -1, "are none"),
        ("tensors.0.shape", ["batch", 7], "they differ from the tensors that the inputs become"),
        ("tensors.0.shape", [1], "is not ['batch', sizes …]"),
        ("tensors.0.dtype", "complex64", "is none of"),
        ("tensors.0.name", "other", "they differ from the tensors"),
        ("outputs.0.classes", [1], "are not texts"),
        ("outputs.0", 3, "it is no list of objects"),
        ("max_batch", 0, "is no number of rows"),
        ("generation", 3, "it is no JSON object"),
        ("more", 1, "it has a 'more', which is not known here"),
    ],
)
def test_another_signature_json_is_refused(path, value, why):
    with pytest.raises(ConfigError, match=re.escape(why)):
        Signature.from_json(edited(path, value))


def test_no_object_is_no_signature():
    with pytest.raises(ConfigError, match="it is no JSON object"):
        Signature.from_json([])


def test_it_needs_no_jax():
    code = "import jaxtrain.deploy.signature, sys; print({'jax', 'flax', 'optax', 'jaxlib'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
