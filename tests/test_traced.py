"""Every transform is the same in an exported graph as on the host, or is an input, or says why it cannot be either."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from jaxtrain import ConfigError
from jaxtrain.base.registry import own_kinds
from jaxtrain.data import (
    Arrays,
    Bytes,
    Categories,
    CentralCrop,
    Columns,
    FittedTransform,
    Hash,
    LogMel,
    Normalize,
    OneHot,
    Pad,
    Pipeline,
    Quantiles,
    RandomCrop,
    Select,
    Standardize,
    TfIdf,
    Tokenize,
    Transform,
    Utf8,
    train_bpe,
)
from jaxtrain.data.remembered import remember
from jaxtrain.datasets.filters import MendEncoding
from jaxtrain.deploy.raw import raw_inputs
from jaxtrain.deploy.signature import Signature
from jaxtrain.models import Model
from jaxtrain.tasks import Regression

RNG = np.random.default_rng(0)
TEXTS = ["plain", "", "naïve ½ 空 🙂", "a\nb", "x" * 60, "zero \0 inside", "ends \0"]
ODD = np.array([0.0, -0.0, 3e38, -3e38, 1e-30, 1234567.9, 1234568.0, 1234568.1, 7.0, -5.0], np.float32)
IMAGES = RNG.integers(0, 256, (4, 5, 6, 3)).astype(np.uint8)
SOUND = np.stack([np.sin(np.arange(900) * 0.3), np.zeros(900), RNG.normal(size=900), np.ones(900) * 1e4]).astype("f4")


@dataclass(frozen=True)
class Anything(Model):
    """Takes any number, NaN too."""

    def build(self, rngs: nnx.Rngs, inputs: Any) -> nnx.Module:
        return nnx.Linear(1, 1, rngs=rngs)

    def allowed(self) -> None:
        return None


@dataclass(frozen=True)
class Case:
    """A transform that is fitted on `seen`, the raw inputs that it gets, and the field that it makes."""

    transform: Any
    rows: Sequence[dict[str, Any]]
    makes: str
    seen: Sequence[dict[str, Any]] = ()
    before: tuple[Transform, ...] = ()


def column(values: Any, name: str = "x") -> list[dict[str, Any]]:
    return [{name: value} for value in values]


NEAR = np.array([1234567.891, 1234567.5, 1234570.25, 1234560.0]).astype(np.float32)
CUTS = column(np.array([1, 1, 1, 2, 3, 3, 8, 1e6, 1e6 + 0.125, 1e6 + 0.5], np.float32))
PLACES = [1.0, 0.5, 1.25, 3, 8, 1e6, 1e6 + 0.0625, 1e6 + 0.3125, 2e6, -np.inf, np.inf, np.nan, 7.9, 3e38]

CASES = {
    "Utf8": Case(Utf8(16), column([*TEXTS]), "bytes"),
    "Utf8 of bytes": Case(Utf8(8), column([b"\xff\xfe", b"", "é".encode("latin-1") * 9]), "bytes"),
    "Utf8 after Select": Case(Utf8(8, field="x"), column(TEXTS), "bytes", before=(Select(("x", "label")),)),
    "Normalize": Case(Normalize((0.1, 2.0, 127.5), (3.0, 1e-3, 127.5), "x"), column(IMAGES), "x"),
    "Normalize of numbers": Case(Normalize(1.5, 0.25, "x"), column(ODD), "x"),
    "Select": Case(Select(("x", "other")), column(ODD), "x"),
    "OneHot": Case(OneHot("x", ("red", "grün", "blue")), column(["red", "blue", "grün", b"blue"]), "x"),
    "OneHot of integers": Case(OneHot("x", (3, -1, 7)), column([3, 7, -1, np.int16(7)]), "x"),
    "Columns": Case(
        Columns(("a", "b", "c"), "x"),
        [{"a": np.float32(a), "b": IMAGES[i % 4, 0, 0], "c": i} for i, a in enumerate(ODD)],
        "x",
    ),
    "Pad": Case(Pad("x", 5, value=-1), column(RNG.normal(size=(4, 3, 2)).astype("f4")), "x"),
    "Pad's mask": Case(Pad("x", 5), column(IMAGES[:, 0, 0, :]), "x_mask"),
    "Standardize": Case(Standardize(("x",)), column(ODD), "x", column(NEAR)),
    "Standardize of near numbers": Case(Standardize(("x", "y")), column(NEAR), "x", [{"x": x, "y": x} for x in NEAR]),
    "Standardize of images": Case(Standardize(("x",)), column(IMAGES), "x", column(IMAGES)),
    "Standardize of integers": Case(Standardize(("x",)), column([5, 7, -3]), "x", column([100, 101, 105])),
    "Quantiles": Case(Quantiles(("x",), count=7), column(PLACES), "x", CUTS),
    "Quantiles of vectors": Case(
        Quantiles(("x",), count=5), column(RNG.normal(size=(6, 3)).astype("f4")), "x", column(RNG.normal(size=(50, 3)))
    ),
    "Categories": Case(Categories("x"), column(["b", "a", "e\u0301", "new", b"a", ""]), "x", column(["a", "b", "é"])),
    "Categories of integers": Case(Categories("x"), column([3, 9, 4, True]), "x", column([3, 4, 1])),
    "CentralCrop": Case(CentralCrop((3, 3), "x"), column(IMAGES), "x"),
    "RandomCrop": Case(RandomCrop((2, 6), "x"), column(IMAGES), "x"),
    "LogMel": Case(LogMel(rate=8000, mels=20, window=200, hop=80, field="x"), column(SOUND), "x"),
    "Tokenize": Case(Tokenize(Bytes(), 9, field="x"), column(TEXTS), "tokens"),
}

REFUSED = {
    "Hash": (Hash("x", 100), ["a", "b"], "neither a graph nor a browser has its hash, blake2b"),
    "TfIdf": (TfIdf("x", 4, to="y"), ["some words", "more words"], "splits words by Python's tables of letters"),
    "MendEncoding": (MendEncoding("x"), ["a", "b"], "MendEncoding cannot be part of an exported graph: it has no `tr"),
}


def both(case: Case) -> tuple[np.ndarray, np.ndarray, Signature]:
    """What a transform makes on the host, and in a graph of its raw inputs."""
    transform = case.transform
    if isinstance(transform, Utf8):
        transform = Utf8(transform.length, "x")
    if isinstance(transform, FittedTransform):
        transform = transform.fit([*(case.seen or case.rows)])
    evaluated = transform.evaluating()
    every = (*case.before, evaluated)
    hosts = []
    for row in case.rows:
        with np.errstate(over="ignore"):
            for one in every:
                row = one(row, np.random.default_rng(0))
        hosts.append(np.asarray(row[case.makes]))
    source = Arrays({k: [row[k] for row in case.rows] for k in case.rows[0]})
    kept = remember(Pipeline(source, (*case.before, transform), batch_size=2), wanted=case.makes)
    raw = raw_inputs(kept, Regression(model=Anything(), inputs=case.makes))
    specs = tuple(each.spec() for each in raw.inputs)
    signature = Signature("model", raw.inputs, specs, specs)
    if case.rows[0].get("x") is PLACES[0]:  # of which infinities are no inputs
        tensors = {"x": np.array(PLACES, np.float32)}
    else:
        tensors = signature.tensors_of([raw.row_of(row) for row in case.rows])
    return np.stack(hosts), np.asarray(jax.jit(raw.batch_of)(tensors)[case.makes]), signature


@pytest.mark.parametrize("name", CASES)
def test_a_transform_is_the_same_in_a_graph(name):
    host, traced, signature = both(CASES[name])
    assert traced.dtype == host.dtype
    assert Signature.from_json(signature.to_json()) == signature
    if host.dtype.kind == "f":
        np.testing.assert_allclose(traced, host, rtol=1e-6, atol=1e-7 if name.startswith("Quantiles") else 1e-30)
    else:
        np.testing.assert_array_equal(traced, host)


@pytest.mark.parametrize("name", REFUSED)
def test_a_transform_that_a_graph_cannot_do_says_why(name):
    transform, values, why = REFUSED[name]
    rows = column(values)
    transform = transform.fit(rows) if isinstance(transform, FittedTransform) else transform
    more, makes = {"TfIdf": ((), "y"), "Hash": ((), "x")}.get(name, ((Utf8(4, "x"),), "bytes"))
    kept = remember(Pipeline(Arrays({"x": values}), (transform, *more), batch_size=2), wanted=makes)
    with pytest.raises(ConfigError, match=why):
        raw_inputs(kept, Regression(model=Anything(), inputs=makes))


def test_every_transform_is_one_of_these():
    kinds = {name: kind for name, kind in own_kinds().items() if issubclass(kind, Transform)}
    concrete = {name for name, kind in kinds.items() if not inspect.isabstract(kind)}
    left_out = {name for name in concrete if vars(kinds[name]).get("training_only")}
    traced = {type(case.transform).__name__ for case in CASES.values()}
    assert concrete == traced | set(REFUSED) | left_out
    assert left_out == {"Flip", "RandomAffine", "Shift"}


def test_a_text_by_a_tokenizer_is_an_input_of_its_own(tmp_path):
    tokenizer = train_bpe(TEXTS * 3, 300, tmp_path / "bpe.json")
    kept = remember(Pipeline(Arrays({"x": TEXTS}), (Tokenize(tokenizer, 6, "x"),), batch_size=2), wanted="tokens")
    raw = raw_inputs(kept, Regression(model=Anything(), inputs="tokens"))
    assert raw.inputs[0].to_json()["kind"] == "tokens"
    assert raw.tokenizers["tokenizer.json"].read_bytes() == (tmp_path / "bpe.json").read_bytes()
    specs = tuple(each.spec() for each in raw.inputs)
    (tmp_path / "bpe.json").rename(tmp_path / "tokenizer.json")
    signature = Signature("model", raw.inputs, specs, specs).with_tokenizers(tmp_path)
    expected = [(one.tolist() + [0] * 6)[:6] for one in tokenizer_ids(tmp_path / "tokenizer.json", TEXTS)]
    assert signature.tensors_of(column(TEXTS))["x"].tolist() == expected


def tokenizer_ids(path: Any, texts: Sequence[str]) -> list[np.ndarray]:
    import tokenizers

    return [np.array(one.ids, int) for one in tokenizers.Tokenizer.from_file(str(path)).encode_batch(list(texts))]
