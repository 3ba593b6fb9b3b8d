"""Exported bundles: the same answers and figures as their run, and nothing but what was written is loaded."""

import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from jaxtrain import ConfigError, Experiment
from jaxtrain.base.errors import Damaged
from jaxtrain.base.files import digest, json_text
from jaxtrain.cli import main as cli
from jaxtrain.data import Categories, Columns, Pipeline, Select, Source, Standardize, Transform, Utf8
from jaxtrain.deploy.batch_job import CHUNK, predict_file
from jaxtrain.deploy.bundle import Bundle
from jaxtrain.deploy.evaluation import evaluate_bundle
from jaxtrain.deploy.export import check_export, export_run
from jaxtrain.deploy.manifest import BundleManifest, is_bundle, version_folder
from jaxtrain.deploy.onnx.int8 import Int8Gate
from jaxtrain.evaluate import evaluate_run, predict_run
from jaxtrain.experiment.fit import fit
from jaxtrain.models import Model, NGrams
from jaxtrain.optimizers import AdamW, ConstantRate
from jaxtrain.program import Program
from jaxtrain.runs.folder import Run
from jaxtrain.tasks import Classification, Regression
from jaxtrain.train import train

CITIES = ("Rome", "Oslo", "Paris")


@dataclass(frozen=True)
class Films(Source):
    """Short reviews."""

    rows: int

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"text": f"{('bad', 'good')[index % 2]} film {index}, naïve", "label": np.int32(index % 2)}

    def identity(self) -> str:
        return f"films:{self.rows}"


