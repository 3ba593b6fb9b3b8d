import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxtrain.cli import main as cli
from jaxtrain.cli.flags import parse
from jaxtrain.data import Damaged
from jaxtrain.datasets.bundled import digits
from jaxtrain.experiment import Retention, Runtime
from jaxtrain.experiment.files import load
from jaxtrain.models import ViT
from jaxtrain.optimizers import Standard, with_horizon
from jaxtrain.runs.begin import begin
from jaxtrain.runs.metrics_log import read_metrics
from jaxtrain.tasks import Classification

ROOT = Path(__file__).parents[1]

TEXTS = """
from dataclasses import dataclass, replace

import numpy as np

from jaxtrain.data import Pipeline, Source, Utf8
from jaxtrain.experiment import Experiment
from jaxtrain import RULES, Layout
from jaxtrain.models import NGrams
from jaxtrain.optimizers import AdamW, ConstantRate
from jaxtrain.tasks import Classification


@dataclass(frozen=True)
class Texts(Source):
    rows: int = 24

    def __len__(self):
        return self.rows

    def __getitem__(self, index):
        return {"text": f"{('bad', 'good')[index % 2]} film {index}", "label": np.int32(index % 2)}

    def identity(self):
        return "texts"


def main() -> Experiment:
    data = Pipeline(Texts(), (Utf8(16),), batch_size=8)
    return Experiment(
        task=Classification(
            model=NGrams(buckets=24, words=4, width=4), inputs="bytes", classes=("negative", "positive")
        ),
        data=data,
        optimizer=AdamW(schedule=ConstantRate(peak=1e-2)),
        steps=2,
        evals={"test": replace(data, shuffle=False)},
    )


def unused() -> Experiment:
    return replace(main(), layout=Layout({"tensor": 8}, {**RULES, "vocab": None}))
"""

DIGITS = """from jaxtrain.data import Pipeline
from jaxtrain.datasets import Digits
from jaxtrain.experiment import Experiment
from jaxtrain.models import Blocks, ViT
from jaxtrain.optimizers import AdamW
from jaxtrain.tasks import Classification


def main() -> Experiment:
    blocks = Blocks(width=16, layers=1, heads=2, mlp=16)
    return Experiment(
        task=Classification(model=ViT(patch=4, blocks=blocks), inputs="image", classes=tuple("0123456789")),
        data=Pipeline(Digits("train"), batch_size=8),
        optimizer=AdamW(),
        steps=2,
    )
"""


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, " ".join(err.replace("│", " ").split())


