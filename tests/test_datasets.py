import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxtrain import ConfigError
from jaxtrain.cli import main as cli
from jaxtrain.data import Arrays, Source
from jaxtrain.datasets.build import build
from jaxtrain.datasets.card import FILE, Card, _seal
from jaxtrain.datasets.check import check, diff
from jaxtrain.datasets.filters.duplicates import ExactDuplicates
from jaxtrain.datasets.filters.values import InRange, NotEmpty
from jaxtrain.datasets.formats import Records, TokenRows
from jaxtrain.datasets.source import Built
from jaxtrain.datasets.spec import Dataset, HashSplits
from jaxtrain.experiment.experiment import fingerprint
from jaxtrain.experiment.files import load_kind
from jaxtrain.runs.begin import begin

ROOT = Path(__file__).parents[1]
WORDS = [
    "sol",
    "mar",
    "rio",
    "casa",
    "livro",
    "gato",
    "pedra",
    "vento",
    "noite",
    "festa",
    "rua",
    "porta",
    "mesa",
    "flor",
    "monte",
]


def sentence(number: int) -> str:
    """Ten words that no other number gives."""
    return " ".join(WORDS[number // len(WORDS) ** place % len(WORDS)] for place in range(10)) + f" {number}"


def texts(count: int = 60) -> dict:
    return {"text": [sentence(997 * i) for i in range(count)], "label": np.arange(count, dtype=np.int32) % 3}


def spec(columns: dict | None = None, **changes) -> Dataset:
    made = Dataset(
        name="tiny",
        version="1.0.0",
        description="Sentences for tests.",
        origin="https://example.org/tiny",
        licence="CC0",
        access="Anyone.",
        retention="For the length of a test.",
        records=Arrays(columns or texts()),
        splits=HashSplits({"train": 0.75, "test": 0.25}, by=("text",)),
        filters=(NotEmpty("text"), ExactDuplicates(("text",))),
        label="label",
        format=Records(per_file=20),
    )
    return replace(made, **changes)


@pytest.fixture
def folder(tmp_path) -> Path:
    return build(spec(), tmp_path)


def plain(value):
    return value.decode() if isinstance(value, bytes) else value.tolist() if isinstance(value, np.ndarray) else value


SHIPPED = ("bncc", "digits", "tumours", pytest.param("sentiment", marks=pytest.mark.slow))


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_the_numbers_of_a_shipped_datasets_card_are_what_a_reader_counts(name, tmp_path):
    made: Dataset = load_kind(f"{ROOT}/experiments/datasets.py:{name}", Dataset)[0]
    folder = build(made, tmp_path)
    card = json.loads((folder / FILE).read_text())
    raw = [made.records[i] for i in range(len(made.records))]
    assert card["raw"] == len(raw)
    kept = []
    for split, part in card["splits"].items():
        source = Built(made.name, made.version, split, str(tmp_path))
        records = [source[i] for i in range(len(source))]
        kept += records
        assert part["records"] == len(records) == sum(file["records"] for file in part["files"])
        assert all(hashlib.sha256((folder / f["path"]).read_bytes()).hexdigest() == f["sha256"] for f in part["files"])
        labels = Counter(str(int(record["label"])) for record in records)
        assert part["schema"]["fields"]["label"]["vocabulary"] == dict(labels)
        for field, said in part["schema"]["fields"].items():
            values = [record[field] for record in records]
            sizes = [len(v) for v in values] if isinstance(values[0], str | bytes) else np.stack(values)
            assert (said["low"], said["high"]) == pytest.approx((np.min(sizes), np.max(sizes)))
            assert sum(said["counts"]) == np.size(sizes)
    dropped = sum(tally["dropped"] for tally in card["filters"])
    assert len(kept) + dropped == len(raw)
    for before, after in zip(card["filters"], card["filters"][1:], strict=False):
        assert after["seen"] == before["seen"] - before["dropped"]
    telling = [json.dumps({key: plain(record[key]) for key in card["by"]}, default=str) for record in kept]
    assert len(set(telling)) == len(telling)
    assert (folder / "card.html").read_text().count("<svg") == len(card["splits"]["train"]["schema"]["fields"])
    assert not list(check(folder))


def test_which_split_a_record_is_in_depends_on_its_text_alone(tmp_path):
    columns = texts()
    backwards: dict[str, Any] = {name: list(values)[::-1] for name, values in columns.items()}
    backwards["label"] = np.array(backwards["label"], np.int32)
    one = Card.read(build(spec(columns), tmp_path / "a"))
    other = Card.read(build(spec(backwards), tmp_path / "b"))
    assert {name: split.content for name, split in one.splits.items()} == {
        name: split.content for name, split in other.splits.items()
    }
    more = texts(70)
    assert diff(build(spec(more), tmp_path / "c"), tmp_path / "a" / "tiny" / "1.0.0").moved == 0


def test_the_content_hash_does_not_depend_on_the_files_that_records_are_in(tmp_path):
    hashes = [
        Card.read(build(spec(format=Records(size)), tmp_path / str(size))).splits["train"].content for size in (3, 50)
    ]
    assert hashes[0] == hashes[1]


def test_a_filter_drops_and_the_card_counts_and_shows_what(tmp_path):
    columns = texts(40)
    columns["text"] += [columns["text"][3], columns["text"][4], " ", ""]
    columns["label"] = np.concatenate([columns["label"], np.zeros(4, np.int32)])
    card = Card.read(build(spec(columns), tmp_path))
    empty, double = card.filters
    assert (empty.seen, empty.dropped, double.seen, double.dropped) == (44, 2, 42, 2)
    assert [sample["index"] for sample in empty.samples] == [42, 43]
    assert [sample["other"] for sample in double.samples] == [3, 4]
    assert sum(split.records for split in card.splits.values()) == 40


def test_the_diff_of_a_known_change_is_that_change(tmp_path):
    before, after = texts(60), texts(63)
    del after["text"][10:12]
    after["label"] = np.delete(after["label"], [10, 11])
    after["label"][:4] = (after["label"][:4] + 1) % 3
    old = build(spec(before), tmp_path)
    new = build(spec(after, version="1.1.0"), tmp_path)
    found = diff(old, new)
    assert (found.added, found.removed, found.relabelled, found.changed, found.moved, found.same) == (3, 2, 4, 0, 0, 54)
    assert "version: 1.0.0 → 1.1.0" in found.made
    assert "relabelled" in str(found)
    assert diff(old, old).same == 60
    assert found.repeated == (0, 0)
    double = {
        "text": [*before["text"], *before["text"][:2]],
        "label": np.append(before["label"], [0, 1]).astype(np.int32),
    }
    twice = diff(old, build(spec(double, version="1.2.0", filters=()), tmp_path))
    assert (twice.same, twice.repeated) == (60, (0, 2))
    assert "repeated in either, so not compared: 0 and 2" in str(twice)
    assert max(max(drift.values()) for drift in diff(old, old).drift.values()) == 0


def test_a_record_that_another_rule_puts_into_another_split_has_moved(tmp_path):
    rules = [HashSplits({"train": share, "test": 1 - share}, by=("text",)) for share in (0.75, 0.5)]
    moved = sum(rules[0].split({"text": text}) != rules[1].split({"text": text}) for text in texts()["text"])
    one, other = (build(spec(splits=rule, version=f"{i}.0.0"), tmp_path) for i, rule in enumerate(rules))
    found = diff(one, other)
    assert found.moved == moved > 5
    assert found.same == 60 - moved


def test_a_shift_of_a_field_is_told_as_drift(tmp_path):
    columns = texts(200)
    skewed = {**columns, "label": np.zeros(200, np.int32)}
    found = diff(build(spec(columns), tmp_path), build(spec(skewed, version="2.0.0"), tmp_path))
    assert found.drift["train"]["label"] > 0.3
    assert found.drift["train"]["text"] == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the reference library's own parts
def test_other_tools_can_read_the_card(folder):
    import mlcroissant

    card = Card.read(folder)
    read = mlcroissant.Dataset(jsonld=str(folder / "croissant.json")).metadata
    assert (read.name, str(read.version), read.description) == (card.name, card.version, card.description)
    assert {one.id: one.sha256 for one in read.distribution if isinstance(one, mlcroissant.FileObject)} == {
        part.path: part.sha256 for split in card.splits.values() for part in split.files
    }
    assert [one.id for one in read.record_sets] == ["train", "test"]
    assert [one.name for one in read.record_sets[0].fields] == ["label", "text"]


def test_a_version_is_built_once_and_refused_when_it_would_be_another(tmp_path, folder):
    before = (folder / FILE).read_bytes()
    assert build(spec(), tmp_path) == folder
    assert (folder / FILE).read_bytes() == before
    with pytest.raises(ConfigError, match=r"another version[\s\S]*filters"):
        build(spec(filters=()), tmp_path)


def test_a_dataset_that_is_not_built_is_named_with_the_command_that_builds_it(tmp_path, folder):
    with pytest.raises(ConfigError, match=r"jaxtrain data build experiments/datasets.py:tiny"):
        len(Built("tiny", "1.2.0", folder=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"built versions: 1.0.0"):
        len(Built("tiny", "1.2.0", folder=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"no split 'tset'; did you mean 'test'"):
        len(Built("tiny", "1.0.0", "tset", folder=str(tmp_path)))


# Damage: each kind is named, with its file and its record where it has one.


def shard(folder: Path) -> Path:
    return folder / "train-00001.arrayrecord"


def opened(tmp_path: Path) -> Source:
    """A copy under another name, for what was opened is remembered."""
    other = tmp_path / f"copy-{time.monotonic_ns()}"
    shutil.copytree(tmp_path / "tiny", other / "tiny")
    return Built("tiny", "1.0.0", folder=str(other))


def test_a_missing_shard_is_named(tmp_path, folder):
    shard(folder).unlink()
    assert list(check(folder)) == ["train-00001.arrayrecord: missing"]
    with pytest.raises(ConfigError, match=r"train-00001.arrayrecord is missing"):
        len(opened(tmp_path))


def test_a_truncated_shard_is_named(tmp_path, folder):
    os.truncate(shard(folder), shard(folder).stat().st_size // 2)
    faults = list(check(folder))
    assert any("train-00001.arrayrecord" in fault and "bytes, not the" in fault for fault in faults)
    assert all("train-00001.arrayrecord" in fault for fault in faults)
    with pytest.raises(ConfigError, match=r"train-00001.arrayrecord is not the file"):
        len(opened(tmp_path))


@pytest.mark.parametrize("at", [500, 1500, 2500])
def test_a_flipped_byte_is_named_with_its_file_and_record(tmp_path, folder, at):
    raw = bytearray(shard(folder).read_bytes())
    raw[at] ^= 0x40  # within the first 3 kB, where the records are
    shard(folder).write_bytes(raw)
    faults = list(check(folder))
    assert "train-00001.arrayrecord: its sha256 is not the card's" in faults
    assert any(fault.startswith("train-00001.arrayrecord: record ") for fault in faults)
    with pytest.raises(ConfigError, match=r"train-00001.arrayrecord is not the file"):
        len(opened(tmp_path))


def test_a_record_of_another_kind_is_named_with_its_field(tmp_path, folder):
    from jaxtrain.data.sources.array_record import write_array_record

    source = Built("tiny", "1.0.0", folder=str(tmp_path))
    rows = [source[i] for i in range(20, 40)]
    rows[7] = {**rows[7], "label": np.int32(9)}
    write_array_record(shard(folder), rows)
    faults = list(check(folder))
    assert any("train-00001.arrayrecord: record 7: " in fault and "label" in fault and "9" in fault for fault in faults)
    assert any(fault.startswith("train: the records' hash is") for fault in faults)


def test_the_same_records_in_another_order_are_told(tmp_path, folder):
    from jaxtrain.data.sources.array_record import write_array_record

    source = Built("tiny", "1.0.0", folder=str(tmp_path))
    write_array_record(shard(folder), [source[i] for i in (21, 20, *range(22, 40))])
    assert "train: the records are the card's, but in another order" in list(check(folder))


def test_a_record_that_does_not_decode_is_named(tmp_path, folder):
    records = importlib.import_module("array_record.python.array_record_module")
    writer = records.ArrayRecordWriter(str(shard(folder)), "group_size:1")
    for _ in range(20):
        writer.write(b"\xc1 is never used")
    writer.close()
    faults = [fault for fault in check(folder) if "record 3:" in fault]
    assert faults
    assert faults[0].startswith("train-00001.arrayrecord: record 3:")


def test_a_changed_card_is_refused(tmp_path, folder):
    card = json.loads((folder / FILE).read_text())
    card["splits"]["train"]["content"] = "0:0"
    (folder / FILE).write_text(json.dumps(card))
    for look in (lambda: list(check(folder)), lambda: len(opened(tmp_path))):
        with pytest.raises(ConfigError, match=r"card.json does not match its seal"):
            look()
    other = {"name": "tiny"}
    (folder / FILE).write_text(json.dumps({**other, "seal": _seal(other)}))
    with pytest.raises(ConfigError, match=r"card.json was written by another version"):
        Card.read(folder)
    (folder / FILE).write_text("{")
    with pytest.raises(ConfigError, match=r"card.json is damaged"):
        Card.read(folder)
    (folder / FILE).unlink()
    with pytest.raises(ConfigError, match=r"is not a dataset: it has no card.json"):
        Card.read(folder)


def test_a_card_may_not_name_files_outside_of_its_folder(tmp_path, folder):
    card = Card.read(folder)
    train = card.splits["train"]
    outside = replace(train.files[0], path="../../secret")
    replace(card, splits={"train": replace(train, files=(outside,))}).write(folder)
    with pytest.raises(ConfigError, match=r"names a file outside of its folder: ../../secret"):
        Card.read(folder)


def test_an_interrupted_build_is_never_a_dataset_and_the_next_one_starts_clean(tmp_path):
    code = f"""
import sys, time; sys.path[:0] = {[str(ROOT / "tests")]!r}
from test_datasets import *
class Slow(Records):
    def write(self, folder, split, examples):
        found = super().write(folder, split, examples)
        print("written", flush=True)
        time.sleep(60)
        return found
build(spec(format=Slow(20)), Path({str(tmp_path)!r}))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "written\n"
        with pytest.raises(ConfigError, match="another process is building"):
            build(spec(), tmp_path)
        process.send_signal(signal.SIGKILL)
    (unfinished,) = (tmp_path / "tiny").glob(".1.0.0.*.tmp")
    (unfinished / "train-00099.arrayrecord").write_bytes(b"of the killed build")
    with pytest.raises(ConfigError, match="is not built"):
        len(Built("tiny", "1.0.0", folder=str(tmp_path)))
    folder = build(spec(), tmp_path)
    assert not list(check(folder))
    assert not (folder / "train-00099.arrayrecord").exists()
    assert [path.name for path in (tmp_path / "tiny").iterdir() if path.name != ".lock"] == ["1.0.0"]


def test_a_full_disk_while_building_leaves_nothing_behind(tmp_path):
    code = f"""
import sys, resource, signal; sys.path[:0] = {[str(ROOT / "tests")]!r}
from test_datasets import *
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    build(spec(format=Records(1000)), Path({str(tmp_path)!r}))
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "tiny/1.0.0 cannot be built: " in done.stdout, done.stderr
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Tiny set"}, "lower-case"),
        ({"version": "1.0"}, "MAJOR.MINOR.PATCH"),
        ({"licence": " "}, "licence may not be empty"),
        ({"splits": HashSplits({"train": 1.0}, by=("txt",))}, "no field 'txt'; did you mean 'text'"),
        ({"filters": (InRange("label", 5, 9),)}, "split 'train' would be empty"),
    ],
)
def test_a_spec_that_cannot_be_is_refused_and_nothing_is_written(change, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        build(spec(**change), tmp_path)
    assert not list(tmp_path.rglob("*.json"))


# Training on a dataset.


def test_the_content_hash_is_part_of_the_fingerprint_and_the_card_of_the_run_folder(tmp_path):
    from tiny import main

    columns = {"tokens": np.arange(40 * 17, dtype=np.int32).reshape(40, 17) % 64}
    by = HashSplits({"train": 0.75, "test": 0.25}, by=("tokens",))
    build(spec(columns, splits=by, filters=(), label=None), tmp_path / "a")
    columns["tokens"][0, 0] += 1
    build(spec(columns, splits=by, filters=(), label=None), tmp_path / "b")
    one, other = (
        replace(main(), data=replace(main().data, source=Built("tiny", "1.0.0", folder=str(tmp_path / name))))
        for name in "ab"
    )
    assert fingerprint(one) != fingerprint(other)
    turned = {"tokens": columns["tokens"][::-1].copy()}
    build(spec(turned, splits=by, filters=(), label=None), tmp_path / "d")
    backwards = replace(one, data=replace(one.data, source=Built("tiny", "1.0.0", folder=str(tmp_path / "d"))))
    cards = [Card.read(tmp_path / name / "tiny" / "1.0.0").splits["train"] for name in "bd"]
    assert cards[0].content == cards[1].content  # the same records, but a step has others of them
    assert fingerprint(backwards) != fingerprint(other)
    moved = shutil.copytree(tmp_path / "a", tmp_path / "c")
    same = replace(one, data=replace(one.data, source=Built("tiny", "1.0.0", folder=str(moved))))
    assert fingerprint(one) == fingerprint(same)
    run = begin(tmp_path / "run", one, None)
    assert (
        Card.read(tmp_path / "a" / "tiny" / "1.0.0").splits["train"].content
        in (run.folder / "data" / "tiny-1.0.0.json").read_text()
    )


def test_a_token_dataset_is_packed_and_keeps_every_token(tmp_path):
    folder = build(spec(format=TokenRows(length=128), label=None), tmp_path)
    rows = Built("tiny", "1.0.0", folder=str(tmp_path))
    seen = Counter()
    for i in range(len(rows)):
        row = rows[i]
        for segment in range(1, row["segments"].max() + 1):
            seen[bytes(row["tokens"][row["segments"] == segment].astype(np.uint8)).rstrip(b"\0").decode()] += 1
    train = [text for text in texts()["text"] if spec().splits.split({"text": text}) == "train"]
    assert seen == Counter(train)
    assert not list(check(folder))
    for name in ("train-00000.bin", "train-00000.packed-128.npy"):
        raw = bytearray((folder / name).read_bytes())
        raw[len(raw) // 2] ^= 1
        (folder / name).write_bytes(raw)
    faults = list(check(folder))
    assert any(fault.startswith("train-00000.bin: record ") for fault in faults)
    assert "train-00000.packed-128.npy: its sha256 is not the card's" in faults


# The commands.


@dataclass(frozen=True)
class Command:
    folder: Path

    def __call__(self, capsys, *arguments: str) -> str:
        sys.argv = ["jaxtrain", *map(str, arguments)]
        try:
            cli.main()
        except SystemExit as done:
            return f"{done.code}: {''.join(capsys.readouterr())}"
        return capsys.readouterr().out


def test_the_verbs_build_show_check_and_compare(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    file = tmp_path / "tiny_sets.py"
    file.write_text(
        "from jaxtrain.datasets.build import Dataset\nfrom test_datasets import spec, texts\n\n\n"
        "def one() -> Dataset:\n    return spec()\n\n\n"
        "def two() -> Dataset:\n    return spec(texts(61), version='1.0.1')\n"
    )
    call = Command(tmp_path)
    out = ("--out", tmp_path / "sets")
    shown = call(capsys, "data", "build", f"{file}:one", *out)
    assert "tiny 1.0.0" in shown
    assert "60 raw records" in shown
    assert call(capsys, "data", "card", f"{file}:one", *out) == call(
        capsys, "data", "card", tmp_path / "sets/tiny/1.0.0"
    )
    assert "2: " in call(capsys, "data", "card", f"{file}:two", *out)
    call(capsys, "data", "build", f"{file}:two", *out)
    folders = [tmp_path / "sets" / "tiny" / version for version in ("1.0.0", "1.0.1")]
    assert "added              1" in call(capsys, "data", "diff", *folders)
    assert "all 60 records are as the card says" in call(capsys, "data", "check", folders[0])
    shard(folders[0]).unlink()
    assert call(capsys, "data", "check", folders[0]).startswith("1: train-00001.arrayrecord: missing")
    assert "did you mean 'check'" in call(capsys, "data", "chekc", folders[0])
