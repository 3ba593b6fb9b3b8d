import json
import math
import tracemalloc

import numpy as np
import pytest

from jaxtrain.base.errors import ConfigError
from jaxtrain.datasets import histogram as histograms
from jaxtrain.datasets.bundled.reviews import MovieReviews
from jaxtrain.datasets.fields import VOCABULARY
from jaxtrain.datasets.histogram import BINS, Histogram, rebin
from jaxtrain.datasets.schema import Schema

rng = np.random.default_rng(0)
EXAMPLES = [
    {
        "text": "word " * (20 + i % 50),
        "raw": b"x" * (i % 9 + 1),
        "label": np.int32(i % 9),
        "count": i * 1000,
        "colour": ("red", "green", "blue")[i % 3],
        "weight": np.float32(rng.normal()),
        "price": float(rng.gamma(2)) if i % 4 else math.nan,
        "nickname": "" if i % 5 == 0 else "ana",
        "image": rng.random((4, 3 + i % 2, 1), np.float32),
        "bytes": rng.integers(0, 256, 6).astype(np.uint8),
        "flag": bool(i % 2),
        **({"note": "seen"} if i % 10 else {}),
    }
    for i in range(200)
]


def column(values) -> Schema:
    return Schema.of({"f": value} for value in values)


@pytest.fixture(scope="module")
def made() -> Schema:
    return Schema.of(EXAMPLES)


def test_a_field_says_what_numpy_counts(made):
    assert made.records == 200
    kinds = {name: (field.kind, field.dtype, field.shape) for name, field in made.fields.items()}
    assert kinds == {
        "text": ("text", "str", ()),
        "raw": ("bytes", "bytes", ()),
        "label": ("integer", "int32", ()),
        "count": ("integer", "int64", ()),
        "colour": ("text", "str", ()),
        "weight": ("number", "float32", ()),
        "price": ("number", "float64", ()),
        "nickname": ("text", "str", ()),
        "image": ("array", "float32", (4, None, 1)),
        "bytes": ("array", "uint8", (6,)),
        "flag": ("integer", "bool", ()),
        "note": ("text", "str", ()),
    }
    missing = {name: field.missing for name, field in made.fields.items() if field.missing}
    assert missing == {"price": 0.25, "nickname": 0.2, "note": 0.1}
    for name, field in made.fields.items():
        values = [
            example[name] for example in EXAMPLES if not isinstance(example.get(name, ""), str) or example.get(name)
        ]
        numbers = np.concatenate(
            [[len(v)] if isinstance(v, str | bytes) else np.asarray(v, float).ravel() for v in values]
        )
        numbers = numbers[~np.isnan(numbers)]
        assert (field.low, field.high) == (numbers.min(), numbers.max())
        assert 0 < len(field.counts) <= BINS
        assert field.counts == tuple(np.histogram(numbers, field.edges)[0])
        assert sum(field.counts) == numbers.size


def test_the_bins_of_whole_numbers_and_of_lengths_hold_whole_numbers():
    assert (column([3, 5, 5]).fields["f"].edges, column([3, 5, 5]).fields["f"].counts) == ((3, 4, 5, 6), (1, 0, 2))
    assert column(["abc", "abcde"]).fields["f"].edges == (3, 4, 5, 6)
    assert column([3.0, 5.0]).fields["f"].edges[1] < 3.5


def test_a_vocabulary_counts_the_values_of_fields_with_few(made):
    vocabularies = {name: field.vocabulary for name, field in made.fields.items() if field.vocabulary is not None}
    assert vocabularies == {
        "label": {str(i): len(range(i, 200, 9)) for i in range(9)},
        "colour": {"red": 67, "green": 67, "blue": 66},
        "nickname": {"ana": 160},
        "flag": {"0": 100, "1": 100},
        "note": {"seen": 180},
    }


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ([i % VOCABULARY for i in range(300)], True),
        ([i % (VOCABULARY + 1) for i in range(300)], False),
        (list(range(60)), False),
        ([*range(60)] * 2, True),
        (["a" * 63] * 4, True),
        (["a" * 64] * 4, False),
        ([0.5] * 4, False),
        ([b"a"] * 4, False),
    ],
)
def test_a_vocabulary_is_kept_for_few_short_values_that_repeat(values, kept):
    assert (Schema.of({"f": value} for value in values).fields["f"].vocabulary is not None) == kept


