"""Packages whose names are imported when they are first used."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import jaxtrain
import jaxtrain.tasks

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("package", [jaxtrain, jaxtrain.tasks], ids=lambda package: package.__name__)
def test_every_name_of_a_stub_is_there_and_is_that_of_its_module(package: Any):
    stub = ast.parse(Path(package.__file__).with_suffix(".pyi").read_text())
    lines = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    names = [(str(node.module), alias.name, alias.asname) for node in lines for alias in node.names]
    assert sorted(package.__all__) == sorted(name for _, name, _ in names)
    for module, name, shown in names:
        assert shown == name, f"a stub shows {name} only as `{name} as {name}`"
        assert name in dir(package)
        assert getattr(package, name) is getattr(importlib.import_module(module), name)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'jaxtrain' has no attribute 'Experimnt'"):
        getattr(jaxtrain, "Experi" + "mnt")
    with pytest.raises(ImportError, match="cannot import name 'Experimnt'"):
        exec("from jaxtrain import Experimnt")


def test_importing_jaxtrain_imports_no_jax_until_a_name_needs_it():
    code = (
        "import sys, jaxtrain, jaxtrain.data; jax = lambda: 'jax' in sys.modules; print(jax(), jaxtrain.Layout, jax())"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "<class", "'jaxtrain.sharding.layout.Layout'>", "True"]
