"""Runs of code and data of one's own: `--code` for evaluate and predict, and that nothing else is executed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxtrain import ConfigError, Run
from jaxtrain.cli import main as cli
from jaxtrain.models import NGrams

ROOT = Path(__file__).parents[1]

LAB = {
    "lab/__init__.py": "",
    "lab/model.py": """
from dataclasses import dataclass

from jaxtrain.models import NGrams


@dataclass(frozen=True, kw_only=True)
class Words(NGrams):
    buckets: int = 24
    words: int = 4
    width: int = 4
""",
    "lab/task.py": """
from dataclasses import dataclass

from jaxtrain.tasks import Classification


@dataclass(frozen=True, kw_only=True)
class Opinions(Classification):
    exclaimed: bool = False

    def describe(self, prediction):
        return super().describe(prediction) + "!" * self.exclaimed
""",
    "lab/source.py": """
from dataclasses import dataclass

import numpy as np

from jaxtrain.data import Source


@dataclass(frozen=True)
class Films(Source):
    rows: int = 8

    def __len__(self):
        return self.rows

    def __getitem__(self, index):
        return {"text": f"{('bad', 'good')[index % 2]} film {index}", "label": np.int32(index % 2)}

    def identity(self):
        return f"films:{self.rows}"
""",
    "mine.py": """
from jaxtrain import Experiment
from jaxtrain.data import Pipeline, Utf8
from jaxtrain.optimizers import AdamW
from lab.model import Words
from lab.source import Films
from lab.task import Opinions


def main() -> Experiment:
    data = Pipeline(Films(), (Utf8(16),), batch_size=4)
    task = Opinions(model=Words(), inputs="bytes", classes=("bad", "good"))
    return Experiment(task=task, data=data, optimizer=AdamW(), steps=2, evals={"all": data})
""",
    "imports.py": "import lab.model, lab.source, lab.task\n",
}

IN_MEMORY = """
from pathlib import Path

from jaxtrain import Experiment
from jaxtrain.data import Arrays, Pipeline, Utf8
from jaxtrain.models import NGrams
from jaxtrain.optimizers import AdamW
from jaxtrain.tasks import Classification


def main() -> Experiment:
    Path("called").touch()
    texts = {TEXTS}
    data = Pipeline(Arrays({"text": texts, "label": [1, 0] * 4}), (Utf8(16),), batch_size=4)
    task = Classification(model=NGrams(buckets=24, words=4, width=4), inputs="bytes", classes=("bad", "good"))
    return Experiment(task=task, data=data, optimizer=AdamW(), steps=2, evals={"all": data})
"""
RIGHT = IN_MEMORY.replace("{TEXTS}", '["good", "bad"] * 4')
WRONG = IN_MEMORY.replace("{TEXTS}", '["good", "sad"] * 4')


def jaxtrain(folder, *words, code=0):
    """What the command prints, in a process of its own that finds no package of the working directory by itself."""
    program = "import sys; sys.path.remove(''); from jaxtrain.cli.main import main; main()"
    own = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with a package, an experiment file that uses it, and its run."""
    folder = tmp_path_factory.mktemp("lab")
    for name, text in LAB.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    jaxtrain(folder, "train", "mine.py", "--run", "run", "--task.exclaimed", "--task.model.width", "6")
    return folder


@pytest.mark.slow
def test_a_run_of_a_package_of_ones_own_is_evaluated_with_its_experiment_file(lab):
    out = jaxtrain(lab, "evaluate", "run", "--code", "mine.py")
    assert out.startswith("all  accuracy ")
    assert "loss " in out


@pytest.mark.slow
def test_a_run_of_a_package_of_ones_own_predicts_with_a_file_that_only_imports_it(lab):
    (line,) = jaxtrain(lab, "predict", "run", "good film", "--code", "imports.py").splitlines()
    assert line.endswith("!  good film")  # by the task of the package, with the flag that it was trained with
    assert {"bad", "good"} < set(line.split())


@pytest.mark.slow
def test_a_run_of_a_package_of_ones_own_is_refused_without_its_code_which_is_not_executed(lab):
    own = lab / "run" / "mine.py"
    text = own.read_text()
    assert text == LAB["mine.py"]
    for file in (own, lab / "run" / "sitecustomize.py", lab / "json.py"):
        file.write_text(f"open({str(lab / 'executed')!r}, 'w')\n{text}")
    error = jaxtrain(lab, "evaluate", "run", code=2)
    (lab / "json.py").unlink()
    own.write_text(text)
    assert "comes from the module 'lab." in error
    assert "which is not imported: name the experiment file, or a file that imports it, with --code FILE" in error
    assert not (lab / "executed").exists()


@pytest.fixture
def call(monkeypatch, capsys):
    """`jaxtrain` with these arguments, in this process; what it printed, and its exit code."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["jaxtrain", *words])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture
def memory(tmp_path, monkeypatch, call):
    """A folder with a run whose data were in memory, some fields changed by flags; the files that made it, and others."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arrays.py").write_text(RIGHT)
    (tmp_path / "others.py").write_text(WRONG)
    flags = ("--data.batch-size", "2", "--data.seed", "3", "--task.model.width", "6")
    assert call("train", "arrays.py", "--run", "run", *flags)[0] == 0
    (tmp_path / "called").unlink()
    return tmp_path


def test_a_run_on_data_in_memory_is_evaluated_and_predicts_with_the_function_that_makes_them(memory, call):
    code, out, _ = call("evaluate", "run", "--code", "arrays.py:main")
    assert (code, out.startswith("all  accuracy ")) == (0, True)
    code, out, _ = call("predict", "run", "good", "bad", "--code", "arrays.py")
    assert (code, [line.split()[-1] for line in out.splitlines()]) == (0, ["good", "bad"])
    assert (memory / "called").exists()
    experiment = Run(memory / "run", "arrays.py").experiment
    assert isinstance(experiment.task.model, NGrams)
    assert (experiment.data.batch_size, experiment.data.seed, experiment.task.model.width) == (2, 3, 6)


def test_other_data_in_memory_than_those_of_the_run_are_refused(memory, call):
    code, out, err = call("evaluate", "run", "--code", "others.py")
    assert (code, out) == (2, "")
    assert "the data in memory (object[8]) differ from those that the run was trained on" in err
    with pytest.raises(
        ConfigError, match=r"data in memory \(object\[8\]\) are not saved in the run folder.*--code FILE"
    ):
        _ = Run(memory / "run").experiment


@pytest.mark.slow
def test_a_function_is_called_only_where_data_in_memory_are_needed(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    source = "Digits('train')"
    text = RIGHT.replace("import Arrays, ", "import ").replace(
        "import NGrams", "import Blocks, ViT\nfrom jaxtrain.datasets import Digits"
    )
    text = text[: text.index("    texts =")] + (
        f"    data = Pipeline({source}, batch_size=4)\n"
        "    model = ViT(patch=4, blocks=Blocks(width=8, layers=1, heads=2, mlp=8))\n"
        "    task = Classification(model=model, inputs='image', classes=tuple('0123456789'))\n"
        "    return Experiment(task=task, data=data, optimizer=AdamW(), steps=1)\n"
    )
    (tmp_path / "digits.py").write_text(text.replace(", Utf8", ""))
    assert call("train", "digits.py", "--run", "run")[0] == 0
    (tmp_path / "called").unlink()
    assert Run(tmp_path / "run", "digits.py").experiment.steps == 1
    assert not (tmp_path / "called").exists()