@dataclass(frozen=True)
class Houses(Films):
    """A table."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        size = np.float32(50 + 7 * (index % 11))
        return {"size": size, "city": CITIES[index % 3], "target": np.float32(1000 * size + 500 * (index % 3))}


@dataclass(frozen=True)
class Line(Model):
    """One layer."""

    def build(self, rngs: nnx.Rngs, inputs: Any) -> nnx.Module:
        return nnx.Linear(2, 1, rngs=rngs)


def experiment(task: Any, source: Any, *transforms: Transform) -> Experiment:
    data = Pipeline(source(40), transforms, batch_size=8)
    evals = {"test": Pipeline(source(21), transforms, batch_size=8, shuffle=False)}
    return Experiment(task=task, data=data, optimizer=AdamW(schedule=ConstantRate(peak=1e-2)), steps=3, evals=evals)


TEXTS = experiment(
    Classification(model=NGrams(buckets=64, width=4), inputs="bytes", classes=("bad", "good")), Films, Utf8(24)
)
TABLE = experiment(
    Regression(model=Line(), inputs="x"),
    Houses,
    Standardize(("size", "target")),
    Categories("city"),
    Columns(("size", "city"), "x"),
    Select(("x", "target")),
)


@dataclass(frozen=True)
class Made:
    """A run, and the repository that it was exported into."""

    run: Path
    out: Path

    @property
    def folder(self) -> Path:
        return version_folder(self.out)


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Made:
    return made(tmp_path_factory.mktemp("texts"), TEXTS, "films", licence="Anyone may use it.")


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Made:
    return made(tmp_path_factory.mktemp("table"), TABLE, "houses")


def made(folder: Path, experiment: Experiment, name: str, licence: str | None = None) -> Made:
    run, _ = train(experiment, folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxtrain.deploy.batch_curve._SECONDS", 0.0)
        patch.setattr("jaxtrain.deploy.batch_curve.SIZES", (1, 16))
        assert export_run(run, folder / "out", name, licence=licence) == folder / "out" / name / "1"
    return Made(folder / "run", folder / "out")


@pytest.mark.parametrize("which", ["texts", pytest.param("table", marks=pytest.mark.slow)])
def test_a_bundle_evaluates_as_its_run_does(which, request):
    one = request.getfixturevalue(which)
    expected = evaluate_run(Run(one.run))
    bundle = Bundle(one.out)
    assert evaluate_bundle(bundle) == expected
    assert bundle.metrics["splits"] == expected
    assert bundle.metrics["golden"]["largest_difference"] < 1e-5


def test_a_bundle_predicts_as_its_run_does(texts):
    bundle, words = Bundle(texts.folder), ["good film", "bad, bad", "", "🙂" * 20]
    assert bundle.lines(words) == predict_run(Run(texts.run), words)
    restored = Run(texts.run).restore()
    batch = next(restored.program.epoch(TEXTS.evals["test"]))
    expected = np.asarray(restored.program.predict(restored.state, batch)["probabilities"])
    found = bundle.predict([Films(21)[index]["text"] for index in range(8)])["probabilities"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_a_table_is_predicted_in_the_units_of_the_data(table):
    bundle = Bundle(table.out)
    restored = Run(table.run).restore()
    batch = next(restored.program.epoch(restored.experiment.evals["test"]))
    expected = np.asarray(restored.program.predict(restored.state, batch)["values"])
    rows = [Houses(21)[index] for index in range(8)]
    columns = {name: [row[name] for row in rows] for name in ("size", "city")}
    np.testing.assert_allclose(bundle.predict(columns)["values"], expected, rtol=1e-5)
    assert bundle.lines([{"size": 50, "city": "Lima"}])[0].startswith("values [")


def test_a_bundle_holds_text_json_and_arrays_alone(texts):
    names = sorted(path.name for path in texts.folder.iterdir())
    assert names == [
        "LICENSE",
        "MODEL_CARD.md",
        "batch.json",
        "experiment.json",
        "golden.json",
        "manifest.json",
        "metrics.json",
        "model.stablehlo",
        "reference.json",
        "signature.json",
        "weights.safetensors",
    ]
    listed = json.loads((texts.folder / "manifest.json").read_text())["files"]
    assert sorted([*listed, "manifest.json"]) == names
    for name, entry in listed.items():
        content = (texts.folder / name).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(content), digest(content, length=64))
        if name.endswith(".json"):
            json.loads(content)
    weights = load_file(texts.folder / "weights.safetensors")
    params = Run(texts.run).restore().state.params
    np.testing.assert_array_equal(weights["params/head/kernel"], params["head"]["kernel"])
    assert (texts.folder / "LICENSE").read_text() == "Anyone may use it.\n"


@pytest.mark.slow
def test_config_pbtxt_is_this(texts, table):
    rows = Bundle(texts.out).signature.max_batch
    assert (texts.folder.parent / "config.pbtxt").read_text() == (
        f'name: "films"\nbackend: "onnxruntime"\ndefault_model_filename: "model.onnx"\nmax_batch_size: {rows}\n'
        'input [\n  {\n    name: "text"\n    data_type: TYPE_UINT8\n    dims: [ 24 ]\n  }\n]\n'
        'output [\n  {\n    name: "probabilities"\n    data_type: TYPE_FP32\n    dims: [ 2 ]\n  }\n]\n'
        "dynamic_batching { }\n"
    )
    assert "dims: [ 1 ]\n    reshape: { shape: [ ] }" in (table.folder.parent / "config.pbtxt").read_text()


@pytest.mark.slow
def test_there_are_32_golden_examples_and_odd_ones_among_them(texts, table):
    for one, odd in ((texts, ("text: empty", "text: no UTF-8")), (table, ("size: very large", "city: unknown"))):
        examples = Bundle(one.out).golden
        assert len(examples) >= 32
        assert {*odd} <= {each.name for each in examples}
        assert all(np.isfinite(x).all() for each in examples for x in each.outputs.values())


def test_the_manifest_says_where_it_comes_from(texts):
    manifest = Bundle(texts.out).manifest
    assert manifest.lineage["step"] == 3
    assert manifest.lineage["data"]["data.source.identity"] == "films:40"
    assert manifest.licence == "Anyone may use it."
    card = (texts.folder / "MODEL_CARD.md").read_text()
    assert "- `text`: text, bytes 24, keep first, least 0" in card
    assert "| test | accuracy |" in card


@pytest.mark.slow
def test_the_next_version_is_2_and_another_signature_needs_another_name(texts, table, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(texts.out, out)
    assert export_run(Run(texts.run), out, "films").name == "2"
    assert Bundle(out).folder.name == "2"
    assert Bundle(out / "films" / "1").folder.name == "1"
    with pytest.raises(ConfigError, match=r"holds versions with other inputs or outputs.*another --name"):
        export_run(Run(table.run), out, "films")
    assert sorted(path.name for path in (out / "films").iterdir()) == ["1", "2", "config.pbtxt"]


@pytest.mark.slow
def test_a_path_names_one_bundle(texts, table, tmp_path):
    assert is_bundle(texts.out)
    assert is_bundle(texts.folder)
    assert not is_bundle(texts.run)
    shutil.copytree(texts.out, tmp_path / "out")
    shutil.copytree(table.out / "houses", tmp_path / "out" / "houses")
    with pytest.raises(ConfigError, match="holds films, houses: name one"):
        Bundle(tmp_path / "out")
    with pytest.raises(ConfigError, match="is no bundle"):
        Bundle(tmp_path / "nothing")


# What is damaged, or was put there by others.


@pytest.fixture
def copy(texts, tmp_path) -> Path:
    """A version folder of its own."""
    shutil.copytree(texts.out, tmp_path / "copy")
    return version_folder(tmp_path / "copy")


def flip(path: Path, place: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "removed": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a bit flipped at its beginning": lambda path: flip(path),
    "a bit flipped in the middle": lambda path: flip(path, len(path.read_bytes()) // 2),
    "a bit flipped at its end": lambda path: flip(path, -1),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_every_file_that_is_damaged_is_noticed(how, texts, copy):
    for path in [*copy.iterdir(), copy.parent / "config.pbtxt"]:
        before = path.read_bytes()
        DAMAGE[how](path)
        with pytest.raises((Damaged, ConfigError)) as caught:
            Bundle(copy.parent)
        assert path.name in str(caught.value) or path.name == "manifest.json"
        assert len(str(caught.value).splitlines()) == 1
        path.write_bytes(before)
    assert Bundle(copy.parent).name == "films"


@pytest.mark.slow
def test_files_of_another_bundle_are_noticed(table, copy):
    for path in [*copy.iterdir(), copy.parent / "config.pbtxt"]:
        before = path.read_bytes()
        other = table.folder.parent / "config.pbtxt" if path.name == "config.pbtxt" else table.folder / path.name
        if other.exists():
            path.write_bytes(other.read_bytes())
            with pytest.raises((Damaged, ConfigError)):
                Bundle(copy.parent)
            path.write_bytes(before)


def test_links_and_files_that_are_not_listed_are_refused(copy, tmp_path):
    (copy / "more.txt").write_text("more")
    with pytest.raises(Damaged, match=r"more.txt: it is not one of the files"):
        Bundle(copy)
    (copy / "more.txt").unlink()
    (copy / "folder").symlink_to(tmp_path)
    with pytest.raises(Damaged, match=r"folder: it is not one of the files"):
        Bundle(copy)
    (copy / "folder").unlink()
    (copy / "signature.json").rename(tmp_path / "signature.json")
    (copy / "signature.json").symlink_to(tmp_path / "signature.json")
    with pytest.raises(Damaged, match=r"signature.json: it is a link"):
        Bundle(copy)
    (copy / "signature.json").unlink()
    os.mkfifo(copy / "signature.json")
    with pytest.raises(Damaged, match=r"signature.json: it is no file"):
        Bundle(copy)


def forged(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Another manifest, sealed as whoever forges one would."""
    facts = json.loads((folder / "manifest.json").read_text())
    del facts["sha256"]
    change(facts)
    sealed = {**facts, "sha256": digest(json.dumps(facts, sort_keys=True), length=64)}
    (folder / "manifest.json").write_text(json_text(sealed) + "\n")


