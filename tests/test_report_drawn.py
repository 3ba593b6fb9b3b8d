"""Reports of real runs in a headless Chromium: a classifier, a regression, a language model, and one that was killed."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import reported
import tiny
from browser import Site
from browser import page as browser_page
from launch import train_killed
from test_drawn import INK, redrawn
from test_report import CODE, text_of

from jaxtrain.experiment.files import Origin
from jaxtrain.reports.report import report
from jaxtrain.train import train

pytestmark = pytest.mark.slow  # it needs Chromium

TINY = str(Path(tiny.__file__))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    for name in ("classifier", "regression"):
        train(getattr(reported, name)(), folder / name, Origin(Path(CODE), name))
    train(tiny.main(), folder / "language", Origin(Path(TINY), "main"))
    train_killed("both", folder / "killed", 6, "step", devices=4)
    files = {"classifier": CODE, "regression": f"{CODE}:regression", "language": TINY, "killed": TINY}
    return {name: report(folder / name, folder / f"{name}.html", code) for name, code in files.items()}


def test_reports_are_drawn_on_any_screen_and_ask_for_nothing(pages: Mapping[str, Path], tmp_path: Path):
    site = Site(tmp_path)
    with browser_page(site, tmp_path / "profile") as tab:
        for page in pages.values():
            tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
            tab.open(f"file://{page}")
            tab.wait(f"location.href.endsWith('{page.name}') && document.documentElement.dataset.drawn")
            for width, scheme in ((1200, "light"), (360, "dark")):
                tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
                how = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
                tab.send("Emulation.setDeviceMetricsOverride", **how)
                redrawn(tab, "for (const each of document.querySelectorAll('details')) each.open = true")
                assert tab.run("document.documentElement.scrollWidth") <= width, page.name
                blank = [title for title, ink in tab.run(INK) if ink < 15]
                assert blank == [], page.name
            assert tab.run("window.hacked === undefined && document.scripts.length") == 5
        assert tab.problems() == []
        asked = [
            each["params"]["request"]["url"] for each in tab.events if each["method"] == "Network.requestWillBeSent"
        ]
        assert [url for url in asked if not url.startswith(("data:", "file:"))] == []


def test_a_report_of_a_regression_shows_its_residuals(pages: Mapping[str, Path]):
    text = text_of(pages["regression"])
    assert "Residuals" in text
    assert "R², the share of the variance that is explained" in text
    assert "target from " in text


def test_a_report_of_a_language_model_shows_its_loss_by_position_and_why_there_are_no_texts(pages: Mapping[str, Path]):
    text = text_of(pages["language"])
    assert "RememberedSource has no tokenizer" in text
    assert "Over 20 rows of validation, in nats" in text


def test_a_report_of_a_killed_run_says_so_and_shows_which_device_holds_which_part(pages: Mapping[str, Path]):
    text = text_of(pages["killed"])
    assert "The state of this run is “crashed”" in text
    assert "is gone without a word" in text
    assert "Mesh: data 2 × fsdp 2, 4 devices in all." in text
    assert re.search(r"kernel \[[\d, ]+\], split over .*fsdp", text)
    assert "rows 16" in text
