"""Experiment files: which of their functions are found, and what is said of the others."""

import os
import subprocess
import sys

import pytest

from jaxtrain import ConfigError, Experiment
from jaxtrain.experiment.files import functions, load, load_code

HEAD = """
import functools
from typing import TYPE_CHECKING

import jaxtrain
import numpy as np
from jaxtrain import ConfigError, Experiment as E
from jaxtrain.data import Arrays, Pipeline
from jaxtrain.models import Blocks, Transformer
from jaxtrain.optimizers import AdamW
from jaxtrain.tasks import LanguageModel


def make(seed=0):
    data = Pipeline(Arrays({"tokens": np.ones((16, 9), np.int32)}), batch_size=4)
    model = Transformer(vocab=32, blocks=Blocks(width=16, layers=1, heads=2))
    return E(task=LanguageModel(model=model), data=data, optimizer=AdamW(), steps=2, seed=seed)


def seeded(function):
    @functools.wraps(function)
    def call():
        return function(seed=7)

    return call


"""

FOUND = {
    "by its full name": ("def main() -> jaxtrain.Experiment:\n    return make()", 0),
    "by another name": ("def main() -> E:\n    return make()", 0),
    "as text": ("def main() -> 'jaxtrain.Experiment':\n    return make()", 0),
    "as text that only a type checker knows": ("def main() -> 'Experiment':\n    return make()", 0),
    "decorated": ("@functools.cache\ndef main() -> E:\n    return make()", 0),
    "decorated by a function of the file": ("@seeded\ndef main(seed: int) -> E:\n    return make(seed)", 7),
    "with a default": ("def main(seed: int = 3) -> E:\n    return make(seed)", 3),
    "with any arguments": ("def main(*seeds: int, **more: int) -> E:\n    return make(len(seeds) + len(more))", 0),
    "beside an argument of an unknown type": ("def main(x: 'Nowhere' = None) -> E:\n    return make()", 0),
}


@pytest.mark.parametrize("future", [False, True], ids=["values", "texts"])
@pytest.mark.parametrize("name", FOUND)
def test_a_function_is_found_by_what_it_is_annotated_to_return(tmp_path, name, future):
    text, seed = FOUND[name]
    file = tmp_path / "written.py"
    file.write_text(f"{'from __future__ import annotations' * future}\n{HEAD}{text}\n")
    experiment, origin = load(str(file))
    assert (experiment.seed, origin.function) == (seed, "main")


