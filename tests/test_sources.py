"""Every source, mixture and packing: read by index alone, whoever reads; and damage in each kind of file, named."""

import importlib
import itertools
import logging
import os
import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from test_datasets import spec, texts

from jaxtrain import ConfigError
from jaxtrain.data import (
    ArrayRecord,
    Arrays,
    BatchTransform,
    CentralCrop,
    Columns,
    CutMix,
    Damaged,
    Hash,
    ImageFolder,
    InMemory,
    Items,
    LogMel,
    Mapped,
    Mixture,
    Normalize,
    OneHot,
    Packed,
    Parquet,
    Pipeline,
    RandomCrop,
    Shift,
    Source,
    Stored,
    Take,
    Tokenize,
    Tokens,
    Tolerant,
    Utf8,
    Windows,
    write_array_record,
)
from jaxtrain.data.tokens.files import write_tokens
from jaxtrain.data.tokens.packing import plan_packing
from jaxtrain.data.tokens.tokenizers import Bytes
from jaxtrain.datasets import Built
from jaxtrain.datasets.build import build

BATCH = 8


@dataclass(frozen=True)
class Broken(Source):
    """Numbers, some of which cannot be read."""

    bad: tuple[int, ...]
    size: int = 20

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        if index in self.bad:
            raise Damaged("numbers.txt", index, "it is bad")
        return {"x": np.int32(index)}

    def identity(self) -> str:
        return f"broken:{self.bad}"


def numbers(size: int = 20, first: int = 0) -> Arrays:
    return Arrays({"x": np.arange(first, first + size, dtype=np.int32)})


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, tuple[Source, tuple]]:
    """One of every kind of source, with the transforms that make it numbers."""
    import pyarrow as pa
    from PIL import Image
    from pyarrow import parquet

    root: Path = tmp_path_factory.mktemp("sources")
    rows = texts(50)
    examples = [{name: column[i] for name, column in rows.items()} for i in range(50)]
    write_array_record(root / "a.arrayrecord", examples[:20])
    write_array_record(root / "b.arrayrecord", examples[20:])
    parquet.write_table(
        pa.table({**rows, "pair": [[i, i + 1] for i in range(50)]}), root / "rows.parquet", row_group_size=7
    )
    for i in range(12):
        (root / "images" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        pixels = np.full((6 + i, 9, 3), 20 * i, np.uint8)
        Image.fromarray(pixels).save(root / "images" / "ab"[i % 2] / f"{i}.png")
    paths = tuple(map(str, write_tokens(root, "tokens", rows["text"], Bytes(), per_file=900)))
    assert len(paths) > 2
    plan_packing(paths, 128)
    build(spec(), root)
    records = ArrayRecord((str(root / "a.arrayrecord"), str(root / "b.arrayrecord")))
    text = (Utf8(40),)
    return {
        "arrays": (Arrays(rows), text),
        "records": (records, text),
        "parquet": (Parquet((str(root / "rows.parquet"),)), text),
        "parquet stored": (Stored(Parquet((str(root / "rows.parquet"),), ("text",)), str(root / "stored")), text),
        "images": (ImageFolder(str(root / "images"), (8, 6), ("a", "b")), (Shift(1),)),
        "tokens": (Tokens(paths, 33), ()),
        "packed": (Packed(paths, 128), ()),
        "mixture": (Mixture((records, Arrays(rows)), (3, 1)), text),
        "mapped": (InMemory(Mapped(records, text)), ()),
        "items": (Items([{"x": np.int32(i)} for i in range(30)], "thirty"), ()),
        "built": (Built("tiny", "1.0.0", folder=str(root)), text),
        "windows": (Windows(Arrays(rows), 50), ()),
        "tolerant": (Tolerant(Broken((3, 7)), 5), ()),
        "whole batches": (ImageFolder(str(root / "images"), (8, 6), ("a", "b")), (RandomCrop((5, 5)),)),
    }


KINDS = (
    "arrays",
    "records",
    "parquet",
    "parquet stored",
    "images",
    "tokens",
    "packed",
    "mixture",
    "mapped",
    "items",
    "built",
    "windows",
    "tolerant",
    "whole batches",
)


def pipeline(made, kind: str, **values) -> Pipeline:
    source, transforms = made[kind]
    changes = (CutMix(),) if kind == "whole batches" else ()
    return Pipeline(source, transforms, batch_size=BATCH, seed=3, batch_transforms=changes, **values)


def read(pipe: Pipeline, steps: int, rows=None, start: int = 0) -> list[dict]:
    batches = pipe.batches(rows, start)
    try:
        return list(itertools.islice(batches, steps))
    finally:
        batches.close()


def same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], strict=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_depends_on_its_step_alone_not_on_processes_or_where_reading_began(made, kind):
    pipe = pipeline(made, kind)
    whole = read(pipe, 9)
    for processes in (1, 2, 4):
        share = BATCH // processes
        parts = [read(pipe, 9, range(p * share, (p + 1) * share)) for p in range(processes)]
        for step, batch in enumerate(whole):
            same({name: np.concatenate([part[step][name] for part in parts]) for name in batch}, batch)
    for start in (1, 4, 8):
        for batch, later in zip(whole[start:], read(pipe, 9 - start, start=start), strict=True):
            same(batch, later)


