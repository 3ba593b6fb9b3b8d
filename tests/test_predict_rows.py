"""`predict` of an example gives what evaluation gives for its row: for every source, from what a user has in hand."""

import importlib
import inspect
import io
import json
import pkgutil
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pytest
from flax import nnx
from PIL import Image
from pyarrow import parquet

import jaxtrain.data
import jaxtrain.datasets
from jaxtrain import ConfigError, Experiment, Run, load
from jaxtrain.base.config import find, from_json, to_json
from jaxtrain.base.errors import Damaged
from jaxtrain.data import (
    ArrayRecord,
    Arrays,
    Bytes,
    CentralCrop,
    Columns,
    Csv,
    Documents,
    ImageFolder,
    InMemory,
    Items,
    JsonLines,
    Mapped,
    Mixture,
    Normalize,
    OneHot,
    Packed,
    Pad,
    Parquet,
    Pipeline,
    RandomCrop,
    Select,
    Shift,
    Source,
    Standardize,
    Stored,
    Take,
    Tar,
    Tokens,
    Tolerant,
    Transform,
    Utf8,
    Windows,
    plan_packing,
    train_bpe,
    write_array_record,
    write_tokens,
)
from jaxtrain.data.remembered import RememberedPipeline, remember_inputs
from jaxtrain.data.sources import array_record
from jaxtrain.data.sources.base import RememberedSource
from jaxtrain.data.tokens import files as token_files
from jaxtrain.datasets import Built, Dataset, Digits, HashSplits, Records, TokenRows, Tumours, build
from jaxtrain.datasets.bundled.bncc import Skills
from jaxtrain.datasets.bundled.reviews import MovieReviews
from jaxtrain.datasets.bundled.tumours import COLUMNS
from jaxtrain.evaluate import predict_run
from jaxtrain.models import Model, NGrams
from jaxtrain.optimizers import AdamW, ConstantRate
from jaxtrain.tasks import Classification, LanguageModel, Regression
from jaxtrain.train import train

ROOT = Path(__file__).parents[1]
TEXTS = ["plain", "naïve ½ 空", "a\nb", "x" * 40, "{curly}", "last"]
TITLES = [f"title {number}" for number in range(6)]
LABELS = [0, 1, 0, 1, 1, 0]
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 4, 5, 3)).astype(np.uint8)
VECTORS = RNG.normal(size=(6, 3)).astype(np.float32) * 5
LISTS = [[1.0], [2.0, -3.5], [], [4.0, 5.0, 6.0], [7.0], [8.0]]


@dataclass(frozen=True)
class Case:
    """A source, and the arguments of `predict` for some of its rows."""

    source: Source
    arguments: Mapping[int, str]
    transforms: tuple[Transform, ...] = ()
    inputs: str | tuple[str, ...] = "bytes"


def rows() -> list[dict[str, Any]]:
    columns = zip(TITLES, TEXTS, LABELS, strict=True)
    return [{"title": title, "text": text, "label": label} for title, text, label in columns]


def records(folder: Path) -> ArrayRecord:
    write_array_record(folder / "rows.arrayrecord", rows())
    return ArrayRecord((str(folder / "rows.arrayrecord"),))


READ = (Utf8(16), Select(("bytes", "label")))
TEXT = {1: TEXTS[1], 2: TEXTS[2], 4: TEXTS[4]}


def of_text(source: Source) -> Case:
    return Case(source, TEXT, READ)


def png(path: Path, image: np.ndarray) -> str:
    Image.fromarray(image).save(path)
    return str(path)


def npy(path: Path, array: np.ndarray) -> str:
    np.save(path, array)
    return str(path)


def images_in_memory(user: Path) -> Case:
    """The largest field is not the image, and a text is there too."""
    columns = {"caption": TEXTS, "heat": np.zeros((6, 9, 9, 3), np.float32), "image": PIXELS, "label": LABELS}
    arguments = {2: png(user / "2.png", PIXELS[2]), 3: npy(user / "3.npy", PIXELS[3])}
    return Case(Arrays(columns), arguments, (Select(("image", "label")), OneHot("label", (0, 1))), "image")


def gray_floats(user: Path) -> Case:
    """f32[Y, X] in 0…1, as handwritten digits often are: level k of 255 is k / 255."""
    gray = PIXELS[..., 0]
    return Case(
        Arrays({"x": gray.astype(np.float32) / 255, "label": LABELS}), {2: png(user / "g.png", gray[2])}, (), "x"
    )


