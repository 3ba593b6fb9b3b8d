"""ONNX made of models, in its environment: what ONNX Runtime computes is what jax does. All of it takes minutes."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_bundle import Films
from test_predictor import FILES, ROOT, WHY_NOT, few

from jaxtrain import ConfigError, Experiment, load
from jaxtrain.data import Arrays, Pipeline, Utf8
from jaxtrain.datasets import Dataset, build
from jaxtrain.deploy.bundle import Bundle
from jaxtrain.deploy.export import check_export, export_run
from jaxtrain.deploy.manifest import INT8_FILE, MODEL_FILE
from jaxtrain.deploy.onnx.conversion import Examples, can_convert, write_onnx
from jaxtrain.deploy.onnx.environment import folder_of_packages, missing, onnx_environment, run_in_environment
from jaxtrain.deploy.onnx.int8 import Int8Gate
from jaxtrain.deploy.onnx.runtime import OnnxModel
from jaxtrain.deploy.predictor import Predictor, raw_source, weights_of
from jaxtrain.experiment.fit import fit
from jaxtrain.models import Blocks, Model, NGrams, Precision, Transformer
from jaxtrain.optimizers import AdamW, ConstantRate
from jaxtrain.program import Program
from jaxtrain.sharding.layout import Layout
from jaxtrain.tasks import Classification, Regression
from jaxtrain.train import train

pytestmark = pytest.mark.slow

OPTIMIZER = AdamW(schedule=ConstantRate(peak=1e-2))

SHIPPED = [(file, name) for file in FILES for name in ("", *([":transformer"] if file.name == "digits.py" else []))]


def predictor_of(experiment: Experiment) -> Predictor:
    """With the weights that it begins with, on one device."""
    program = Program(replace(experiment, layout=Layout()), jax.devices()[:1])
    rng = np.random.default_rng(0)
    weights = {
        # Initial values are equal, or not known, in some models: these are neither, and variances stay positive.
        path: np.abs(rng.normal(scale=0.1, size=x.shape).astype(x.dtype)) + np.nan_to_num(x)
        if x.dtype.kind == "f"
        else x
        for path, x in weights_of(program.init()).items()
    }
    return Predictor.of(experiment, weights)


def examples(predictor: Predictor, experiment: Experiment) -> Examples:
    """All rows of its first evaluation split, and what jax computes for them."""
    source = raw_source(experiment, next(iter(experiment.evals)))
    tensors = predictor.signature.tensors_of([predictor.raw.row_of(source[n]) for n in range(len(source))])
    return tensors, jax.device_get(jax.jit(predictor.function)(predictor.weights, tensors))


QUICK = ("linear", "vae")  # other tests export sentiment, digits and char_lm


@pytest.mark.parametrize(
    ("file", "name"),
    [
        pytest.param(*each, marks=[] if each[0].stem in QUICK else [pytest.mark.full])
        for each in SHIPPED
        if each[0].name not in WHY_NOT
    ],
    ids=lambda each: getattr(each, "name", each),
)
def test_a_shipped_experiment_computes_the_same(file, name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setenv("JAXTRAIN_DATA", str(tmp_path))
    if file.name == "bncc.py":
        from jaxtrain.experiment.files import load_kind

        build(load_kind(f"{ROOT / 'experiments' / 'datasets.py'}:bncc", Dataset)[0], tmp_path)
    experiment = fit(few(load(f"{file}{name}")[0]))
    predictor = predictor_of(experiment)
    given = examples(predictor, experiment)
    facts = write_onnx(predictor, tmp_path, given, given)
    found = OnnxModel(tmp_path / MODEL_FILE).run(given[0])
    largest = max(float(np.abs(found[each] - wanted).max()) for each, wanted in given[1].items())
    assert largest <= 1e-4
    assert largest == pytest.approx(facts["onnx"]["largest_difference"], abs=1e-5)
    one = {each: x[:1] for each, x in given[0].items()}
    for each, x in OnnxModel(tmp_path / MODEL_FILE).run(one).items():
        np.testing.assert_allclose(x, given[1][each][:1], rtol=1e-4, atol=1e-4)
    assert can_convert(predictor) is None
    with capsys.disabled():
        print(f"\n{file.stem + name:24} {facts['onnx']['bytes']:>12,} bytes  {largest:.1e} from jax  ", end="")
        print(facts["int8"].get("recipe", "no int8"), facts["int8"].get("bytes", ""))


RULES = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jaxtrain.deploy.inputs import Tensor
from jaxtrain.deploy.onnx.conversion import Request
from jaxtrain.deploy.onnx.convert import _why, graph
from jaxtrain.deploy.onnx.runtime import OnnxModel

rng = np.random.default_rng(0)
places = rng.integers(-3, 9, (3, 12)).astype(np.int32)
unsigned = rng.integers(0, 2**32, (3, 12), dtype=np.uint32)
unsigned[:, 0], unsigned[:, 1] = 2**32 - 1, 0
numbers = rng.normal(size=(3, 12)).astype(np.float32)
kernel = rng.normal(size=(4, 5)).astype(np.float32)
put = jax.vmap(lambda at, value: jnp.zeros(6, jnp.uint32).at[at].set(value, mode="drop"))
unique = np.stack([rng.permutation(16)[:12] - 3 for _ in range(3)]).astype(np.int32)
pad = jax.lax.pad
cases = {
    "between": (numbers, lambda x: pad(x, np.float32(7), ((0, 0, 0), (1, 2, 3)))),
    "cut by padding": (numbers, lambda x: pad(x, np.float32(7), ((0, 0, 0), (-2, -1, 0)))),
    "cut and between": (unsigned, lambda x: pad(x, np.uint32(7), ((0, 0, 0), (-2, 1, 1)))),
    "one column": (numbers, lambda x: pad(x[:, :1], np.float32(7), ((0, 0, 0), (0, 0, 2)))),
    "maps": (unsigned, lambda x: jax.lax.associative_scan(
        lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1]), (x, x ^ 5), axis=1)[1]),
    "places": (unique, lambda at: put(at, at.astype(jnp.uint32) * 3)),
    "entry of each row": (numbers, lambda x: jax.vmap(lambda old, new, at: jax.lax.dynamic_update_slice(
        old, new, (0, at, 0)))(x.reshape(-1, 2, 3, 2), 9 + x.reshape(-1, 2, 6, 1)[:, :, :1] * jnp.ones(2),
        jnp.arange(x.shape[0]) * 2 - 1)),
    "window": (numbers, lambda x: x.at[:, 3:7].set(x[:, :4] + 1)),
    "first": (numbers, lambda x: x.at[:, :2].set(0.0)),
    "last": (numbers, lambda x: x.at[:, -2:].set(1.0)),
    "whole": (numbers, lambda x: x.at[:, :].set(x * 2)),
    "every third": (numbers, lambda x: x[:, 1:11:3]),
    "sorted": (unsigned, lambda x: jnp.sort(x, axis=1)),
    "modulus": (unsigned, lambda x: x % jnp.uint32(1000)),
    "negative modulus": (places, lambda x: x % 5),
    "mixed": (unsigned, lambda x: (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)),
    "product": (numbers, lambda x: x.reshape(-1, 3, 4) @ kernel),
    "scores": (numbers, lambda x: jnp.einsum("bld,bmd->blm", x.reshape(-1, 3, 4), x.reshape(-1, 3, 4))),
    "row": (numbers, lambda x: x[:, None, :] * jnp.ones((1, 2, 1), jnp.float32)),
    "flat": (numbers, lambda x: x.reshape(-1)[:, None].reshape(-1, 12)),
    "loop": (numbers, lambda x: jax.lax.scan(lambda c, y: (c * 0.5 + y, c), x[:, 0], x.T)[1].T),
    "rounded": (numbers, lambda x: x.astype(jnp.bfloat16).astype(jnp.float32)),
    "number of rows": (numbers, lambda x: x + x.shape[0]),
    "mean of rows": (numbers, lambda x: x - x.mean(0)),
    "called": (numbers, lambda x: jax.checkpoint(jax.jit(lambda y: jax.nn.silu(jax.nn.relu(y))))(x)),
}
found = {}
for name, (x, function) in cases.items():
    wanted = np.asarray(jax.jit(function)(x))
    request = Request(
        lambda weights, tensors: {"y": function(tensors["x"])}, {}, "rules",
        (Tensor("x", x.dtype.name, x.shape[1:]),), (Tensor("y", wanted.dtype.name, wanted.shape[1:]),))
    y = OnnxModel(graph(request)).run({"x": x})["y"]
    same = y.dtype == wanted.dtype and y.shape == wanted.shape
    found[name] = bool(same and np.allclose(y, wanted, rtol=1e-6, atol=1e-6))
missing = NotImplementedError("[jaxpr] No plugins registered for primitive 'eig' in a loop")
found["missing"] = _why(missing) == "jax2onnx has no form of the operation 'eig'"
print(json.dumps(found))
"""