@dataclass(frozen=True)
class Drawn(BatchTransform):
    """Adds the number that the whole batch draws."""

    def __call__(self, batch, rng):
        return {**batch, "drawn": np.full(BATCH, rng.random())}


def test_a_transform_of_the_whole_batch_draws_anew_in_every_step(made):
    source, transforms = made["arrays"]
    batches = read(Pipeline(source, transforms, batch_size=BATCH, batch_transforms=(Drawn(), Drawn())), 5)
    assert len({batch["drawn"][0] for batch in batches}) == 5


@dataclass(frozen=True)
class Beside(Source):
    """Whole batches of several pipelines side by side, for worker processes take seconds to start."""

    pipelines: tuple[Pipeline, ...]

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict:
        pipelines = enumerate(self.pipelines)
        return {f"{number}.{name}": x for number, pipe in pipelines for name, x in pipe.steps()[index].items()}

    def identity(self) -> str:
        return "beside"


@pytest.mark.slow
def test_no_batch_depends_on_worker_processes(made):
    beside = Pipeline(Beside(tuple(pipeline(made, kind) for kind in KINDS)), batch_size=1, shuffle=False)
    for one, other in zip(read(beside, 3), read(replace(beside, workers=2), 3), strict=True):
        same(one, other)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "items"])
def test_a_source_is_known_by_its_examples_and_survives_pickling(made, kind):
    source = made[kind][0]
    copy = pickle.loads(pickle.dumps(source))
    assert copy.identity() == source.identity()
    assert len(pickle.dumps(source)) < 20_000
    for index in (0, len(source) - 1):
        one, other = source[index], copy[index]
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_every_identity_is_another(made):
    found = [made[kind][0].identity() for kind in KINDS if kind != "whole batches"]
    assert len(set(found)) == len(found)


# Mixtures.


def picks(mixture: Mixture, count: int) -> list[int]:
    return [int(mixture[i]["x"]) for i in range(count)]


def test_a_mixture_has_the_weights_in_every_stretch_and_repeats_what_is_short():
    mixture = Mixture((numbers(12), numbers(3, 100)), (3, 1))
    assert len(mixture) == 16
    found = picks(mixture, 16)
    assert [x for x in found if x < 100] == list(range(12))
    assert [x for x in found if x >= 100] == [100, 101, 102, 100]
    assert all(sum(x >= 100 for x in found[i : i + 4]) == 1 for i in (0, 4, 8, 12))


