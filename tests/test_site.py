"""The site: every page has its place, links and public names are kept, it builds strictly and asks no other host."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import browser
import pytest
import stage_docs
from test_web import asked_by_page

import jaxtrain

ROOT = Path(__file__).parent.parent
PAGES = {file.name for file in (ROOT / "docs").glob("*.md")} - {"README.md"}
FOUND = "[...document.querySelectorAll('*')].map(each => each.shadowRoot?.textContent ?? '').join()"
"""What the search shows."""


def nav_pages(nav: Any) -> list[str]:
    """The pages of a navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in nav_pages(part)]


def config(text: str) -> list[str]:
    return nav_pages(tomllib.loads(text)["project"]["nav"])


def test_every_page_is_in_the_navigation_and_in_the_contents() -> None:
    found = config((ROOT / "docs" / "zensical.toml").read_text())
    assert len(found) == len(set(found))
    assert PAGES - set(found) == set()
    contents = set(re.findall(r"^\| \[[^\]]*\]\(([^)]*)\)", (ROOT / "docs" / "README.md").read_text(), re.MULTILINE))
    assert contents == PAGES


def test_an_entry_without_a_page_and_a_section_without_entries_are_left_out_of_the_navigation() -> None:
    text = """[project]
nav = [
  { "Home" = "index.md" },
  { "Later" = [
    { "One" = "one.md" },
    { "Two" = "two.md" },
  ] },
  { "Reference" = [
    { "Command line" = "command-line.md" },
    # the pages of scripts/stage_docs.py
  ] },
]
"""
    staged = stage_docs.with_pages(text, {"index.md", "command-line.md"}, ["reference/jaxtrain.data.md"])
    assert config(staged) == ["index.md", "command-line.md", "reference/jaxtrain.data.md"]
    assert "Later" not in staged
    assert '"Reading data" = "reference/jaxtrain.data.md"' in staged


def test_links_lead_to_where_files_lie_on_the_site(tmp_path: Path) -> None:
    linked = set[Path]()
    text = (
        "[a](../README.md#limits) [b](../experiments/digits.py) [c](data.md#the-card) [d](https://x.org) [e](#here)\n"
    )
    block = "```text\n[f](../nowhere.md)\n```\n"
    page = ROOT / "docs" / "concepts.md"
    assert stage_docs.with_links(text + block, page, linked) == (
        "[a](index.md#limits) [b](files/experiments/digits.py.md) [c](data.md#the-card) [d](https://x.org) [e](#here)\n"
        + block
    )
    assert {file.name for file in linked} == {"README.md", "digits.py", "data.md"}
    with pytest.raises(SystemExit, match=r"concepts\.md: the link to gone\.png leads to no file"):
        stage_docs.with_links("![x](gone.png)", page, linked)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="holds other files"):
        stage_docs.stage(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_every_public_name_is_described_once() -> None:
    pages = stage_docs.reference_pages()
    described = [
        line.removeprefix("::: ") for text in pages.values() for line in text.splitlines() if line[:3] == ":::"
    ]
    assert len(described) == len(set(described))
    names = {name for name in vars(jaxtrain)["__all__"] if name not in ("models", "tasks")}
    assert names == {name for name in stage_docs.public_names("jaxtrain")}
    shown = {place.rsplit(".", 1)[1] for place in described}
    assert names <= shown
    assert {"Arrays", "AdamW", "Transformer", "Dataset", "NearDuplicates", "Sampling", "shard"} <= shown
    assert "[Experiment](jaxtrain.experiment.md)" in pages["reference/jaxtrain.md"]


@pytest.mark.slow
def test_the_site_builds_strictly_and_asks_no_other_host(tmp_path: Path) -> None:
    done = subprocess.run([ROOT / "scripts" / "docs", tmp_path / "docs"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    site_folder = tmp_path / "docs" / "site"
    built = {file.relative_to(site_folder).as_posix() for file in site_folder.rglob("*.html")}
    assert {page.replace(".md", ".html") for page in PAGES} <= built
    for name in built:
        loaded = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*", (site_folder / name).read_text())
        assert not [tag for tag in loaded if re.search(r'(?:src|href)="?(?:https?:)?//', tag)], name
    site = browser.Site(site_folder)
    with browser.page(site, tmp_path / "profile") as page:
        for name in ("index.html", "reference/jaxtrain.experiment.html"):
            page.open(f"http://localhost:8000/{name}")
            page.wait(f"location.pathname == '/{name}' && document.readyState == 'complete'")
        assert "steps" in page.run("document.querySelector('article').innerText")
        page.wait("document.querySelector('.focus-visible') || document.querySelector('.md-search__button').click()")
        page.send("Input.insertText", text="rendezvous")
        page.wait(f"/[1-9]\\d* results/.test({FOUND})", 20)  # the search runs in a worker
        assert page.problems() == []
        assert asked_by_page(page) == {"localhost:8000"}

    # A link to a heading that is not there fails it.
    page_file = tmp_path / "docs" / "pages" / "replay.md"
    page_file.write_text(page_file.read_text() + "\n[gone](concepts.md#gone)\n")
    command = [ROOT / ".venv-docs" / "bin" / "zensical", "build", "--strict", "-f", tmp_path / "docs" / "zensical.toml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "anchor does not exist" in done.stderr
    assert "replay.md" in done.stderr
