"""JSON Lines, CSV and tar files: read by index as Python's own readers read them, and what is wrong named by its line."""

import csv
import gzip
import io
import json
import os
import pickle
import random
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxtrain import ConfigError
from jaxtrain.base.config import flatten, from_json, to_json
from jaxtrain.data import Csv, Damaged, JsonLines, Pad, Pipeline, Tar, Tolerant, Utf8
from jaxtrain.data.sources import offsets

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def written(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def plain(example: dict) -> dict:
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in example.items()}


# JSON Lines.


def test_json_lines_are_read_in_any_order_as_json_reads_them(tmp_path):
    rows = [{"text": 'olá\n"x"' * (i % 5), "label": i, "x": [i, 0.5]} for i in range(300)]
    halves = rows[:100], rows[100:]
    paths = tuple(
        written(tmp_path / f"{n}.jsonl", "\n\r\n".join(json.dumps(row, ensure_ascii=n == 0) for row in half))
        for n, half in enumerate(halves)
    )
    source = JsonLines(paths)
    assert len(source) == 300
    order = random.Random(0).sample(range(300), 300)
    assert [plain(source[i]) for i in order] == [rows[i] for i in order]
    with pytest.raises(IndexError):
        source[300]


def test_json_numbers_have_one_kind_a_field(tmp_path):
    path = written(tmp_path / "x.jsonl", '\ufeff{"a": 1, "b": [], "c": []}\n{"a": 1.5, "b": [2], "c": [1]}\n')
    source = JsonLines((path,), floats=("a", "c"))
    assert [(type(row["a"]), row["b"].dtype.name, row["c"].dtype.name) for row in map(source.__getitem__, (0, 1))] == [
        (float, "int64", "float64")
    ] * 2
    batch = next(Pipeline(source, (Pad("b", 2), Pad("c", 1)), batch_size=2, shuffle=False).batches())
    assert batch["a"].tolist() == [1, 1.5]
    assert (batch["b"].tolist(), batch["b_mask"].tolist()) == ([[0, 0], [2, 0]], [[False, False], [True, False]])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"a": 1', "Expecting ',' delimiter"),
        ("[1]", "it is a list, not an object"),
        ('{"a": 1, "a": 2}', "the key 'a' occurs twice"),
        ('{"a": 1e999}', "the number 1e999 is beyond float64"),
        (b'{"a": "\xff"}', "can't decode byte"),
    ],
)
def test_a_line_that_is_no_json_object_is_named(tmp_path, line, says):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 0}\n\n' + (line if isinstance(line, bytes) else line.encode()) + b'\n{"a": 3}\n')
    source = JsonLines((str(path),))
    with pytest.raises(Damaged, match=r"x.jsonl, record 1: line 3 cannot be read: ") as caught:
        source[1]
    assert says in str(caught.value)
    assert Tolerant(source, 1)[1] == {"a": 3}


@pytest.mark.parametrize(
    ("value", "floats", "says"),
    [
        ("null", (), r"missing \(null\)"),
        ("null", ("a",), r"missing \(null\)"),
        ("[1, null]", ("a",), r"missing \(null\)"),
        ("{}", ("a",), "a struct"),
        ("1e300", ("a",), r"1e\+300"),
        (str(1 << 70), (), "an integer beyond 64 bits"),
        ("[[1], [2, 3]]", ("a",), "lists of different lengths"),
    ],
)
def test_a_json_value_that_is_no_number_is_named_with_its_line(tmp_path, value, floats, says):
    path = written(tmp_path / "x.jsonl", f'{{"a": 0}}\n\n{{"a": {value}}}\n')
    with pytest.raises(ConfigError, match=rf"field 'a' is {says}.*line 3 of .*x.jsonl"):
        next(Pipeline(JsonLines((path,), floats), batch_size=2, shuffle=False, threads=0).batches())


# CSV.

TEXT = 'id,"the text",price,label\r\n1,"two\nlines, ""quoted""",2.5,0\r\n\r\n-2,olá,1e3,1\r\n+3,,-.5,2'


