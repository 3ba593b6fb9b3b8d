"""Files are written whole or not at all, and are on disk before they take their name."""

import os
from pathlib import Path

import pytest

from jaxtrain.base import files
from jaxtrain.base.files import replace_text


def test_who_reads_a_file_while_it_is_written_anew_goes_on_reading_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    replace_text(path, "old, and long")
    with path.open() as reader:
        replace_text(path, "new")
        assert reader.read() == "old, and long"
    assert path.read_text() == "new"


def test_a_file_is_on_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(files.os, "fsync", lambda number: calls.append(f"fsync {os.fstat(number).st_size}"))
    replace = os.replace

    def renamed(source: Path, target: Path) -> None:
        calls.append(f"replace {target.name}")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", renamed)
    replace_text(tmp_path / "a.json", "four")
    assert calls == ["fsync 4", "replace a.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
