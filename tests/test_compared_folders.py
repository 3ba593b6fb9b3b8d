"""Comparisons of folders that are half-written, damaged, old or foreign; and pages of runs with hostile names."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from browser import Site, page

from jaxtrain.base.errors import ConfigError
from jaxtrain.cli import compare as verbs
from jaxtrain.reports.compare.comparison import MOST_RUNS, compare
from jaxtrain.reports.compare.facts import read_facts
from jaxtrain.runs.begin import begin
from jaxtrain.runs.metrics_log import MetricsLog
from jaxtrain.runs.rows import RowsOf, write_rows
from jaxtrain.runs.steps_log import StepsLog
from jaxtrain.tasks.metrics import Mean

STEPS = 40


def make(folder: Path, seed: int = 0, better: float = 0.0) -> Path:
    """A run folder as a run would have written it, with losses and rows by hand."""
    begin(folder, replace(tiny.main(), seed=seed, steps=STEPS), None)
    generator = np.random.default_rng(seed)
    losses = np.linspace(5, 2, STEPS) + 0.1 * generator.standard_normal(STEPS)
    steps = np.arange(1, STEPS + 1)
    columns = {"step": steps, "loss": losses, "gradient_norm": losses / 3, "batch": steps, "skipped": steps * 0}
    StepsLog(folder).append(columns)
    log = MetricsLog(folder)
    rows = np.random.default_rng(7).random(50) - better + 0.01 * generator.random(50)
    for step, loss in zip(steps.tolist(), losses.tolist(), strict=True):
        log.metrics(step, "train", {"loss": loss})
    log.metrics(STEPS, "validation", {"loss": float(rows.mean()), "size": 3.0})
    metrics = {"loss": Mean(rows, np.ones(50))}
    write_rows(
        folder, RowsOf("validation", STEPS, 50, 50, np.arange(50, dtype=np.uint64), np.arange(50), {}, {}, metrics)
    )
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    for place, name in enumerate(("a", "b", "c", "d")):
        make(folder / name, place, 0.2 * (place > 1))
    return folder


@pytest.fixture
def two(made, tmp_path) -> list[Path]:
    """Two runs of which a test may damage the second."""
    for name in "ac":
        shutil.copytree(made / name, tmp_path / name)
    return [tmp_path / "a", tmp_path / "c"]


def test_a_difference_is_said_with_interval_and_examples(two):
    text = compare(two).text()
    assert "loss: c is better by 0.20" in text
    assert "(95 %) on the same 50 examples" in text
    assert "size: the same value, but there is no interval: size is not a sum over rows" in text


DAMAGE = {
    "experiment.json": "it is not JSON",
    "environment.json": "is not JSON",
    "steps.bin": "its checksum is another",
    "rows/validation.npz": "damaged",
}


@pytest.mark.parametrize("file", DAMAGE)
def test_a_damaged_file_is_said_and_the_rest_is_compared(two, file):
    path = two[1] / file
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 20] = b"\xff" * 20
    path.write_bytes(data)
    text = compare(two).text()
    name = "rows" if file.startswith("rows") else file
    assert name in text
    if file != "rows/validation.npz":
        assert "not read: c: " in text
        assert "c is better by" in text
    else:
        assert "there is no interval: the rows of c are damaged" in text
    assert "losses part at step 1" in text


@pytest.mark.parametrize("file", ["environment.json", "steps.bin", "metrics.jsonl", "rows/validation.npz"])
def test_a_missing_file_is_said_and_the_rest_is_compared(two, file):
    (two[1] / file).unlink()
    text = compare(two).text()
    expected = {"metrics.jsonl": "c: it has no metrics.jsonl", "rows/validation.npz": "no rows are kept of c"}
    assert expected.get(file, f"not read: c: it has no {file}") in text
    if file == "steps.bin":
        assert "losses part at step 1" in text
        assert compare(two).partings[0] is not None
        assert not getattr(compare(two).partings[0], "per_step", True)
    if file == "environment.json":
        assert "hardware     not known" in text


@pytest.mark.parametrize("file", ["environment.json", "steps.bin", "metrics.jsonl", "experiment.json"])
def test_pipes_and_links_are_not_read(two, file, tmp_path):
    (two[1] / file).unlink()
    os.mkfifo(two[1] / file)
    assert f"{file} is no file" in compare(two).text()
    (two[1] / file).unlink()
    (tmp_path / "secret").write_text("secret")
    (two[1] / file).symlink_to(tmp_path / "secret")
    assert f"{file} is no file" in compare(two).text()


def test_a_diverged_run_is_not_comparable(two):
    MetricsLog(two[1]).metrics(STEPS + 1, "validation", {"loss": float("nan")})
    verdict = next(score for score in compare(two).scores if score.metric == "loss").against[1]
    assert verdict is not None
    assert verdict.words == "not comparable, because loss of c is nan"


def test_rows_of_another_step_are_not_taken_for_those_of_the_last(two):
    MetricsLog(two[1]).metrics(STEPS + 1, "validation", {"loss": 0.1})
    text = compare(two).text()
    assert f"the rows that c kept are of step {STEPS}, not {STEPS + 1}" in text


def test_runs_that_share_no_example_are_not_comparable(two):
    metrics = {"loss": Mean(np.ones(50), np.ones(50))}
    ids = np.arange(100, 150, dtype=np.uint64)
    write_rows(two[1], RowsOf("validation", STEPS, 50, 50, ids, np.arange(50), {}, {}, metrics))
    assert "not comparable, because they were evaluated on other examples of validation" in compare(two).text()


def test_rows_that_are_a_part_of_the_split_are_said_to_be(two):
    for place, folder in enumerate(two):
        values = np.random.default_rng(7).random(20) - 0.2 * place + 0.01 * np.random.default_rng(place).random(20)
        metrics = {"loss": Mean(values, np.ones(20))}
        ids = np.arange(20, dtype=np.uint64)
        write_rows(folder, RowsOf("validation", STEPS, 20, 900, ids, np.arange(20), {}, {}, metrics))
    assert "(95 %) on the same 20 of 900 examples" in compare(two).text()


def test_groups_of_seeds_are_compared_by_t(made):
    found = compare([made / name for name in "abcd"], metrics=["loss"])
    (first, *others) = found.seeds
    assert others == []
    assert first.groups == (("a", "b", "c", "d"),)  # only their rows were made otherwise, not their experiments
    values = found.scores[0].values
    assert first.means[0].value == pytest.approx(np.mean([value for value in values if value is not None]))


def test_what_is_no_run_is_refused_with_the_nearest_name(made, tmp_path):
    for folders, why in (
        ([made / "a"], "name at least two run folders"),
        ([made / "a"] * (MOST_RUNS + 1), "at most 50"),
        ([made / "a", tmp_path], "is not a run: it has no experiment.json"),
        ([made / "a", made], "runs below it"),
        ([made / "a", made / "aa"], "did you mean 'a'"),
    ):
        with pytest.raises(ConfigError, match=why):
            compare(folders)
    with pytest.raises(ConfigError, match=r"--split valdation: .* did you mean 'validation'"):
        compare([made / "a", made / "b"], split="valdation")
    with pytest.raises(ConfigError, match=r"--metric los: .* did you mean 'loss'"):
        compare([made / "a", made / "b"], metrics=["los"])
    with pytest.raises(ConfigError, match="name two run folders"):
        verbs.diff((made / "a",))
    with pytest.raises(ConfigError, match="there is no folder"):
        verbs.compare((made / "a", made / "b"), html=tmp_path / "none" / "x.html")


def test_runs_are_named_by_as_much_of_their_paths_as_tells_them_apart(made, tmp_path):
    shutil.copytree(made / "a", tmp_path / "a")
    names = [run.name for run in read_facts([made / "a", tmp_path / "a", made / "a"])]
    assert names[0].endswith(f"{made.name}/a")
    assert names[1] == f"{tmp_path.name}/a"
    assert names[2] == f"{names[0]} (2)"


def test_a_run_of_a_version_without_origins_is_compared_without_them(two):
    saved = json.loads((two[1] / "experiment.json").read_text())
    assert "seed: 0 (default) → 2 (python)" in compare(two).text()
    del saved["origins"]
    (two[1] / "experiment.json").write_text(json.dumps(saved))
    assert "seed: 0 (default) → 2\n" in compare(two).text()


def test_the_verbs_print_text_and_json_and_write_a_page(made, tmp_path, capsys):
    verbs.compare((made / "a", made / "c"), html=tmp_path / "c.html")
    assert "is better by" in capsys.readouterr().out
    verbs.compare((made / "a", made / "c"), json=True)
    assert json.loads(capsys.readouterr().out)["scores"][0]["against"][1]["kind"] == "better"
    verbs.diff((made / "a", made / "c"))
    text = capsys.readouterr().out
    assert "seed: 0 (default) → 2 (python)" in text
    assert "better" not in text
    assert (tmp_path / "c.html").stat().st_size < 1_000_000


HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"


@pytest.fixture
def hostile(made, tmp_path) -> list[Path]:
    """A run whose folder, package, variable, file and git names hold HTML and terminal codes."""
    folder = tmp_path / HOSTILE.replace("/", "∕")
    shutil.copytree(made / "c", folder)
    environment = json.loads((folder / "environment.json").read_text())
    environment["packages"][HOSTILE] = "\x1b[31m" + HOSTILE
    environment["variables"][HOSTILE] = HOSTILE
    diff = f"diff --git a/{HOSTILE} b/{HOSTILE}\n+\x1b]0;owned\x07{HOSTILE}\n"
    environment["git"] = {"revision": "--output=/tmp/owned", "diff": diff, "untracked": []}
    (folder / "environment.json").write_text(json.dumps(environment))
    return [made / "a", folder]


def test_what_comes_from_a_folder_reaches_no_terminal_and_no_git_as_a_command(hostile):
    found = compare(hostile)
    assert "\x1b" not in found.text()
    assert "\x07" not in found.text()
    revision = next(each for each in found.differences if each.name.startswith("git revision"))
    assert "is not here" in revision.text


@pytest.mark.slow
def test_a_page_draws_its_curves_escapes_all_and_asks_nothing(hostile, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    compare(hostile).html(site / "index.html")
    for dark, width in ((False, 1200), (True, 1200), (False, 390)):
        with page(Site(site), tmp_path / f"profile{dark}{width}") as tab:
            tab.open()
            assert tab.wait("document.querySelectorAll('figure.plot canvas').length >= 3")
            assert tab.run("document.title").startswith("Comparison: a, ")
            assert tab.run("document.querySelectorAll('img').length") == 0
            assert HOSTILE in tab.run("document.body.textContent")
            tab.picture(tmp_path / "page.png", width, 900, dark)
            assert tab.problems() == []
    assert (tmp_path / "page.png").stat().st_size > 10_000
