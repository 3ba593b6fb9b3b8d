"""What a run, dataset, bundle or sweep was made from, and what was made from it."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from jaxtrain import ConfigError, Start
from jaxtrain.base.checksums import Manifest, checksums
from jaxtrain.cli import main as cli
from jaxtrain.data import Arrays
from jaxtrain.datasets.build import build
from jaxtrain.datasets.card import Card
from jaxtrain.datasets.source import Built
from jaxtrain.datasets.spec import Dataset, HashSplits
from jaxtrain.deploy.manifest import BundleManifest, files_of
from jaxtrain.reports.lineage.text import MOST_NODES, draw
from jaxtrain.reports.lineage.things import find_things
from jaxtrain.reports.lineage.tree import Node, trace_lineage
from jaxtrain.train import train


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of datasets with one in it."""
    sets = tmp_path_factory.mktemp("made") / "sets"
    records = Arrays({"x": np.arange(40, dtype=np.float32)})
    splits = HashSplits({"train": 0.8, "test": 0.2}, by=("x",))
    words = "Made for a test."
    numbers = Dataset(
        name="numbers",
        version="1.0.0",
        description=words,
        origin=words,
        licence=words,
        access=words,
        retention=words,
        records=records,
        splits=splits,
    )
    build(numbers, sets)
    return sets


@pytest.fixture
def sets(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "sets"))


def run_at(
    folder: Path, fingerprint: str, start: Path | str | None = None, identity: str = "", sets: Path | None = None
) -> Path:
    """A run folder of what a lineage reads; with `sets` it read the dataset there."""
    config: dict[str, Any] = {"kind": "Experiment", "data.kind": "Pipeline", "data.source.kind": "Items"}
    config |= {"data.source.identity": "items:a1b2"}
    data: dict[str, Any] = {"$kind": "Pipeline"}
    if sets is not None:
        source = Built("numbers", "1.0.0", folder=str(sets))
        facts = {"kind": "Built", "identity": source.identity(), "split": "train", "name": source.name}
        facts |= {"version": source.version}
        config |= {f"data.source.{name}": value for name, value in facts.items()}
        data["source"] = {"$kind": "Built", "name": source.name, "version": source.version, "folder": source.folder}
    experiment: dict[str, Any] = {"$kind": "Experiment", "steps": 8, "data": data, "evals": {}, "runtime": {}}
    if start is not None:
        experiment["start"] = {"$kind": "Start", "source": str(start), "step": "latest"}
        config["start.identity"] = identity
    saved = {"version": "0.1.0", "fingerprint": fingerprint, "config": config, "experiment": experiment}
    folder.mkdir(parents=True)
    saved |= {"folder": str(folder.absolute()), "origin": "numbers.py:main"}
    (folder / "experiment.json").write_text(json.dumps(saved))
    return folder


def checkpoint(run: Path, step: int) -> str:
    """Adds a checkpoint of its own content to a run: the identity of what begins with it."""
    folder = run / "checkpoints" / str(step)
    folder.mkdir(parents=True)
    (folder / "arrays").write_text(f"arrays of {run.name} at {step}")
    Manifest(checksums(folder), {}).write(folder)
    return Start(str(run), step=step).identity()


def bundle_at(folder: Path, run: Path, fingerprint: str, step: int = 8) -> Path:
    folder.mkdir(parents=True)
    (folder / "signature.json").write_text("{}")
    (folder / "experiment.json").write_text("{}")  # a bundle has a copy of its run's
    facts = {"run": str(run.absolute()), "fingerprint": fingerprint, "step": step, "data": {}}
    BundleManifest("numbers", "0.1.0", {}, facts, "none", files_of(folder)).write(folder)
    return folder


def short(nodes: tuple[Node, ...]) -> list[Any]:
    """Relation, kind and name of each node, and of those below it."""
    return [(node.relation, node.kind, node.name, *([short(node.nodes)] if node.nodes else [])) for node in nodes]


ITEMS = ("read as data:", "data", "Items")
RAW = [("read as records:", "data", "Arrays")]


