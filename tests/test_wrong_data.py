"""Data as people have them by mistake: read right, or refused by file, row and field; never read as something else."""

import io
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.data import Arrays, Csv, ImageFolder, JsonLines, Parquet, Pipeline, Tar
from jaxtrain.data.sources.pixels import pixels


def written(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def batches(source, transforms=(), count=3):
    stream = Pipeline(source, transforms, batch_size=2, shuffle=False, threads=0).batches()
    try:
        return [next(stream) for _ in range(count)]
    finally:
        stream.close()


# Whole batches that are unlike the first: the step is compiled for the shapes of one.

GOOD = '{"x": [1.5, 2.5], "y": 1.0}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"x": [1.5, 2.5, 3.5], "y": 1.0}\n', r"'x' differs between examples: float32\[2\], float32\[3\]"),
        (
            '{"x": [1.5, 2.5], "y": 1}\n',
            r"'y' differs .*float32\[\], int32\[\]; .*or, of JsonLines, name it in floats",
        ),
        ('{"x": [1.5, 2.5]}\n', r"the fields \['x'\] but the first one has \['x', 'y'\]"),
        ('{"x": [1.5, 2.5], "y": 1.0, "z": 1}\n', r"the fields \['x', 'y', 'z'\] but the first one has \['x', 'y'\]"),
    ],
)
def test_a_whole_batch_that_is_unlike_the_first_example_is_refused_with_both_lines(tmp_path, line, message):
    source = JsonLines((written(tmp_path / "a.jsonl", GOOD * 2 + line * 2),))
    with pytest.raises(ConfigError, match=message + r".*line 1 of .*a\.jsonl|" + message + r".*line 3 of .*a\.jsonl"):
        batches(source)


def test_evaluation_batches_of_one_row_may_have_shapes_of_their_own():
    class Growing(list):
        def __getitem__(self, index):
            return {"x": np.ones(index + 1)}

    from jaxtrain.data import Items

    epoch = Pipeline(Items(Growing([0] * 3), "growing"), batch_size=1).epoch()
    assert [batch["x"].shape for batch in epoch] == [(1, 1), (1, 2), (1, 3)]


def test_complex_numbers_have_64_bits_in_a_batch_as_they_have_in_jax():
    assert batches(Arrays({"x": np.ones((2, 3), complex)}))[0]["x"].dtype == np.complex64


# Files

FILES: dict[str, tuple[Any, dict[str, Any]]] = {
    "JsonLines": (JsonLines, {}),
    "Csv": (Csv, {"ints": ("a",)}),
    "Tar": (Tar, {}),
    "Parquet": (Parquet, {}),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_named_twice_is_refused_though_its_paths_differ(tmp_path, kind):
    source, more = FILES[kind]
    with pytest.raises(ConfigError, match=rf"{kind} paths name .*/a\.x twice"):
        source((str(tmp_path / "a.x"), str(tmp_path / "b" / ".." / "a.x")), **more)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", r"is a folder, not a .* file: name each file, as by tuple\(sorted\(glob.glob"),
        ("part-*.x", r"there is no .* file .*part-\*\.x, and patterns are not expanded: name each file"),
        ("part-[01].x", "patterns are not expanded"),
        ("$DATA/a.x", r"there is no .* file .*\$DATA/a.x, and variables are not expanded: use os.environ"),
    ],
)
def test_folders_patterns_and_variables_are_named_for_what_they_are(tmp_path, kind, name, message):
    source, more = FILES[kind]
    with pytest.raises(ConfigError, match=message):
        len(source((str(tmp_path / name),), **more))


def test_a_file_whose_name_looks_like_a_pattern_is_read(tmp_path):
    assert len(JsonLines((written(tmp_path / "a [v1] $x.jsonl", GOOD * 2),))) == 2


# JSON Lines


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a\\ud800b"}', "line 2 cannot be read: .*surrogates not allowed"),
        ('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 2 cannot be read: maximum recursion depth"),
        ('{"text": "a"', "line 2 cannot be read: it has to be one whole object: "),
    ],
)
def test_lines_that_cannot_be_read_are_damage_with_their_number(tmp_path, line, message):
    source = JsonLines((written(tmp_path / "a.jsonl", '{"text": "\\ud83d\\ude00"}\n' + line + "\n"),))
    assert source[0] == {"text": "😀"}
    with pytest.raises(Damaged, match=message):
        source[1]