def wide_integers(user: Path) -> Case:
    return Case(Arrays({"image": PIXELS.astype(np.int32)}), {2: png(user / "i.png", PIXELS[2])}, (), "image")


def standard_scores(user: Path) -> Case:
    return Case(
        Arrays({"x": VECTORS, "label": LABELS}), {i: npy(user / f"{i}.npy", VECTORS[i]) for i in (1, 4)}, (), "x"
    )


def items(user: Path) -> Case:
    return of_text(Items(rows(), "six"))


def two_texts(user: Path) -> Case:
    """Both texts are read, so both are given."""
    source = Arrays({"title": TITLES, "text": TEXTS, "label": LABELS})
    transforms = (Utf8(8, "title", "t"), Utf8(16, "text", "b"))
    arguments = {i: json.dumps({"title": TITLES[i], "text": TEXTS[i]}) for i in (1, 2)}
    return Case(source, arguments, transforms, ("t", "b"))


def parquet_text(user: Path) -> Case:
    path = user.parent / "data" / "x.parquet"
    parquet.write_table(pa.Table.from_pylist([{**row, "raw": row["text"].encode()} for row in rows()]), path)
    (user / "text.txt").write_bytes(TEXTS[1].encode())
    return Case(Parquet((str(path),)), {1: str(user / "text.txt"), 2: TEXTS[2]}, (Utf8(16, "raw"), Select(("bytes",))))


def lists(user: Path) -> Case:
    path = user.parent / "data" / "lists.jsonl"
    path.write_text("".join(json.dumps({"label": 1, "x": values}) + "\n" for values in LISTS))
    (user / "list.json").write_text(json.dumps({"x": LISTS[3]}))
    arguments = {
        1: npy(user / "list.npy", np.array(LISTS[1])),
        2: json.dumps({"x": []}),
        3: str(user / "list.json"),
    }
    return Case(JsonLines((str(path),), floats=("x",)), arguments, (Pad("x", 4),), "x")


def json_lines(user: Path) -> Case:
    path = user.parent / "data" / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return of_text(JsonLines((str(path),)))


def csv_table(user: Path) -> Case:
    path = user.parent / "data" / "x.csv"
    kinds = ["a", "b", "a", "c", "b", "a"]
    path.write_text("label,age,kind,size\n" + "".join(f"{i % 2},{i * 7},{kinds[i]},{i / 3!r}\n" for i in range(6)))
    source = Csv((str(path),), ints=("label", "age"), floats=("size",), texts=("kind",))
    transforms = (OneHot("kind", ("a", "b", "c")), OneHot("label", (0, 1)), Columns(("age", "kind", "size")))
    arguments = {i: json.dumps({"age": i * 7, "kind": kinds[i], "size": i / 3}) for i in (1, 3)}
    return Case(source, arguments, transforms, "features")


def archive(user: Path) -> Case:
    """Image, class and text of each example; the model reads the image."""
    path = user.parent / "data" / "x.tar"
    with tarfile.open(path, "w") as file:
        for i in range(6):
            encoded = io.BytesIO()
            Image.fromarray(PIXELS[i]).save(encoded, "PNG")
            members = {"txt": TEXTS[i].encode(), "png": encoded.getvalue(), "cls": str(LABELS[i]).encode()}
            for ending, raw in members.items():
                info = tarfile.TarInfo(f"{i}.{ending}")
                info.size = len(raw)
                file.addfile(info, io.BytesIO(raw))
    arguments = {1: png(user / "1.png", PIXELS[1]), 5: png(user / "5.png", PIXELS[5])}
    return Case(
        Tar((str(path),), size=(6, 7)), arguments, (Select(("image", "label")), Normalize(100.0, 50.0)), "image"
    )


def archived_text(user: Path) -> Case:
    """A user has the member of the tar file as a file of its own."""
    path = user.parent / "data" / "text.tar"
    with tarfile.open(path, "w") as file:
        for i in range(6):
            info = tarfile.TarInfo(f"{i}.txt")
            info.size = len(raw := f"{TEXTS[i]}\n".encode())
            file.addfile(info, io.BytesIO(raw))
    (user / "2.txt").write_bytes(f"{TEXTS[2]}\n".encode())
    return Case(Tar((str(path),)), {2: str(user / "2.txt")}, (Utf8(16),))