@pytest.fixture
def call(monkeypatch, capsys):
    """`jaxtrain` with these arguments, in this process."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["jaxtrain", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stopped:
            code = stopped.code
        printed = capsys.readouterr()
        return Result(code, printed.out, printed.err)

    return call


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with two experiment files."""
    (tmp_path / "texts.py").write_text(TEXTS)
    (tmp_path / "tiny_digits.py").write_text(DIGITS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of `texts.py`, after its two steps; not to be changed."""
    place = tmp_path_factory.mktemp("trained")
    (place / "texts.py").write_text(TEXTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(sys, "argv", ["jaxtrain", "train", str(place / "texts.py"), "--run", str(place / "run")])
        cli.main()
    return place / "run"


def files(folder):
    return sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)


def refused(call, folder, *arguments):
    """The message of a call that is refused: exit code 2, no traceback, nothing printed, written or on a device."""
    files_before, arrays_before = files(folder), {id(array) for array in jax.live_arrays()}
    result = call(*arguments)
    assert result.code == 2, result.err
    assert "Traceback" not in result.err
    assert result.out == ""
    assert files(folder) == files_before
    assert [array for array in jax.live_arrays() if id(array) not in arrays_before] == []
    return result.err


MISTAKES = {
    "an unknown verb": ("trian texts.py", "there is no verb 'trian'; did you mean 'train'?"),
    "an unknown verb of a group": ("data biuld sets.py", "there is no verb 'biuld'; did you mean 'build'?"),
    "no experiment": ("train", "train: name an experiment's file first, FILE[:FUNCTION], as in: jaxtrain train "),
    "a flag before the experiment": ("explain --steps 3", "as in: jaxtrain explain experiments/digits.py --steps 3"),
    "no experiment for a verb of a group": ("data bench", "as in: jaxtrain data bench experiments/digits.py"),
    "no folder after --run": ("train texts.py --run", "Missing value for argument '--run'"),
    "a file that is not there": ("train text.py", "there is no experiment file text.py; did you mean 'texts.py'?"),
    "an unknown function": (
        "train texts.py:unsued",
        "texts.py has no Experiment named 'unsued'; did you mean 'unused'?",
    ),
    "a misspelled flag": ("train texts.py --task.model.widht 8", "Perhaps you meant: --task.model.width"),
    "a misspelled flag of a split": ("train texts.py --evals.tset.batch-size 8", "--evals.test.batch-size"),
    "a misspelled flag of a class of the file": ("train texts.py --data.source.rosw 3", "--data.source.rows"),
    "a flag that is no flag": ("train texts.py extra", "Unrecognized options: extra"),
    "a word for a number": ("train texts.py --steps many", "--steps: invalid literal for int() with base 10: 'many'"),
    "a fraction for a whole number": ("train texts.py --steps 1.5", "--steps: invalid literal for int()"),
    "a choice that is none": (
        "explain tiny_digits.py --task.model.blocks.attention dens",
        "invalid choice 'dens' for argument '--task.model.blocks.attention'. Expected one of ('auto', 'dense'",
    ),
    "a count of nothing": (
        "train texts.py --steps 0",
        "Experiment.steps: 0 is not from 1 to 2,147,483,647 (an i32 counts the steps)",
    ),
    "no value": ("train texts.py --steps", "Missing value for argument '--steps'"),
    "values that contradict": ("explain tiny_digits.py --task.model.blocks.heads 3", "width 16 over 3 heads"),
    "a field of the batch that is none": (
        "train texts.py --task.inputs byte",
        "no field 'byte'; did you mean 'bytes'?",
    ),
    "a label that is none": ("train texts.py --task.label lable", "no field 'lable'; did you mean 'label'?"),
    "a field of the data that is none": (
        "train texts.py --data.transforms.0.field txt",
        "Utf8: no field 'txt' in the example; did you mean 'text'?",
    ),
    "an unknown mesh axis": ("train texts.py --layout.mesh dta 8", "mesh axis 'dta'; did you mean 'data'?"),
    "a mesh size that is no number": (
        "train texts.py --layout.mesh data x",
        "Error parsing --layout.mesh: data x: 'x' is not a whole number; give pairs such as data 2 tensor 4",
    ),
    "half a pair of a mesh": (
        "train texts.py --layout.mesh data 2 tensor",
        "data 2 tensor: give pairs of a name and a value, such as data 2 tensor 4",
    ),
    "a mesh axis given twice": ("train texts.py --layout.mesh data 2 data 4", "'data' is given twice"),
    "a flag with a prefix that it does not have": ("train texts.py --runtime.log-every 3", "--runtime.log-every, 3"),
    "a size as a flag of its own": ("train texts.py --layout.mesh.data 8", "Perhaps you meant: --layout.mesh"),
    "two axes that take the rest": ("train texts.py --layout.mesh data -1 tensor -1", "more than one -1"),
    "too small a mesh": ("train texts.py --layout.mesh data 3", "{'data': 3} needs 3 devices, but there are 8"),
    "too large a mesh": ("train texts.py --layout.mesh data 16", "{'data': 16} needs 16 devices, but there are 8"),
    "an indivisible dim": (
        "train texts.py --layout.mesh tensor 8 --task.model.buckets 20",
        "params/table/table: dim 'vocab' has 20 entries, which the mesh axes tensor=8 do not divide",
    ),
    "an unused mesh axis": ("train texts.py:unused", "axis 'tensor' = 8 splits heads, kv_heads, mlp, but no array"),
    "a batch that does not divide": (
        "train texts.py --layout.mesh data 8 --data.batch-size 12",
        "a batch of 12: dim 'batch' has 12 entries, which the mesh axes data=8 do not divide",
    ),
    "an evaluated batch that does not divide": (
        "train texts.py --layout.mesh data 8 --evals.test.batch-size 12",
        "a batch of 12: dim 'batch' has 12 entries, which the mesh axes data=8 do not divide",
    ),
    "microbatches that do not divide": (
        "train texts.py --microbatches 3",
        "microbatches: 3 do not divide a batch of 8",
    ),
    "a warm-up that does not fit": (
        "train texts.py --optimizer.schedule.warmup 9",
        "optimizer.schedule.warmup: 9 steps do not fit in a run of 2",
    ),
    "a decayed parameter that is none": (
        "train texts.py --optimizer.weight-decay 0.1 --optimizer.decayed krnel",
        "optimizer.decayed: no parameter is named 'krnel'",
    ),
    "a best metric of no split": ("train texts.py --keep.best tst/loss", "keep.best: 'tst/loss' is of no split"),
    "a number of devices that is none": ("explain texts.py --devices all", "Error parsing --devices"),
    "a folder that is no run": ("evaluate nowhere", "nowhere is not a run: it has no experiment.json"),
    "a misspelled flag of evaluate": ("evaluate nowhere --stp 3", "Perhaps you meant: --step"),
    "evaluate without a run": ("evaluate", "The run's folder, or the bundle's. (required)"),
    "predict without inputs": ("predict nowhere", "give at least one text or file after the run"),
    "a run folder that is a file": ("train texts.py --run texts.py", "texts.py exists and is not a run"),
    "a run folder below a file": ("train texts.py --run texts.py/x", "texts.py/x cannot be written: Not a directory"),
    "a run folder with other files": ("train texts.py --run .", ". exists and is not a run"),
}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--optimizer.schedule.warmup -4", "ConstantRate.warmup: -4 is not at least 0"),
        ("--optimizer.b1 1.0", "AdamW.b1: 1.0 is not at least 0 and below 1"),
        ("--optimizer.epsilon 1e-60", "AdamW.epsilon: 1e-60, which is 0 in float32, is not above 0"),
        ("--data.batch-size 0", "Pipeline.batch_size: 0 is not at least 1"),
        ("--evals.test.batch-size 0", "Pipeline.batch_size: 0 is not at least 1"),
    ],
)
def test_a_number_out_of_its_range_gets_the_message_of_its_range_and_no_other_words(flags, says, call, folder):
    assert refused(call, folder, *f"train texts.py {flags}".split()) == f"jaxtrain: {says}"


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_on_the_command_line_gets_one_message_and_changes_nothing(name, call, folder):
    arguments, says = MISTAKES[name]
    assert says in refused(call, folder, *arguments.split())


FILES = {
    "a misspelled field": ("width=16", "widht=16", "line 10: TypeError: Blocks.__init__() got an", "'width'?"),
    "a misspelled class": ("AdamW()", "AdmaW()", "line 14: NameError: name 'AdmaW'", "did you mean 'AdamW'?"),
    "a misspelled import": ("import Blocks, ViT", "import Blocks, Vit", "line 4: ImportError", "did you mean 'ViT'?"),
    "a misspelled attribute": ("AdamW()", "AdamW().shedule", "line 14: AttributeError", "did you mean 'schedule'?"),
    "a value of the wrong type": ("AdamW()", "1e-3", "optimizer: 0.001 is a value of type float, not", "Optimizer"),
    "a wrong type that its class trips over": ("width=16", "width='16'", "line 10: Blocks.width: '16'", "str, not int"),
    "a wrong type inside a mapping": (
        "steps=2",
        "steps=2, evals={'x': 3}",
        "evals: {'x': 3} is a value of",
        "Pipeline",
    ),
    "a list for a tuple": ("tuple(", "list(", "task.classes: ['0', ", "is a value of type list, not tuple[str, ...]"),
    "a number for a text": ("inputs='image'", "inputs=3", "inputs: 3 is a value of type int, not", "str"),
    "a value that its class refuses": ('"train"', '"trian"', "line 13: Digits has no split 'trian'", "'train'?"),
    "a syntax error": ("return Experiment(", "return Experiment((", "line 11: SyntaxError", "never closed"),
    "a package that is missing": ("\nfrom jaxtrain.data", "\nimport pandsa\nfrom jaxtrain.data", "line 2", "'pandsa'"),
    "an error of its own": (
        "    return",
        "    raise RuntimeError('no luck')\n    return",
        "line 11: RuntimeError",
        "luck",
    ),
    "no experiment": (" -> Experiment", "", "broken.py has no function annotated", "-> Experiment"),
    "a function that returns something else": ("    return", "    return 3\n    return", "main returned a int", ""),
}


@pytest.mark.parametrize("name", FILES)
def test_a_mistake_in_an_experiment_file_gets_one_message_with_its_line(name, call, folder):
    old, new, *says = FILES[name]
    text = DIGITS.replace('inputs="image"', "inputs='image'")
    assert old in text
    (folder / "broken.py").write_text(text.replace(old, new))
    message = refused(call, folder, "train", "broken.py")
    assert message.startswith("jaxtrain: broken.py")
    assert all(words in message for words in says), message


def test_an_experiment_file_may_not_take_the_name_of_a_module(call, folder):
    (folder / "json.py").write_text(TEXTS)
    assert "there is a Python module 'json' already" in refused(call, folder, "train", "json.py")
    assert sys.modules["json"] is json


def without_sklearn(name: str) -> Distribution:
    if name == "scikit-learn":
        raise PackageNotFoundError(name)
    return Distribution.from_name(name)


def test_a_missing_package_is_named_with_the_command_that_installs_it(call, folder, monkeypatch):
    digits._load.cache_clear()
    monkeypatch.setattr("importlib.metadata.distribution", without_sklearn)
    assert "pip install scikit-learn" in refused(call, folder, "train", "tiny_digits.py")


def test_a_missing_extra_is_named_with_the_command_that_installs_it(call, folder, monkeypatch):
    run = begin(folder / "run", load("tiny_digits.py")[0], None)
    (folder / "three.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "pip install 'jaxtrain[images]'" in refused(call, folder, "predict", run.folder, "three.png")


def test_a_file_that_is_no_image_is_refused(call, folder):
    run = begin(folder / "run", load("tiny_digits.py")[0], None)
    np.save(folder / "small.npy", np.zeros((3, 3)))
    (folder / "bad.npy").write_text("no array")
    for name, says in (
        ("texts.py", "texts.py cannot be read as a image of shape [8, 8, 1]: cannot identify image file"),
        ("small.npy", "small.npy cannot be read as a image of shape [8, 8, 1]: cannot reshape array of size 9"),
        ("bad.npy", "bad.npy cannot be read as a image of shape [8, 8, 1]"),
        ("none.png", "this model reads files with its 'image', and there is no file none.png"),
    ):
        assert says in refused(call, folder, "predict", run.folder, name)


def test_a_run_of_another_experiment_is_refused_with_the_differences(call, folder, trained):
    message = refused(call, trained, "train", "texts.py", "--run", trained, "--optimizer.b2", "0.9")
    assert "is a run of another experiment" in message
    assert message.endswith("What differs (run → now): optimizer.b2: 0.999 → 0.9")


def test_a_folder_that_cannot_be_written_is_refused(call, folder, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    assert "the run folder here cannot be written: Permission denied" in refused(
        call, folder, "train", "texts.py", "--run", "here"
    )


def test_a_folder_that_cannot_be_looked_into_is_refused(call, folder, monkeypatch):
    def denied(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", denied)
    assert "cannot be written: Permission denied" in refused(call, folder, "train", "texts.py", "--run", "here")


def test_what_is_left_of_a_folder_whose_making_was_killed_is_no_hindrance(folder):
    experiment, origin = load("texts.py")
    (folder / "run").mkdir()
    for name in ("texts.py", "environment.json", ".experiment.json.7.tmp"):
        (folder / "run" / name).write_text("half")
    begun = replace(experiment, optimizer=with_horizon(experiment.optimizer, experiment.steps))
    assert begin(folder / "run", experiment, origin).experiment == begun


def test_an_unknown_step_split_or_run_is_refused_with_those_that_there_are(call, trained, monkeypatch):
    code = trained.parent / "texts.py"
    step = refused(call, trained, "evaluate", trained, "--code", code, "--step", "7")
    assert "7" in step
    assert "2" in step.partition("7")[2]
    split = refused(call, trained, "evaluate", trained, "--code", code, "--split", "tset")
    assert "no split 'tset'; did you mean 'test'?" in split
    assert f"runs below it: {trained}" in refused(call, trained, "evaluate", trained.parent)
    monkeypatch.delitem(sys.modules, "texts")  # it was trained in this process
    without_code = refused(call, trained, "evaluate", trained)
    assert "Texts comes from the module 'texts', which is not imported" in without_code
    assert "with --code FILE" in without_code


def test_train_evaluate_and_predict_work_from_the_command_line(call, trained):
    code = trained.parent / "texts.py"
    assert [line["step"] for line in read_metrics(trained) if line["split"] == "test"] == [2]
    evaluated = call("evaluate", trained, "--code", code)
    assert evaluated.code == 0
    assert evaluated.out.startswith("test")
    assert "accuracy" in evaluated.out
    text = "Adorei! Se eu pudesse dar 1000 estrelas não daria nenhuma :)"
    predicted = call("predict", trained, text, "bad", "--code", code)
    assert predicted.code == 0
    first, second = predicted.out.splitlines()
    assert first.endswith(text)
    assert {"negative", "positive"} < set(second.split())


@pytest.mark.slow
def test_the_same_command_goes_on_with_a_run_also_for_more_steps(call, folder):
    assert call("train", "texts.py", "--run", "run", "--steps", "1").code == 0
    assert call("train", "texts.py", "--run=run", "--steps", "2", "--log-every", "1").code == 0
    events = [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["kind"] == "begun"] == [0, 1]


def test_every_kind_of_flag_reaches_its_field(folder):
    flags = [
        "--task.model.blocks.width",
        "128",
        "--task.model.blocks.attention",
        "dense",
        "--task.model.blocks.remat",
        "full",
        "--task.model.blocks.precision.compute",
        "bfloat16",
        "--task.model.blocks.kv-heads",
        "1",
        "--layout.mesh",
        "data",
        "2",
        "tensor",
        "4",
        "--optimizer.schedule.peak",
        "1e-2",
        "--optimizer.clip",
        "None",
        "--optimizer.ema",
        "0.9",
        "--data.no-shuffle",
        "--data.batch-size",
        "32",
        "--keep.every",
        "100",
        "--log-every",
        "1",
        "--eval-every",
        "2",
        "--save-every",
        "3",
        "--deadline",
        "9",
        "--compiler-options",
        "xla_cpu_enable_fast_math",
        "true",
        "xla_dump_to",
        "here",
        "--task.classes",
        "a",
        "b",
    ]
    experiment = parse("tiny_digits.py", flags).experiment
    assert isinstance(experiment.task, Classification)
    assert isinstance(experiment.task.model, ViT)
    blocks = experiment.task.model.blocks
    assert (blocks.width, blocks.attention, blocks.remat, blocks.kv_heads) == (128, "dense", "full", 1)
    assert blocks.precision.compute == "bfloat16"
    assert blocks.layers == 1  # what the file says stays
    assert experiment.layout.mesh == {"data": 2, "tensor": 4}
    optimizer = experiment.optimizer
    assert isinstance(optimizer, Standard)
    assert (optimizer.schedule.peak, optimizer.clip, optimizer.ema) == (0.01, None, 0.9)
    assert (experiment.data.shuffle, experiment.data.batch_size) == (False, 32)
    assert experiment.task.classes == ("a", "b")
    options = {"xla_cpu_enable_fast_math": True, "xla_dump_to": "here"}
    assert experiment.runtime == Runtime(
        log_every=1, eval_every=2, save_every=3, keep=Retention(every=100), deadline=9, compiler_options=options
    )
    assert parse("texts.py", ["--evals.test.batch-size", "32"]).experiment.evals["test"].batch_size == 32


def test_explain_takes_any_number_of_devices(call, folder):
    flags = ["--layout.mesh", "data", "-1", "--data.batch-size", "1024", "--evals.test.batch-size", "512"]
    result = call("explain", "texts.py", "--devices", "512", *flags)
    assert result.code == 0
    assert result.out.startswith("512 devices: data 512")


def test_mappings_are_replaced_by_flags_whatever_the_experiment_has_there(folder):
    for before in ("{}", "{'data': 8}", "{'tensor': 2, 'data': 4}"):
        (folder / "meshes.py").write_text(
            "from dataclasses import replace\nfrom jaxtrain import Experiment, Layout\nimport texts\n\n"
            f"def main() -> Experiment:\n    return replace(texts.main(), layout=Layout({before}))\n"
        )
        sys.path.append(str(folder))
        assert parse("meshes.py", []).experiment.layout.mesh == eval(before)
        for words, mesh in (("data 2 tensor 4", {"data": 2, "tensor": 4}), ("fsdp -1", {"fsdp": -1}), ("", {})):
            experiment = parse("meshes.py", ["--layout.mesh", *words.split(), "--steps", "3"]).experiment
            assert (experiment.layout.mesh, list(experiment.layout.mesh)) == (mesh, list(mesh))
            assert experiment.steps == 3


def test_help_comes_from_docstrings_for_the_program_every_group_and_every_verb(call, folder):
    top = call("--help").out
    assert call().out == top
    assert "{train,explain,memory,verify,verify-resume,evaluate,predict,export,generate,replay,compare,diff" in top
    assert "Train an experiment, or resume its run." in top
    assert call("data").out == call("data", "--help").out
    assert "Build a dataset: a folder of files with a card." in call("data").out
    for words, shown in (
        ("train --help", "FILE[:FUNCTION]"),
        ("evaluate --help", 'The saved step, "best" or "latest"; the latest by default.'),
        ("data build --help", "The function that describes the dataset, annotated `-> Dataset`."),
        ("launch slurm --help", "Flags of `jaxtrain train`, after two dashes."),
    ):
        result = call(*words.split())
        assert result.code == 0
        assert shown in " ".join(result.out.replace("│", " ").split())


@pytest.mark.parametrize("verb", ["train", "explain", "verify", "data bench"])
def test_the_help_of_a_verb_with_an_experiment_has_every_field_with_its_value(call, folder, verb):
    result = call(*verb.split(), "texts.py", "--help")
    assert result.code == 0
    text = " ".join(result.out.replace("│", " ").split())
    assert "--task.model.width INT" in text
    assert "--log-every INT Steps between two lines of training metrics. (default: 50)" in text
    assert "--keep.best {None}|STR" in text
    assert "--steps INT The number of updates. (default: 2)" in text
    assert "--runtime" not in text


def test_a_verb_names_what_is_wrong_of_its_own_flags_only(call, folder):
    message = refused(call, folder, "train", "texts.py", "--log-evry", "3")
    assert "--log-every INT" in message
    assert "data bench" not in message


def test_the_help_of_the_program_imports_no_library_that_is_slow():
    slow = ("grain", "orbax.checkpoint", "matplotlib", "tensorboardX", "sklearn", "PIL")
    code = f"""
import sys
sys.argv = ["jaxtrain", "--help"]
from jaxtrain.cli.main import main
try:
    main()
except SystemExit:
    print(*({slow!r} & sys.modules.keys()), file=sys.stderr)
""".replace("('grain'", "{'grain'").replace("'PIL')", "'PIL'}")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.split() == []
    assert "usage: jaxtrain" in done.stdout


COMPLETED = {
    "jaxtrain tr": ["train"],
    "jaxtrain data be": ["bench"],
    "jaxtrain train texts.py --ru": ["--run"],
    "jaxtrain evaluate runs --s": ["--step", "--split"],
    "jaxtrain train tiny": ["tiny_digits.py"],
    "jaxtrain data card tiny": ["tiny_digits.py"],
    "jaxtrain train texts.py --run te": ["texts.py"],
}


def test_bash_completes_verbs_flags_and_files_with_the_script_that_is_printed(call, folder):
    (folder / "script").write_text(call("completion", "bash").out)
    for line, found in COMPLETED.items():
        words = line.split()
        program = (
            f"source ./script; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'; "
            "complete -p jaxtrain; $(complete -p jaxtrain | grep -o '_tyro_[a-z]*'); printf '%s\n' \"${COMPREPLY[@]}\""
        )
        done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
        head, *completions = done.stdout.splitlines()
        assert "-o filenames" in head  # a folder is completed with its slash
        assert completions == found, line


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_scripts_of_other_shells_complete_files_where_no_flag_fits(call, shell):
    result = call("completion", shell)
    assert result.code == 0
    assert "or ['__TYRO_COMPLETE_FILES__']:" in result.out
    assert result.out.startswith({"zsh": "#compdef jaxtrain", "fish": "# AUTO"}[shell])


@pytest.mark.slow
def test_the_real_command_exits_with_2_and_shows_a_traceback_only_when_asked(folder):
    command = [sys.executable, "-m", "jaxtrain"]
    calls = (
        ["train", "texts.py", "--task.model.widht", "8"],
        ["train", "texts.py", "--microbatches", "3", "--run", "r"],
        ["--debug", "train", "texts.py:mian"],
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(command + call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for call in calls
    ]
    (flag, microbatches, debug) = [process.communicate(timeout=100)[1] for process in started]
    assert [process.returncode for process in started] == [2, 2, 2]
    assert "--task.model.width" in flag
    assert microbatches.startswith("jaxtrain: microbatches: 3 do not divide")
    assert len(microbatches.splitlines()) == 1
    assert "Traceback" not in flag
    assert "Traceback" in debug
    assert "did you mean 'main'?" in debug
    assert not (folder / "r").exists()


def test_damaged_data_ends_a_run_with_one_message_that_names_file_and_record(call, folder, monkeypatch):
    def damaged(*_):
        raise Damaged("shard.bin", 7, "it cannot be read")

    monkeypatch.setattr("jaxtrain.train.train", damaged)
    result = call("train", "tiny_digits.py")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("jaxtrain: damaged data: shard.bin, record 7: it cannot be read `jaxtrain data check`")
    assert "Tolerant(source, limit)" in result.err
    shown = call("--debug", "train", "tiny_digits.py")
    assert shown.code == 1
    assert "Traceback" in shown.err
    assert "shard.bin, record 7" in shown.err
