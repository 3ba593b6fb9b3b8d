"""Transforms given fields that they are not for: refused by field, with nothing lost, cast or made up in silence."""

from dataclasses import replace

import numpy as np
import pytest

from jaxtrain.base.errors import ConfigError
from jaxtrain.data import (
    Bytes,
    Categories,
    Columns,
    Hash,
    LogMel,
    Normalize,
    OneHot,
    Pad,
    Quantiles,
    Standardize,
    TfIdf,
    Tokenize,
    Utf8,
)

RNG = np.random.default_rng(0)

FITTED_TFIDF = TfIdf("text", size=2).fit([{"text": "aa bb"}])

HALF = "a\ud800b"
"""Half of a surrogate pair: a Python str that no encoding writes."""


@pytest.mark.parametrize(
    ("transform", "example"),
    [
        (Utf8(4, to="y"), {"text": "ab", "y": 1}),
        (Tokenize(Bytes(), 4, to="y"), {"text": "ab", "y": 1}),
        (Columns(("a",), to="y"), {"a": 1, "y": 1}),
        (Pad("a", 3, mask="y"), {"a": np.ones(2), "y": 1}),
        (replace(FITTED_TFIDF, to="y"), {"text": "aa", "y": 1}),
    ],
)
def test_no_transform_overwrites_a_field_that_it_was_not_given(transform, example):
    with pytest.raises(ConfigError, match="the example has a field 'y' already, which would be lost"):
        transform(example, RNG)


def test_two_texts_in_one_field_of_features_are_refused_and_the_first_is_not_lost():
    first = FITTED_TFIDF({"text": "aa", "title": "bb"}, RNG)
    with pytest.raises(ConfigError, match="'features' already"):
        replace(FITTED_TFIDF, field="title")(first, RNG)


def test_the_mask_of_pad_may_be_neither_its_own_field_nor_one_that_is_there():
    with pytest.raises(ConfigError, match="'a' already"):
        Pad("a", 3, mask="a")({"a": np.ones(2)}, RNG)
    with pytest.raises(ConfigError, match="'a_mask' already"):
        Pad("a", 3)({"a": np.ones(2), "a_mask": np.zeros(2)}, RNG)


def test_a_field_may_be_replaced_by_one_of_its_own_name():
    assert Columns(("a", "b"), to="a")({"a": 1, "b": 2}, RNG)["a"].tolist() == [1, 2]
    assert Utf8(2, to="text")({"text": "a"}, RNG)["text"].tolist() == [97, 0]


NUMBERS = [Columns(("a",)), Normalize(0.0, 1.0, field="a"), LogMel(rate=8, window=2, field="a")]


@pytest.mark.parametrize("transform", NUMBERS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("abc", "'a' must be numbers, got 'abc'"),
        ("1.5", "'a' must be numbers, got '1.5'"),
        (None, "'a' must be numbers, got None"),
        (np.array([1.0, 1e300]), "'a' has a number beyond float32"),
    ],
)
def test_text_null_and_numbers_beyond_float32_are_no_float32(transform, value, message):
    with pytest.raises(ConfigError, match=message):
        transform({"a": value}, RNG)


def test_infinity_stays_what_it_is():
    assert Columns(("a",))({"a": np.array([np.inf, -np.inf])}, RNG)["features"].tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize("kind", [Standardize, Quantiles])
def test_what_was_fitted_on_numbers_refuses_text_in_evaluation(kind):
    fitted = kind(("a",)).fit([{"a": 1.0}, {"a": 2.0}])
    with pytest.raises(ConfigError, match=r"'a' must be numbers, got '1\.5'"):
        fitted({"a": "1.5"}, RNG)


@pytest.mark.parametrize("kind", [Columns, Standardize, Quantiles])
@pytest.mark.parametrize("fields", [("a", "a"), ()])
def test_fields_are_named_once(kind, fields):
    with pytest.raises(ConfigError, match=f"{kind.__name__} fields must name one or more fields, each once"):
        kind(fields)