def test_a_mixtures_epoch_ends_when_every_source_was_seen_whole():
    for sizes, weights in (((5, 50), (1, 1)), ((40, 7), (0.9, 0.1)), ((3, 3, 3), (5, 3, 2))):
        mixture = Mixture(tuple(numbers(size, 100 * i) for i, size in enumerate(sizes)), weights)
        found = picks(mixture, len(mixture))
        for i, size in enumerate(sizes):
            assert {x for x in found if x // 100 == i} == set(range(100 * i, 100 * i + size))
        last = found.pop()
        assert last not in found


@pytest.mark.parametrize("weights", [(1,), (1, 0), (1, -1), (1, 1e-6)])
def test_a_mixture_with_weights_that_cannot_be_is_refused(weights):
    with pytest.raises(ConfigError, match="weight"):
        Mixture((numbers(), numbers()), weights)


def test_a_mixture_of_other_fields_names_the_source(made):
    mixture = Mixture((Broken((0,)), Arrays({"y": np.arange(9)})), (1, 1))
    with pytest.raises(ConfigError, match=r"source 1 has the fields \['y'\], source 0 \['x'\]"):
        mixture[1]
    assert mixture[2]["x"] == 1  # though the first example, which tells the fields, is damaged


# Sources made of others.


def test_what_reads_several_at_once_does_so_through_the_sources_made_of_it(made):
    records = made["records"][0]
    for source in (Take(records, 30), Mapped(records, ()), InMemory(records), Tolerant(records, 1)):
        asked: list[list[int]] = []

        class Asked(ArrayRecord):
            def fetch(self, indices, asked=asked):
                asked.append(list(indices))
                return super().fetch(indices)

        object.__setattr__(source, "source", Asked(records.paths))
        found = [source.decode(one) for one in source.fetch([4, 21, 7])]
        assert [example["text"] for example in found] == [records[i]["text"] for i in (4, 21, 7)]
        assert asked == [[4, 21, 7]]
    rows = Mixture((records, made["arrays"][0]), (3, 1))
    assert [rows.decode(one)["text"] for one in rows.fetch(range(9))] == [rows[i]["text"] for i in range(9)]


def test_what_is_kept_in_memory_is_read_once():
    reads = []

    class Counting:
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> dict:
            reads.append(index)
            return {"x": index}

    assert InMemory(Items([{"x": 5}], "a list, which has no hash"))[0] == {"x": 5}
    kept = InMemory(Items(Counting(), "counting once"))
    assert [kept[i]["x"] for i in (1, 1, 2, 1)] == [1, 1, 2, 1]
    assert reads == [1, 2]
    kept[1]["x"] = 99
    assert kept[1]["x"] == 1


def test_random_transforms_are_refused_where_they_would_be_drawn_once():
    for transform in (Shift(1), RandomCrop((2, 2))):
        with pytest.raises(ConfigError, match="is random"):
            Mapped(numbers(), (transform,))


def test_items_are_trained_on_by_the_name_they_are_given():
    from jaxtrain.base.config import flatten, from_json, to_json

    one, other = Items([{"x": 1}], "one"), Items([{"x": 2}], "one")
    assert flatten(one) == flatten(other)
    assert flatten(one) != flatten(Items([{"x": 1}], "two"))
    with pytest.raises(ConfigError, match=r"in memory \(list\).*Run\(folder, experiment"):
        from_json(to_json(one))


# Damage.


def test_damage_is_skipped_and_counted_up_to_the_limit(caplog):
    with caplog.at_level(logging.WARNING, "jaxtrain.data"):
        source = Tolerant(Broken((3, 4, 19)), 3)
        found = [int(source[i]["x"]) for i in range(20)] + [int(source[3]["x"])]
    assert found == [*range(3), 5, 5, *range(5, 19), 0, 5]
    assert len(caplog.records) == 3
    assert "numbers.txt, record 3: it is bad" in caplog.text
    strict = Tolerant(Broken((3, 4, 19)), 1)
    with pytest.raises(Damaged, match=r"numbers.txt, record 4.*limit of 1"):
        [strict[i] for i in range(20)]


def test_training_stops_at_damage_unless_told_otherwise():
    with pytest.raises(Damaged, match=r"numbers.txt, record 3: it is bad"):
        read(Pipeline(Broken((3,)), batch_size=4, shuffle=False, threads=0), 3)
    assert read(Pipeline(Tolerant(Broken((3,)), 2), batch_size=4, shuffle=False), 1)[0]["x"].tolist() == [0, 1, 2, 4]


def test_a_damaged_record_among_many_read_at_once_is_the_one_named(tmp_path):
    paths = [tmp_path / name for name in ("a.arrayrecord", "b.arrayrecord")]
    for path in paths:
        write_array_record(path, [{"x": np.full(500, i)} for i in range(10)])
    raw = bytearray(paths[1].read_bytes())
    raw[400] ^= 1
    paths[1].write_bytes(raw)
    source = ArrayRecord(tuple(map(str, paths)))
    bad = [i for i in range(20) if not readable(source, i)]
    assert len(bad) == 1
    with pytest.raises(Damaged, match=rf"b.arrayrecord, record {bad[0] - 10}: it cannot be read") as caught:
        source.fetch(range(20))
    assert (caught.value.file, caught.value.record) == (str(paths[1]), bad[0] - 10)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)


