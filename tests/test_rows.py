"""The file of what was found for each example: what is read is what was written, resamples are what numpy says, and no
damaged or foreign file stops a reader.
"""

import hashlib
import io
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from jaxtrain import ConfigError
from jaxtrain.base.errors import Damaged
from jaxtrain.data import Arrays, Csv, InMemory, Mapped, Mixture, Select, Stored, Take
from jaxtrain.runs.row_ids import raw_records, record_id
from jaxtrain.runs.rows import RowsOf, read_rows, rows_kept, rows_path, write_rows
from jaxtrain.tasks import Confusion, Mean, Metric, Perplexity, Spearman

N, C = 30, 3


@dataclass(frozen=True)
class Spread(Metric):
    """The standard deviation of numbers."""

    total: Any
    squares: Any
    count: Any

    def value(self) -> float:
        return float(np.sqrt(self.squares / self.count - (self.total / self.count) ** 2))


RNG = np.random.default_rng(0)
LABEL, PREDICTED = RNG.integers(0, C, N), RNG.integers(0, C, N)
LOSS, WEIGHT = RNG.exponential(size=N).astype(np.float32), RNG.integers(0, 4, N).astype(np.float32)
COUNTS = np.zeros((N, C, C), np.float32)
COUNTS[np.arange(N), LABEL, PREDICTED] = 1
MADE = RowsOf(
    "validation",
    step=12,
    kept=N,
    of=45,
    ids=RNG.integers(0, 2**63, N).astype(np.uint64) * 2,
    positions=np.sort(RNG.permutation(45)[:N]),
    predictions={"probabilities": RNG.random((N, C)).astype(np.float32), "class": PREDICTED},
    labels={"label": LABEL},
    metrics={
        "loss": Mean(LOSS * WEIGHT, WEIGHT),
        "perplexity": Perplexity(LOSS, np.ones(N, np.float32)),
        "confusion": Confusion(COUNTS),
        "spread": Spread(LOSS, LOSS**2, np.ones(N)),
    },
    left_out={"predictions.logits": "too large"},
)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    for split in ("validation", "held out/2", "ünder"):
        write_rows(tmp_path, replace(MADE, split=split))
    assert rows_kept(tmp_path) == ["held out/2", "validation", "ünder"]
    found = read_rows(tmp_path, "held out/2")
    assert (found.split, found.step, found.kept, found.of) == ("held out/2", 12, N, 45)
    assert found.left_out == MADE.left_out
    for one, two in (("ids", ""), ("positions", ""), ("predictions", "class"), ("labels", "label")):
        pair = [getattr(each, one)[two] if two else getattr(each, one) for each in (found, MADE)]
        np.testing.assert_array_equal(*pair)
        assert pair[0].dtype == pair[1].dtype
    assert [*found.metrics] == [*MADE.metrics]
    assert [*found.predictions] == [*MADE.predictions]
    assert found.values() == MADE.values()
    assert [path.name for path in (tmp_path / "rows").iterdir() if path.name.startswith(".")] == []


def test_the_values_of_all_rows_and_of_resamples_are_those_by_numpy() -> None:
    twice = RNG.multinomial(N, np.ones(N) / N)
    for counts in (np.ones(N, int), twice):
        rows = np.repeat(np.arange(N), counts)
        found = MADE.values(None if counts.all() else counts)
        assert found["loss"] == pytest.approx(np.average(LOSS[rows].astype(float), weights=WEIGHT[rows]), rel=1e-6)
        assert found["perplexity"] == pytest.approx(np.exp(LOSS[rows].mean(dtype=float)), rel=1e-6)
        assert found["spread"] == pytest.approx(LOSS[rows].std(dtype=float), rel=1e-5)
        assert found["confusion/accuracy"] == pytest.approx((LABEL == PREDICTED)[rows].mean())
        assert found["confusion/f1_macro"] == pytest.approx(f1_score(LABEL[rows], PREDICTED[rows], average="macro"))
    half = MADE.values(np.full(N, 0.5))
    assert half["loss"] == pytest.approx(MADE.values()["loss"])


