"""JSON files, which are written whole or not at all."""

from pathlib import Path

import pytest

from jaxtrain.base import files
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.files import read_json, write_json


def test_json_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": [1, 2.5, float("nan")], "where": Path("b")})
    assert read_json(path) == {"x": [1, 2.5, "nan"], "where": "b"}

    def disk_full(file: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", disk_full)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"y": 1})
    assert read_json(path)["where"] == "b"
    assert list(tmp_path.iterdir()) == [path]


def test_json_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no .*a\.json"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ConfigError, match=r"a\.json is not JSON"):
        read_json(tmp_path / "a.json")
