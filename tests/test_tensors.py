"""Files of tensors, held against the format's own library."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.base.tensors import stored_tensors, tensors_of, write_tensors

DRAWN = np.random.default_rng(0).normal(size=(4, 6, 5))
ARRAYS: dict[str, np.ndarray] = {
    "cube": DRAWN.astype(np.float32),
    "matrix": DRAWN[0].astype(ml_dtypes.bfloat16),
    "vector é": DRAWN[0, 0].astype(np.float16),
    "number": np.array(3.0, np.float32),
    "none": np.zeros((0, 4), np.int64),
    "flags": np.array([True, False, True]),
}


def test_a_file_has_the_bytes_that_the_library_writes(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "theirs", metadata={"format": "pt"})
    write_tensors(tmp_path / "ours", ARRAYS, ARRAYS.__getitem__)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_all_that_the_library_writes_is_read_whole_and_by_slices(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "file")
    tensors = stored_tensors(tmp_path / "file")
    assert {name: (tensor.kind, tensor.shape) for name, tensor in tensors.items()} == {
        name: (array.dtype, array.shape) for name, array in ARRAYS.items()
    }
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(tensors[name].read(), array)
    for index in [(slice(1, 3),), (slice(2), slice(1, 4), slice(2, 5)), (slice(None), slice(5, 6)), (slice(3, 3),)]:
        np.testing.assert_array_equal(tensors["cube"].read(index), ARRAYS["cube"][index])
    np.testing.assert_array_equal(tensors["matrix"].read((slice(None), slice(4))), ARRAYS["matrix"][:, :4])


def test_of_a_slice_no_other_bytes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(ARRAYS, tmp_path / "file")
    cube, read, whole = stored_tensors(tmp_path / "file")["cube"], [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, parts, at: read.append(whole(file, parts, at)) or read[-1])
    cube.read((slice(1, 3),))
    assert read == [2 * 6 * 5 * 4]  # one run of bytes
    read.clear()
    cube.read((slice(1, 3), slice(0, 6), slice(0, 2)))
    assert read == [2 * 4] * 12


def test_a_read_that_returns_less_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(ARRAYS, tmp_path / "file")
    whole = os.preadv  # Linux returns at most 2 GiB at once
    monkeypatch.setattr(os, "preadv", lambda file, parts, at: whole(file, [parts[0][:7]], at))
    np.testing.assert_array_equal(stored_tensors(tmp_path / "file")["cube"].read(), ARRAYS["cube"])


def entry(**changes: Any) -> bytes:
    """The header of one tensor of two f32, changed."""
    header = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}
    content = json.dumps(header).encode()
    return len(content).to_bytes(8, "little") + content


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "its header would have 0 bytes"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "its header would have"),
        ((2).to_bytes(8, "little") + b"[]", "AttributeError"),
        (b"\x80\x04\x95 a pickle of some length", "its header would have"),
        (entry() + b"1234", "its tensors end at byte"),
        (entry() + b"123456789", "its tensors end at byte"),
        (entry(shape=[3]) + b"12345678", r"x, F32 \[3\], has bytes 0 to 8"),
        (entry(data_offsets=[4, 12]) + b"123456789012", r"x, F32 \[2\], has bytes 4 to 12"),
        (entry(shape=[-2]) + b"12345678", r"x has shape \[-2\]"),
        (entry(shape=[2.0]) + b"12345678", r"x has shape \[2.0\]"),
        (entry(shape="2") + b"12345678", r"x has shape \['2'\]"),
        (entry(data_offsets=[0]) + b"12345678", "not enough values"),
        (entry(dtype=[]) + b"12345678", "TypeError"),
    ],
)
def test_what_is_not_whole_or_not_of_the_format_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(Damaged, match=rf"x.safetensors: it is not a .safetensors \({says}"):
        stored_tensors(tmp_path / "x.safetensors")
    with pytest.raises(Damaged, match=rf"x.safetensors: it is not a .safetensors \({says}"):
        tensors_of(content, tmp_path / "x.safetensors")
    with pytest.raises(SafetensorError):
        load_file(tmp_path / "x.safetensors")


def test_a_file_that_is_cut_while_it_is_open_is_named(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "file")
    tensors = stored_tensors(tmp_path / "file")
    os.truncate(tmp_path / "file", 700)
    with pytest.raises(Damaged, match="it ends within"):
        [tensor.read() for tensor in tensors.values()]


def test_a_dtype_that_numpy_lacks_is_named_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(entry(dtype="F8_E4M3") + b"12345678")
    tensors = stored_tensors(tmp_path / "file")
    with pytest.raises(ConfigError, match="x has dtype F8_E4M3; those known are F16, F32, F64"):
        tensors["x"].read()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def failing(name: str) -> np.ndarray:
        if name == "matrix":
            raise RuntimeError("lost")
        return ARRAYS[name]

    value: Callable[[str], np.ndarray] = failing
    with pytest.raises(RuntimeError):
        write_tensors(tmp_path / "file", ARRAYS, value)
    assert list(tmp_path.iterdir()) == []
    write_tensors(tmp_path / "file", ARRAYS, ARRAYS.__getitem__)
    assert load_file(tmp_path / "file").keys() == ARRAYS.keys()


def test_the_content_of_a_file_is_read_as_the_package_wrote_it(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "file")
    found = tensors_of((tmp_path / "file").read_bytes(), tmp_path / "file")
    assert found.keys() == ARRAYS.keys()
    for name, x in ARRAYS.items():
        assert found[name].dtype == x.dtype
        np.testing.assert_array_equal(found[name], x)
    with pytest.raises(Damaged, match=r"file: it is not a \.safetensors .*F8_E4M3"):
        tensors_of(entry(dtype="F8_E4M3") + b"12345678", tmp_path / "file")


def test_a_dtype_that_the_format_lacks_is_named_before_anything_is_written(tmp_path: Path) -> None:
    arrays = {"x": np.zeros(2, np.complex64)}
    with pytest.raises(ConfigError, match="file: x has dtype complex64, which the format lacks"):
        write_tensors(tmp_path / "file", arrays, arrays.__getitem__)
    assert not [*tmp_path.iterdir()]