def test_a_row_that_counts_no_times_has_no_part_even_if_it_is_nan() -> None:
    total = (LOSS * WEIGHT).copy()
    total[4] = np.nan
    broken = replace(MADE, metrics={"loss": Mean(total, WEIGHT)})
    weights = np.ones(N)
    assert np.isnan(broken.values()["loss"])
    weights[4] = 0
    assert broken.values(weights)["loss"] == MADE.values(weights)["loss"]
    assert np.isnan(MADE.values(np.zeros(N))["loss"])


@pytest.mark.parametrize(
    "weights", [np.ones(N - 1), np.ones((N, 1)), np.full(N, np.nan), -np.ones(N), np.full(N, np.inf)]
)
def test_weights_that_are_none_are_refused(weights: np.ndarray) -> None:
    with pytest.raises(ConfigError, match=f"weights are {N} finite numbers from 0 on"):
        MADE.values(weights)


def test_host_metrics_are_computed_of_repeated_rows() -> None:
    rows = replace(MADE, predictions={"values": LOSS}, labels={"target": WEIGHT})
    counts = RNG.integers(0, 3, N)
    again = np.repeat(np.arange(N), counts)
    expected = Spearman().value({"values": LOSS[again]}, {"target": WEIGHT[again]})
    assert rows.values(counts, {"order": Spearman()})["order"] == expected
    with pytest.raises(ConfigError, match="whole numbers"):
        rows.values(np.full(N, 0.5), {"order": Spearman()})


def test_a_metric_whose_class_is_not_imported_is_left_out_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path, MADE)
    monkeypatch.delitem(__import__("sys").modules, __name__)
    found = read_rows(tmp_path, "validation")
    assert [*found.metrics] == ["loss", "perplexity", "confusion"]
    assert "name the experiment file" in found.left_out["metrics.spread"]


def test_rows_that_are_not_there_are_asked_for_with_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"jaxtrain evaluate {tmp_path} --keep-rows"):
        read_rows(tmp_path, "validation")
    write_rows(tmp_path, MADE)
    with pytest.raises(ConfigError, match="no rows of 'validaton'; did you mean 'validation'"):
        read_rows(tmp_path, "validaton")


def with_arrays(path: Path, **changed: Any) -> None:
    with np.load(path) as file:
        arrays: dict[str, Any] = {**file, **changed}
    np.savez(path, **{name: x for name, x in arrays.items() if x is not None})


def bomb(path: Path) -> None:
    with np.load(path) as file:
        arrays: dict[str, Any] = dict(file)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 50,)})
    with_arrays(path, **{**arrays, "ids": np.frombuffer(header.getvalue(), np.uint8)})


def not_a_file(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"ids": 1}))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "a byte": lambda path: path.write_bytes(path.read_bytes().replace(b"\x00\x01", b"\x00\x00", 1)[:-900] + b"x" * 900),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("rows"),
    "a pickle": a_pickle,
    "a named pipe": not_a_file,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "no ids": lambda path: with_arrays(path, ids=None),
    "objects": lambda path: with_arrays(path, ids=np.array([{}], object)),
    "other ids": lambda path: with_arrays(path, ids=np.zeros(N, np.float32)),
    "fewer predictions": lambda path: with_arrays(path, **{"predictions.0": np.zeros((N - 1, C))}),
    "text in labels": lambda path: with_arrays(path, **{"labels.0": np.array(["a"] * N)}),
    "positions beyond the split": lambda path: with_arrays(path, positions=np.arange(N) + 20),
    "a position twice": lambda path: with_arrays(path, positions=np.zeros(N, np.int64)),
    "about no object": lambda path: with_arrays(path, about=np.frombuffer(b"[]", np.uint8)),
    "an array too large for any memory": bomb,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named_and_neither_hangs_nor_is_believed(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    path = write_rows(tmp_path, MADE)
    damage(path)
    with pytest.raises(Damaged, match=r"validation\.npz"):
        read_rows(tmp_path, "validation")
    write_rows(tmp_path, MADE)
    assert read_rows(tmp_path, "validation").values() == MADE.values()


def test_a_file_for_another_split_is_not_taken_for_this_one(tmp_path: Path) -> None:
    path = write_rows(tmp_path, MADE)
    path.rename(rows_path(tmp_path, "test"))
    with pytest.raises(Damaged, match="of split 'validation'"):
        read_rows(tmp_path, "test")


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "rows").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="it is a link"):
        write_rows(tmp_path / "run", MADE)
    assert [*(tmp_path / "elsewhere").iterdir()] == []
    (tmp_path / "other.npz").write_text("mine")
    (tmp_path / "rows").mkdir()
    rows_path(tmp_path, "validation").symlink_to(tmp_path / "other.npz")
    write_rows(tmp_path, MADE)
    assert (tmp_path / "other.npz").read_text() == "mine"