def image_folder(user: Path) -> Case:
    root = user.parent / "data" / "images"
    for i in range(6):
        (root / f"class{LABELS[i]}").mkdir(parents=True, exist_ok=True)
        png(root / f"class{LABELS[i]}" / f"{i}.png", PIXELS[i])
    order = sorted(range(6), key=lambda i: (LABELS[i], i))
    arguments = {row: png(user / f"{i}.png", PIXELS[i]) for row, i in enumerate(order) if row in (1, 4)}
    transforms = (CentralCrop((4, 4)), Normalize((100.0, 90.0, 80.0), 50.0))
    return Case(ImageFolder(str(root), (6, 5), ("class0", "class1")), arguments, transforms, "image")


def tfds(user: Path) -> Case:
    import tensorflow_datasets

    class Six(tensorflow_datasets.core.GeneratorBasedBuilder):
        VERSION = tensorflow_datasets.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {"text": tensorflow_datasets.features.Text(), "label": np.int64}
            kinds = tensorflow_datasets.features.FeaturesDict(features)
            return tensorflow_datasets.core.DatasetInfo(builder=self, features=kinds)

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            yield from ((i, {"text": TEXTS[i], "label": LABELS[i]}) for i in range(6))

    folder = user.parent / "data" / "tfds"
    builder = Six(data_dir=str(folder), file_format="array_record")
    options = tensorflow_datasets.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(file_format="array_record", download_config=options)
    source = jaxtrain.data.Tfds("six", "train", str(folder))
    order = [source[i]["text"].decode() for i in range(6)]
    return Case(source, {i: order[i] for i in (1, 2)}, (Utf8(16),))


def stream() -> bytes:
    return b"\0".join(text.encode() for text in TEXTS)


def windows(user: Path) -> Case:
    (user / "row").write_bytes(stream()[8:17])
    return Case(Windows(Arrays({"text": TEXTS}), 8), {1: str(user / "row"), 3: "x" * 9}, (), "tokens")


def tokens(user: Path) -> Case:
    """Whole documents of one row each, so that their texts are those of rows."""
    tokenizer = train_bpe(TEXTS, 300, user / "bpe.json")
    texts = ["abcdefgh", "ijklmnop", "qrstuvwx"]
    paths = write_tokens(user.parent / "data", "t", texts, tokenizer)
    assert len(tokenizer.encode(texts)[0]) == 8
    source = Tokens(tuple(map(str, paths)), 8, tokenizer=tokenizer)
    return Case(Mapped(source, (Cut(8),)), {0: texts[0]}, (), "tokens")


def packed(user: Path) -> Case:
    texts = ["abcdefgh", "ijklmnop", "qrstuvwx"]
    paths = tuple(map(str, write_tokens(user.parent / "data", "p", texts, Bytes())))
    plan_packing(paths, 7)
    source = Packed(paths, 7)
    row = next(i for i in range(3) if bytes(source[i]["tokens"].astype(np.uint8)).decode() == texts[1])
    return Case(source, {row: texts[1]}, (), "tokens")


def documents(user: Path) -> Case:
    paths = tuple(map(str, write_tokens(user.parent / "data", "d", TEXTS, Bytes())))
    arrays = {i: np.frombuffer(TEXTS[i].encode(), np.uint8) for i in (1, 2)}
    arguments = {i: npy(user / f"{i}.npy", array) for i, array in arrays.items()}
    return Case(Documents(paths), arguments, (Pad("tokens", 40),), "tokens")


def dataset(user: Path, format: Any) -> Built:
    spec = Dataset(
        name="six", version="1.0.0", description="d", origin="o", licence="l", access="a", retention="r",
        records=Arrays({"title": TITLES, "text": TEXTS, "label": LABELS}), splits=HashSplits({"train": 1.0}, ("text",)),
        label="label", format=format,
    )  # fmt: skip
    build(spec, user.parent / "data")
    return Built("six", "1.0.0", folder=str(user.parent / "data"))


def built(user: Path) -> Case:
    source = dataset(user, Records())
    return Case(source, {i: source[i]["text"] for i in (1, 2)}, READ)


def built_tokens(user: Path) -> Case:
    source = dataset(user, replace(TokenRows(length=8, packed=False), tokenizer=Bytes()))
    streams = [bytes(source[i]["tokens"].astype(np.uint8)) for i in range(len(source))]
    return Case(source, {streams.index(b"x" * 9): "x" * 9}, (), "tokens")