def test_a_schema_does_not_depend_on_the_order_of_its_records(made):
    backwards = [dict(reversed(example.items())) for example in reversed(EXAMPLES)]
    assert json.dumps(Schema.of(backwards).to_json()) == json.dumps(made.to_json())
    scales = [{"x": value} for value in (1e-12, 0.0, 3.0, -1e5, 2.5, 1e-300, 1e300, 7.0)]
    assert Schema.of(scales) == Schema.of(scales[::-1]) == Schema.of(sorted(scales, key=lambda one: one["x"]))


def test_the_memory_of_making_a_schema_does_not_grow_with_the_records():
    def peak(records: int) -> int:
        tracemalloc.start()
        Schema.of({"id": i, "name": f"number {i}", "x": np.full(3, i * 0.1)} for i in range(records))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(6_000) < 1.2 * peak(2_000)


def test_records_do_not_violate_the_schema_made_of_them(made):
    assert [made.violations(example) for example in EXAMPLES] == [[]] * len(EXAMPLES)
    mixed = [{"x": 1}, {"x": np.float32(2.5)}, {"x": np.int8(3)}, {"x": None}, {}]
    assert Schema.of(mixed).fields["x"].dtype == "float64"
    assert [Schema.of(mixed).violations(example) for example in mixed] == [[]] * 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": np.int32(9)}, "label: 9 is not in the vocabulary; known: 0, 1, 2, 3, 4, 5, 6, 7, 8"),
        ({"label": 8}, None),
        ({"label": 9}, "label: 9 is not in the vocabulary"),
        ({"label": np.int64(8)}, "label: integer int64 8, expected integer int32"),
        ({"label": np.int8(8)}, None),
        ({"label": 1.0}, "label: number float64 1.0, expected integer int32"),
        ({"label": "1"}, "label: text '1', expected integer int32"),
        ({"label": np.zeros(2, np.int32)}, "label: array int32[2] [0 0], expected integer int32"),
        ({"label": None}, "label: is None, expected integer int32"),
        ({"label": object()}, "label: <object"),
        ({"colour": "gren"}, "colour: 'gren' is not in the vocabulary; did you mean 'green'?"),
        ({"colour": ""}, "colour: '' counts as missing, which it never was"),
        ({"nickname": ""}, None),
        ({"count": 199_001}, "count: 199001: 199001 is outside 0…199000"),
        ({"count": 199_000}, None),
        ({"count": 1 << 70}, "count: 1180591620717411303424 is neither"),
        ({"text": "short"}, "text: 'short': length 5 is outside 100…345"),
        ({"text": b"word" * 30}, "text: bytes b'wordword"),
        ({"price": math.nan}, None),
        ({"price": 1}, None),
        ({"weight": 1}, None),
        ({"weight": np.float64(0)}, "weight: number float64 0.0, expected number float32"),
        ({"weight": math.nan}, "weight: nan counts as missing"),
        ({"weight": math.inf}, "weight: inf holds 1 entries that are NaN or infinite"),
        ({"image": np.full((4, 9, 1), 0.5, np.float32)}, None),
        (
            {"image": np.full((5, 9, 1), 0.5, np.float32)},
            "image: array float32[5, 9, 1], expected array float32[4, ?, 1]",
        ),
        ({"image": np.full((4, 9), 0.5, np.float32)}, "image: array float32[4, 9]"),
        ({"image": np.full((4, 9, 1), np.nan, np.float32)}, "holds 36 entries that are NaN"),
        ({"image": np.full((4, 9, 1), -0.5, np.float32)}, "-0.5 is outside"),
        ({"bytes": [1, 2, 3, 4, 5, 6]}, None),
        ({"bytes": [1.5] * 6}, "bytes: array float64[6]"),
        ({"bytes": [[1], [2, 3]]}, "bytes: [[1], [2, 3]] is not an array"),
        ({"labl": 1}, "labl: no such field; did you mean 'label'?"),
    ],
)
def test_a_violation_names_the_field_the_value_and_what_was_expected(made, change, message):
    found = made.violations({**EXAMPLES[1], **change})
    assert len(found) == (message is not None)
    if message:
        assert message in found[0]


def test_a_field_may_be_absent_only_where_it_was_missing_before(made):
    assert made.violations({name: value for name, value in EXAMPLES[1].items() if name != "note"}) == []
    without = {name: value for name, value in EXAMPLES[1].items() if name != "label"}
    assert made.violations(without) == ["label: is missing, expected integer int32"]


def divergence(p, q) -> float:
    p, q = np.asarray(p, float) / np.sum(p), np.asarray(q, float) / np.sum(q)
    return sum(
        0.5 * a * math.log2(a / ((a + b) / 2))
        for one, other in ((p, q), (q, p))
        for a, b in zip(one, other, strict=True)
        if a
    )


