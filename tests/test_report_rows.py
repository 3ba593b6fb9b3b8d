"""What a report makes of the rows of an evaluation, against scipy, scikit-learn and counts by hand."""

import math
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from PIL import Image
from scipy.stats import binomtest, bootstrap

from jaxtrain.data import Bytes, Pipeline, Source, Windows
from jaxtrain.reports.page import Picture
from jaxtrain.reports.page.arrays import PageData
from jaxtrain.reports.parts import planned_parts
from jaxtrain.reports.pictures import array_svg, mesh_svg, png
from jaxtrain.reports.report.evaluation import labels_of, quarters, with_interval
from jaxtrain.reports.report.examples import SplitRecords, within, worst
from jaxtrain.reports.report.intervals import metric_intervals, select, wilson
from jaxtrain.runs.row_ids import record_id
from jaxtrain.runs.rows import RowsOf
from jaxtrain.tasks.metrics import Mean, Perplexity

RNG = np.random.default_rng(0)
RECORDS: list[dict[str, Any]] = [{"text": f"record {n}" * (n + 1), "label": n % 2} for n in range(40)]


def rows_of(losses: np.ndarray, right: np.ndarray | None = None, **changes: Any) -> RowsOf:
    count = len(losses)
    metrics: dict[str, Any] = {"loss": Mean(losses, np.ones(count)), "perplexity": Perplexity(losses, np.ones(count))}
    if right is not None:
        metrics["accuracy"] = Mean(right, np.ones(count))
    ids = np.array([record_id(record) for record in RECORDS[:count]] + [0] * (count - len(RECORDS)), np.uint64)
    fields: dict[str, Any] = dict(
        split="test",
        step=7,
        kept=count,
        of=count,
        ids=ids,
        positions=np.arange(count),
        predictions={},
        labels={},
        metrics=metrics,
    )
    return RowsOf(**(fields | changes))


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (1, 2), (923, 1000)])
def test_the_interval_of_a_share_is_wilsons(hits: int, count: int):
    wanted = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert wilson(hits, count) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_a_share_has_wilsons_interval_and_all_else_that_of_a_bootstrap():
    losses, right = RNG.gamma(2.0, size=400), (RNG.random(400) < 0.9).astype(float)
    found = metric_intervals(rows_of(losses, right))
    assert (found["accuracy"].low, found["accuracy"].high) == wilson(right.sum(), 400)
    wanted = bootstrap((losses,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    width = wanted.high - wanted.low
    assert found["loss"].value == pytest.approx(losses.mean())
    assert found["loss"].low == pytest.approx(wanted.low, abs=width / 10)
    assert found["loss"].high == pytest.approx(wanted.high, abs=width / 10)
    assert found["perplexity"].high == pytest.approx(math.exp(found["loss"].high), rel=1e-6)


def test_a_weighted_mean_is_no_share():
    for weight, most in ((2.0, 1.0), (1.0, 0.5)):
        mean = Mean(np.repeat([0.0, most], 25), np.full(50, weight))
        found = metric_intervals(rows_of(np.ones(50), metrics={"accuracy": mean}))["accuracy"]
        assert (found.low, found.high) != wilson(25 * most, 50 * weight)


def test_there_is_no_interval_of_one_row_or_of_what_is_not_finite():
    assert with_interval(metric_intervals(rows_of(np.array([0.5])))["loss"]) == "0.5 (no interval)"
    assert with_interval(metric_intervals(rows_of(np.array([0.5, np.inf])))["loss"]) == "inf (no interval)"
    assert with_interval(metric_intervals(rows_of(np.array([0.5, 0.5])))["loss"]) == "0.5 (0.5 to 0.5)"


def test_a_slice_has_the_metrics_of_its_rows():
    losses = RNG.random(20)
    chosen = losses > 0.5
    found = select(rows_of(losses), chosen)
    assert found.kept == chosen.sum()
    assert found.values()["loss"] == pytest.approx(losses[chosen].mean())


def test_quarters_part_the_rows():
    values = np.array([1.0, 2, 3, 4, 5, 6, 7, 8])
    found = quarters("length", values)
    assert list(found) == [
        "length from 1 to 2.75",
        "length above 2.75 to 4.5",
        "length above 4.5 to 6.25",
        "length above 6.25 to 8",
    ]
    assert np.sum([*found.values()], axis=0).tolist() == [1] * 8
    assert quarters("length", np.ones(8)) == {}
    assert [int(part.sum()) for part in quarters("length", np.array([1.0, 1, 1, 1, 1, 9])).values()] == []
    halves = quarters("length", np.array([1.0, 1, 1, 9, 9, 9]))
    assert np.sum([*halves.values()], axis=0).tolist() == [1] * 6


def test_labels_are_those_of_a_classifier_without_the_ignored_ones():
    probabilities = np.full((4, 3), 1 / 3, np.float32)
    config = {"task.kind": "Classification", "task.label": "l", "task.classes": ["a", "b", "c"], "task.ignore": -100}
    rows = rows_of(np.ones(4), predictions={"probabilities": probabilities}, labels={"l": np.array([0, 2, -100, 7])})
    stray = rows_of(np.ones(4), predictions=rows.predictions, labels={"l": np.array([0, 1, -5, -100])})
    assert (found := labels_of(stray, config)[0]) is not None
    assert found.tolist() == [0, 1, -1, -1]
    labels, names = labels_of(rows, config)
    assert labels is not None
    assert labels.tolist() == [0, 2, -1, -1]
    assert names == ["a", "b", "c"]
    soft = rows_of(np.ones(4), predictions=rows.predictions, labels={"l": np.eye(4, 3)})
    assert (found := labels_of(soft, config)[0]) is not None
    assert found.tolist() == [0, 1, 2, 0]
    assert labels_of(rows, {**config, "task.kind": "Regression"}) == (None, [])
    assert labels_of(rows_of(np.ones(4)), config) == (None, [])


@dataclass(frozen=True)
class Listed(Source):
    """These records, or errors in their place."""

    records: Any

    def identity(self) -> str:
        """Of a test."""
        return "listed"

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.records[index], Exception):
            raise self.records[index]
        return self.records[index]


def records_of(records: Any) -> SplitRecords:
    return SplitRecords(None if records is None else Pipeline(Listed(records)), "test", "there is no run")


def worst_of(records: Any, losses: np.ndarray) -> str:
    items = worst(rows_of(losses), records_of(records), None, [], "")
    return "".join(item.html(PageData()) for item in items)


def test_the_worst_examples_are_those_of_the_highest_loss_with_their_text():
    losses = np.linspace(0, 1, 40)
    losses[5], losses[6] = 9.0, np.nan
    text = worst_of(RECORDS, losses)
    places = [int(place) for place in re.findall(r'scope="row">(\d+)<', text)]
    assert places == [6, 5, 39, 38, 37, 36, 35, 34, 33, 32]
    assert "record 5record 5" in text
    assert "by their ids" not in text


def test_an_example_that_was_changed_is_not_shown():
    changed = [{**record, "text": "another"} if n == 39 else record for n, record in enumerate(RECORDS)]
    text = worst_of(changed, np.linspace(0, 1, 40))
    assert "another" not in text
    assert f"id {record_id(RECORDS[39]):016x}" in text
    assert "1 of 10 records of test are not those that were evaluated" in text


def test_data_that_are_gone_leave_the_ids():
    for records, why in ((None, "there is no run"), ([OSError("the disk is gone")] * 40, "OSError: the disk is gone")):
        text = worst_of(records, np.linspace(0, 1, 40))
        assert text.count("id ") >= 10
        assert why in text


def test_lengths_are_read_in_time_or_left_out():
    rows = rows_of(np.ones(40))
    found = records_of(RECORDS).lengths(rows)
    assert found is not None
    assert found[0] == "characters of text"
    assert found[1].tolist() == [len(record["text"]) for record in RECORDS]
    assert records_of(RECORDS[:39]).lengths(rows) is None
    assert records_of([{"x": 1}] * 40).lengths(rows) is None


def test_what_takes_too_long_is_left():
    never = threading.Event()
    with pytest.raises(TimeoutError):
        within(0.05, never.wait)
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)
    assert within(5, lambda: 3) == 3