def test_operations_that_are_replaced_compute_the_same(tmp_path):
    (tmp_path / "rules.py").write_text(RULES)
    path = list(sys.path)
    sys.path.insert(0, str(tmp_path))
    try:
        done = run_in_environment(["rules"], b"")
    finally:
        sys.path[:] = path
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    found = json.loads(done.stdout.decode().splitlines()[-1])
    assert [name for name, same in found.items() if not same] == []
    assert len(found) == 26


def supervised(task: Any, columns: Mapping[str, Any], *transforms: Any) -> Experiment:
    data = Pipeline(Arrays(columns), transforms, batch_size=8)
    return Experiment(task=task, data=data, optimizer=OPTIMIZER, steps=1, evals={"test": replace(data, shuffle=False)})


class Odd(nnx.Module):
    """A random number of a distribution that depends on the rows, which ONNX cannot draw, and a product."""

    def __init__(self) -> None:
        self.matrix = nnx.Param(jnp.eye(3), axes=(None, None))

    def __call__(self, x: jax.Array, context: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        drawn = jax.random.gamma(jax.random.key(0), jnp.exp(x.mean(0)))
        return (x * drawn) @ self.matrix[...][:, :1], {}


@dataclass(frozen=True)
class Solver(Model):
    """A model of one odd module."""

    def build(self, rngs: nnx.Rngs, inputs: Any) -> nnx.Module:
        return Odd()


X = {"x": np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32), "target": np.ones(16, np.float32)}