def damaged(user: Path) -> Case:
    """The first record is damaged."""
    return of_text(Tolerant(Broken(records(user.parent / "data")), 1))


def tumours(user: Path) -> Case:
    table = np.loadtxt(
        Path(sys.modules["sklearn"].__path__[0]) / "datasets/data/breast_cancer.csv", delimiter=",", skiprows=1
    )
    one = dict(zip(COLUMNS, table[3, :-1].tolist(), strict=True))
    return Case(Take(Tumours(), 6), {3: json.dumps(one)}, (Columns(COLUMNS),), "features")


def digits(user: Path) -> Case:
    from sklearn.datasets import load_digits

    train = Digits("train")
    row = next(i for i in range(len(train)) if np.array_equal(train[i]["image"][..., 0] * 16, load_digits().images[1]))
    one = npy(user / "d.npy", (load_digits().images[1] / 16).astype(np.float32))
    return Case(Take(train, 6), {row: one}, (Shift(1),), "image")


@dataclass(frozen=True)
class Cut(Transform):
    """The first tokens of a row."""

    length: int

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**example, "tokens": example["tokens"][: self.length]}


@dataclass(frozen=True)
class Broken(Take):
    """Its first example is damaged."""

    count: int = 6

    def fetch(self, indices: Any) -> list[Any]:
        if 0 in indices:
            raise Damaged("rows", 0, "for the test")
        return super().fetch(indices)


CASES: dict[str, tuple[type[Source], Callable[[Path], Case]]] = {
    "images in memory": (Arrays, images_in_memory),
    "gray floats": (Arrays, gray_floats),
    "integers of 32 bits": (Arrays, wide_integers),
    "vectors": (Arrays, standard_scores),
    "two texts": (Arrays, two_texts),
    "items": (Items, items),
    "records": (ArrayRecord, lambda user: of_text(records(user.parent / "data"))),
    "stored": (Stored, lambda user: of_text(Stored(records(user.parent / "data"), str(user.parent / "data")))),
    "in memory": (InMemory, lambda user: of_text(InMemory(records(user.parent / "data")))),
    "some": (Take, lambda user: of_text(Take(records(user.parent / "data"), 5))),
    "damaged": (Tolerant, damaged),
    "mapped": (
        Mapped,
        lambda user: Case(Mapped(records(user.parent / "data"), (OneHot("label", (0, 1)), *READ)), TEXT),
    ),
    "mapped inside": (
        Mapped,
        lambda user: Case(Take(Mapped(records(user.parent / "data"), (OneHot("label", (0, 1)), *READ)), 5), TEXT),
    ),
    "mixture of mapped": (
        Mixture,
        lambda user: Case(
            Mixture((Mapped(records(user.parent / "data"), (OneHot("label", (0, 1)), *READ)),), (1,)), TEXT
        ),
    ),
    "mixture": (
        Mixture,
        lambda user: Case(Mixture((records(user.parent / "data"),) * 2, (1, 1)), {2: TEXTS[1]}, READ),
    ),
    "parquet": (Parquet, parquet_text),
    "lists": (JsonLines, lists),
    "json lines": (JsonLines, json_lines),
    "csv": (Csv, csv_table),
    "tar of images": (Tar, archive),
    "tar of texts": (Tar, archived_text),
    "image folder": (ImageFolder, image_folder),
    "tfds": (jaxtrain.data.Tfds, tfds),
    "windows": (Windows, windows),
    "tokens": (Tokens, tokens),
    "packed": (Packed, packed),
    "documents": (Documents, documents),
    "built": (Built, built),
    "built tokens": (Built, built_tokens),
    "digits": (Digits, digits),
    "tumours": (Tumours, tumours),
    "skills": (Skills, lambda user: Case(Take(Skills(), 6), {1: Skills()[1]["text"]}, (Utf8(99),))),
    "reviews": (
        MovieReviews,
        lambda user: Case(Take(MovieReviews("test"), 6), {1: MovieReviews("test")[1]["text"]}, (Utf8(99),)),
    ),
}

NO_DATA = {"RememberedSource", "Wrapper"}
"""What a run keeps in place of data, and the base class of sources around others."""