REFUSED = {
    "without an annotation": (
        "def main():\n    return make()",
        "",
        "has no function annotated `-> Experiment`: write `def main() -> Experiment:`",
    ),
    "without an annotation, named": (
        "def main() -> E:\n    return make()\ndef other():\n    return make()",
        ":other",
        "has no Experiment named 'other': other is a function that is not annotated `-> Experiment`",
    ),
    "of another kind": ("def main() -> int:\n    return 3", "", "has no function annotated `-> Experiment`"),
    "that needs an argument": (
        "def main(lr, *, seed: int) -> E:\n    return make(seed)",
        "",
        "main needs the arguments lr, seed, but is called without any: give each a default",
    ),
    "imported by a relative import": ("from . import plain\ndef main() -> E:\n    return make()", "", "ImportError"),
    "that ends the program": (
        "def main() -> E:\n    raise SystemExit()",
        "",
        "line 29: it ends the program (sys.exit): a function of an experiment returns it",
    ),
    "that ends the program with a message": (
        "def main() -> E:\n    raise SystemExit('no data')",
        "",
        "it ends the program (sys.exit: no data): a function",
    ),
    "below a call of argparse": (
        "import argparse\nargparse.ArgumentParser().parse_args(['--x'])\ndef main() -> E:\n    return make()",
        "",
        "every field of the experiment is a flag",
    ),
    "that returns something else": ("def main() -> E:\n    return 3", "", "main returned a int, not Experiment"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_function_that_cannot_be_used_is_refused_with_the_reason(tmp_path, name):
    text, function, says = REFUSED[name]
    file = tmp_path / "written.py"
    file.write_text(f"{HEAD}{text}\n")
    with pytest.raises(ConfigError) as refused:
        load(f"{file}{function}")
    assert says in str(refused.value)


def test_functions_come_in_the_order_of_the_file_and_without_those_that_it_imports(tmp_path):
    file = tmp_path / "several.py"
    file.write_text(
        f"{HEAD}from functools import wraps\nfrom test_experiment_files import imported\n\n\n@functools.cache\ndef zebra() -> E:\n"
        "    return make(1)\n\n\ndef apple() -> E:\n    return make(2)\n\n\nconfig = E\nerror = ConfigError\n"
    )
    assert list(functions(load_code(file), Experiment)) == ["zebra", "apple"]
    assert load(str(file))[0].seed == 1


def imported() -> Experiment:
    raise AssertionError("not a function of the file above")


@pytest.mark.parametrize("name", ["random", "types", "wave"])  # wave is imported by nobody
def test_a_file_named_like_a_module_of_the_standard_library_is_refused_before_it_runs(tmp_path, name):
    file = tmp_path / f"{name}.py"
    file.write_text("raise AssertionError('it ran')\n")
    before = sys.modules.get(name)
    with pytest.raises(
        ConfigError,
        match=rf"{name}.py: there is a Python module '{name}' already, in Python's own library.*another name",
    ):
        load_code(file)
    assert sys.modules.get(name) is before


WORKERS = """
from dataclasses import dataclass
import numpy as np
from jaxtrain.data import Pipeline, Source

@dataclass(frozen=True)
class Counting(Source):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"x": np.int32(index)}

    def identity(self):
        return "counting"

pipeline = Pipeline(Counting(), batch_size=4, shuffle=False, workers=1)
"""


@pytest.mark.slow
def test_worker_processes_import_no_module_of_the_current_folder_instead_of_pythons_own(tmp_path):
    (tmp_path / "own.py").write_text(WORKERS)
    for name in ("random", "types", "tempfile"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('this is not the standard library')\n")
    code = (
        "from pathlib import Path\nfrom jaxtrain.experiment.files import load_code\n\n"
        "if __name__ == '__main__':\n"
        "    batches = load_code(Path('own.py')).pipeline.batches()\n"
        "    print([next(batches)['x'].tolist() for _ in range(3)])\n    batches.close()\n"
        "    import os\n    print(os.environ.get('PYTHONSAFEPATH'))\n"
    )
    (tmp_path / "elsewhere").mkdir()
    script = tmp_path / "elsewhere" / "script.py"  # this process itself does not look into the current folder
    script.write_text(code)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    found = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert found.stdout.splitlines() == ["[[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]", "None"], found.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own", r"there is no experiment file .*/own; did you mean '.*/own\.py'"),
        ("below.other", r"there is no experiment file .*/below\.other; did you mean '.*/below/other\.py'"),
        ("below", r"/below is a folder, not an experiment file; it holds other\.py"),
        ("book.ipynb", r"book\.ipynb is a notebook: write the function in a file \.py"),
    ],
)
def test_a_module_a_folder_and_a_notebook_are_no_experiment_file(tmp_path, monkeypatch, name, message):
    (tmp_path / "below").mkdir()
    for file in ("own.py", "below/other.py", "book.ipynb"):
        (tmp_path / file).write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message.replace(".*/", "").replace("/below is", "below is")):
        load(name)


def test_a_module_beside_the_file_is_not_taken_from_another_project_in_silence(tmp_path):
    for project in ("first", "second"):
        (tmp_path / project).mkdir()
        (tmp_path / project / "parts_of_it.py").write_text(f"SEED = {len(project)}\n")
        text = "import parts_of_it\ndef main() -> E:\n    return make(parts_of_it.SEED)\n"
        (tmp_path / project / f"{project}_experiment.py").write_text(HEAD + text)
    assert load(str(tmp_path / "first" / "first_experiment.py"))[0].seed == 5
    with pytest.raises(
        ConfigError, match=r"`import parts_of_it` gave .*first/parts_of_it\.py, not .*second/parts_of_it\.py"
    ):
        load(str(tmp_path / "second" / "second_experiment.py"))
    sys.modules.pop("parts_of_it")
