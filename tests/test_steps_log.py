"""steps.bin, read back by struct, and what becomes of each damage."""

import math
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from jaxtrain.base.errors import ConfigError, Damaged
from jaxtrain.runs.steps_log import StepsLog, read_steps


def written(folder: Path, steps: range = range(1, 4)) -> bytes:
    columns = {
        "step": steps,
        "loss": [step / 2 for step in steps],
        "gradient_norm": [math.nan for _ in steps],
        "batch": [2**64 - step for step in steps],
        "skipped": [step == 2 for step in steps],
    }
    StepsLog(folder).append(columns)
    return (folder / "steps.bin").read_bytes()


def test_a_record_has_29_bytes_of_the_documented_layout(tmp_path: Path) -> None:
    data = written(tmp_path)
    assert data[:16] == b"jaxtrain steps 1"
    assert len(data) == 16 + 3 * 29
    second = data[16 + 29 : 16 + 58]
    step, loss, norm, batch, skipped, crc = struct.unpack("<qffQBI", second)
    assert (step, loss, batch, skipped) == (2, 1.0, 2**64 - 2, 1)
    assert math.isnan(norm)
    assert crc == zlib.crc32(second[:25])
    found = read_steps(tmp_path)
    assert found["batch"].tolist() == [2**64 - 1, 2**64 - 2, 2**64 - 3]
    assert found["loss"].tolist() == [0.5, 1.0, 1.5]
    assert list(found) == ["step", "loss", "gradient_norm", "batch", "skipped"]


def test_what_is_appended_later_is_the_same_bytes_and_other_processes_write_nothing(tmp_path: Path) -> None:
    whole = written(tmp_path)
    (tmp_path / "parts").mkdir()
    written(tmp_path / "parts", range(1, 2))
    assert written(tmp_path / "parts", range(2, 4)) == whole
    StepsLog(tmp_path / "other", active=False).append({"step": [1]})
    assert not (tmp_path / "other").exists()


def test_cut_at_any_byte_it_is_read_and_resumed(tmp_path: Path) -> None:
    whole = written(tmp_path)
    path = tmp_path / "steps.bin"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        records = max(0, size - 16) // 29
        assert read_steps(tmp_path)["step"].tolist() == [1, 2, 3][:records]
        assert StepsLog(tmp_path).rewind(records) == []
        assert written(tmp_path, range(records + 1, 4)) == whole, size


def test_a_resumed_run_drops_the_records_after_its_checkpoint(tmp_path: Path) -> None:
    whole = written(tmp_path)
    assert StepsLog(tmp_path).rewind(2) == []
    assert (tmp_path / "steps.bin").read_bytes() == whole[: 16 + 58]
    assert not (tmp_path / "steps.damaged.bin").exists()


def test_a_flipped_bit_is_named_by_its_record_and_set_aside_when_the_run_resumes(tmp_path: Path) -> None:
    whole = bytearray(written(tmp_path))
    whole[16 + 29 + 9] ^= 4
    (tmp_path / "steps.bin").write_bytes(whole)
    with pytest.raises(Damaged, match=r"steps\.bin, record 1: "):
        read_steps(tmp_path)
    wrong = StepsLog(tmp_path).rewind(3)
    assert [line.partition("steps.bin")[2] for line in wrong] == [
        ", record 1: its checksum is another",
        " lacks 1 of the 3 steps until here",
    ]
    assert read_steps(tmp_path)["step"].tolist() == [1, 3]
    assert (tmp_path / "steps.damaged.bin").read_bytes() == bytes(whole)


def test_another_file_is_set_aside_and_a_missing_one_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"steps\.bin"):
        read_steps(tmp_path)
    assert StepsLog(tmp_path).rewind(0) == []
    assert "lacks 2 of the 2 steps" in StepsLog(tmp_path).rewind(2)[0]
    (tmp_path / "steps.bin").write_bytes(b"something else, of more than sixteen bytes, and longer than one record")
    with pytest.raises(Damaged, match="does not begin"):
        read_steps(tmp_path)
    assert "does not begin" in StepsLog(tmp_path).rewind(0)[0]
    assert len(written(tmp_path)) == 16 + 3 * 29
    assert np.array_equal(read_steps(tmp_path)["step"], [1, 2, 3])