def test_a_picture_in_a_cell_is_a_png_of_its_pixels(tmp_path: Path):
    pixels = RNG.integers(0, 256, (9, 7)).astype(np.uint8)
    for image in (pixels, np.stack([pixels, 255 - pixels, pixels // 2], axis=2)):
        (tmp_path / "image.png").write_bytes(png(image))
        assert (np.asarray(Image.open(tmp_path / "image.png")) == image).all()
    cell = records_of(RECORDS).cell
    shown = cell({"image": pixels.astype(np.float32), "label": 3})
    assert isinstance(shown, Picture)
    assert shown.html(PageData()).startswith('<img alt="image of this row" src="data:image/png;base64,')
    assert cell({"x": np.arange(3), "y": 0.5}) == "x [0, 1, 2] y 0.5"
    texts = SplitRecords(Pipeline(Windows(Listed(RECORDS), 4)), "test")
    assert texts.cell({"tokens": Bytes().encode(["one\n two"])[0]}) == "one two"


def test_a_mesh_and_an_array_are_drawn_with_every_device_and_fit_on_a_page():
    mesh = {"data": 2, "fsdp": 1, "tensor": 4}
    numbers = np.arange(8).reshape(2, 1, 4)
    drawn = mesh_svg(mesh, numbers)
    assert [f">{device}<" in drawn for device in range(8)] == [True] * 8
    assert ">tensor = 4<" in drawn
    assert ">data 1, fsdp 0<" in drawn
    array = array_svg((16, 8), ("embed", "mlp"), planned_parts(P("tensor"), (16, 8), mesh, numbers))
    assert [f">{devices}<" in array for devices in ("0 4", "1 5", "2 6", "3 7")] == [True] * 4
    assert ">embed 16<" in array
    assert ">mlp 8<" in array
    whole = array_svg((8,), ("<mlp>",), planned_parts(P(), (8,), mesh, numbers))
    assert ">0 1 2 3 4 5 6 7<" in whole
    assert "&lt;mlp&gt;" in whole
    for picture in (drawn, array, whole):
        Picture(picture, "a drawing")  # raises where a page would not take it
