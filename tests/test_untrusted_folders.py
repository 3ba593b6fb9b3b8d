"""Run folders and cards that anybody may have written: one message that names file and place, never a traceback;
nothing runs, and nothing is written.
"""

import copy
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny

from jaxtrain.base.errors import ConfigError, DamagedCheckpoint
from jaxtrain.base.files import digest
from jaxtrain.data import Arrays, Stored, Tfds
from jaxtrain.data.sources.paths import of_a_run_folder
from jaxtrain.datasets.card import Card
from jaxtrain.datasets.source import stored_format
from jaxtrain.experiment.run_file import KEYS
from jaxtrain.experiment.start import saved_step
from jaxtrain.runs.begin import begin
from jaxtrain.runs.folder import Run

DEEP = 100_000


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that has begun, and the content of its experiment.json."""
    folder = tmp_path_factory.mktemp("untrusted") / "run"
    begin(folder, tiny.main(), None)
    return folder, json.loads((folder / "experiment.json").read_text())


def sealed(saved: Any) -> Any:
    """With the fingerprint that fits its config, as whoever forges a folder would write it."""
    if isinstance(saved, dict) and "fingerprint" in saved:
        saved["fingerprint"] = digest(json.dumps(saved.get("config"), sort_keys=True), length=16)
    return saved


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a value of JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in items:
        yield (*path, name)
        yield from places(part, (*path, name))


WRONG = [None, True, -1, 0, 10**400, 1.5, "", "x", "../../up", "/etc/passwd", "a\x00b", [], [[]], {}, {"x": 1}] + [
    {"$kind": kind}
    for kind in (3, None, [], "", "Nothing", "os:system", "subprocess:Popen", "Task", "Counting", "Layout", "Range")
]
WRONG += [{"$kind": "AdamW"}, {"$kind": "Stored", "source": {"$kind": "Bytes"}, "folder": "/nowhere"}, {"$array": 3}]


def mutated(saved: Any, seed: int) -> tuple[Any, str]:
    """A copy with one change somewhere, and where."""
    chance, changed = random.Random(seed), copy.deepcopy(saved)
    *above, last = chance.choice([*places(saved)])
    inside = changed
    for name in above:
        inside = inside[name]
    way = chance.choice(["wrong", "wrong", "wrong", "missing", "extra"])
    if way == "missing" or (way == "extra" and not isinstance(inside, dict)):
        del inside[last]
    elif way == "extra":
        inside["extra"] = chance.choice(WRONG)
    else:
        inside[last] = chance.choice(WRONG)
    return changed, ".".join(map(str, (*above, last)))


def opened(folder: Path) -> None:
    """All that reading a run does before its checkpoints."""
    found = Run(folder)
    assert found.horizon > 0
    _ = found.experiment
    found.without_data()


def test_a_mutated_experiment_is_read_or_refused_in_one_message_that_names_the_file(run, tmp_path):
    saved = run[1]
    (tmp_path / "experiment.json").write_text(json.dumps(saved))
    opened(tmp_path)
    refused, wrong = 0, []
    for seed in range(400):
        changed, place = mutated(saved, seed)
        (tmp_path / "experiment.json").write_text(json.dumps(sealed(changed)))
        try:
            opened(tmp_path)
        except ConfigError as error:
            refused += 1
            named = str(error).startswith(str(tmp_path / "experiment.json")) and len(str(error)) < 2000
            wrong += [] if named else [f"{place}: {error}"]
    assert wrong == []
    assert refused > 250
    assert [path.name for path in tmp_path.iterdir()] == ["experiment.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON: 'utf-8'"),
        (b"[" * DEEP + b"]" * DEEP, "nested more than 100 levels deep"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "nested more than 100 levels deep"),
        (b'{"version": NaN}', "NaN is not a finite float64"),
        (b'{"version": 1e400}', "1e400 is not a finite float64"),
        (b'{"version": ' + b"1" * 10_000 + b"}", "is not JSON: Exceeds the limit"),
        (b'{"version": "1", "version": "2"}', "the key 'version' occurs twice"),
        (b"[]", "the whole file: [] is not an object"),
        (b"null", "is null"),
        (b" " * ((64 << 20) + 1), "bytes, more than"),
    ],
    ids=range(11),
)
def test_what_is_no_json_of_ours_is_refused(content, said, tmp_path):
    (tmp_path / "experiment.json").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        Run(tmp_path)
    assert str(tmp_path / "experiment.json") in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda saved: saved.pop("config"), "it has no 'config'"),
        (lambda saved: saved.update(confg={}), "a key 'confg' that no version wrote; did you mean 'config'"),
        (lambda saved: saved.update(horizon="3"), "horizon: '3' is not int"),
        (lambda saved: saved["config"].update(seed=1), "fingerprint: it is not that of config"),
        (lambda saved: saved.update(fingerprint="0" * 16), "fingerprint: it is not that of config"),
        (
            lambda saved: saved["experiment"].update(seed=1),
            "experiment.seed: it is 1, but 0 in config: one of them was edited; put back the file",
        ),
        (
            lambda saved: saved["experiment"].update(task=saved["experiment"]["data"]),
            "task: Pipeline is of another kind",
        ),
        (lambda saved: saved["experiment"].update(optimizer=saved["experiment"]["layout"]), "optimizer: Layout is of"),
        (lambda saved: saved["experiment"]["data"].pop("source"), "experiment.data: Pipeline lacks its field 'source'"),
        (
            lambda saved: saved["experiment"]["data"].update(batch_size="4"),
            "experiment.data.batch_size: '4' is a value",
        ),
        (lambda saved: saved.update(version="99.1", later=[]), "99.1, which is newer than this"),
    ],
    ids=range(11),
)
def test_what_is_wrong_is_named_by_its_dotted_path(change, said, run, tmp_path, caplog):
    saved = copy.deepcopy(run[1])
    change(saved)
    (tmp_path / "experiment.json").write_text(json.dumps(saved))
    try:
        opened(tmp_path)
        shown = caplog.text
    except ConfigError as error:
        shown = str(error)
    assert said in shown
    assert str(tmp_path / "experiment.json") in shown


def test_every_key_that_is_written_is_known(run):
    assert run[1].keys() == KEYS.keys()


def test_a_fingerprint_fits_a_config_with_infinities(tmp_path):
    folder = tmp_path / "run"
    begin(folder, tiny.main(), None)
    saved = json.loads((folder / "experiment.json").read_text())
    saved["config"]["data.bound"] = "inf"  # as JSON has it
    values = {**saved["config"], "data.bound": float("inf")}  # as it was hashed
    saved["fingerprint"] = digest(json.dumps(values, sort_keys=True), length=16)
    (folder / "experiment.json").write_text(json.dumps(saved))
    assert Run(folder).horizon == 12


def texts() -> Arrays:
    return Arrays({"text": ["good", "bad"] * 8, "label": [1, 0] * 8})


@dataclass(frozen=True)
class Ran(Stored):
    """Notes that its code ran."""

    times: ClassVar[int] = 0

    def __post_init__(self) -> None:
        Ran.times += 1
        super().__post_init__()


def test_a_stored_source_that_a_run_folder_names_writes_nothing(run, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    saved = copy.deepcopy(run[1])
    own = Stored(tiny.Counting(20), str(elsewhere))
    source = saved["experiment"]["data"]["source"]
    saved["experiment"]["data"]["source"] = {"$kind": "Stored", "source": source, "folder": str(elsewhere)}
    saved["config"] = {path: value for path, value in saved["config"].items() if not path.startswith("data.source")}
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "experiment.json").write_text(json.dumps(sealed(saved)))
    found = Run(folder).experiment.data.source
    with pytest.raises(ConfigError, match="nothing is written because a run's folder says so"):
        len(found)
    assert not elsewhere.exists()
    assert len(own) == 20  # of the user's own code
    assert elsewhere.is_dir()


def test_a_class_of_another_kind_is_not_even_made(run, tmp_path):
    saved = copy.deepcopy(run[1])
    source = saved["experiment"]["data"]["source"]
    saved["experiment"]["optimizer"] = {"$kind": f"{__name__}:Ran", "source": source, "folder": None}
    (tmp_path / "experiment.json").write_text(json.dumps(sealed(saved)))
    with pytest.raises(ConfigError, match=r"experiment\.optimizer: \S+:Ran is of another kind"):
        _ = Run(tmp_path).experiment
    assert Ran.times == 0


def test_a_start_from_a_forged_run_is_refused(tmp_path):
    (tmp_path / "checkpoints" / "3" / "metrics").mkdir(parents=True)
    (tmp_path / "checkpoints" / "²").mkdir()
    (tmp_path / "checkpoints" / "3" / "metrics" / "metrics").write_text("[]")
    assert not (tmp_path / "experiment.json").exists()
    for content in ("[]", "{}", '{"experiment": {"runtime": []}}'):
        (tmp_path / "experiment.json").write_text(content)
        with pytest.raises(ConfigError, match=r"experiment\.json has no experiment\.runtime\.keep"):
            saved_step(tmp_path, "best")
    keep = {"experiment": {"runtime": {"keep": {"best": ["x"], "mode": 3}}}}
    (tmp_path / "experiment.json").write_text(json.dumps(keep))
    with pytest.raises(ConfigError, match="has no best checkpoint"):
        saved_step(tmp_path, "best")
    with pytest.raises(DamagedCheckpoint, match=r"record/metadata: it is missing"):
        saved_step(tmp_path, "latest")


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    """The card of a built dataset, as JSON."""
    from jaxtrain.datasets import Dataset, HashSplits
    from jaxtrain.datasets.build import build

    about: Any = dict.fromkeys(("description", "origin", "licence", "access", "retention"), "x")
    splits = HashSplits({"train": 0.5, "test": 0.5}, by=("text",))
    rows = Arrays({"text": [str(row) for row in range(20)], "label": [0, 1] * 10})
    made = Dataset(name="made", version="1.0.0", records=rows, splits=splits, label="label", **about)
    folder = tmp_path_factory.mktemp("sets")
    build(made, folder)
    return json.loads((folder / "made" / "1.0.0" / "card.json").read_text())


def test_a_mutated_card_is_read_or_refused_in_one_message_that_names_the_file(card, tmp_path):
    refused, wrong = 0, []
    for seed in range(400):
        changed, place = mutated(card, seed)
        if isinstance(changed, dict) and "seal" in changed:
            del changed["seal"]
            changed["seal"] = digest(json.dumps(changed, sort_keys=True), length=64)
        (tmp_path / "card.json").write_text(json.dumps(changed))
        try:
            found = Card.read(tmp_path)
            str(found)
            stored_format(found)
        except ConfigError as error:
            refused += 1
            named = str(tmp_path / "card.json") in str(error) or "format" in place
            wrong += [] if named else [f"{place}: {error}"]
    assert wrong == []
    assert refused > 150


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a\x00b", "x" * 5000])
def test_a_card_that_names_a_file_outside_of_its_folder_is_refused(name, card, tmp_path):
    changed = copy.deepcopy(card)
    changed["splits"]["train"]["files"][0]["path"] = name
    del changed["seal"]
    changed["seal"] = digest(json.dumps(changed, sort_keys=True), length=64)
    (tmp_path / "card.json").write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match="names a file outside of its folder"):
        Card.read(tmp_path)


@pytest.mark.parametrize(
    "name", ["huggingface:glue", "kaggle:ds/cfg:1.2.3", "a:b", "1:2.0.0", "../up", "a/b=1", "a/b,c=2"]
)
def test_a_name_of_tfds_whose_code_would_be_fetched_is_refused_in_a_run_folder_only(name):
    with of_a_run_folder(), pytest.raises(ConfigError, match="code would be fetched and run, which no run folder"):
        Tfds(name, "train", "/nowhere")
    assert Tfds(name, "train", "/nowhere").name == name


@pytest.mark.parametrize(
    "name", ["mnist", "glue/sst2", "glue/sst2:2.0.0", "mnist:3.*.*", "c4/en.noblocklist", "a/b-c+d"]
)
def test_what_a_run_folder_may_name_has_no_namespace_by_the_rules_of_tfds_itself(name):
    from tensorflow_datasets.core import naming

    parsed, arguments = naming.parse_builder_name_kwargs(name)
    assert parsed.namespace is None
    assert arguments.keys() <= {"config", "version"}
    with of_a_run_folder():
        assert Tfds(name, "train", "/nowhere").name == name
