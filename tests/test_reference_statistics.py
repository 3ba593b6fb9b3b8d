"""Reference statistics, the batch curve and the other pure parts of a bundle, by hand-computed numbers."""

import json
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from jaxtrain.deploy.batch_curve import batch_curve, batch_json, best_rows, served
from jaxtrain.deploy.golden import GoldenExample, decoded, encoded, first_difference, largest_difference, odd_rows
from jaxtrain.deploy.inputs import Category, Tensor, Text
from jaxtrain.deploy.numeric import Array, Image, Number
from jaxtrain.deploy.reference import features, statistics
from jaxtrain.deploy.signature import Signature

AGE = Number(name="age", tensor="age", missing=True)
CITY = Category(name="city", tensor="city", values=("Oslo", "Rome"), unknown=0, first=1)
TEXT = Text(name="text", tensor="text", bytes=8)
IMAGE = Image(name="image", tensor="image", shape=(2, 2, 1), dtype="float32", range=(0, 1))
OUT = Tensor("probabilities", "float32", (2,), ("no", "yes"))


def signature(*inputs: Any) -> Signature:
    return Signature("m", inputs, tuple(each.spec() for each in inputs), (OUT,))


def test_statistics_of_a_table_are_these():
    ages = [1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10, None]
    rows = [{"age": age, "city": "Rome" if (age or 0) > 4 else "Oslo"} for age in ages]
    yes = np.linspace(0.95, 0.05, 11)
    found = features(signature(AGE, CITY), rows, {"probabilities": np.stack([1 - yes, yes], 1)})
    made = statistics(found)
    assert made["rows"] == 11
    age = made["numeric"]["age"]
    np.testing.assert_allclose(age["cuts"], [1.9, 2.8, 3.7, 4.6, 5.5, 6.4, 7.3, 8.2, 9.1])
    assert age["counts"] == [1] * 10
    assert (age["missing"], age["least"], age["largest"]) == (1, 1.0, 10.0)
    assert made["categorical"]["city"] == {"values": {"Rome": 6, "Oslo": 5}, "other": 0, "missing": 0}
    assert made["categorical"]["probabilities: class"]["values"] == {"no": 6, "yes": 5}
    assert made["rank_correlation"]["features"] == ["age", "probabilities: largest"]
    expected = spearmanr(ages[:10], np.maximum(yes, 1 - yes)[:10]).statistic
    np.testing.assert_allclose(made["rank_correlation"]["matrix"], [[1, expected], [expected, 1]], atol=1e-6)


def test_the_rank_correlation_gives_equal_values_their_mean_rank():
    found = {"x": [1, 2, 2, 4], "y": [10.0, 20, 30, 40], "z": [1.0, 1, 1, 1]}
    matrix = statistics(found)["rank_correlation"]["matrix"]
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: the covariance is 4.5, the variances are 4.5 and 5.
    assert matrix[0][1] == pytest.approx(4.5 / math.sqrt(4.5 * 5), abs=1e-6)
    assert matrix[0][2] == 0.0


def test_statistics_of_texts_see_what_breaks_them():
    rows = [{"text": text} for text in ("Good film", "", "CAFÉ 12", b"\xff\xff")]
    found = features(signature(TEXT), rows, {"probabilities": np.full((4, 2), 0.5)})
    assert found["text: words"] == [2.0, 0.0, 2.0, 1.0]
    assert found["text: capitals"][2] == 4 / 7
    assert found["text: beyond ASCII"][2] == 1 / 7
    assert found["text: unreadable"] == [0, 0, 0, 1.0]
    assert json.loads(json.dumps(statistics(found)))["numeric"]["text: digits"]["largest"] == 2 / 7


def test_statistics_of_a_feature_that_is_always_missing():
    made = statistics({"x": [math.nan] * 3})
    assert made["numeric"]["x"] == {"cuts": [], "counts": [0], "missing": 3}
    assert made["rank_correlation"] == {"features": [], "matrix": []}