CATEGORIES = [Hash("a", 8), OneHot("a", ("1", 1)), Categories("a", fitted=("1",))]


@pytest.mark.parametrize("transform", CATEGORIES)
@pytest.mark.parametrize("value", [1.7, np.float32(1), None, np.ones(3, int), {"b": 1}])
def test_a_category_is_a_text_or_an_integer_and_nothing_else(transform, value):
    with pytest.raises(ConfigError, match=r"'a' is .*, neither a text nor an integer"):
        transform({"a": value}, RNG)


def test_a_vocabulary_has_each_value_once_since_else_two_entries_would_be_hot():
    with pytest.raises(ConfigError, match="each value once"):
        OneHot("a", ("x", "x", "y"))
    assert OneHot("a", ("1", 1))({"a": 1}, RNG)["a"].tolist() == [0, 1]


def test_a_number_is_not_suggested_for_the_text_that_looks_like_it():
    with pytest.raises(ConfigError, match="'a' is '1', a str, which the vocabulary has as another type"):
        OneHot("a", (1, 2))({"a": "1"}, RNG)


@pytest.mark.parametrize(("known", "value"), [(("1", "2"), 1), ((1, 2), "1")])
def test_a_category_of_another_type_than_those_fitted_is_refused_and_not_unknown(known, value):
    with pytest.raises(
        ConfigError, match=r"'a' is '?1'?, a (int|str), but the training split holds (str|int)s such as"
    ):
        Categories("a", fitted=known)({"a": value}, RNG)


def test_texts_that_differ_only_in_how_accents_are_written_are_one_category_and_one_word():
    fitted = Categories("a").fit([{"a": "S\u00e3o"}, {"a": "Sa\u0303o"}, {"a": "Z"}])
    assert fitted.fitted == ("S\u00e3o", "Z")
    assert [int(fitted({"a": text}, RNG)["a"]) for text in ("S\u00e3o", "Sa\u0303o", "Z", "Sao")] == [1, 1, 2, 0]
    assert int(Categories("a", fitted=("Sa\u0303o",))({"a": "S\u00e3o"}, RNG)["a"]) == 1  # of a run before this rule
    words = TfIdf("a").fit([{"a": "n\u00e3o na\u0303o"}])
    assert words.fitted.words == ("n\u00e3o",)
    assert words({"a": "na\u0303o"}, RNG)["features"][0] == 1


TEXTS = [Utf8(4, field="a"), Hash("a", 8), Tokenize(Bytes(), 4, field="a"), replace(FITTED_TFIDF, field="a")]


@pytest.mark.parametrize("transform", TEXTS)
def test_half_of_a_surrogate_pair_is_no_text(transform):
    with pytest.raises(ConfigError, match="'a' is not Unicode text"):
        transform({"a": HALF}, RNG)


def test_tokenize_takes_bytes_as_utf8_takes_them_and_refuses_what_is_no_text():
    transform = Tokenize(Bytes(), 3, field="a")
    assert transform({"a": "é".encode()}, RNG)["tokens"].tolist() == [195, 169, 0]
    with pytest.raises(ConfigError, match="'a' is not UTF-8 text"):
        transform({"a": b"\xff"}, RNG)
    with pytest.raises(ConfigError, match="'a' must be str or bytes, got int"):
        transform({"a": 5}, RNG)


@pytest.mark.parametrize("transform", [Categories("a"), TfIdf("a")])
def test_fitting_names_the_example_that_it_cannot_use(transform):
    with pytest.raises(ConfigError, match=r"\(in example 1 of the training split\)"):
        transform.fit([{"a": "xx"}, {"a": None}])


def test_a_vocabulary_of_no_words_is_refused():
    with pytest.raises(ConfigError, match="no text of the training split has a word"):
        TfIdf("a").fit([{"a": ""}, {"a": "x ?"}])