def test_csv_rows_are_read_in_any_order_as_csv_reads_them(tmp_path):
    path = written(tmp_path / "x.csv", "\ufeff" + TEXT)
    source = Csv((path,), ints=("id", "label"), floats=("price",), texts=("the text",))
    assert [source[i] for i in (2, 0, 1)] == [
        {"id": 3, "label": 2, "price": -0.5, "the text": ""},
        {"id": 1, "label": 0, "price": 2.5, "the text": 'two\nlines, "quoted"'},
        {"id": -2, "label": 1, "price": 1000.0, "the text": "olá"},
    ]
    assert [source.where(i) for i in range(3)] == [f"line {n} of {path}" for n in (2, 5, 6)]
    rows = [[str(i), 'a,\n"b"\r\n' * (i % 4), "x" * 200_000 * (i == 7)] for i in range(50)]
    for number, half in enumerate((rows[:20], rows[20:])):
        with open(tmp_path / f"{number}.tsv", "w", newline="") as file:
            csv.writer(file, delimiter="\t").writerows([["i", "t", "long"], *half])
    many = Csv((str(tmp_path / "0.tsv"), str(tmp_path / "1.tsv")), texts=("i", "t", "long"), delimiter="\t")
    order = random.Random(0).sample(range(50), 50)
    assert [list(many[i].values()) for i in order] == [rows[i] for i in order]


@pytest.mark.parametrize(
    ("kind", "cell", "says"),
    [
        ("ints", "1.5", "'1.5' in column 'b' is not an integer"),
        ("ints", "1_0", "'1_0' in column 'b' is not an integer"),
        ("ints", "", "'' in column 'b' is empty"),
        ("floats", "NA", "'NA' in column 'b' is not a number"),
        ("floats", '"1,5"', "'1,5' in column 'b' is not a number"),
        ("floats", "1_0", "'1_0' in column 'b' is not a number"),
        ("floats", "1e999", "'1e999' in column 'b' is beyond float64"),
        ("floats", " ", "' ' in column 'b' is empty"),
        ("texts", "x,y", "it has 3 cells, not the 2 of the header"),
    ],
)
def test_a_cell_that_is_not_of_its_columns_kind_is_named_with_line_and_column(tmp_path, kind, cell, says):
    path = written(tmp_path / "x.csv", f'a,b\n"1\n2",3\n4,{cell}\n5,6\n')
    texts = Csv((path,), texts=("b",))
    source = {
        "ints": replace(texts, texts=(), ints=("b",)),
        "floats": replace(texts, texts=(), floats=("b",)),
        "texts": texts,
    }[kind]
    with pytest.raises(Damaged, match=r"x.csv, record 1: line 4 cannot be read: ") as caught:
        source[1]
    assert says in str(caught.value)
    assert float(Tolerant(source, 1)[1]["b"]) == 6


def test_columns_of_a_csv_file_have_to_be_named_and_to_be_there(tmp_path):
    path = written(tmp_path / "x.csv", TEXT)
    with pytest.raises(ConfigError, match=r"by ints=.*it has 'id', 'the text', 'price', 'label'"):
        len(Csv((path,)))
    with pytest.raises(ConfigError, match=r"x.csv has no column 'prize'; did you mean 'price'"):
        len(Csv((path,), floats=("prize",)))
    with pytest.raises(ConfigError, match="named twice"):
        len(Csv((path,), floats=("price",), texts=("price",)))
    not_a_tuple: Any = "id"
    with pytest.raises(ConfigError, match=r"Csv ints is a tuple, as \('id',\)"):
        Csv((path,), ints=not_a_tuple)
    with pytest.raises(ConfigError, match="name each column once, got"):
        len(Csv((written(tmp_path / "y.csv", "a,a\n1,2\n"),), ints=("a",)))


def test_a_quote_that_does_not_end_is_named(tmp_path):
    path = written(tmp_path / "x.csv", 'a\n1\n"2\n3\n')
    with pytest.raises(Damaged, match=r"x.csv: line 3 cannot be read: unexpected end of data"):
        len(Csv((path,), texts=("a",)))


# Tar.


def tar(path: Path, members: dict[str, bytes], **options) -> str:
    with tarfile.open(path, "w", **options) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return str(path)


def png(value: int) -> bytes:
    made = io.BytesIO()
    Image.fromarray(np.full((3, 5, 3), value, np.uint8)).save(made, "PNG")
    return made.getvalue()


def npy(array: np.ndarray) -> bytes:
    made = io.BytesIO()
    np.save(made, array)
    return made.getvalue()