def test_the_batch_curve_takes_the_fewest_rows_that_are_nearly_as_fast():
    clock = [0.0]
    seconds = {1: 0.1, 4: 0.2, 16: 0.8, 64: 4.0}  # rows a second: 10, 20, 20, 16

    def run(tensors: Any) -> None:
        clock[0] += seconds[len(tensors["x"])]

    made = batch_curve(run, {"x": np.zeros((2, 3))}, lambda: clock[0])
    assert made["best"] == 4
    assert [each["rows"] for each in made["curve"]] == [1, 4, 16, 64]
    assert made["curve"][1]["rows_per_second"] == pytest.approx(20)
    seconds[4] = 30.0
    assert [each["rows"] for each in batch_curve(run, {"x": np.zeros((2, 3))}, lambda: clock[0])["curve"]] == [1, 4]


def test_servers_take_the_rows_that_are_best_for_onnx_where_there_is_one():
    jax, onnx = {"curve": [{"rows": 1}], "best": 1}, {"curve": [{"rows": 4}], "best": 4}
    assert (served({"jax": jax, "onnx": onnx}), served({"jax": jax})) == ("onnx", "jax")
    made = batch_json({"jax": jax, "onnx": onnx}, {"cpus": 2})
    assert made == {
        "format": 1,
        "backend": "onnx",
        "curve": [{"rows": 4}],
        "best": 4,
        "backends": {"jax": jax, "onnx": onnx},
        "hardware": {"cpus": 2},
    }
    assert (best_rows(made, "jax"), best_rows(made, "onnx"), best_rows({"best": 3}, "jax")) == (1, 4, None)


def test_json_carries_bytes_and_numbers_that_it_has_not():
    value = {"a": b"\xff\0", "b": [1.5, math.nan, math.inf], "c": "text", "d": None}
    made = json.loads(json.dumps(encoded(value), allow_nan=False))
    assert made == {
        "a": {"base64": "/wA="},
        "b": [1.5, {"float": "nan"}, {"float": "inf"}],
        "c": "text",
        "d": None,
    }
    again = decoded(made)
    assert (again["a"], again["c"], again["d"]) == (b"\xff\0", "text", None)
    np.testing.assert_array_equal(again["b"], value["b"])
    for wrong in ({"base64": "*"}, {"base64": 3}, {"float": "x"}):
        with pytest.raises(ValueError, match=r"base64|float"):
            decoded(wrong)


def test_the_first_difference_is_named_with_both_numbers():
    examples = [
        GoldenExample("one", {}, {"p": np.array([0.5, np.nan], np.float32)}),
        GoldenExample("two", {}, {"p": np.array([0.25, 1e6], np.float32)}),
    ]
    same = {"p": np.array([[0.50005, np.nan], [0.25, 1e6 + 50]])}
    assert first_difference(examples, same) == ""
    assert largest_difference(examples, same) == pytest.approx(5e-5)
    other = {"p": np.array([[0.5, np.nan], [0.2503, 1e6]])}
    assert first_difference(examples, other) == "of golden example 1 (two), p[0] is 0.2503, expected 0.25"
    assert "p[1] is 0, expected nan" in first_difference(examples, {"p": np.array([[0.5, 0], [0.25, 1e6]])})


def test_odd_rows_are_those_that_the_signature_takes():
    usual = {"text": "usual", "age": 3, "city": "Oslo", "image": np.zeros((2, 2, 1))}
    odd = odd_rows(signature(TEXT, AGE, CITY, IMAGE), usual)
    assert odd["text: empty"] == {**usual, "text": ""}
    assert odd["text: Portuguese"]["text"] == "Adorei! Se eu pudesse dar 1000 estrelas não daria nenhuma :)"
    assert odd["text: no UTF-8"]["text"].startswith(b"\xff")
    assert odd["age: missing"]["age"] is None
    assert odd["age: very large"]["age"] == 1e30
    assert odd["city: unknown"]["city"] == "never seen"
    assert odd["image: most"]["image"].min() == 1
    least = Text(name="text", tensor="text", bytes=8, least=1)
    assert "text: empty" not in odd_rows(signature(least), {"text": "usual"})
    closed = Category(name="city", tensor="city", values=(3, 5))
    assert {*odd_rows(signature(closed), {"city": 3})} == {"city: value 3", "city: value 5"}
    ids = Array(name="ids", tensor="ids", shape=(2,), dtype="int32", range=(0, 9))
    assert odd_rows(signature(ids), {"ids": [1, 2]})["ids: most"]["ids"].tolist() == [9, 9]