def rewritten(folder: Path, name: str, content: bytes) -> None:
    """Another content of a file, of which the manifest knows."""
    (folder / name).write_bytes(content)
    entry = {"bytes": len(content), "sha256": digest(content, length=64)}
    forged(folder, lambda facts: facts["files"].update({name: entry}))


@pytest.mark.parametrize(
    "name",
    ["../golden.json", "/etc/passwd", "a/../b", "./golden.json", "", ".", "manifest.json", "a\\b", "a//b", "a\nb"],
)
def test_a_manifest_that_leads_out_of_its_folder_is_refused(name, copy):
    forged(copy, lambda facts: facts["files"].update({name: {"bytes": 1, "sha256": ""}}))
    with pytest.raises(Damaged, match="is no path of a file inside of the bundle"):
        Bundle(copy)


def test_names_that_are_one_file_on_some_systems_are_refused(copy):
    forged(copy, lambda facts: facts["files"].update({"Golden.json": facts["files"]["golden.json"]}))
    with pytest.raises(Damaged, match="are one file on some systems"):
        Bundle(copy)


@pytest.mark.parametrize("file", ["manifest.json", "signature.json", "golden.json", "metrics.json"])
def test_a_newer_format_says_so(file, copy):
    if file == "manifest.json":
        forged(copy, lambda facts: facts.update(format=2))
    else:
        value = {**json.loads((copy / file).read_text()), "format": 2}
        rewritten(copy, file, json.dumps(value).encode())
    with pytest.raises(ConfigError, match="it is of format 2, and this version of jaxtrain reads 1: update jaxtrain"):
        Bundle(copy)