def test_a_chain_of_runs_is_followed_to_its_dataset_and_down_to_its_bundles(tmp_path: Path, sets: Path) -> None:
    runs = tmp_path / "runs"
    first = run_at(runs / "first", "aaaa", sets=sets)
    checkpoint(first, 4)
    second = run_at(runs / "second", "bbbb", first, checkpoint(first, 8))
    third = run_at(runs / "third", "cccc", second, checkpoint(second, 2))
    bundle_at(tmp_path / "bundles" / "numbers" / "1", second, "bbbb", 2)
    data = ("read as data:", "dataset", "numbers 1.0.0", RAW)
    upwards = ("began with step 8 of", "run", "first", [data])
    found = trace_lineage(third, [tmp_path])
    assert short(found.made_from) == [ITEMS, ("began with step 2 of", "run", "second", [ITEMS, upwards])]
    assert not found.led_to
    assert not found.wrong
    card = Card.read(sets / "numbers" / "1.0.0")
    dataset = found.made_from[1].nodes[1].nodes[0]
    assert (dataset.folder, dataset.hashes) == (str(sets / "numbers/1.0.0"), {"train": card.splits["train"].content})
    downwards = [
        ("its step 2 became", "bundle", "numbers 1"),
        ("its step 2 began", "run", "third"),
    ]
    assert short(trace_lineage(first, [tmp_path]).led_to) == [("its step 8 began", "run", "second", downwards)]
    assert short(trace_lineage(sets / "numbers" / "1.0.0", [tmp_path]).led_to) == [
        ("read as data by", "run", "first", [("its step 8 began", "run", "second", downwards)])
    ]
    model = trace_lineage(tmp_path / "bundles" / "numbers", [tmp_path])
    assert short(model.made_from) == [("made of step 2 of", "run", "second", [ITEMS, upwards])]


def test_the_checkpoint_that_was_begun_with_is_found_by_its_content(tmp_path: Path) -> None:
    first = run_at(tmp_path / "first", "aaaa")
    identity = checkpoint(first, 4)
    checkpoint(first, 8)
    second = run_at(tmp_path / "second", "bbbb", first, identity)
    assert trace_lineage(second).made_from[1].relation == "began with step 4 of"
    shutil.rmtree(first / "checkpoints" / "4")
    (node,) = trace_lineage(second).made_from[1:]
    assert (node.relation, node.name) == ("began with the parameters of", "first")
    assert "none of its checkpoints is the one" in node.notes[0]


def test_moved_folders_are_found_again_and_it_is_said(tmp_path: Path, sets: Path) -> None:
    first = run_at(tmp_path / "runs" / "first", "aaaa", sets=sets)
    second = run_at(tmp_path / "runs" / "second", "bbbb", first, checkpoint(first, 8))
    bundle = bundle_at(tmp_path / "numbers" / "1", first, "aaaa")
    impostor = run_at(tmp_path / "old" / "first", "aaaa")  # of the same name and fingerprint, without the checkpoint
    (tmp_path / "elsewhere").mkdir()
    first.rename(tmp_path / "elsewhere" / "renamed")
    sets.rename(tmp_path / "data")
    node = trace_lineage(second, [tmp_path]).made_from[1]
    assert (node.name, node.notes) == ("renamed", (f"moved: recorded as {first}",))
    assert node.nodes[0].folder == str(tmp_path / "data/numbers/1.0.0")
    assert node.nodes[0].notes == (f"moved: recorded in {sets}/numbers/1.0.0",)
    node = trace_lineage(bundle, [tmp_path]).made_from[0]
    assert node.name == "renamed"
    assert node.notes == (f"moved: recorded as {first}", f"{impostor} has the same name and fingerprint")
    (node,) = trace_lineage(bundle, [tmp_path / "runs"]).made_from
    assert (node.kind, node.name, node.notes) == ("missing", str(first), ("no longer there",))
    (_, node) = trace_lineage(second, [tmp_path / "runs"]).made_from
    assert (node.kind, node.name, node.notes) == ("missing", str(first), ("no longer there",))