RECORD: dict[str, Any] = {
    "text": "wörter",
    "label": 3,
    "pixels": np.arange(6, dtype=np.int16).reshape(2, 3),
    "score": 0.5,
}


def test_the_id_of_a_record_is_the_hash_of_these_bytes() -> None:
    parts = [b"\0label\0int 3:", b"\0pixels\0array <i2 (2, 3):" + RECORD["pixels"].tobytes(), b"\0score\0float 0.5:"]
    parts.append(b"\0text\0text 7:" + "wörter".encode())
    assert record_id(RECORD) == int.from_bytes(hashlib.sha256(b"".join(parts)).digest()[:8], "big")


@pytest.mark.parametrize(
    "same",
    [
        dict(reversed(RECORD.items())),
        {**RECORD, "label": np.int64(3)},
        {**RECORD, "label": np.array(3, np.uint8), "score": np.float64(0.5), "text": np.str_("wörter")},
        {**RECORD, "pixels": RECORD["pixels"].astype(">i2")},
        {**RECORD, "pixels": np.asfortranarray(RECORD["pixels"])},
    ],
)
def test_the_same_content_has_the_same_id(same: dict[str, Any]) -> None:
    assert record_id(same) == record_id(RECORD)


def test_other_content_has_another_id() -> None:
    others: list[dict[str, Any]] = [
        {**RECORD, "label": 4},
        {**RECORD, "label": 3.0},
        {**RECORD, "text": "wörter "},
        {**RECORD, "text": "wörter".encode()},
        {**RECORD, "pixels": RECORD["pixels"].T},
        {**RECORD, "pixels": RECORD["pixels"].reshape(3, 2)},
        {**RECORD, "pixels": RECORD["pixels"].astype(np.int32)},
        {**RECORD, "more": None},
        {name: value for name, value in RECORD.items() if name != "score"},
        {**RECORD, "score": float("nan")},
        {**RECORD, "score": [0.5]},
        {**RECORD, "score": ["0.5", "1"]},
        {**RECORD, "score": ["0.51"]},
        {**RECORD, "score": np.array(["0.51", None], object)},
        {**RECORD, "score": {"a": 1}},
        {**RECORD, "score": {"a": 2}},
    ]
    assert len({record_id(each) for each in [RECORD, *others]}) == 1 + len(others)
    assert record_id({"x": float("nan")}) == record_id({"x": np.float64("nan")})


def test_the_records_are_those_before_any_transform(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,x\n2,y\n3,z\n4,u\n")
    raw = Csv((str(tmp_path / "rows.csv"),))
    only = Mapped(raw, (Select(("a",)),))
    assert raw_records(raw) is raw
    assert raw_records(InMemory(raw)) == InMemory(raw)
    for source in (only, InMemory(only), Stored(only, str(tmp_path / "store")), Mapped(InMemory(only), ())):
        assert raw_records(source) == raw
    assert raw_records(Take(only, 2)) == Take(raw, 2)
    assert raw_records(Mixture((only, raw), (1.0, 1.0))) == Mixture((raw, raw), (1.0, 1.0))
    assert not (tmp_path / "store").exists()
    assert raw_records(Arrays({"a": np.arange(3)}))[1]["a"] == 1