def test_drift_is_the_divergence_of_the_vocabularies():
    half, third = column([0, 1] * 30), column([0, 1, 2] * 20)
    assert half.drift(third) == pytest.approx({"f": divergence([1 / 2, 1 / 2, 0], [1 / 3] * 3)})
    assert half.drift(column([5] * 9)) == {"f": 1.0}


def test_drift_of_numbers_is_the_divergence_of_the_coarser_histogram():
    narrow, wide = rng.normal(0, 1, 500), rng.normal(1, 30, 700)
    one, other = column(narrow), column(wide)
    edges = np.array(other.fields["f"].edges)
    assert one.fields["f"].edges[1] - one.fields["f"].edges[0] < edges[1] - edges[0]
    expected = divergence(np.histogram(narrow, edges)[0], np.histogram(wide, edges)[0])
    assert one.drift(other)["f"] == pytest.approx(expected)
    assert other.drift(one)["f"] == pytest.approx(expected)


def test_drift_counts_missing_values_and_fields(made):
    assert made.drift(made) == dict.fromkeys(made.fields, 0.0)
    whole, half = column([1.5] * 8), column([1.5, math.nan] * 4)
    assert whole.drift(half) == pytest.approx({"f": divergence([0, 1], [1 / 2, 1 / 2])})
    assert whole.drift(Schema.of([{"g": 1.5}])) == {"f": 1.0, "g": 1.0}
    assert whole.drift(column(["a"] * 8)) == {"f": 1.0}
    assert column([math.nan]).drift(column([math.nan])) == {"f": 0.0}


def test_a_schema_comes_back_from_json_exactly(made):
    text = json.dumps(made.to_json(), allow_nan=False)
    assert Schema.from_json(json.loads(text)) == made
    assert json.loads(text) == made.to_json()
    largest = column([np.finfo(np.float64).max, np.inf, 0.0])
    assert Schema.from_json(json.loads(json.dumps(largest.to_json(), allow_nan=False))) == largest


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, "a"], "field 'f' of record 1: text, but the records before hold integer int64"),
        (["a", b"a"], "field 'f' of record 1: bytes, but"),
        ([np.zeros(2), np.zeros((2, 2))], r"array float64\[2, 2\], but the records before hold array float64\[2\]"),
        ([np.float32(1), np.zeros(2)], r"array float64\[2\], but"),
        ([{}], "is neither text, bytes, a number nor an array of numbers"),
        ([None, None], "field 'f' is None in every record"),
    ],
)
def test_a_field_that_is_of_no_one_kind_is_named(values, message):
    with pytest.raises(ConfigError, match=message):
        column(values)


def test_no_records_have_no_fields():
    assert Schema.of([]) == Schema(0, {})


def test_a_schema_of_movie_reviews_counts_their_labels():
    source = MovieReviews("test")
    fields = Schema.of(source[i] for i in range(len(source))).fields
    assert fields["label"].vocabulary == {
        str(k): sum(source[i]["label"] == k for i in range(len(source))) for k in (0, 1)
    }
    assert fields["text"].high == max(len(source[i]["text"]) for i in range(len(source)))


def test_the_bins_of_a_histogram_are_powers_of_two_and_as_narrow_as_thirty_allow():
    histogram = Histogram()
    for value in (3.0, 0.5, math.nan, math.inf):
        histogram.add(np.array([value]))
    histogram.add(np.array([0.0]))
    edges, counts = histogram.result()
    assert (edges[0], edges[1], edges[-1], len(counts)) == (0.0, 0.125, 3.125, 25)
    assert {place: count for place, count in enumerate(counts) if count} == {0: 1, 4: 1, 24: 1}
    assert histogram.result(finest=0) == ((0, 1, 2, 3, 4), (2, 0, 0, 1))
    assert rebin((0, 1, 2, 3, 4), (2, 0, 0, 1), 2) == {0: 2, 1: 1}
    assert Histogram().result() == ((), ())


def test_the_divergence_is_that_of_jensen_and_shannon_in_bits():
    half, one = {"a": 0.5, "b": 0.5}, {"a": 1.0}
    assert histograms.divergence(half, half) == 0
    assert histograms.divergence(one, {"b": 1.0}) == 1
    # Against the mean (3/4, 1/4): half of log2(2/3) / 2 + log2(2) / 2, and half of log2(4/3).
    assert histograms.divergence(half, one) == histograms.divergence(one, half) == pytest.approx(0.3112781)