def test_a_record_that_does_not_decode_is_named(tmp_path):
    records = importlib.import_module("array_record.python.array_record_module")
    good, bad = tmp_path / "a.arrayrecord", tmp_path / "b.arrayrecord"
    write_array_record(good, [{"x": 1}] * 3)
    writer = records.ArrayRecordWriter(str(bad), "group_size:1")
    for record in (msgpack_serialize({"x": 1}), b"\xc1 no msgpack", msgpack_serialize([1])):
        writer.write(record)
    writer.close()
    source = ArrayRecord((str(good), str(bad)))
    assert source[3]["x"] == 1
    with pytest.raises(Damaged, match=r"b.arrayrecord, record 1: it does not decode"):
        source[4]
    with pytest.raises(Damaged, match=r"b.arrayrecord, record 2: it decodes to a list"):
        source[5]
    assert [Tolerant(source, 2)[i]["x"] for i in range(6)] == [1] * 6


def test_a_missing_record_file_names_the_nearest(tmp_path):
    write_array_record(tmp_path / "train-00000.arrayrecord", [{"x": 1}])
    paths = tuple(str(tmp_path / f"train-0000{i}.arrayrecord") for i in range(2))
    with pytest.raises(ConfigError, match=r"no ArrayRecord file .*train-00001.*did you mean 'train-00000.arrayrecord'"):
        len(ArrayRecord(paths))


def readable(source: Source, index: int) -> bool:
    try:
        source[index]
    except Damaged:
        return False
    return True


@pytest.mark.parametrize("size", [0, 10, 66_000])
def test_a_truncated_record_file_is_named(tmp_path, size):
    path = tmp_path / "a.arrayrecord"
    write_array_record(path, [{"x": 1}])
    os.truncate(path, size)
    with pytest.raises(Damaged, match=r"a.arrayrecord: it cannot be opened"):
        len(ArrayRecord((str(path),)))


def test_what_parquet_and_images_cannot_be_is_named(tmp_path, made):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(Damaged, match=r"x.parquet: it cannot be opened"):
        len(Parquet((str(tmp_path / "x.parquet"),)))
    with pytest.raises(ConfigError, match=r"no Parquet file .*y.parquet; did you mean 'x.parquet'"):
        len(Parquet((str(tmp_path / "y.parquet"),)))
    source: Parquet = made["parquet"][0]
    with pytest.raises(ConfigError, match=r"no column 'txt'; did you mean 'text'"):
        len(Parquet(source.paths, ("txt",)))
    (tmp_path / "z.png").write_bytes(b"no image")
    images = ImageFolder(str(tmp_path), (4, 4))
    with pytest.raises(Damaged, match=r"z.png: it is not an image"):
        images[0]
    (tmp_path / "z.png").unlink()
    with pytest.raises(Damaged, match=r"z.png: it cannot be read"):
        images[0]
    (tmp_path / "chunk").mkdir()
    raw = bytearray(Path(made["images"][0].folder, "a", "0.png").read_bytes())
    raw[37] = 0xA6  # the kind of a chunk: Pillow raises a SyntaxError
    (tmp_path / "chunk" / "w.png").write_bytes(raw)
    with pytest.raises(Damaged, match=r"w.png: it is not an image"):
        ImageFolder(str(tmp_path / "chunk"), (4, 4))[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"holds no images"):
        len(ImageFolder(str(tmp_path / "empty"), (4, 4)))


def test_parquet_rows_and_images_are_what_was_written(made):
    table, images = made["parquet"][0], made["images"][0]
    assert [table[i]["text"] for i in range(50)] == texts(50)["text"]
    assert table[33]["pair"].tolist() == [33, 34]
    assert images.classes == ("a", "b")
    assert sorted((int(images[i]["label"]), int(images[i]["image"][0, 0, 0])) for i in range(12)) == sorted(
        (i % 2, 20 * i) for i in range(12)
    )
    assert images[0]["image"].shape == (8, 6, 3)


# Transforms.

RNG = np.random.default_rng(0)