def test_every_source_has_a_case():
    for package in (jaxtrain.data, jaxtrain.datasets):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)

    def below(kind: type) -> Iterator[type]:
        for each in kind.__subclasses__():
            yield each
            yield from below(each)

    own = {each for each in below(Source) if each.__module__.startswith(("jaxtrain.data.", "jaxtrain.datasets."))}
    names = {each.__name__ for each in own if not inspect.isabstract(each)}
    assert names - NO_DATA == {kind.__name__ for kind, _ in CASES.values()}


def read_back(data: Pipeline, inputs: str | tuple[str, ...], evals: Mapping[str, Pipeline]) -> RememberedPipeline:
    """What a run folder has of it."""
    found = from_json(json.loads(json.dumps(to_json(remember_inputs(data, evals, inputs)))))
    assert isinstance(found, RememberedPipeline)
    return found


@pytest.fixture
def user(tmp_path, monkeypatch) -> Path:
    """The user's own folder, which is current, beside that of the data."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    (tmp_path / "user").mkdir()
    monkeypatch.chdir(tmp_path / "user")
    return tmp_path / "user"


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "reviews")) for name in CASES])
def test_what_predict_reads_is_the_row_of_the_evaluation(user, name):
    kind, make = CASES[name]
    case = make(user)
    assert any(isinstance(one, kind) for one in find(case.source, Source))
    pipeline = Pipeline(case.source, case.transforms, batch_size=3, shuffle=False, threads=0)
    names = (case.inputs,) if isinstance(case.inputs, str) else case.inputs
    batches = list(pipeline.epoch())
    wanted = {field: np.concatenate([batch[field] for batch in batches]) for field in names}
    kept = read_back(pipeline, case.inputs, {"test": pipeline})
    shutil.rmtree(user.parent / "data")  # predict needs no data
    array_record._open_records.cache_clear()
    token_files.open_tokens.cache_clear()
    for row, argument in case.arguments.items():
        found = kept.read(argument)
        for field in names:
            assert found[field].dtype == wanted[field].dtype
            np.testing.assert_array_equal(found[field], wanted[field][row : row + 1])


# How raw inputs are prepared, and what is refused.


def test_inputs_are_prepared_as_by_evaluations_not_as_by_training(user):
    """Training crops images of 6 × 5 to 4 × 4; the evaluation reads them as 4 × 4 and has other moments."""
    case = image_folder(user)
    assert isinstance(case.source, ImageFolder)
    data = Pipeline(case.source, (RandomCrop((4, 4)), Normalize(0.0, 1.0)), batch_size=3)
    test = Pipeline(replace(case.source, size=(4, 4)), (Normalize(128.0, 64.0),), batch_size=2, shuffle=False)
    kept = read_back(data, "image", {"validation": test, "test": replace(test, batch_size=6)})
    wanted = next(test.epoch())["image"][1]
    np.testing.assert_array_equal(kept.read(case.arguments[1])["image"][0], wanted)
    assert kept.example()["image"].shape == (3, 4, 4, 3)


def test_evaluations_that_prepare_inputs_in_different_ways_are_said(user, caplog):
    one = Pipeline(Arrays({"x": VECTORS}), (Normalize(1.0, 2.0, "x"),), batch_size=3)
    other = replace(one, transforms=(Normalize(0.0, 2.0, "x"),))
    kept = read_back(one, "x", {"a": one, "b": other})
    assert [line for line in caplog.messages if "the evaluations a, b prepare" in line]
    caplog.clear()
    np.testing.assert_allclose(kept.read(npy(user / "x.npy", VECTORS[2]))["x"][0], (VECTORS[2] - 1) / 2)
    read_back(one, "x", {"a": one, "b": replace(one, seed=3)})
    assert caplog.messages == []


def kept_of(columns: Mapping[str, Any], *transforms: Transform, inputs: str = "x") -> RememberedPipeline:
    pipeline = Pipeline(Arrays(columns), transforms, batch_size=2)
    return read_back(pipeline, inputs, {})


def test_pixels_are_not_given_to_a_model_of_floats_on_another_scale(user):
    image = PIXELS[..., :1].astype(np.float32)
    with pytest.raises(ConfigError, match=r"2.png cannot be read as a x .*not all in 0…1.*\.npy"):
        kept_of({"x": image}).read(png(user / "2.png", PIXELS[2, ..., 0]))
    with pytest.raises(ConfigError, match="not all in 0…1"):
        kept_of({"x": image / 127.5 - 1}).read(png(user / "2.png", PIXELS[2, ..., 0]))
    found = kept_of({"x": image}).read(npy(user / "2.npy", PIXELS[2, ..., :1]))["x"]
    np.testing.assert_array_equal(found[0], image[2])


def test_arrays_that_would_be_changed_by_a_cast_are_refused(user):
    with pytest.raises(ConfigError, match="its numbers do not fit uint8"):
        kept_of({"x": PIXELS}).read(npy(user / "f.npy", PIXELS[0] / 255))
    with pytest.raises(ConfigError, match=r"its integers are up to 25., where the floats of the data are in 0…1"):
        kept_of({"x": PIXELS / 255}).read(npy(user / "i.npy", PIXELS[0]))
    with pytest.raises(ConfigError, match=r"cannot be read as a x of shape \[3\]"):
        kept_of({"x": VECTORS}).read(npy(user / "two.npy", VECTORS[0, :2]))
    with pytest.raises(ConfigError, match=r"'age' is to be .*its numbers do not fit int64"):
        kept_of({"age": np.arange(6), "x": VECTORS[:, 0]}, Columns(("age", "x"), "x")).read('{"age": 1.5, "x": 2}')


def test_a_file_of_text_is_read_and_one_that_is_not_there_is_said(user, caplog):
    kept = kept_of({"text": TEXTS}, Utf8(8), inputs="bytes")
    (user / "review.txt").write_text("good")
    assert bytes(kept.read("review.txt")["bytes"][0]) == b"good\0\0\0\0"
    assert caplog.messages == []
    assert bytes(kept.read("reviw.txt")["bytes"][0]) == b"reviw.tx"
    assert caplog.messages == ["there is no file reviw.txt: it is read as a text"]
    assert bytes(kept.read("a" * 5000)["bytes"][0]) == b"a" * 8  # longer than a file's name may be
    (user / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin.txt cannot be read as a text"):
        kept.read("latin.txt")
    assert bytes(kept.read('{"text": "in"}')["bytes"][0]).rstrip(b"\0") == b"in"
    assert bytes(kept.read('{"a": 1}')["bytes"][0]) == b'{"a": 1}'


def test_a_model_of_several_fields_asks_for_all_of_them(user):
    kept = kept_of({"age": np.arange(6), "size": VECTORS[:, 0], "label": LABELS}, Columns(("age", "size"), "x"))
    with pytest.raises(ConfigError, match=r"12: the model reads age, size: give a JSON object"):
        kept.read("12")
    with pytest.raises(ConfigError, match=r"the model also reads size"):
        kept.read('{"age": 12}')
    np.testing.assert_array_equal(kept.read('{"age": 12, "size": 0.5, "label": 1}')["x"], [[12, 0.5]])


def test_what_a_transform_lacks_of_the_inputs_is_an_error(user):
    """Of the label it may lack anything, of the inputs nothing."""

    kept = kept_of({"x": VECTORS, "label": LABELS}, OneHot("label", (0, 1)), Normalize(0.0, 2.0, "x"))
    np.testing.assert_array_equal(kept.read(npy(user / "x.npy", VECTORS[0]))["x"][0], VECTORS[0] / 2)
    broken = replace(kept, transforms=(*kept.transforms, Strict()))
    with pytest.raises(ConfigError, match="strict"):
        broken.read("x.npy")


@dataclass(frozen=True)
class Strict(Transform):
    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        raise ConfigError("strict")


@dataclass(frozen=True)
class Scaled(Transform):
    """Times the field `scale`, which is 1 where it is missing."""

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**example, "x": np.float32(example["x"] * example.get("scale", 1.0))}


def test_fields_are_needed_that_change_the_input_or_that_it_cannot_be_made_without(user):
    """`scale` may be missing but changes the input; `one` is the same in all examples but cannot be missing."""
    columns = {"x": VECTORS, "scale": [1.0, 2, 3, 4, 5, 6], "label": LABELS}
    with pytest.raises(ConfigError, match="the model reads x, scale:"):
        kept_of(columns, Scaled()).read(npy(user / "x.npy", VECTORS[1]))
    columns = {"age": np.arange(6), "one": np.ones(6, int), "label": LABELS}
    with pytest.raises(ConfigError, match="the model also reads one"):
        kept_of(columns, Columns(("age", "one"), "x")).read('{"age": 2}')


@dataclass(frozen=True)
class Noisy(Transform):
    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**example, "x": (example["x"] + rng.normal(size=3)).astype(np.float32)}


def test_noise_in_evaluation_is_the_same_noise(user):
    data = Pipeline(Arrays({"x": VECTORS}), (Noisy(),), batch_size=3, seed=1)
    test = replace(data, seed=7, shuffle=False)
    found = read_back(data, "x", {"test": test}).read(npy(user / "x.npy", VECTORS[2]))
    np.testing.assert_array_equal(found["x"][0], next(test.epoch())["x"][2])


@dataclass(frozen=True)
class Encoded(Transform):
    """Of bytes alone."""

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {"x": np.frombuffer(bytes.fromhex(example["raw"].hex())[:2], np.uint8)}


def test_bytes_in_the_data_are_bytes_of_a_text_or_of_a_file(user):
    kept = kept_of({"raw": [b"ab\xff", b"cd"]}, Encoded())
    (user / "file").write_bytes(b"\xff\xfe")
    assert kept.read("file")["x"].tolist() == [[255, 254]]
    assert kept.read("no")["x"].tolist() == [[110, 111]]


def test_a_fit_of_targets_does_not_ask_for_targets(user):
    pipeline = Pipeline(Arrays({"x": VECTORS, "target": VECTORS[:, 0]}), (Normalize(1.0, 2.0, "target"),), batch_size=2)
    kept = read_back(pipeline, "x", {})
    assert kept.read(npy(user / "x.npy", VECTORS[0])).keys() == {"x", "mask"}


def test_token_files_of_another_tokenizer_are_said_and_read_no_texts(user, caplog):
    tokenizer = train_bpe(TEXTS, 300, user / "bpe.json")
    paths = tuple(map(str, write_tokens(user.parent / "data", "t", ["abcdefgh" * 3], tokenizer)))
    pipeline = Pipeline(Tokens(paths, 8), batch_size=1)
    with pytest.raises(
        ConfigError, match=r"Tokens: .*t-00000.bin was written by the tokenizer tokenizers:\w+, but tok"
    ):
        pipeline.source.raw("abc")
    kept = read_back(pipeline, "tokens", {})
    assert [line.split(" was ")[0] for line in caplog.messages] == [f"Tokens: {paths[0]}"]
    with pytest.raises(ConfigError, match="this model reads files with its 'tokens'"):
        kept.read("abc")
    row = npy(user / "row.npy", pipeline.source[0]["tokens"])
    np.testing.assert_array_equal(kept.read(row)["tokens"][0], pipeline.source[0]["tokens"])


def test_a_user_reads_raw_inputs_of_a_source_as_before(user):
    assert Arrays({"text": TEXTS}).raw("hi") == {"text": "hi"}
    assert RememberedSource({"text": ("text", ())}).raw("hi") == {"text": "hi"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"text": ', "is not JSON"),
        ('{"txt": "hi"}', "has none of the fields that the model reads: text"),
        ("[1]", "none"),
    ],
)
def test_a_json_file_without_a_field_of_the_model_is_no_text(user, text, says):
    (user / "in.json").write_text(text)
    with pytest.raises(ConfigError, match=says):
        RememberedSource({"text": ("text", ())}).raw(str(user / "in.json"))


def test_an_empty_text_is_refused_where_nothing_fills_it_up(user):
    kept = read_back(Pipeline(Windows(Arrays({"text": TEXTS}), 8), batch_size=2), "tokens", {})
    with pytest.raises(ConfigError, match="'' is empty: nothing is left of it for 'tokens'"):
        kept.read("")
    assert kept_of({"text": TEXTS}, Utf8(4), inputs="bytes").read("")["bytes"].tolist() == [[0, 0, 0, 0]]


# The whole way, of the shipped experiments.

SHIPPED = sorted(
    path.relative_to(ROOT)
    for path in [*ROOT.glob("experiments/*.py"), *ROOT.glob("experiments/recipes/*.py")]
    if path.name != "datasets.py"  # it describes datasets
)
"""Those in files that have an experiment."""


def user_has(example: Mapping[str, Any], names: list[str], folder: Path) -> str:
    """A file of the one field of an example that the model reads."""
    value = example[names[0]]
    if isinstance(value, str):
        (folder / "input.txt").write_text(value, encoding="utf-8", newline="")
        return str(folder / "input.txt")
    if names == ["tokens"]:
        (folder / "input.bin").write_bytes(bytes(np.asarray(value, np.uint8)))
        return str(folder / "input.bin")
    return npy(folder / "input.npy", value)


def tiny(experiment: Experiment) -> Experiment:
    few = {split: replace(data, source=Take(data.source, 5), batch_size=4) for split, data in experiment.evals.items()}
    data = replace(experiment.data, source=Take(experiment.data.source, 64), batch_size=4)
    return replace(experiment, data=data, evals=few, steps=1, optimizer=AdamW(schedule=ConstantRate(peak=1e-3)))


@pytest.mark.slow
@pytest.mark.parametrize("file", SHIPPED, ids=str)
def test_a_shipped_experiment_predicts_what_it_evaluates(file, user, monkeypatch):
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setenv("JAXTRAIN_DATA", str(user.parent / "data"))
    if file.name == "bncc.py":
        from jaxtrain.experiment.files import load_kind

        build(load_kind(f"{ROOT / 'experiments' / 'datasets.py'}:bncc", Dataset)[0], user.parent / "data")
    experiment, origin = load(str(ROOT / file))
    experiment = replace(tiny(experiment), start=None)
    run, _ = train(experiment, user / "run", origin)
    restored = run.restore()
    for data in experiment.evals.values():
        batch = next(restored.program.epoch(data))
        whole = jax.device_get(restored.program.predict(restored.state, batch))
        for row in (1, 3):
            inner: Any = data.source
            while not (names := [name for name in ("text", "words", "image", "tokens") if name in inner[row]]):
                inner = inner.source  # what a transform of the dataset made of it is not what a user has
            argument = user_has(inner[row], names, user)
            (found,) = predict_run(Run(run.folder, str(ROOT / file)), [argument])
            wanted = experiment.task.describe({name: x[row] for name, x in whole.items()})
            number = r"-?\d+(?:\.\d*)?(?:e[+-]?\d+)?"
            assert "".join(re.sub(number, "", found).split()) == "".join(re.sub(number, "", wanted).split())
            # Another number of rows is another program, whose sums differ in the last bits; texts have two digits.
            rounded = 0.0101 if isinstance(experiment.task, Classification | LanguageModel) else 1e-5
            now, before = (np.array(re.findall(number, text), float) for text in (found, wanted))
            np.testing.assert_allclose(now, before, rtol=1e-4, atol=rounded)


@dataclass(frozen=True)
class Line(Model):
    def build(self, rngs: nnx.Rngs, inputs: Any) -> nnx.Module:
        return nnx.Linear(3, 1, rngs=rngs)


def test_the_answer_of_predict_is_that_of_the_row_in_the_units_of_the_data(user):
    columns = {"x": VECTORS, "target": VECTORS.sum(1) * 100}
    data = Pipeline(Arrays(columns), (Standardize(("x", "target")),), batch_size=4)
    experiment = Experiment(
        task=Regression(model=Line(), inputs="x"),
        data=data,
        optimizer=AdamW(schedule=ConstantRate(peak=1e-1)),
        steps=2,
        evals={"test": replace(data, shuffle=False, batch_size=3)},
    )
    run, _ = train(experiment, user / "run")
    restored = run.restore()
    evaluated = run.experiment.evals["test"]
    batch = next(restored.program.epoch(evaluated))
    values = jax.device_get(restored.program.predict(restored.state, batch))["values"]
    found = predict_run(run, [npy(user / f"{i}.npy", VECTORS[i]) for i in (0, 2)])
    assert found == [f"values {values[i]}" for i in (0, 2)]


def test_the_answer_of_predict_is_that_of_the_row_for_texts_beside_others(user):
    data = Pipeline(records(user.parent / "data"), READ, batch_size=4)
    experiment = Experiment(
        task=Classification(model=NGrams(buckets=64, width=4), inputs="bytes", classes=("bad", "good")),
        data=data,
        optimizer=AdamW(schedule=ConstantRate(peak=1e-1)),
        steps=2,
        evals={"test": replace(data, shuffle=False)},
    )
    run, _ = train(experiment, user / "run")
    restored = run.restore()
    whole = restored.program.predict(restored.state, next(restored.program.epoch(experiment.evals["test"])))
    texts = [experiment.task.describe({"probabilities": x}) for x in np.asarray(whole["probabilities"])]
    assert predict_run(Run(run.folder), [TEXTS[1], TEXTS[2]]) == texts[1:3]