def test_another_run_in_the_recorded_folder_is_not_taken_for_that_of_a_bundle(tmp_path: Path) -> None:
    run = run_at(tmp_path / "first", "aaaa")
    bundle = bundle_at(tmp_path / "numbers" / "1", run, "aaaa")
    shutil.rmtree(run)
    run_at(tmp_path / "first", "ffff")
    (node,) = trace_lineage(bundle, [tmp_path]).made_from
    assert (node.kind, node.notes) == ("missing", ("another run is there now",))
    assert trace_lineage(run, [tmp_path]).led_to == ()


def test_a_dataset_with_other_records_of_the_same_version_is_said(tmp_path: Path, sets: Path) -> None:
    run = run_at(tmp_path / "first", "aaaa", sets=sets)
    saved = json.loads((run / "experiment.json").read_text())
    content = Card.read(sets / "numbers" / "1.0.0").splits["train"].content
    for name, value in saved["config"].items():
        saved["config"][name] = value.replace(content, f"9:{'0' * 32}")
    (run / "experiment.json").write_text(json.dumps(saved))
    (node,) = trace_lineage(run, [tmp_path]).made_from
    assert (node.kind, node.notes) == ("dataset", ("its records are others than those that were read",))
    (node,) = trace_lineage(sets / "numbers" / "1.0.0", [tmp_path]).led_to
    assert (node.name, node.notes) == ("first", ("it read other records of this name and version",))


def test_a_circle_of_runs_ends(tmp_path: Path) -> None:
    first = run_at(tmp_path / "first", "aaaa", tmp_path / "second", "none")
    second = run_at(tmp_path / "second", "bbbb", first, "none")
    found = trace_lineage(second, [tmp_path])
    node = found.made_from[1].nodes[1]
    assert (node.name, node.notes[-1]) == ("second", "a circle: it is above")
    node = found.led_to[0].nodes[0]
    assert (node.name, node.notes[-1]) == ("second", "shown elsewhere in this tree")


def test_a_relative_start_counts_from_a_folder_above_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    first = run_at(project / "runs" / "first", "aaaa")
    second = run_at(project / "runs" / "deeper" / "second", "bbbb", "runs/first", checkpoint(first, 8))
    monkeypatch.chdir("/")
    assert trace_lineage(second).made_from[1].folder == str(first)
    moved = tmp_path / "moved"
    project.rename(moved)
    assert trace_lineage(moved / "runs/deeper/second").made_from[1].folder == str(moved / "runs/first")


