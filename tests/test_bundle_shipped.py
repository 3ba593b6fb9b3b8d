"""Every shipped experiment, with a few rows and steps, becomes a bundle whose figures are its run's, or says why not."""

import ast
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_predictor import FILES, ROOT, WHY_NOT, few

from jaxtrain import ConfigError, load
from jaxtrain.datasets import Dataset, build
from jaxtrain.deploy.bundle import Bundle
from jaxtrain.deploy.evaluation import evaluate_bundle
from jaxtrain.deploy.export import check_export, export_run
from jaxtrain.evaluate import evaluate_run
from jaxtrain.experiment.files import load_kind
from jaxtrain.experiment.fit import fit
from jaxtrain.optimizers import AdamW, ConstantRate
from jaxtrain.runs.folder import Run
from jaxtrain.sharding.layout import Layout
from jaxtrain.train import train

pytestmark = pytest.mark.slow


SAME_MODEL = (
    "from_disk",
    "data_parallel",
    "several_hosts",
    "fully_sharded",
    "tensor_and_data",
    "pipeline",
    "long_rows",
)
"""Functions that give the main model with other data or another layout."""


def functions(file: Path) -> list[str]:
    """The functions of a file that give an experiment."""
    return [
        each.name
        for each in ast.parse(file.read_text()).body
        if isinstance(each, ast.FunctionDef) and each.returns is not None and ast.unparse(each.returns) == "Experiment"
    ]


@pytest.mark.parametrize(
    ("file", "function"),
    [
        pytest.param(file, function, marks=[pytest.mark.full] if function in SAME_MODEL else [])
        for file in FILES
        for function in functions(file)
    ],
    ids=lambda each: each.stem if isinstance(each, Path) else each,
)
def test_a_shipped_experiment_is_exported_and_evaluates_as_its_run_does(file, function, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setenv("JAXTRAIN_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("jaxtrain.deploy.batch_curve._SECONDS", 0.0)
    monkeypatch.setattr("jaxtrain.deploy.batch_curve.SIZES", (1, 16))
    if file.name == "bncc.py":
        build(load_kind(f"{ROOT / 'experiments' / 'datasets.py'}:bncc", Dataset)[0], tmp_path / "data")
    code = f"{file}:{function}"
    experiment = replace(few(load(code)[0]), layout=Layout(), microbatches=1)
    if type(experiment.optimizer).__module__.startswith("jaxtrain."):
        experiment = replace(experiment, optimizer=AdamW(schedule=ConstantRate(peak=1e-3)), steps=2)
    if file.name in WHY_NOT:
        with pytest.raises(ConfigError, match=WHY_NOT[file.name]):
            check_export(fit(experiment))
        return
    train(experiment, tmp_path / "run")
    expected = evaluate_run(Run(tmp_path / "run", code))
    export_run(Run(tmp_path / "run", code), tmp_path / "out", "model")
    bundle = Bundle(tmp_path / "out")
    assert bundle.metrics["splits"] == expected
    assert evaluate_bundle(bundle, code=code) == expected
    assert bundle.metrics["golden"]["largest_difference"] < 1e-5
