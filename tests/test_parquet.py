"""Parquet as people have it: what is no number is named with column, row and file, and slow reading is said."""

import datetime
import logging
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from jaxtrain import ConfigError
from jaxtrain.data import Arrays, InMemory, Mixture, Parquet, Pipeline, Stored, Take, Utf8


def write(folder: Path, *tables: dict, group: int = 3) -> Parquet:
    paths = [folder / f"{number}.parquet" for number in range(len(tables))]
    for path, columns in zip(paths, tables, strict=True):
        parquet.write_table(pa.table(columns), path, row_group_size=group)
    return Parquet(tuple(map(str, paths)))


def batch(source, size: int = 5, transforms=()) -> dict:
    return next(Pipeline(source, transforms, batch_size=size, shuffle=False, threads=0).batches())


DAY = datetime.datetime(2024, 1, 1)
REFUSED = {
    "null among integers": (pa.array([0, 1, 2, 3, None], pa.int64()), r"missing \(null\)"),
    "null among floats": (pa.array([0.0, 1.0, 2.0, 3.0, None]), r"missing \(null\)"),
    "null in a list": (pa.array([[0.0, 1.0]] * 4 + [[1.0, None]]), r"missing \(null\)"),
    "a list that is null": (pa.array([[0, 1]] * 4 + [None]), r"missing \(null\)"),
    "a number beyond float32": (pa.array([0.0, 1.0, 2.0, 3.0, 1e300]), r"1e\+300 .*does not fit float32"),
    "one in a list": (pa.array([[0.0, 1.0]] * 4 + [[1.0, -1e300]]), r"-1e\+300 .*does not fit float32"),
    "an integer beyond int32": (pa.array([0, 1, 2, 3, 1 << 40]), "integers that do not fit int32"),
    "an integer beyond int64": (pa.array([0, 1, 2, 3, 1 << 63], pa.uint64()), "integers that do not fit uint32"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_value_that_is_no_number_is_named_with_column_row_and_file(tmp_path, name):
    column, says = REFUSED[name]
    whole = {"x": column, "y": list(range(5))}
    source = write(tmp_path, {"x": column[:2], "y": [8, 9]}, whole)
    with pytest.raises(ConfigError, match=says) as caught:
        batch(source, 7)
    assert "'x'" in str(caught.value)
    assert f"row 4 of {tmp_path}/1.parquet" in str(caught.value)
    assert batch(Parquet(source.paths, ("y",)), 7)["y"].tolist() == [8, 9, 0, 1, 2, 3, 4]


KINDS = {
    "date": ([DAY.date()] * 5, "a date, not a number"),
    "timestamp": ([DAY] * 5, "a datetime, not a number"),
    "decimal": ([Decimal("1.25")] * 5, "a Decimal, not a number"),
    "struct": ([{"bytes": b"x", "path": "p"}] * 5, "a struct"),
    "lists of different lengths": ([[[1], [2, 3]]] * 5, "lists of different lengths"),
    "null among decimals": ([[Decimal("1.25"), None]] * 5, r"missing \(null\)"),
    "text": (["a"] * 5, r"<U1, not numbers.*Utf8\(length\)"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_column_of_another_kind_is_named_and_a_transform_may_encode_it(tmp_path, name):
    values, says = KINDS[name]
    source = write(tmp_path, {"x": values, "y": [1, 2, 3, 4, 5]})
    with pytest.raises(ConfigError, match=rf"field 'x' is {says}.*") as caught:
        batch(source)
    assert f"row 0 of {tmp_path}/0.parquet" in str(caught.value)
    assert np.asarray(source[3]["x"], object).tolist() == np.asarray(values[3], object).tolist()


def test_a_column_that_python_cannot_hold_is_named(tmp_path):
    source = write(tmp_path, {"when": pa.array([10**7] * 5, pa.date32()), "y": [1, 2, 3, 4, 5]})
    with pytest.raises(ConfigError, match=r"column 'when' of .*/0.parquet is date32.*columns=\(\.\.\.\)"):
        batch(source)
    assert batch(Parquet(source.paths, ("y",)))["y"].tolist() == [1, 2, 3, 4, 5]


def test_lists_of_one_column_are_of_one_kind_also_where_one_is_empty(tmp_path):
    source = write(tmp_path, {"i": [[1, 2], []], "f": [[], [0.5]], "u": pa.array([[], [1]], pa.list_(pa.uint64()))})
    kinds = [{name: (value.dtype.name, value.tolist()) for name, value in source[row].items()} for row in (0, 1)]
    assert kinds == [
        {"i": ("int64", [1, 2]), "f": ("float64", []), "u": ("uint64", [])},
        {"i": ("int64", []), "f": ("float64", [0.5]), "u": ("uint64", [1])},
    ]
    with pytest.raises(ConfigError, match=r"'i' differs between examples: int64\[0\], int64\[2\].*row 0 of .*row 1 of"):
        batch(Parquet(source.paths, ("i",)), 2)


def test_an_error_of_a_transform_names_the_row(tmp_path):
    source = write(tmp_path, {"text": ["a", "b", None, "d"]})
    with pytest.raises(ConfigError, match=r"'text' must be str or bytes, got NoneType \(in row 2 of .*0.parquet\)"):
        batch(source, 4, (Utf8(2),))
    (tmp_path / "other").mkdir()
    source = write(tmp_path / "other", {"text": [None, "b"]})
    with pytest.raises(ConfigError, match=r"got NoneType \(in row 0 of"):
        Pipeline(source, (Utf8(2),)).example()


def test_the_place_of_an_example_is_known_through_sources_made_of_others(tmp_path):
    source = write(tmp_path, {"x": [0, 1, 2, 3]}, {"x": [4, 5, 6, 7, 8]})
    assert [source.where(i)[:8] + source.where(i)[-9:] for i in (0, 3, 4, 8)] == [
        "row 0 of0.parquet",
        "row 3 of0.parquet",
        "row 0 of1.parquet",
        "row 4 of1.parquet",
    ]
    assert InMemory(Take(source, 6)).where(5) == f"row 1 of {tmp_path}/1.parquet"
    mixture = Mixture((source, Arrays({"x": [9]})), (1, 1))
    assert [mixture.where(i) for i in (2, 3)] == [f"row 1 of {tmp_path}/0.parquet", "example 0 of Arrays"]
    assert Stored(source, str(tmp_path / "s")).where(7).startswith("record 7 of")


# Slow and long.


def test_shuffled_reading_of_many_row_groups_is_said_once_with_what_to_do(tmp_path, caplog):
    source = write(tmp_path, {"x": list(range(60))}, group=5)
    pipeline = Pipeline(source, batch_size=4)
    with caplog.at_level(logging.WARNING, "jaxtrain.data"):
        next(replace(pipeline, shuffle=False).batches())
        next(pipeline.epoch())
        pipeline.example()
        next(replace(pipeline, source=InMemory(source)).batches())
        next(replace(pipeline, source=Stored(source, str(tmp_path / "s"))).batches())
        next(replace(pipeline, source=write(tmp_path / "s", {"x": [1, 2]})).batches())  # all of it fits into memory
        assert caplog.text == ""
        for _ in range(2):
            next(pipeline.batches())
        next(replace(pipeline, source=Mixture((Take(source, 9), source), (1, 1))).batches())
    assert caplog.text.count("about 5 rows, which is 100 times slower") == 1
    assert "wrap the source in Stored(...)" in caplog.text


def test_what_is_stored_says_how_far_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jaxtrain.data.sources.stored._RECORDS", 2)
    source = Stored(Arrays({"x": np.arange(45)}), str(tmp_path))
    assert len(source) == 45
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"Stored: writing 45 examples to {tmp_path}/")
    assert lines[1:] == [f"Stored: {done} of 45 examples" for done in (6, 10, 14, 18, 24, 28, 32, 36, 42, 45)]
    replace(source, folder=str(tmp_path))[3]
    assert capsys.readouterr().err == ""