FOREIGN = {
    "model.stablehlo": [b"no graph", b"\x80\x04cos\nsystem\n."],
    "weights.safetensors": [
        b"",
        b"\xff" * 8,
        b"\x02\0\0\0\0\0\0\0[]",
        b"\x05\0\0\0\0\0\0\0[[[[[",
    ],
    "golden.json": [b"[]", b'{"format": 1, "examples": []}', b'{"format": 1, "examples": [{}]}', b"\xff"],
    "signature.json": [b"[]", b"{}", b'{"format": 1}'],
    "metrics.json": [b"\xff", b"no"],
}


@pytest.mark.parametrize("file", FOREIGN)
def test_a_file_that_jaxtrain_did_not_write_is_refused_though_its_hash_is_right(file, copy):
    for content in FOREIGN[file]:
        rewritten(copy, file, content)
        with pytest.raises((Damaged, ConfigError)) as caught:
            Bundle(copy)
        assert file in str(caught.value)


def test_a_golden_example_with_another_output_refuses_and_shows_both(copy):
    golden = json.loads((copy / "golden.json").read_text())
    golden["examples"][3]["outputs"]["probabilities"][1] += 0.25
    rewritten(copy, "golden.json", json.dumps(golden).encode())
    with pytest.raises(Damaged, match=r"of golden example 3 \(row 3\), probabilities\[1\] is 0\.\d+, expected 0\.\d+"):
        Bundle(copy)


def test_weights_of_other_names_or_shapes_are_refused(copy):
    content = (copy / "weights.safetensors").read_bytes()
    rewritten(copy, "weights.safetensors", content.replace(b"params/head/kernel", b"params/head/kernal"))
    with pytest.raises(Damaged, match="it was not made for the weights: params/head/kernal, params/head/kernel"):
        Bundle(copy)


def test_without_onnx_it_says_what_to_install(copy, monkeypatch):
    with pytest.raises(ConfigError, match=r"has no model.onnx: export it again where ONNX can be made"):
        Bundle(copy, backend="onnx")
    rewritten(copy, "model.onnx", b"onnx")
    monkeypatch.setitem(sys.modules, "jaxtrain.deploy.onnx.runtime", None)
    with pytest.raises(ConfigError, match=r"needs onnxruntime: pip install 'jaxtrain\[onnx\]'"):
        Bundle(copy, backend="onnx")


def test_the_onnx_runtime_is_asked_for_the_golden_examples(copy, monkeypatch):
    rewritten(copy, "model.onnx", b"onnx")
    asked = []

    class OnnxModel:
        def __init__(self, graph: bytes, takes: Any, name: str) -> None:
            asked.append((graph, takes.name, name))

        def run(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"probabilities": np.full((len(tensors["text"]), 2), 0.5, np.float32)}

    monkeypatch.setitem(sys.modules, "jaxtrain.deploy.onnx", types.ModuleType("jaxtrain.deploy.onnx"))
    monkeypatch.setitem(sys.modules, "jaxtrain.deploy.onnx.runtime", types.SimpleNamespace(OnnxModel=OnnxModel))
    with pytest.raises(Damaged, match=r"model.onnx: of golden example 0 .* is 0.5, expected"):
        Bundle(copy, backend="onnx")
    # The bytes whose hash was verified, and not what is in the file by then.
    assert asked == [(b"onnx", copy.parent.name, str(copy / "model.onnx"))]


