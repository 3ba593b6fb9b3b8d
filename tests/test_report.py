"""`jaxtrain report`: what a page says of a run, of a damaged one and of a folder that is none. The parts of it that are
drawn are in test_drawn and test_report_drawn.
"""

import json
import os
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reported
from reported import EVIL
from test_page import numbers

from jaxtrain import ConfigError
from jaxtrain.experiment.files import Origin
from jaxtrain.reports.report import report
from jaxtrain.runs.metrics_log import MetricsLog
from jaxtrain.runs.steps_log import HEADER, RECORD, StepsLog
from jaxtrain.train import train

CODE = str(Path(__file__).with_name("reported.py"))


def text_of(page: Path) -> str:
    """The words of a page, without scripts."""
    html = re.sub(r"<(script|style).*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def written(folder: Path, steps: int = 30, name: str = "run") -> Path:
    """A folder with the logs of a run, but no experiment."""
    run = folder / name
    log, every = MetricsLog(run), StepsLog(run)
    log.event("begun", step=0, of=steps, mesh={"data": 2, "fsdp": 2})
    for step in range(5, steps + 1, 5):
        log.metrics(step, "train", {"loss": 1 / step, "seconds_total": step * 2.0, "seconds_step": step * 1.5})
    log.metrics(steps, "test", {"loss": 0.5})
    numbers = np.arange(1, steps + 1)
    zeros = np.zeros(steps, np.int64)
    columns = {"step": numbers, "loss": 1 / numbers, "gradient_norm": numbers / 10.0, "batch": zeros, "skipped": zeros}
    every.append(columns)
    return run


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    train(reported.classifier(), folder, Origin(Path(CODE), "classifier"))
    return folder


def test_a_report_says_how_a_run_ended_and_how_well_it_does(classifier: Path, tmp_path: Path):
    before = sorted(classifier.iterdir())
    page = report(classifier, tmp_path / "page.html", CODE)
    assert sorted(classifier.iterdir()) == before
    text = text_of(page)
    assert "finished, step 12 of 12" in text
    assert "95 % intervals over rows (<u>test: 60 rows)" in text
    assert re.search(r"accuracy [\d.]+ \([\d.]+ to [\d.]+\)", text)
    assert "Confusion matrix" in text
    assert "Expected calibration error" in text
    assert "label <b>bright 30" in text
    assert "characters of text from " in text
    assert "small: fewer than 30 rows" in text
    assert "The 10 rows with the highest loss" in text
    assert f"{EVIL} review " in text
    assert "a device" in text
    for name in ("data", "evals.<u>test"):
        assert f"{name} Reviews reviews:" in text
    titles = {plot["title"] for plot in numbers(page.read_text(encoding="utf-8"))["plots"]}
    assert {"loss", "accuracy", "learning rate", "gradient norm", "examples per second", "Calibration"} <= titles


def test_no_text_of_a_run_is_markup(classifier: Path, tmp_path: Path):
    html = report(classifier, tmp_path / "page.html", CODE).read_text(encoding="utf-8")
    assert html.count("<script") == 5  # uPlot, three of the page, and its numbers
    assert "<img" not in html
    assert "<b>" not in html
    assert "<u>" not in html


def test_the_curves_are_those_of_the_files_on_every_axis(classifier: Path, tmp_path: Path):
    found = numbers(report(classifier, tmp_path / "page.html", CODE).read_text(encoding="utf-8"))
    loss = next(plot for plot in found["plots"] if plot["title"] == "loss")
    every, test = loss["series"]
    assert found["arrays"][every["x"]["step"]] == [*range(1, 13)]
    assert found["arrays"][every["x"]["examples"]] == [16 * step for step in range(1, 13)]
    seconds = found["arrays"][every["x"]["seconds"]]
    logged = [json.loads(line) for line in (classifier / "metrics.jsonl").read_text().splitlines()]
    totals = [line["seconds_total"] for line in logged if line["split"] == "train"]
    assert seconds[1::2] == pytest.approx(totals, rel=1e-6)
    scores = [line["loss"] for line in logged if line["split"] == "<u>test"]
    assert found["arrays"][test["y"]] == pytest.approx(scores, rel=1e-6)
    steps: Any = np.fromfile(classifier / "steps.bin", RECORD, offset=len(HEADER))
    assert found["arrays"][every["y"]] == pytest.approx(steps["loss"].tolist(), rel=1e-6)
    assert [mark[2] for mark in loss["marks"]] == ["save"] * len(list((classifier / "checkpoints").iterdir()))


def test_without_the_code_of_a_users_classes_a_report_says_what_it_lacks(classifier: Path, tmp_path: Path):
    edited = tmp_path / "run"
    edited.mkdir()
    for name in ("experiment.json", "metrics.jsonl"):
        (edited / name).write_text((classifier / name).read_text().replace("Reviews", "Unknown"))
    text = text_of(report(edited))
    assert "The arrays are not known:" in text
    assert "No predictions of single examples were kept" in text


def test_a_folder_that_is_no_run_is_refused_with_what_to_do(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere is not there: give the folder of a run"):
        report(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file is a file: give the folder of a run"):
        report(tmp_path / "file")
    with pytest.raises(ConfigError, match=r"is no run: it has none of experiment.json, .*`jaxtrain train FILE` makes"):
        report(tmp_path)
    (tmp_path / "other" / "run").mkdir(parents=True)
    (tmp_path / "other" / "run" / "experiment.json").touch()
    with pytest.raises(ConfigError, match=r"is no run.*; runs in it: .*other.run"):
        report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_what_is_missing_is_said(tmp_path: Path):
    run = written(tmp_path)
    text = text_of(report(run))
    assert "experiment.json is missing: the experiment is not known." in text
    assert "environment.json is missing" in text
    assert "The state of this run cannot be told" in text
    assert "Mesh: data 2 × fsdp 2, 4 devices in all." in text
    assert (run / "report.html").exists()
    for name in ("metrics.jsonl", "steps.bin"):
        (run / name).unlink()
    assert "No step was logged, so there is nothing to draw." in text_of(report(run))


def test_steps_are_shown_until_the_first_damaged_record(tmp_path: Path):
    run = written(tmp_path)
    data = bytearray((run / "steps.bin").read_bytes())
    data[len(HEADER) + 20 * RECORD.itemsize + 3] ^= 1  # in the record of step 21
    (run / "steps.bin").write_bytes(data)
    page = report(run)
    assert "record 20: its checksum is another: steps.bin is shown up to step 20, the last before it." in text_of(page)
    found = numbers(page.read_text())
    norms = next(plot for plot in found["plots"] if plot["title"] == "gradient norm")["series"][0]
    assert found["arrays"][norms["x"]["step"]] == [*range(1, 21)]
    loss = next(plot for plot in found["plots"] if plot["title"] == "loss")["series"][0]
    assert found["arrays"][loss["x"]["step"]] == [*range(5, 31, 5)]  # the log goes on where steps.bin does not
    (run / "steps.bin").write_bytes(b"something else that is no log of steps")
    assert "does not begin with 'jaxtrain steps 1': nothing of it is shown." in text_of(report(run))


def test_damaged_lines_are_left_out_and_said(tmp_path: Path):
    run = written(tmp_path)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[2:2] = ['{"step": 11, "split": "tra', "[1]", '{"step": "x"}', '{"step": 5, "split": "train", "loss": 1}']
    (run / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 31, "spl']))
    (run / "events.jsonl").write_text('{"kind": 3}\n{"kind": "note", "step": -1}\n\0\0\0\n{"time": [')
    text = text_of(report(run))
    assert "metrics.jsonl, line 3 is left out: it is not JSON" in text
    assert "1 more lines of metrics.jsonl are left out." in text
    assert "events.jsonl, line 3 is left out" in text


def test_pipes_links_and_folders_in_place_of_files_do_not_hang_a_report(tmp_path: Path):
    run = written(tmp_path)
    for name in ("events.jsonl", "steps.bin"):
        (run / name).unlink()
    os.mkfifo(run / "events.jsonl")
    (run / "steps.bin").symlink_to("/dev/zero")
    (run / "environment.json").symlink_to("environment.json")
    (run / "data").symlink_to(tmp_path)
    (run / "flight.json").mkdir()
    os.mkfifo(run / "traceback.txt")
    (run / "checkpoints").write_text("")
    text = text_of(report(run))
    for name in ("events.jsonl", "steps.bin", "flight.json"):
        assert f"{name} is no file, and was not read." in text
    assert "environment.json Too many levels of symbolic links" in text


def test_the_seconds_of_sessions_follow_each_other(tmp_path: Path):
    run = written(tmp_path, steps=10)
    log = MetricsLog(run)
    log.event("begun", step=10, of=20)
    log.metrics(15, "train", {"loss": 0.1, "seconds_total": 7.0})
    log.metrics(20, "train", {"loss": 0.1, "seconds_total": 9.0})
    found = numbers(report(run).read_text())
    loss = next(plot for plot in found["plots"] if plot["title"] == "loss")
    assert found["arrays"][loss["series"][0]["x"]["seconds"]] == [10, 20, 27, 29]  # 20 s, then 7 and 9 s more
    assert [10.0, "resumed after step 10", "restart"] in loss["marks"]


def test_events_are_marks_and_cards_have_links(tmp_path: Path):
    run = written(tmp_path)
    log = MetricsLog(run)
    log.event("skipped", steps=[{"step": 7, "loss": "nan", "gradient_norm": 3.5}])
    log.event("observer_failed", step=9, observer="Mine", error=f"KeyError: {EVIL}")
    (run / "data").mkdir()
    card = {"name": EVIL, "version": "1", "origin": "https://example.org/data", "licence": "javascript:alert(1)"}
    (run / "data" / "a.json").write_text(json.dumps({**card, "splits": {"train": {"records": 5}}}))
    (run / "data" / "b.json").write_text("{")
    page = report(run)
    marks = numbers(page.read_text())["plots"][0]["marks"]
    assert [7.0, "update skipped: loss nan, gradient norm 3.5", "warning"] in marks
    assert [9.0, f"observer failed KeyError: {EVIL}", "warning"] in marks
    html = page.read_text()
    assert '<a href="https://example.org/data"' in html
    assert 'href="javascript' not in html
    assert f"Card of {EVIL} 1" in text_of(page)
    assert "b.json is not JSON" in text_of(page)


@pytest.mark.slow
def test_a_hundred_thousand_logged_steps_make_a_small_page_with_every_extreme(tmp_path: Path):
    steps, run = 100_000, tmp_path / "run"
    run.mkdir()
    loss = np.random.default_rng(0).random(steps)
    loss[31_415], loss[92_653] = 77.0, -77.0
    with (run / "metrics.jsonl").open("w") as file:
        for step, value in enumerate(loss.tolist(), 1):
            more = {f"metric_{n}": value * n for n in range(8)}
            file.write(
                json.dumps({"step": step, "split": "train", "loss": value, **more, "seconds_total": step / 9}) + "\n"
            )
    columns = {"step": np.arange(1, steps + 1), "loss": loss, "gradient_norm": loss + 1}
    StepsLog(run).append({**columns, "batch": np.zeros(steps, np.int64), "skipped": np.zeros(steps, np.int64)})
    page = report(run)
    assert page.stat().st_size < 5_000_000
    found = numbers(page.read_text())
    for plot in found["plots"]:
        drawn = [x for x in found["arrays"][plot["series"][0]["y"]] if x is not None]
        if plot["title"] == "loss":
            assert (min(drawn), max(drawn)) == (-77, 77)
