"""Files written whole or not at all, missing files and packages named, hashes."""

import hashlib
import importlib
import os
from pathlib import Path

import pytest

from jaxtrain.base import files
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.files import (
    atomic_folder,
    atomic_write,
    digest,
    edges,
    file_sha256,
    remove_unfinished,
    remove_unfinished_in,
    replace_text,
    require_file,
)
from jaxtrain.base.packages import needs, pinned_content


def interrupted(path: Path) -> None:
    """Write half of what is wanted, then fail."""
    path.write_text("half")
    raise LookupError


def test_a_file_is_replaced_only_at_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(LookupError), atomic_write(path) as temporary:
        interrupted(temporary)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_written_is_on_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            files.os, name, lambda *arguments, name=name, real=real: calls.append(name) or real(*arguments)
        )
    replace_text(tmp_path / "a.txt", "olá")
    assert calls == ["fsync", "replace"]
    assert (tmp_path / "a.txt").read_bytes() == "olá".encode()


def test_a_folder_takes_its_name_only_at_the_end_of_the_block(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a" / "x").read_text() == "1"
    with pytest.raises(LookupError), atomic_folder(tmp_path / "b") as folder:
        interrupted(folder / "x")
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("2")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "x").read_text() == "1"


def test_what_a_killed_process_left_of_a_folder_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".a.7-7.tmp", ".b.7-7.tmp", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("1")
    remove_unfinished(tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.7-7.tmp", "a"]


def test_the_files_that_a_killed_process_left_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".flight.json.5313-140495194467200.tmp", ".x.tmp", "a.7-7.tmp", ".lock.json.1a"):
        (tmp_path / name).write_text("1")
    (tmp_path / ".b.7-7.tmp").mkdir()
    remove_unfinished_in(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.7-7.tmp", ".lock.json.1a", ".x.tmp", "a.7-7.tmp"]


def test_a_missing_file_is_named_with_the_nearest_of_its_kind_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_text("")
    (tmp_path / "trian.txt").write_text("")
    assert require_file(str(tmp_path / "train.bin")) == tmp_path / "train.bin"
    with pytest.raises(ConfigError, match=r"^there is no token file .*/trian\.bin; did you mean 'train\.bin'\?$"):
        require_file(tmp_path / "trian.bin", "token file")
    (tmp_path / "alpha").write_text("")
    with pytest.raises(ConfigError, match=r"^there is no file .*/zzz; known: alpha$"):
        require_file(tmp_path / "zzz")
    with pytest.raises(ConfigError, match=r"/train\.csv; .* holds no \.csv file$"):
        require_file(tmp_path / "train.csv")
    with pytest.raises(ConfigError, match=r"/x/train\.bin: there is no folder .*/x$"):
        require_file(tmp_path / "x" / "train.bin")
    for number in range(30):
        (tmp_path / f"{number:05}").write_text("")
    with pytest.raises(ConfigError, match=r"/zzz$"):
        require_file(tmp_path / "zzz")


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    message = r"^Maps needs no-such: pip install 'jaxtrain\[maps\]' \(No module named 'no_such'\)$"
    with pytest.raises(ConfigError, match=message), needs("Maps", "no-such", "maps"):
        importlib.import_module("no_such")
    with pytest.raises(LookupError), needs("Maps", "no-such", "maps"):
        raise LookupError


def test_a_changed_file_of_a_package_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"version\.py is not that of numpy: its sha256 is .*--force-reinstall numpy"):
        pinned_content("numpy", "numpy/version.py", "0" * 64)


def test_hashes_are_the_sha256_that_other_tools_compute(tmp_path: Path) -> None:
    assert digest("abc") == digest(b"a", memoryview(b"b"), "c") == "ba7816bf8f01cfea414140de5dae2223"
    assert digest(b"abc", length=8) == "ba7816bf"
    assert digest("olá") == digest("olá".encode())
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_edges_of_files_are_their_sizes_first_and_last_mib(tmp_path: Path) -> None:
    mib, content = 1 << 20, os.urandom(3 << 20)
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"abc")
    large.write_bytes(content)
    expected = b"3:abcabc" + f"{3 * mib}:".encode() + content[:mib] + content[-mib:]
    assert edges(small, large) == hashlib.sha256(expected).hexdigest()[:32]
    large.write_bytes(content[:mib] + bytes(mib) + content[-mib:])
    assert edges(small, large) == hashlib.sha256(expected).hexdigest()[:32], "the middle is not read"
    with pytest.raises(ConfigError, match="there is no file"):
        edges(tmp_path / "missing")


def test_who_reads_a_file_while_it_is_written_anew_goes_on_reading_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    replace_text(path, "old, and long")
    with path.open() as reader:
        replace_text(path, "new")
        assert reader.read() == "old, and long"
    assert path.read_text() == "new"