def test_a_graph_of_onnx_is_not_computed_by_jax(copy):
    with pytest.raises(ConfigError, match=r"file='model\.int8\.onnx' is a graph of ONNX: give backend='onnx' too"):
        Bundle(copy, file="model.int8.onnx")


def test_weights_that_are_too_large_to_hold_twice_are_read_from_their_file(copy, monkeypatch):
    expected = Bundle(copy).predict(["good"])["probabilities"]
    verified = BundleManifest.verified

    def without_weights(self: BundleManifest, *given: Any) -> dict[str, bytes]:
        return {name: each for name, each in verified(self, *given).items() if name != "weights.safetensors"}

    monkeypatch.setattr(BundleManifest, "verified", without_weights)
    np.testing.assert_array_equal(Bundle(copy).predict(["good"])["probabilities"], expected)


def test_files_that_are_not_held_in_memory_are_verified_too(copy):
    manifest = BundleManifest.read(copy)
    assert {*manifest.verified(copy, (".json",))} == {name for name in manifest.files if name.endswith(".json")}
    assert {*manifest.verified(copy)} == {*manifest.files}
    assert all(name.endswith(".json") for name in Bundle(copy)._contents)  # weights are held once, by the runner
    flip(copy / "weights.safetensors", 100)
    with pytest.raises(Damaged, match=r"weights.safetensors: its bytes have changed"):
        manifest.verified(copy, (".json",))