def test_a_name_in_floats_that_the_first_line_lacks_is_refused(tmp_path):
    source = JsonLines((written(tmp_path / "a.jsonl", '{"y": 1}\n'),), floats=("yy",))
    with pytest.raises(ConfigError, match=r"floats: line 1 of .*a\.jsonl has no field 'yy'; did you mean 'y'"):
        source[0]


# CSV


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path, quote):
    text = "a,b\n1,2\n".replace("a", f"{quote}a{quote}").replace("1", f"{quote}1{quote}")
    source = Csv((written(tmp_path / "a.csv", b"\xef\xbb\xbf" + text.encode()),), ints=("a", "b"))
    assert [source[0], len(source)] == [{"a": 1, "b": 2}, 1]


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_another_delimiter_than_the_files_is_named(tmp_path, delimiter):
    path = written(tmp_path / "a.csv", f"a{delimiter}b\n1{delimiter}2\n")
    with pytest.raises(ConfigError) as error:
        len(Csv((path,), ints=("a",)))
    assert f"say delimiter={delimiter!r}" in str(error.value)
    assert Csv((path,), ints=("a", "b"), delimiter=delimiter)[0] == {"a": 1, "b": 2}


def test_a_column_that_a_later_file_lacks_is_refused_before_any_row_is_read(tmp_path):
    paths = (written(tmp_path / "a.csv", "a,b\n1,2\n"), written(tmp_path / "b.csv", "b,aa\n1,2\n"))
    with pytest.raises(ConfigError, match=r"b\.csv has no column 'a'; did you mean"):
        len(Csv(paths, ints=("a",)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n".encode("utf-16"), "line 1 cannot be read as a line of UTF-8 text"),
        (b"a,b\r1,2\r", "line 1 cannot be read as a line of UTF-8 text"),
        (b"PK\x03\x04\x14\x00", "its first line is not text: it is not a CSV file"),
        (b"PAR1\x00\x00", "its first line is not text: it is not a CSV file"),
    ],
)
def test_what_is_no_csv_file_is_damage_and_names_the_file(tmp_path, content, message):
    with pytest.raises(Damaged, match=rf"a\.csv: {message}"):
        len(Csv((written(tmp_path / "a.csv", content),), ints=("a",)))


# Parquet


def table(path: Path, **columns) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"x": [1.0]}, r"column 'x' is float in .*b\.parquet, but int in .*a\.parquet"),
        ({"x": [1], "y": [1]}, r"column 'y' is int in .*b\.parquet, but not there in .*a\.parquet"),
        ({"z": [1]}, r"column 'x' is not there in .*b\.parquet, but int in .*a\.parquet"),
        ({"x": [None]}, r"column 'x' is null in .*b\.parquet, but int in"),
        ({"x": pa.array([1], pa.uint64())}, r"column 'x' is uint64 in .*b\.parquet, but int in"),
    ],
)
def test_parquet_files_that_differ_in_columns_or_types_are_refused_at_once(tmp_path, second, message):
    paths = table(tmp_path / "a.parquet", x=[1]), table(tmp_path / "b.parquet", **second)
    with pytest.raises(ConfigError, match=message):
        len(Parquet(paths))


def test_types_that_give_the_same_values_and_columns_that_are_not_read_may_differ(tmp_path):
    first = {"i": pa.array([1], pa.int8()), "f": pa.array([0.5], pa.float32()), "t": ["a"], "l": [[0.5]], "no": [1]}
    other = {
        "l": pa.array([[0.5]], pa.list_(pa.float32(), 1)),
        "t": pa.array(["a"]).dictionary_encode(),
        "f": [0.5],
        "i": [1],
    }
    paths = table(tmp_path / "a.parquet", **first), table(tmp_path / "b.parquet", **other)
    source = Parquet(paths, columns=("i", "f", "t", "l"))
    assert repr(source[0]) == repr(source[1])


def test_a_parquet_column_that_is_there_twice_is_refused(tmp_path):
    both = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    pq.write_table(both, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="the column 'x' is there twice"):
        len(Parquet((str(tmp_path / "a.parquet"),)))


# Tar


