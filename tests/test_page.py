"""Pages of reports: what they hold, what they refuse, and that they ask for nothing. Not here: how they look (test_drawn)."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from jaxtrain.base.errors import ConfigError
from jaxtrain.reports.page import Bars, HeatMap, Link, Mark, Page, Paragraph, Picture, Plot, Section, Series, Table
from jaxtrain.reports.page.arrays import MOST_POINTS, PageData, stretches, thinned
from jaxtrain.reports.pictures import png

EVIL = "</script><script>window.hacked = 1</script><img src=x onerror=hacked=1>\u2028&amp;\ud800"


class Parts(HTMLParser):
    """Elements with attributes, and the texts of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] in ("script", "style"):
            self.inside.append((self.elements[-1][0], data))

    def handle_endtag(self, tag):
        self.elements.append((f"/{tag}", {}))


def page_of(*items) -> str:
    return Page("A page", [Section("Data", items)]).html()


def numbers(text: str) -> dict:
    found = re.search(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_a_long_series_keeps_its_extremes_its_gaps_and_its_ends():
    y = np.random.default_rng(0).normal(size=100_000)
    y[31_415], y[92_653], y[58_979] = 40.0, -40.0, np.nan
    low, high = y - 1, y + 1
    low[12_345], high[54_321] = -90.0, 90.0
    kept = thinned(y, low, high)
    assert {0, 99_999, 31_415, 92_653, 58_979, 12_345, 54_321} <= {*kept.tolist()}
    assert len(kept) <= 2 * MOST_POINTS + 1
    assert (np.diff(kept) > 0).all()
    assert thinned(y[:MOST_POINTS], y[:MOST_POINTS], y[:MOST_POINTS]).tolist() == [*range(MOST_POINTS)]


def test_of_many_points_some_are_drawn_as_dense_as_all_are_with_the_extremes():
    y = np.random.default_rng(0).normal(size=50_000)
    y[31_415] = 40.0
    plot = Plot("residuals", [Series("rows", np.arange(50_000), y, kind="points", smooth=False)], x="predicted")
    drawn = np.array(numbers(page_of(plot))["arrays"][1])
    assert 1000 <= len(drawn) <= MOST_POINTS
    assert drawn.max() == 40
    assert 0.9 < np.std(drawn[drawn < 10]) < 1.25  # 1 of all of them, 2.6 of the extremes of each stretch


def test_the_means_that_are_smoothed_are_those_of_the_finite_values():
    y = np.arange(7.0)
    y[5] = np.nan
    means, counts = stretches(y, np.isfinite(y), most=4)  # stretches of 4
    assert means.tolist() == [1.5, 5.0]  # (0+1+2+3)/4, (4+6)/2
    assert counts.tolist() == [4, 2]


def test_a_plot_of_a_hundred_thousand_steps_is_small():
    steps = np.arange(100_000)
    noise = np.random.default_rng(0).normal(size=(3, 100_000))
    other = {"examples": steps * 64, "tokens": steps * 8192, "seconds": steps * 0.13}
    text = page_of(*(Plot("loss", [Series("train", steps, y, other_x=other)]) for y in noise))
    assert len(text) < 600_000


def test_text_of_data_is_never_markup():
    data = PageData()
    items = [
        Paragraph(EVIL),
        Table([EVIL], [[EVIL]], EVIL),
        Plot(EVIL, [Series(EVIL, [1.0], [1.0])], marks=[Mark(1.0, EVIL)]),
        Bars(EVIL, {EVIL: 1.0}, EVIL),
        HeatMap(EVIL, [EVIL], [EVIL], np.ones((1, 1)), EVIL, EVIL),
        Link(EVIL, "https://example.org/" + EVIL.split()[0]),
        Picture(png(np.zeros((4, 4), np.uint8)), EVIL, EVIL),
    ]
    text = "".join(item.html(data) for item in items)
    assert "<script" not in text
    assert "<img src=x" not in text
    assert not set("<>&\u2028") & set(data.json())
    assert json.loads(data.json())["plots"][0]["title"] == EVIL


def test_the_policy_names_every_script_and_style_by_its_hash_and_nothing_else():
    text = page_of(Plot("loss", [Series("train", [1, 2], [1.0, 2.0])]))
    parts = Parts(text)
    policy = next(a["content"] for tag, a in parts.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy
    assert policy.startswith("default-src 'none'; ")
    inside = [(kind, body) for kind, body in parts.inside if not body.startswith('{"plots"')]
    hashes = {
        kind: [
            "'sha256-" + base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() + "'"
            for k, body in inside
            if k == kind
        ]
        for kind in ("script", "style")
    }
    assert f"script-src {' '.join(hashes['script'])};" in policy
    assert f"style-src {' '.join(hashes['style'])};" in policy
    assert policy.endswith("; img-src data:; base-uri 'none'; form-action 'none'")
    assert policy.count(";") == 5
    assert len(hashes["script"]) == 4
    assert not [a for _, a in parts.elements if "style" in a or any(name.startswith("on") for name in a)]
    assert not [a for _, a in parts.elements if (a.get("src") or a.get("href") or "").startswith(("http", "//"))]


def test_a_link_leads_to_the_web_or_is_text():
    assert 'href="https://example.org/a"' in Link("a", "https://example.org/a").html(PageData())
    for address in ("javascript:alert(1)", "data:text/html,x", "file:///etc/passwd", "https://a b", "https://a\n"):
        assert Link("a", address).html(PageData()) == "a"


@pytest.mark.parametrize(
    "svg",
    [
        '<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>',
        '<svg xmlns="http://www.w3.org/2000/svg" onload="x()"></svg>',
        '<svg xmlns="http://www.w3.org/2000/svg"><a xmlns:x="http://www.w3.org/1999/xlink" x:href="http://a"/></svg>',
        '<svg xmlns="http://www.w3.org/2000/svg"><rect style="fill:url(http://a)"/></svg>',
        "<html></html>",
        "<svg>",
        '<!DOCTYPE svg [<!ENTITY a "b">]><svg xmlns="http://www.w3.org/2000/svg">&a;</svg>',
    ],
)
def test_a_picture_that_does_more_than_draw_is_refused(svg: str):
    with pytest.raises(ValueError, match="the picture"):
        Picture(svg, "a picture")


def test_a_picture_that_is_no_png_is_refused():
    with pytest.raises(ValueError, match="bytes of a PNG"):
        Picture(b"GIF89a", "a picture")


def test_a_series_with_arrays_of_other_lengths_is_refused():
    with pytest.raises(ValueError, match=r"'train' has arrays of different lengths: \[2, 3\]"):
        Series("train", [1, 2], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="different lengths"):
        Series("train", [1, 2], [1.0, 2.0], other_x={"tokens": [1]})


def test_what_cannot_be_drawn_is_said():
    text = page_of(Plot("loss", [Series("train", [1, 2], [np.nan, np.inf])]))
    assert "There is nothing to draw yet." in text
    assert "train has no number to draw." in text
    assert numbers(text)["plots"] == []
    text = page_of(Plot("loss", [Series("train", [1, 2, 3, 4], [1.0, np.nan, np.inf, 2.0])]))
    assert "train is not finite (NaN or infinite) at step 2 and at 1 more: these are gaps." in text
    assert numbers(text)["arrays"] == [[1, 2, 3, 4], [1, None, None, 2]]


def test_a_plot_is_in_words_and_in_a_table_too():
    text = page_of(Plot("loss", [Series("train", [10, 20, 30], [3.0, 1.0, 2.0])], marks=[Mark(20, "restart")]))
    words = "train: from 3 at step 10 to 2 at 30, lowest 1 at 20, highest 3 at 10."
    assert f'aria-label="Plot of loss over step. {words}"' in text
    assert '<tr><th scope="row" class="number">20</th><td class="number">1</td></tr>' in text
    assert "<summary>Events (1)</summary>" in text


def test_steps_out_of_order_are_drawn_in_order():
    text = page_of(Plot("loss", [Series("train", [3, 1, 2], [30.0, 10.0, 20.0], other_x={"tokens": [9, 3, 6]})]))
    assert numbers(text)["arrays"] == [[1, 2, 3], [3, 6, 9], [10, 20, 30]]


def test_parts_of_a_whole_have_their_shares():
    text = Bars("time", {"step": 30.0, "data": 10.0, "none": 0.0}, "seconds").html(PageData())
    assert re.findall(r'width="([\d.]+)" height="40"', text) == ["750.00", "250.00"]
    assert "step 75.0%" in text
    assert "There is nothing to show." in Bars("time", {"none": 0.0}, "seconds").html(PageData())


def test_a_heat_map_is_shaded_by_the_share_of_the_row():
    text = HeatMap("confusion", ["a", "b"], ["a", "b"], np.array([[100, 0], [1, 1]])).html(PageData())
    assert re.findall(r'class="shade(\d)">(\d+)', text) == [("9", "100"), ("0", "0"), ("5", "1"), ("5", "1")]


def test_a_page_is_written_whole_or_refused(tmp_path: Path):
    page = Page("Runs \ud800", [])
    assert page.write(tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    with pytest.raises(ConfigError, match=r"nowhere.page\.html cannot be written: No such file"):
        page.write(tmp_path / "nowhere" / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