def test_what_cannot_be_converted_says_why_in_a_sentence(tmp_path):
    experiment = fit(supervised(Regression(model=Solver(), inputs="x"), X))
    predictor = predictor_of(experiment)
    given = examples(predictor, experiment)
    with pytest.raises(ConfigError) as error:
        write_onnx(predictor, tmp_path, given, given)
    assert can_convert(predictor) == str(error.value)
    assert str(error.value).startswith("jax2onnx cannot convert it (TypeError: JAX array with PRNGKey dtype")
    assert len(str(error.value).splitlines()) == 1
    assert [*tmp_path.iterdir()] == []


def test_weights_of_bf16_are_f32(tmp_path):
    precision = Precision(params="bfloat16")
    blocks = Blocks(width=16, layers=2, heads=2, precision=precision)
    model = Transformer(vocab=256, blocks=blocks, outputs=2, tied=False, pooled=True)
    columns = {"text": [f"film {n}" for n in range(16)], "label": np.arange(16, dtype=np.int32) % 2}
    experiment = fit(supervised(Classification(model=model, inputs="bytes", classes=("a", "b")), columns, Utf8(8)))
    predictor = predictor_of(experiment)
    given = examples(predictor, experiment)
    facts = write_onnx(predictor, tmp_path, given, given)
    assert facts["onnx"]["largest_difference"] <= 1e-4


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    data = Pipeline(Films(64), (Utf8(24),), batch_size=16)
    experiment = Experiment(
        task=Classification(model=NGrams(buckets=4096, width=8), inputs="bytes", classes=("bad", "good")),
        data=data,
        optimizer=OPTIMIZER,
        steps=30,
        evals={"test": replace(data, shuffle=False)},
    )
    run_of, _ = train(experiment, folder / "run")
    out = export_run(run_of, folder / "models", "films", gate=Int8Gate())
    return out, experiment


