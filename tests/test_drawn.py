"""Pages in a headless Chromium: what is drawn, what the controls do, what is asked of others (nothing)."""

from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
from browser import Page as Tab
from browser import Site
from browser import page as browser_page
from test_page import EVIL

from jaxtrain.reports.page import (
    Bars,
    HeatMap,
    Mark,
    Page,
    Paragraph,
    Picture,
    Plot,
    Preformatted,
    Section,
    Series,
    Table,
)
from jaxtrain.reports.pictures import mesh_svg, png

pytestmark = pytest.mark.slow  # it needs Chromium

STEPS = np.arange(1, 5001)
LOSS = 2 * np.exp(-STEPS / 900) + 0.1 + 0.3 * np.random.default_rng(0).random(5000)
TOKENS = {"tokens": STEPS * 100.0}

ODD = {
    "one point": ([3], [0.5], ""),
    "equal": ([1, 2, 3], [5.0, 5.0, 5.0], ""),
    "equal, logarithmic": ([1, 2, 3], [5.0, 5.0, 5.0], "xy"),
    "zero": ([0, 1, 2], [0.0, 0.0, 0.0], ""),
    "huge": ([1, 2, 3], [-1e300, 1e300, 1e299], ""),
    "tiny": ([1, 2, 3], [1e-300, 2e-300, 3e-300], ""),
    "wide, logarithmic": ([1, 2, 3], [1e-300, 2e-10, 3e30], "y"),
    "close": ([1, 2, 3], [1e6 + 1, 1e6 + 2, 1e6 + 3], ""),
    "gaps": ([1, 2, 3, 4], [1.0, np.nan, np.inf, 2.0], ""),
    "partly below 0": ([0, 1, 2, 3], [-1.0, 5.0, 2.0, 100.0], "y"),
}
NOTHING = {"below 0": ([1, 2], [-1.0, -2.0], "y")}
"""x, y, and which axes are logarithmic."""

INK = """
[...document.querySelectorAll(".drawing")].map((holder) => {
  const canvas = holder.querySelector("canvas");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let ink = 0;
  for (let at = 0; at < data.length; at += 4) {
    const spread = Math.max(data[at], data[at + 1], data[at + 2]) - Math.min(data[at], data[at + 1], data[at + 2]);
    if (data[at + 3] > 100 && spread > 60) ink++;
  }
  return [holder.closest("figure").querySelector("h3").textContent, ink];
})
"""
"""Pixels of each plot that have the colour of a line; axes and grid are grey."""


def pages(folder: Path) -> None:
    marks = [Mark(2500, EVIL, "warning"), Mark(3000, "resumed", "restart"), Mark(4000, "saved", "save")]
    curves = [
        Plot(
            "loss",
            [
                Series("train", STEPS, LOSS, other_x=TOKENS),
                Series("test", STEPS[::500], LOSS[::500], LOSS[::500] - 0.1, LOSS[::500] + 0.1, smooth=False),
            ],
            marks=marks,
        ),
        Plot(
            "points", [Series("rows", np.arange(50) % 7, np.arange(50.0), kind="points", smooth=False)], x="predicted"
        ),
        Plot("bars", [Series("share", [0.1, 0.5, 0.9], [0.2, 0.3, 0.5], kind="bars", smooth=False)], x="confidence"),
        Plot(EVIL, [Series(EVIL, [1, 2], [1.0, 2.0])], x="step", y=EVIL),
    ]
    odd = [
        Plot(name, [Series("a", x, y)], log_x="x" in logs, log_y="y" in logs)
        for name, (x, y, logs) in (ODD | NOTHING).items()
    ]
    words = [
        Paragraph(EVIL),
        Table([EVIL, "n"], [[EVIL, 3], ["long " * 60, 4]], EVIL),
        Preformatted("x" * 3000),
        Bars("time", {"step": 3.0, "data": 1.0}, "seconds"),
        HeatMap("confusion", ["a" * 20] * 9, ["b" * 20] * 9, np.arange(81).reshape(9, 9)),
        Picture(png(np.eye(8, dtype=np.uint8) * 255), "a diagonal"),
        Picture(mesh_svg({"data": 2, "fsdp": 4}, np.arange(8).reshape(2, 4)), "a mesh"),
    ]
    Page(EVIL, [Section("Curves", curves), Section("Odd", [*odd, Plot("none", [])]), Section("Text", words)]).write(
        folder / "page.html"
    )


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Generator[Tab]:
    folder = tmp_path_factory.mktemp("pages")
    pages(folder)
    site = Site(folder)
    with browser_page(site, folder / "profile") as made:
        made.open(f"file://{folder / 'page.html'}")
        made.wait("document.documentElement.dataset.drawn")
        yield made
        assert made.problems() == []
        urls = [
            each["params"]["request"]["url"] for each in made.events if each["method"] == "Network.requestWillBeSent"
        ]
        assert [url for url in urls if not url.startswith("data:")] == [f"file://{folder / 'page.html'}"]