def test_members_of_a_tar_file_with_one_stem_are_an_example(tmp_path):
    members = {}
    for i in range(20):
        members |= {f"./a/{i}.png": png(i), f"./a/{i}.cls": f"{i % 3}\n".encode(), f"./a/{i}.txt": f"olá {i}".encode()}
        members |= {f"./a/{i}.pose.npy": npy(np.arange(i)), f"./a/{i}.json": b'{"n": [1]}', f"./a/{i}.bin": bytes([i])}
    members |= {"./a/._1.png": b"\0\5", ".DS_Store": b"\0", "b/1.png": png(99)}
    first = tar(tmp_path / "0.tar", dict(list(members.items())[:60]))
    source = Tar((first, tar(tmp_path / "1.tar", dict(list(members.items())[60:]))), (4, 4))
    assert len(source) == 21
    for i in random.Random(0).sample(range(20), 20):
        found = source[i]
        assert found.pop("image").tolist() == [[[i] * 3] * 4] * 4
        wanted = {"label": i % 3, "text": f"olá {i}", "pose": list(range(i)), "json": {"n": [1]}, "bin": bytes([i])}
        assert plain(found) == wanted
    assert source[20].keys() == {"image"}
    assert replace(source, size=None)[3]["image"].shape == (3, 5, 3)
    assert source.where(12) == f"./a/12.png of {tmp_path}/1.tar"


def test_what_a_tar_file_cannot_be_is_named(tmp_path):
    path = tar(tmp_path / "x.tar", {"0.cls": b"1", "1.cls": b"one", "2.jpg": b"no image"})
    with pytest.raises(Damaged, match=r"x.tar, record 1: its member 1.cls cannot be read \(invalid literal"):
        Tar((path,))[1]
    with pytest.raises(Damaged, match=r"x.tar, record 2: its member 2.jpg cannot be read"):
        Tar((path,))[2]
    with pytest.raises(ConfigError, match=r"0.jpg and 0.png are both the field 'image'"):
        len(Tar((tar(tmp_path / "y.tar", {"0.jpg": b"", "0.png": b""}),)))
    with pytest.raises(ConfigError, match=r"0.tiff is an image of a kind that is not read"):
        len(Tar((tar(tmp_path / "t.tar", {"0.tiff": b""}),)))
    with pytest.raises(ConfigError, match=r"README has no ending"):
        len(Tar((tar(tmp_path / "r.tar", {"README": b""}),)))
    (tmp_path / "g.tar").write_bytes(gzip.compress(Path(path).read_bytes()))
    with pytest.raises(Damaged, match=r"g.tar: it is not an uncompressed tar file"):
        len(Tar((str(tmp_path / "g.tar"),)))
    cut = tar(tmp_path / "c.tar", {"0.bin": bytes(2000)})
    os.truncate(cut, 1500)
    with pytest.raises(
        Damaged, match=r"c.tar: it is not an uncompressed tar file, or damaged \(unexpected end of data"
    ):
        len(Tar((cut,)))
    with tarfile.open(tmp_path / "l.tar", "w") as file:
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "1.png"
        file.addfile(link)
    with pytest.raises(ConfigError, match=r"0.png is a link"):
        len(Tar((str(tmp_path / "l.tar"),)))


# All of them.


def sources(folder: Path) -> dict:
    folder.mkdir(exist_ok=True)
    lines = "".join(f'{{"text": "number {i}"}}\n' for i in range(30))
    return {
        "json lines": JsonLines((written(folder / "x.jsonl", lines),)),
        "csv": Csv(
            (written(folder / "x.csv", "text\n" + "".join(f"number {i}\n" for i in range(30))),), texts=("text",)
        ),
        "tar": Tar((tar(folder / "x.tar", {f"{i}.txt": f"number {i}".encode() for i in range(30)}),)),
    }


@pytest.mark.parametrize("kind", ["json lines", "csv", "tar"])
def test_a_source_of_files_is_a_value_known_by_what_it_holds(tmp_path, kind):
    source, moved = sources(tmp_path / "a")[kind], sources(tmp_path / "b")[kind]
    assert flatten(source) == flatten(moved)
    assert from_json(to_json(source)) == source == pickle.loads(pickle.dumps(source))
    path = Path(moved.paths[0])
    path.write_bytes(path.read_bytes().replace(b"number 17", b"number 71"))
    other = replace(moved, paths=(str(path.rename(path.with_name("other" + path.suffix))),))
    assert other.identity() != source.identity()
    rows = [row["text"] for row in map(source.__getitem__, range(30))]
    assert rows == [f"number {i}" for i in range(30)]
    pipeline = Pipeline(source, (Utf8(9),), batch_size=4, seed=2)
    batches = [next(replace(pipeline, threads=threads).batches(start=5))["bytes"].tolist() for threads in (0, 3)]
    assert batches[0] == batches[1]


@pytest.mark.slow
def test_worker_processes_read_files(tmp_path):
    for source in sources(tmp_path / "a").values():
        pipeline = Pipeline(source, (Utf8(9),), batch_size=4, seed=2)
        batches = [next(replace(pipeline, workers=workers).batches())["bytes"].tolist() for workers in (0, 1)]
        assert batches[0] == batches[1]


