"""A file that is written again, in one process, is read again by the source that is made then."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jaxtrain.data import Bytes, Csv, ImageFolder, InMemory, JsonLines, Parquet, Tar, Tokens, write_tokens


def json_lines(path, numbers):
    path.write_text("".join(f'{{"x": {number}}}\n' for number in numbers))
    return JsonLines((str(path),))


def csv(path, numbers):
    columns = "x,y" if len(numbers) == 2 else "y,x"  # the header changes too
    path.write_text(f"{columns}\n" + "".join(f"{number},{number}\n" for number in numbers))
    return Csv((str(path),), ints=("x",))


def parquet(path, numbers):
    pq.write_table(pa.table({"x": numbers}), path)
    return Parquet((str(path),))


def tar(path, numbers):
    with tarfile.open(path, "w") as opened:
        for number in numbers:
            info = tarfile.TarInfo(f"{number}.x.json")
            info.size = 1
            opened.addfile(info, io.BytesIO(str(number).encode()))
    return Tar((str(path),))


def images(path, numbers):
    (path / "a" / "b").mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(np.full((1, 1), number, np.uint8)).save(path / "a" / "b" / f"{number}.png")
    return ImageFolder(str(path), (1, 1), ("a",), gray=True)


def in_memory(path, numbers):
    return InMemory(json_lines(path, numbers))


@pytest.mark.parametrize("make", [json_lines, csv, parquet, tar, images, in_memory])
def test_a_file_that_is_written_again_is_read_again(tmp_path, make):
    for numbers in ([1, 2], [1, 2, 3]):
        source = make(tmp_path / "data", numbers)
        assert [int(np.ravel(next(iter(source[index].values())))[0]) for index in range(len(source))] == numbers
    assert source.identity() != make(tmp_path / "other", [1, 2]).identity()


def test_token_files_that_are_written_again_are_read_again(tmp_path):
    for text in ("abcd", "abcdefgh"):
        paths = write_tokens(tmp_path, "t", [text], Bytes())
        source = Tokens(tuple(map(str, paths)), 2)
        assert [len(source), source[0]["tokens"].tolist()] == [len(text) // 2, [97, 98, 99]]