@pytest.mark.slow
def test_servers_are_given_the_rows_that_are_best_for_onnx(texts, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxtrain.deploy.batch_curve._SECONDS", 0.0)
    monkeypatch.setattr("jaxtrain.deploy.batch_curve.SIZES", (1,))
    onnx = {"curve": [{"rows": 7, "seconds": 0.5, "rows_per_second": 14}], "best": 7}
    monkeypatch.setattr("jaxtrain.deploy.export._onnx", lambda *given: {"onnx": {}, "batch_curve": onnx})
    folder = export_run(Run(texts.run), tmp_path, "films", gate=Int8Gate())
    measured = json.loads((folder / "batch.json").read_text())
    assert (measured["backend"], measured["best"], measured["backends"]["onnx"]) == ("onnx", 7, onnx)
    assert measured["backends"]["jax"]["best"] == 1
    assert json.loads((folder / "signature.json").read_text())["max_batch"] == 7
    assert "max_batch_size: 7\n" in (folder.parent / "config.pbtxt").read_text()
    assert "batch_curve" not in json.loads((folder / "metrics.json").read_text())


def test_a_bundle_computes_as_many_rows_at_a_time_as_are_best_for_its_backend(copy, monkeypatch):
    measured = {"format": 1, "curve": [], "best": 16, "backend": "onnx"}
    backends = {"jax": {"curve": [], "best": 4}, "onnx": {"curve": [], "best": 16}}
    rewritten(copy, "batch.json", json.dumps({**measured, "backends": backends}).encode())
    bundle = Bundle(copy)
    assert bundle.rows_at_a_time == 4
    rewritten(copy, "batch.json", json.dumps(measured).encode())  # as before there was a curve for each
    assert Bundle(copy).rows_at_a_time == bundle.signature.max_batch
    for wrong in ([], {"backends": 3}, {"backends": {"jax": {}}}, {"backends": {"jax": {"best": True}}}):
        content = {"format": 1, **wrong} if isinstance(wrong, dict) else wrong
        rewritten(copy, "batch.json", json.dumps(content).encode())
        with pytest.raises(Damaged, match=r"batch.json: it is not what jaxtrain writes .*best number of rows for jax"):
            Bundle(copy)
    sizes = []
    monkeypatch.setattr(bundle, "_runner", types.SimpleNamespace(run=lambda tensors: count(sizes, tensors)))
    found = bundle.predict(["a"] * 10)["probabilities"]
    assert sizes == [4, 4, 2]
    np.testing.assert_array_equal(found[:, 0], [1, 1, 1, 1, 2, 2, 2, 2, 3, 3])


def count(sizes: list[int], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Notes the rows of a call, and gives its number for each."""
    sizes.append(len(tensors["text"]))
    return {"probabilities": np.full((sizes[-1], 2), len(sizes), np.float32)}


def test_importing_it_imports_no_jax():
    modules = "jaxtrain.deploy.bundle, jaxtrain.deploy.batch_job, jaxtrain.deploy.command_line"
    code = f"import {modules}, sys; print({{'jax', 'flax', 'optax', 'jaxlib', 'grain'}} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_running_it_by_onnx_runtime_imports_no_more_than_it_needs():
    modules = "jaxtrain.deploy.bundle, jaxtrain.deploy.onnx.runtime"
    code = (
        f"import {modules}, sys; print(*{{'jax', 'importlib.metadata', 'concurrent', 'asyncio'}} & sys.modules.keys())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_running_it_by_jax_imports_no_code_of_training():
    code = "import jaxtrain.deploy.bundle, jaxtrain.deploy.stablehlo, sys; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"flax", "optax", "grain", "orbax"} & {*found}
    assert {each.split(".")[1] for each in found if each.startswith("jaxtrain.")} == {"base", "deploy"}


# Batch jobs.


REPLACE = os.replace


def rows_file(folder: Path, count: int) -> Path:
    lines = [json.dumps({"text": f"film {number} 🙂", "id": number}) for number in range(count)]
    lines[3], lines[5], lines[7] = '{"text": 3}', "no json", '"a bare text"'
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "rows.jsonl"


def test_a_batch_job_answers_line_by_line_and_names_bad_rows(texts, tmp_path, capsys):
    bundle, source = Bundle(texts.out), rows_file(tmp_path, CHUNK + 20)
    done = predict_file(bundle, source, tmp_path / "scores.jsonl")
    assert (done.rows, done.bad) == (CHUNK + 20, 2)
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert len(lines) == CHUNK + 20
    assert lines[3] == {"error": "input 'text': it has to be a text, not 3"}
    assert lines[5]["error"].startswith("Expecting value")
    expected = bundle.predict(["a bare text", "film 2 🙂"])["probabilities"]
    np.testing.assert_allclose(lines[7]["probabilities"], expected[0], rtol=1e-6)
    np.testing.assert_allclose(lines[2]["probabilities"], expected[1], rtol=1e-6)
    assert lines[2]["id"] == 2
    said = capsys.readouterr().err
    assert "rows.jsonl, line 4: input 'text'" in said
    assert "rows.jsonl, line 6: " in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "scores.jsonl"]


def test_a_batch_job_that_was_killed_anywhere_ends_with_the_same_bytes(texts, tmp_path, monkeypatch):
    bundle, source, output = Bundle(texts.out), rows_file(tmp_path, 3 * CHUNK), tmp_path / "scores.jsonl"
    calls = []
    run = bundle.run
    monkeypatch.setattr(bundle, "run", lambda tensors: calls.append(len(tensors["text"])) or run(tensors))
    predict_file(bundle, source, output)
    whole = output.read_bytes()
    chunks = [CHUNK - 2, CHUNK, CHUNK]  # two rows of the first are bad
    assert calls == chunks
    second = sum(map(len, whole.splitlines(keepends=True)[: 2 * CHUNK]))
    for size, left in ((0, 3), (100, 3), (second - 1, 2), (second, 1), (second + 10, 1), (len(whole), 0)):

        def killed(source: Any, target: Any, size: int = size) -> None:
            if Path(source).name != ".scores.jsonl.part":
                return REPLACE(source, target)
            os.truncate(source, size)  # what the system had written when the process was killed
            raise KeyboardInterrupt

        monkeypatch.setattr("jaxtrain.deploy.batch_job.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            predict_file(bundle, source, output)
        monkeypatch.setattr("jaxtrain.deploy.batch_job.os.replace", REPLACE)
        calls.clear()
        predict_file(bundle, source, output)
        assert output.read_bytes() == whole
        assert calls == chunks[3 - left :]  # the same rows together


def test_a_graph_that_differs_on_an_accelerator_says_where_to_export(texts, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxtrain.deploy.export.jax.default_backend", lambda: "gpu")
    predict = Program.predict

    def rounded(self: Program, state: Any, batch: Any) -> dict[str, Any]:  # as bfloat16 on an accelerator would be
        return {name: x * 1.004 for name, x in predict(self, state, batch).items()}

    monkeypatch.setattr(Program, "predict", rounded)
    with pytest.raises(ConfigError, match=r"something else than the live model: .* export on a CPU instead: JAX_PLA"):
        export_run(Run(texts.run), tmp_path, "films")
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True)
class Length(Transform):
    """A label that an empty text has not."""

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**example, "label": np.int32(100 // len(example["text"]) % 2)}


@pytest.mark.slow
def test_odd_inputs_that_a_transform_of_ones_own_cannot_label_are_no_golden_examples(tmp_path):
    short = replace(TEXTS, data=replace(TEXTS.data, transforms=(Length(), Utf8(24))), evals={})
    train(short, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxtrain.deploy.batch_curve._SECONDS", 0.0)
        export_run(Run(tmp_path / "run"), tmp_path / "out", "films")
    names = [each.name for each in Bundle(tmp_path / "out").golden]
    assert "text: empty" not in names
    assert {"text: emoji", "text: very long"} <= {*names}
    assert len(names) >= 32


# The command line.


@pytest.mark.slow
def test_the_verbs_take_a_bundle_where_they_take_a_run(texts, tmp_path, capsys):
    assert cli.run(["predict", str(texts.out), "good film"]) == 0
    from_bundle = capsys.readouterr().out
    cli.run(["predict", str(texts.run), "good film"])
    assert capsys.readouterr().out == from_bundle
    cli.run(["evaluate", str(texts.out), "--split", "test"])
    from_bundle = capsys.readouterr().out
    cli.run(["evaluate", str(texts.run), "--split", "test"])
    assert capsys.readouterr().out == from_bundle
    source, output = rows_file(tmp_path, 9), tmp_path / "scores.jsonl"
    assert cli.run(["predict", str(texts.out), "--input", str(source), "--output", str(output)]) == 1
    for words, why in (
        (["predict", str(texts.out)], "give at least one text or file"),
        (["predict", str(texts.out), "a", "--input", str(source), "--output", str(output)], "give texts or files, or"),
        (["predict", str(texts.out), "a", "--step", "3"], "a bundle is of one step"),
        (["predict", str(texts.run), "--input", str(source), "--output", str(output)], "is no bundle; make one with"),
    ):
        with pytest.raises(ConfigError, match=why):
            cli.run(words)


@dataclass(frozen=True)
class Louder(Transform):
    """Which a graph cannot do."""

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {**example, "bytes": example["bytes"] ^ 1}


@pytest.mark.slow
def test_what_cannot_be_exported_is_known_before_the_first_step():
    check_export(fit(TEXTS))
    check_export(fit(TABLE))
    louder = replace(TEXTS, data=replace(TEXTS.data, transforms=(Utf8(24), Louder())), evals={})
    with pytest.raises(ConfigError, match="Louder cannot be part of an exported graph"):
        check_export(louder)


@pytest.mark.slow
def test_the_command_line_refuses_to_train_what_cannot_be_exported(tmp_path):
    gan = str(Path(__file__).parents[1] / "experiments" / "recipes" / "gan.py")
    with pytest.raises(ConfigError, match="GAN is not exported: its generator reads no input"):
        cli.run(["train", gan, "--check-export", "--run", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@dataclass(frozen=True)
class Counted(Model):
    """Whose output depends on the number of rows, which a graph of any number does not know."""

    def build(self, rngs: nnx.Rngs, inputs: Any) -> nnx.Module:
        return nnx.Sequential(
            lambda x: x[:, :2].astype(np.float32) * np.arange(len(x))[:, None], nnx.Linear(2, 2, rngs=rngs)
        )


def test_a_model_of_a_known_number_of_rows_is_refused():
    task = replace(TEXTS.task, model=Counted())
    with pytest.raises(ConfigError, match=r"Classification.predict cannot be exported"):
        check_export(replace(TEXTS, task=task))