def test_where_lines_begin_is_found_once_for_a_file_as_it_is(tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    source = JsonLines((written(path, '{"a": 1}\n' * 3),))
    os.utime(path, ns=(1, 1))  # long ago: a file that was just written is not remembered
    scans = []
    monkeypatch.setattr(
        offsets, "_found_offsets", lambda *given, scan=offsets._found_offsets: scans.append(given) or scan(*given)
    )

    def length() -> int:
        offsets.locate.cache_clear()  # as in another process
        offsets._cached_offsets.cache_clear()
        return len(source)

    assert (length(), length(), len(scans)) == (3, 3, 1)
    written(path, '{"a": 1}\n' * 4)
    os.utime(path, ns=(1, 1))
    assert (length(), length(), len(scans)) == (4, 4, 2)
    written(tmp_path / "new.jsonl", '{"a": 1}\n')
    for scanned in (3, 4):  # the next edit of a file that was just written could have the same time
        offsets.locate.cache_clear()
        offsets._cached_offsets.cache_clear()
        assert (len(JsonLines((str(tmp_path / "new.jsonl"),))), len(scans)) == (1, scanned)
    middle = b'{"a": 1}\n' * 300_000
    path.write_bytes(middle)
    os.utime(path, ns=(1, 1))
    before = (length(), source.identity())
    path.write_bytes(middle[:1_300_000] + middle[1_300_000:].replace(b"1", b"2", 1))
    os.utime(path, ns=(1, 1))
    assert (length(), len(scans)) == (300_000, 6)
    assert source.identity() != before[1]
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert length() == 300_000


@pytest.mark.parametrize("kind", [JsonLines, Csv, Tar])
def test_missing_and_compressed_files_and_a_path_alone_are_refused(tmp_path, kind):
    with pytest.raises(ConfigError, match=r"tuple|one or more"):
        kind("x.jsonl")
    with pytest.raises(ConfigError, match=r"tuple|one or more"):
        kind(())
    named = {"texts": ("a",)} if kind is Csv else {}
    written(tmp_path / "train.x", "a\n1\n")
    with pytest.raises(ConfigError, match=r"there is no .* file .*tain.x; did you mean 'train.x'"):
        len(kind((str(tmp_path / "tain.x"),), **named))
    if kind is not Tar:
        with pytest.raises(ConfigError, match=r"x.gz is compressed.*decompress it first"):
            len(kind((written(tmp_path / "x.gz", "a\n1\n"),), **named))


# Pad.


def test_pad_fills_up_says_where_and_cuts_nothing():
    out = Pad("x", 4, value=-1)({"x": np.array([[1, 2], [3, 4]], np.int16), "y": 1}, RNG)
    assert out["x"].tolist() == [[1, 2], [3, 4], [-1, -1], [-1, -1]]
    assert (out["x"].dtype, out["y"], out["x_mask"].tolist()) == (np.int16, 1, [True, True, False, False])
    assert Pad("x", 2, mask="there")({"x": [7.5, 8.5]}, RNG)["there"].tolist() == [True, True]
    assert Pad("x", 2)({"x": np.zeros(0, np.float32)}, RNG)["x"].dtype == np.float32
    assert np.isnan(Pad("x", 2, value=float("nan"))({"x": [1.0]}, RNG)["x"]).tolist() == [False, True]
    with pytest.raises(ConfigError, match="'x' has 3 values, more than the length 2"):
        Pad("x", 2)({"x": [1, 2, 3]}, RNG)


@pytest.mark.parametrize(
    ("value", "dtype"), [(-1, np.uint8), (0.5, np.int32), (300, np.uint8), (float("nan"), np.int32)]
)
def test_a_value_that_does_not_fit_what_is_padded_is_refused(value, dtype):
    with pytest.raises(ConfigError, match=rf"the value {value} does not fit 'x', which is {np.dtype(dtype)}"):
        Pad("x", 2, value=value)({"x": np.ones(1, dtype)}, RNG)


@pytest.mark.parametrize("value", [1, "text", ["a"], [None]])
def test_what_cannot_be_padded_is_refused(value):
    with pytest.raises(ConfigError, match=r"'x' must be numbers \[n"):
        Pad("x", 2)({"x": value}, RNG)
    with pytest.raises(ConfigError, match="at least 1"):
        Pad("x", 0)
    with pytest.raises(ConfigError, match="is taken"):
        Pad("x", 1, mask="mask")