def redrawn(tab: Tab, code: str) -> None:
    """Run code, and wait until the page has drawn again."""
    tab.run(f"(async () => {{ {code}; for (let n = 0; n < 4; n++) await new Promise(requestAnimationFrame); }})()")


def choose(tab: Tab, select: int, value: str) -> None:
    chosen = f'document.querySelectorAll(".toolbar select")[{select}]'
    redrawn(tab, f'{chosen}.value = "{value}"; {chosen}.dispatchEvent(new Event("change"))')


def test_every_plot_is_drawn_and_no_text_became_markup(tab: Tab):
    ink = dict(tab.run(INK))
    blank = {name for name, pixels in ink.items() if pixels < 15}
    assert len(ink) == 4 + len(ODD) + len(NOTHING)
    assert blank == {*NOTHING}
    assert ink["loss"] > 1000
    assert tab.run("window.hacked === undefined && document.images.length") == 1
    assert tab.run("document.querySelector('h1').textContent") == EVIL.replace("\ud800", "\\ud800")


def test_what_a_logarithmic_axis_leaves_out_is_said(tab: Tab):
    said = tab.run('[...document.querySelectorAll(".note")].map((note) => note.textContent)')
    assert "Nothing is above 0, which a logarithmic y axis needs." in said
    assert "Left out, since a logarithmic axis begins above 0: 1 point." in said


def test_light_and_dark_differ_by_the_system_and_by_the_switch(tab: Tab):
    colour = "getComputedStyle(document.body).backgroundColor"
    line = "new Chart(document.querySelector('.drawing'), {series: []}, []) && colour('c0')"
    assert tab.run(colour) == "rgb(255, 255, 255)"
    light = tab.run(line)
    tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert tab.run(colour) == "rgb(15, 19, 24)"
    assert tab.run(line) != light
    assert dict(tab.run(INK))["loss"] > 1000
    choose(tab, 1, "light")
    assert tab.run(colour) == "rgb(255, 255, 255)"
    tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    choose(tab, 1, "dark")
    assert tab.run(colour) == "rgb(15, 19, 24)"
    choose(tab, 1, "as the system")
    assert tab.run(colour) == "rgb(255, 255, 255)"


def test_no_width_of_a_phone_scrolls_sideways(tab: Tab):
    for width in (320, 360, 1200):
        tab.send("Emulation.setDeviceMetricsOverride", width=width, height=740, deviceScaleFactor=1, mobile=width < 600)
        redrawn(tab, "0")
        assert tab.run("document.documentElement.scrollWidth") <= width
    assert dict(tab.run(INK))["loss"] > 1000


def test_the_keyboard_reads_values_and_events_on_any_axis(tab: Tab):
    figure = 'document.querySelector("figure.plot")'
    press = f'{figure}.querySelector(".drawing").dispatchEvent(new KeyboardEvent("keydown", {{key: "Home", cancelable: true}}))'
    choose(tab, 0, "step")
    redrawn(tab, press)
    said = tab.run(f'{figure}.querySelector(".readout").textContent')
    assert said.startswith("step 1 · train ")
    assert "· test " in said
    choose(tab, 0, "tokens")
    redrawn(tab, press)
    assert tab.run(f'{figure}.querySelector(".readout").textContent').startswith("tokens 100 · train ")
    choose(tab, 0, "step")


def test_smoothing_is_an_unbiased_exponential_average(tab: Tab):
    values, decay = LOSS[:50].tolist(), 0.9
    found = tab.run(f"smoothed({[*values, None, *values]}".replace("None", "null") + f", {decay})")
    weights = decay ** np.arange(50)[::-1]  # of the first 50 values, the last one the highest
    assert found[49] == pytest.approx((weights * values).sum() / weights.sum(), rel=1e-9)
    assert found[50] is None
    assert found[0] == pytest.approx(values[0])
    # One value that stands for ten is worth as much as ten equal ones.
    assert tab.run("smoothed([1, 3], 0.9, [10, 10])[1]") == pytest.approx(
        tab.run("smoothed([...Array(10).fill(1), ...Array(10).fill(3)], 0.9)[19]"), rel=1e-9
    )