def test_a_sweep_leads_to_its_trials_and_they_to_it(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    one, _ = (run_at(sweep / "trials" / f"000{number}", "aaaa") for number in (1, 2))
    (sweep / "sweep.json").write_text('{"experiment": "numbers.py:main", "metric": "test/loss"}')
    (tmp_path / "other").mkdir()
    found = trace_lineage(sweep, [tmp_path / "other"])
    assert short(found.led_to) == [("its trial", "run", "0001"), ("its trial", "run", "0002")]
    assert short(found.made_from) == [ITEMS]
    assert short(trace_lineage(one).made_from) == [ITEMS, ("trial of", "sweep", "sweep")]


def test_what_is_foreign_or_damaged_neither_stops_nor_hangs_a_search(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first = run_at(runs / "first", "aaaa")
    second = run_at(runs / "second", "bbbb", first, checkpoint(first, 8))
    for name, file in (("pipe", "experiment.json"), ("sweeppipe", "sweep.json"), ("card", "card.json")):
        (runs / name).mkdir()
        os.mkfifo(runs / name / file)
    os.symlink(runs, runs / "loop")
    for name, file, content in (
        ("text", "experiment.json", "{"),
        ("list", "experiment.json", "[]"),
        ("deep", "experiment.json", "[" * 100_000),
        ("cards", "card.json", '{"seal": "x"}'),
        ("foreign", "manifest.json", "{}"),
    ):
        (runs / name).mkdir()
        (runs / name / file).write_text(content)
    run_at(runs / "odd", "cccc", "a\0b", "none")
    run_at(runs / "odder", "cccc", "x" * 5000, "none")
    (bundle := bundle_at(runs / "model" / "1", first, "aaaa")).joinpath("manifest.json").write_text("{}")
    found = trace_lineage(first, [runs])
    assert [node.name for node in found.led_to] == ["second"]
    for name in ("pipe", "sweeppipe", "card", "text", "list", "deep", "cards", "model/1"):
        assert sum(f"{runs / name}:" in each for each in found.wrong) == 1, name
    assert len(found.wrong) == 8
    assert trace_lineage(second, [runs]).made_from[1].folder == str(first)
    for name in ("odd", "odder"):
        assert trace_lineage(runs / name, [runs]).made_from[1].notes == ("no longer there",)
    with pytest.raises(ConfigError, match="this bundle cannot be read"):
        trace_lineage(bundle)
    with pytest.raises(ConfigError, match=r"this run cannot be read: experiment.json is no file"):
        trace_lineage(runs / "pipe")


def test_a_search_ends_after_so_many_folders_and_says_so(tmp_path: Path) -> None:
    for number in range(5):
        run_at(tmp_path / str(number), "aaaa")
    found = find_things([tmp_path], most=3)
    assert [thing.folder.name for thing in found.things] == ["0", "1"]
    assert found.wrong == ("only the first 3 folders were searched: name smaller ones by --within",)
    assert not find_things([tmp_path, tmp_path / "0"], most=6).wrong  # a folder that is named twice counts once


@pytest.mark.parametrize(("path", "why"), [("nothing", "No such file"), (".", "is no run, dataset, bundle or sweep")])
def test_what_has_no_lineage_is_refused(tmp_path: Path, path: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        trace_lineage(tmp_path / path)
    run_at(tmp_path / "first", "aaaa")
    with pytest.raises(ConfigError, match=r"--within .*gone: there is no such folder"):
        trace_lineage(tmp_path / "first", [tmp_path / "gone"])


def test_the_tree_is_drawn_in_what_the_terminal_has(tmp_path: Path) -> None:
    first = run_at(tmp_path / "first", "aaaa")
    identity = checkpoint(first, 8)
    run_at(tmp_path / "a\x1b[31m", "bbbb", first, identity)
    run_at(tmp_path / "b", "cccc", first, identity)
    found = trace_lineage(first, [tmp_path])
    assert draw(found).splitlines() == [
        f"run first: {found.thing.about}",
        f"  {first}",
        "",
        "made from",
        "└─ read as data: data Items: items:a1b2",
        "",
        "led to",
        f"├─ its step 8 began run a\\x1b[31m: {found.led_to[0].about}",
        f"│    {tmp_path}/a\\x1b[31m",
        f"└─ its step 8 began run b: {found.led_to[1].about}",
        f"     {tmp_path}/b",
    ]
    assert "`- its step 8 began run b" in draw(found, "ascii")
    assert draw(found, "latin-1").isascii()
    many = replace(found, led_to=found.led_to * MOST_NODES)
    assert draw(many).splitlines()[-1] == f"└─ and {MOST_NODES} more: --json has all"


def test_the_verb_prints_the_tree_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run_at(tmp_path / "first", "aaaa")
    run_at(tmp_path / "second", "bbbb", first, checkpoint(first, 8))
    before = sorted(tmp_path.rglob("*"))
    assert cli.run(["lineage", str(first), "--within", str(tmp_path)]) == 0
    assert "its step 8 began run second" in capsys.readouterr().out
    assert cli.run(["lineage", str(first), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["led_to"][0]["folder"] == str(tmp_path / "second")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_run_that_was_trained_from_another_is_linked_to_its_step(tmp_path: Path) -> None:
    experiment = replace(tiny.main(), steps=4, evals={})
    first, _ = train(experiment, tmp_path / "first")
    second, _ = train(replace(experiment, start=Start(str(first.folder))), tmp_path / "second")
    (data, node) = trace_lineage(second.folder, [tmp_path]).made_from
    assert (data.name, data.about) == ("Counting", "counting:100:16")
    assert (node.relation, node.folder) == ("began with step 4 of", str(first.folder))
    assert [node.name for node in trace_lineage(first.folder, [tmp_path]).led_to] == ["second"]
