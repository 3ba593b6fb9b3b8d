"""The identity of files is of all that they hold: an edit in the middle, of the same size and time, is seen."""

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from jaxtrain import ConfigError
from jaxtrain.base.files import digest
from jaxtrain.data import (
    ArrayRecord,
    Csv,
    Damaged,
    ImageFolder,
    JsonLines,
    Parquet,
    Source,
    Take,
    Tar,
    write_array_record,
)
from jaxtrain.data.sources import contents, offsets
from jaxtrain.data.sources.contents import by_former_rule, content

LONG_AGO = (10**9, 10**9)


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def large(rows: int = 13) -> list[bytes]:
    """Noise of 200 KB a row, so that no compression makes it less."""
    return [np.random.default_rng(row).bytes(200_000) for row in range(rows)]


def records(folder: Path) -> Source:
    write_array_record(folder / "x.arrayrecord", [{"x": row, "label": 0} for row in large()])
    return ArrayRecord((str(folder / "x.arrayrecord"),))


def table(folder: Path) -> Source:
    parquet.write_table(pa.table({"x": large()}), folder / "x.parquet", compression="none", use_dictionary=False)
    return Parquet((str(folder / "x.parquet"),))


def archive(folder: Path) -> Source:
    with tarfile.open(folder / "x.tar", "w") as file:
        for number, row in enumerate(large()):
            info = tarfile.TarInfo(f"{number}.bin")
            info.size = len(row)
            file.addfile(info, io.BytesIO(row))
    return Tar((str(folder / "x.tar"),))


def lines(folder: Path) -> Source:
    (folder / "x.jsonl").write_text("".join(f'{{"x": "{row.hex()}"}}\n' for row in large(7)))
    return JsonLines((str(folder / "x.jsonl"),))


def cells(folder: Path) -> Source:
    (folder / "x.csv").write_text("x\n" + "".join(f"{row.hex()}\n" for row in large(7)))
    return Csv((str(folder / "x.csv"),), texts=("x",))


def images(folder: Path) -> Source:
    for name in ("a", "b"):
        (folder / "images" / name).mkdir(parents=True)
        Image.fromarray(np.full((4, 4, 3), 7, np.uint8)).save(folder / "images" / name / "0.bmp")
    return ImageFolder(str(folder / "images"), (4, 4), ("a", "b"))


KINDS: dict[str, Callable[[Path], Source]] = {
    "records": records,
    "table": table,
    "archive": archive,
    "lines": lines,
    "cells": cells,
    "images": images,
}


def edit(folder: Path) -> None:
    """Changes the byte in the middle of a file in place, and puts its time back."""
    file = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: (path.stat().st_size, path))
    before, raw = file.stat(), file.read_bytes()
    at = len(raw) // 2
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(bytes([raw[at] ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def reopened(source: Source) -> str:
    """Its identity, as another process finds it."""
    contents._known.clear()
    offsets.locate.cache_clear()
    offsets._cached_offsets.cache_clear()
    return source.identity()


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_in_the_middle_is_other_data_and_a_touched_or_moved_file_is_not(tmp_path, kind):
    (tmp_path / "here").mkdir()
    source = KINDS[kind](tmp_path / "here")
    for path in (tmp_path / "here").rglob("*"):
        os.utime(path, ns=LONG_AGO)
    before = reopened(source)
    for path in (tmp_path / "here").rglob("*"):
        os.utime(path, ns=(2 * LONG_AGO[0], 2 * LONG_AGO[1]))
    assert reopened(source) == before
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    (tmp_path / "here").rename(tmp_path / "away")
    (tmp_path / "there").rename(tmp_path / "here")  # other inodes at the same place
    assert reopened(source) == before
    edit(tmp_path / "here")
    assert reopened(source) != before


@pytest.mark.parametrize("kind", ["records", "table", "archive", "images"])
def test_the_former_rule_sees_no_edit_in_the_middle(tmp_path, kind):
    source = Take(KINDS[kind](tmp_path), 1)
    with by_former_rule():
        before = source.identity()
        edit(tmp_path)
        assert source.identity() == before
    assert source.identity() != before


def test_the_hash_is_of_the_bytes_in_their_order_and_of_the_listing(tmp_path):
    """Against hashlib, by hand."""
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    # sha256 of "one" and of "two", as `sha256sum` prints them
    one = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    two = "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"
    assert content(paths) == digest(one + two)
    assert content(paths[::-1]) == digest(two + one)
    assert content(paths, "list") == digest("list" + one + two)
    with pytest.raises(ConfigError, match=r"there is no file .*aa; did you mean 'a'"):
        content([str(tmp_path / "aa")])


def test_files_are_read_once_and_only_those_that_changed_are_read_again(tmp_path, monkeypatch):
    paths = [str(tmp_path / name) for name in "abc"]
    for path in paths:
        Path(path).write_text(path)
        os.utime(path, ns=LONG_AGO)
    read: list[str] = []
    sha256 = contents._Progress.sha256
    monkeypatch.setattr(contents._Progress, "sha256", lambda self, path: read.append(path) or sha256(self, path))

    def found() -> str:
        contents._known.clear()  # as in another process
        return content(paths)

    first = found()
    assert (found(), sorted(read)) == (first, paths)
    os.utime(paths[1], ns=(5, 5))
    assert (found(), read[3:]) == (first, paths[1:2])
    assert (found(), read[4:]) == (first, [])
    Path(paths[2]).write_text("edited")  # just now: its next edit may have the same time
    second = found()
    assert second != first
    assert (found(), read[4:]) == (second, [paths[2], paths[2]])
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert found() == second
    assert found() == second


def test_reading_much_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(contents, "_SLOW", 2000)
    monkeypatch.setattr(contents, "_HASHED_AT_ONCE", 100)
    (tmp_path / "small").write_bytes(bytes(2000))
    content([str(tmp_path / "small")])
    assert capsys.readouterr().err == ""
    (tmp_path / "large").write_bytes(bytes(4096))
    content([str(tmp_path / "large")])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "reading 4 KiB of data, once, to know them again after an edit"
    assert (len(lines), lines[-1]) == (11, "read 4 KiB of 4 KiB")


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"one")

    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("builtins.open", broken)
    with pytest.raises(Damaged, match=r"a: it cannot be read \(Input/output error\)"):
        content([str(tmp_path / "a")])