def test_crops_are_windows_of_the_image_and_central_while_evaluating():
    image = np.arange(7 * 9).reshape(7, 9, 1)
    crop = RandomCrop((3, 4))
    seen = {tuple(crop({"image": image}, RNG)["image"][0, 0]) for _ in range(300)}
    assert seen == {(9 * y + x,) for y in range(5) for x in range(6)}
    np.testing.assert_array_equal(CentralCrop((3, 4))({"image": image}, RNG)["image"], image[2:5, 2:6])
    pipe = Pipeline(Arrays({"image": image[None].repeat(4, 0)}), (crop,), batch_size=4)
    np.testing.assert_array_equal(next(pipe.epoch())["image"][0], image[2:5, 2:6])
    with pytest.raises(ConfigError, match="no window"):
        RandomCrop((8, 2))({"image": image}, RNG)


def test_table_transforms_make_one_vector_of_numbers_and_categories():
    row = {"size": np.float32(4), "colour": "red", "shop": "Lisboa", "label": 1}
    for transform in (
        Normalize(2.0, 4.0, field="size"),
        OneHot("colour", ("blue", "red")),
        Columns(("size", "colour")),
        Hash("shop", 100),
    ):
        row = transform(row, RNG)
    assert row["features"].tolist() == [0.5, 0, 1]
    assert row["features"].dtype == np.float32
    assert row.keys() == {"features", "shop", "label"}
    assert 0 <= row["shop"] < 100
    assert row["shop"] == Hash("shop", 100)({"shop": b"Lisboa"}, RNG)["shop"]
    spread = {int(Hash("x", 1000)({"x": i}, RNG)["x"]) for i in range(1000)}
    assert 580 < len(spread) < 690  # 1000·(1 − 1/e) = 632
    with pytest.raises(ConfigError, match="did you mean 'red'"):
        OneHot("colour", ("blue", "red"))({"colour": "rad"}, RNG)
    assert OneHot("colour", ("blue", "red"))({"colour": b"red"}, RNG)["colour"].tolist() == [0, 1]
    with pytest.raises(ConfigError, match="buckets"):
        Hash("shop", 0)


@pytest.mark.parametrize("hertz", [300, 1000, 3000])
def test_a_sine_is_loudest_in_the_mel_band_that_holds_it(hertz):
    sound = np.sin(2 * np.pi * hertz * np.arange(16_000) / 16_000).astype(np.float32)
    out = LogMel(16_000, mels=40)({"audio": sound}, RNG)["audio"]
    assert out.shape == (1 + (16_000 - 400) // 160, 40)
    place = 2595 * np.log10(1 + hertz / 700) / (2595 * np.log10(1 + 8000 / 700)) * 41 - 1
    assert abs(out.mean(0).argmax() - place) <= 1
    louder = LogMel(16_000, mels=40)({"audio": 10 * sound}, RNG)["audio"]
    band = int(out.mean(0).argmax())
    np.testing.assert_allclose((louder - out)[:, band], np.log(100), rtol=1e-4)


def test_cutmix_pastes_only_from_images_of_the_same_label():
    labels = np.array([0, 1, 0, 1, 0, 2], np.int32)
    images = np.stack([np.full((8, 8, 1), 10 * label + i, np.float32) for i, label in enumerate(labels)])
    mixed = CutMix(0.25)({"image": images, "label": labels, "mask": np.ones(6, bool)}, np.random.default_rng(1))[
        "image"
    ]
    for row, label in enumerate(labels):
        values = np.unique(mixed[row])
        assert {int(value) // 10 for value in values} == {label}
        own = (mixed[row] == images[row]).mean()
        assert own == (1 if label == 2 else 0.75)


def test_tokenize_cuts_and_fills_up():
    one = Tokenize(Bytes(), 6)({"text": "olá, mundo", "label": 1}, RNG)
    assert one["tokens"].tolist() == list("olá, ".encode())
    assert Tokenize(Bytes(), 4)({"text": "a"}, RNG)["tokens"].tolist() == [97, 0, 0, 0]


def test_a_part_of_a_source_is_its_first_examples():
    assert len(Take(numbers(), 5)) == 5
    with pytest.raises(ConfigError, match="Take: 30 of the 20"):
        len(Take(numbers(), 30))


def test_an_experiment_file_may_have_the_name_of_a_package_that_carries_data():
    from jaxtrain.datasets.bundled import bncc as skills
    from jaxtrain.experiment.files import load_code

    load_code(Path(__file__).parents[1] / "experiments" / "bncc.py")
    skills._load.cache_clear()
    assert len(skills.Skills()) == 1304