def test_a_bundle_runs_without_jax(exported):
    folder, _ = exported
    bundle = Bundle(folder)
    assert bundle.metrics["onnx"]["largest_difference"] <= 1e-4
    wanted = bundle.predict(["good film", "", "naïve 🙂"])["probabilities"]
    code = (
        "import sys, json; from jaxtrain.deploy.bundle import Bundle; "
        f"b = Bundle({str(folder)!r}, backend='onnx'); "
        "print(json.dumps(b.predict(['good film', '', 'naïve 🙂'])['probabilities'].tolist())); "
        "print(*({'jax', 'jaxlib', 'flax', 'orbax', 'jax2onnx', 'onnx'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    numbers, modules = done.stdout.split("\n")[:2]
    np.testing.assert_allclose(json.loads(numbers), wanted, atol=1e-4)
    assert modules == ""


def test_each_backend_is_measured_and_servers_get_the_rows_of_onnx(exported):
    folder, _ = exported
    measured = json.loads((folder / "batch.json").read_text())
    curves = measured["backends"]
    assert {*curves} == {"jax", "onnx"}
    assert curves["jax"]["curve"] != curves["onnx"]["curve"] == measured["curve"]
    assert Bundle(folder).rows_at_a_time == curves["jax"]["best"]
    assert Bundle(folder, backend="onnx").rows_at_a_time == curves["onnx"]["best"] == measured["best"]
    assert f"max_batch_size: {measured['best']}\n" in (folder.parent / "config.pbtxt").read_text()
    assert "batch_curve" not in json.loads((folder / "metrics.json").read_text())


def test_int8_is_in_the_bundle_where_the_gate_passes(exported):
    folder, _ = exported
    seen = Bundle(folder).metrics["int8"]
    assert seen["agreement"] >= 0.99
    assert (folder / INT8_FILE).stat().st_size == seen["bytes"] < 0.5 * (folder / MODEL_FILE).stat().st_size
    fastest = min(seen["recipes"].values(), key=lambda each: each.get("milliseconds", np.inf))
    assert seen["milliseconds"] == fastest["milliseconds"]
    small = Bundle(folder, backend="onnx", file=INT8_FILE)
    np.testing.assert_allclose(
        small.predict(["good film"])["probabilities"], Bundle(folder).predict(["good film"])["probabilities"], atol=0.1
    )


def test_a_gate_that_nothing_passes_leaves_int8_out_and_says_what_it_saw(exported, tmp_path):
    _, experiment = exported
    predictor = predictor_of(fit(experiment))
    given = examples(predictor, experiment)
    facts = write_onnx(predictor, tmp_path, given, given, Int8Gate(difference=0.0))
    assert not (tmp_path / INT8_FILE).exists()
    assert "QUInt8: a probability differs by 0." in facts["int8"]["why"]
    assert "of 0.0 at most" in facts["int8"]["why"]


def test_the_same_weights_give_the_same_bytes(exported, tmp_path):
    _, experiment = exported
    predictor = predictor_of(fit(experiment))
    given = examples(predictor, experiment)
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_onnx(predictor, tmp_path / name, given, given)
        contents.append((tmp_path / name / MODEL_FILE).read_bytes())
    assert contents[0] == contents[1]
    assert b"/work" not in contents[0]
    assert str(ROOT).encode() not in contents[0]


def test_the_check_before_the_first_step_says_what_has_no_onnx(caplog):
    onnx_environment()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxtrain.deploy.export.can_convert", lambda predictor: "jax2onnx has no form of 'eig'")
        check_export(fit(supervised(Regression(model=Solver(), inputs="x"), X)))
    assert "its bundle will have no ONNX: jax2onnx has no form of 'eig'" in caplog.text


INSTALL = """
from jaxtrain.deploy.onnx.environment import onnx_environment
print(onnx_environment())
"""


def test_nobodys_packages_change(tmp_path, monkeypatch):
    def here() -> set[tuple[str, str]]:
        return {(each.name, each.version) for each in distributions()}

    site = Path(jax.__file__).parents[1]
    before, names = here(), sorted(each.name for each in site.iterdir())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    both = [
        subprocess.Popen([sys.executable, "-c", INSTALL], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in "ab"
    ]
    found = {each.communicate()[0].strip() for each in both}
    assert found == {str(folder_of_packages())}
    assert missing(folder_of_packages()) is None
    assert here() == before
    assert sorted(each.name for each in site.iterdir()) == names
    code = "import json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in ('jax2onnx', 'orbax-checkpoint')}))"
    (tmp_path / "versions.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    versions = json.loads(run_in_environment(["versions"], b"").stdout)
    assert versions["jax2onnx"] == "0.17.1"
    assert dict(before)["orbax-checkpoint"] == versions["orbax-checkpoint"]