def tar(*names: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as opened:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 1
            opened.addfile(info, io.BytesIO(b"1"))
    return stream.getvalue()


WHOLE = tar("0.cls", "1.cls", "2.cls")  # a header and a block of content each, 1024 bytes
SECOND, END = 1024, 3072


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (WHOLE[:SECOND], "it was cut off: it ends without the empty blocks"),
        (WHOLE[: SECOND + 100], "it was cut off"),
        (WHOLE[:END], "it was cut off"),
        (WHOLE[: SECOND + 148] + b"garbage!" + WHOLE[SECOND + 156 :], "at byte 1024 is no member, nor the end"),
        (WHOLE[:SECOND] + bytes(512) + WHOLE[SECOND + 512 :], "at byte 1024 is no member, nor the end"),
        (WHOLE + WHOLE, "at byte 3072 is no member, nor the end: damage, or two tar files in one"),
    ],
)
def test_a_tar_file_that_loses_members_in_silence_is_damage(tmp_path, content, message):
    with pytest.raises(Damaged, match=message):
        len(Tar((written(tmp_path / "a.tar", content),)))


@pytest.mark.parametrize("content", [WHOLE, WHOLE[: END + 512]])
def test_a_tar_file_with_one_empty_block_at_its_end_is_whole(tmp_path, content):
    assert [row["label"] for row in map(Tar((written(tmp_path / "a.tar", content),)).__getitem__, range(3))] == [
        1,
        1,
        1,
    ]


def test_what_macos_puts_beside_the_members_is_left_out(tmp_path):
    source = Tar((written(tmp_path / "a.tar", tar("0.cls", "__MACOSX/0.cls", "._0.cls")),))
    assert [len(source), source[0]] == [1, {"label": 1}]


# Images


def png(size: int = 2) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (size, size)).save(stream, "PNG")
    return stream.getvalue()


def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        written(tmp_path / "data" / name / "0.png", png())
    return tmp_path / "data"


@pytest.mark.parametrize("target", ["..", ".", "../.."])
def test_a_link_to_a_folder_that_it_is_in_is_refused_instead_of_forty_copies(tmp_path, target):
    root = folder(tmp_path)
    (root / "a" / "up").symlink_to(target)
    with pytest.raises(ConfigError, match="a/up links to a folder that it is in: remove the link"):
        len(ImageFolder(str(root), (2, 2), ("a", "b")))


def test_links_to_other_folders_and_files_are_read(tmp_path):
    root = folder(tmp_path)
    (root / "c").symlink_to(root / "a")
    (root / "a" / "1.png").symlink_to(root / "b" / "0.png")
    assert len(ImageFolder(str(root), (2, 2), ("a", "b", "c"))) == 5


def test_a_link_to_no_file_is_refused_by_name(tmp_path):
    root = folder(tmp_path)
    (root / "a" / "1.png").symlink_to("gone.png")
    with pytest.raises(ConfigError, match=r"a/1\.png is a link to a file that is not there"):
        ImageFolder(str(root), (2, 2), ("a", "b")).identity()


def test_a_folder_that_cannot_be_listed_is_damage_and_no_class_less(tmp_path, monkeypatch):
    root, scandir = folder(tmp_path), __import__("os").scandir

    def refuse(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(Damaged, match=r"data/b: the folder cannot be read \(Permission denied\)"):
        len(ImageFolder(str(root), (2, 2), ("a", "b")))


def test_a_class_whose_accent_is_written_in_another_way_is_named_by_its_characters(tmp_path):
    root = folder(tmp_path)
    (root / "b").rename(root / "e\u0301")
    with pytest.raises(ConfigError, match=r"looks the same, but its accents .*: write it as 'e\\u0301'"):
        len(ImageFolder(str(root), (2, 2), ("a", "\u00e9")))


def test_a_file_in_the_place_of_a_folder_of_images_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"a\.tar is a file, not a folder of images; tar files are read by Tar"):
        len(ImageFolder(written(tmp_path / "a.tar", b""), (2, 2), ("a", "b")))


@pytest.mark.parametrize(
    ("raw", "message"), [(b"", "it is empty"), (b"<html><body>", "it begins with b'<html><body>'")]
)
def test_what_is_no_image_is_named_by_what_it_begins_with(raw, message):
    with pytest.raises(ValueError, match=message):
        pixels(raw, None, gray=False)


def test_sixteen_bits_of_colour_are_refused_though_pillow_would_keep_eight():
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header, row = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0), b"\0" + struct.pack(">3H", 1000, 1000, 1000)
    raw = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match="16 bits a sample"):
        pixels(raw, None, gray=False)


# Arrays


def test_rows_of_different_lengths_and_masked_arrays_are_refused_by_column():
    with pytest.raises(ConfigError, match="column 'x' holds rows of different shapes: pad them"):
        Arrays({"x": [[1.0], [1.0, 2.0]]})
    with pytest.raises(ConfigError, match="column 'x' is a masked array"):
        Arrays({"x": np.ma.masked_array([1.0, 2.0], [True, False])})
