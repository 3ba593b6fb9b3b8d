"""`jaxtrain replay`: planted faults are found at their line, layer and example, and what is not reproduced is said."""

import json
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import jax
import jax.numpy as jnp
import launch
import numpy as np
import poison
import pytest
import tiny

from jaxtrain import Run
from jaxtrain.analysis.replay import rerun as rerun_module
from jaxtrain.analysis.replay.content import content_of, wrong_numbers
from jaxtrain.analysis.replay.equations import Evaluation, Place, first_fault
from jaxtrain.analysis.replay.explain import Explanation, explain_step
from jaxtrain.analysis.replay.loops import Evaluated, Flow
from jaxtrain.analysis.replay.notebook import write_notebook
from jaxtrain.analysis.replay.places import range_of
from jaxtrain.analysis.replay.report import as_json, page, verdict
from jaxtrain.analysis.replay.reproduced import reproduced
from jaxtrain.analysis.replay.rerun import ONE_DEVICE, layout_of, preference, rerun
from jaxtrain.analysis.replay.shares import shares
from jaxtrain.base.errors import ConfigError, Damaged, Diverged
from jaxtrain.base.files import write_json
from jaxtrain.data import Arrays, Pipeline
from jaxtrain.data.tokens.tokenizers import Bytes, Tokenize
from jaxtrain.experiment import Experiment
from jaxtrain.models import Blocks, Transformer
from jaxtrain.runs.metrics_log import read_metrics
from jaxtrain.runs.steps_log import StepsLog, read_steps
from jaxtrain.sharding.layout import Layout
from jaxtrain.step import init_state
from jaxtrain.tasks import LanguageModel
from jaxtrain.train import train

POISONED = 4
"""The step whose batch has example 13, by the seed."""

MESH = Layout({"data": 4, "tensor": 2})

EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    "log": poison.log,
    "sqrt": lambda: poison.experiment("sqrt"),
    "exp": lambda: poison.experiment("exp"),
    "microbatches": lambda: poison.experiment("log", microbatches=2),
    "mesh": poison.mesh,
    "mesh and microbatches": lambda: poison.experiment("sqrt", microbatches=2, layout=MESH),
    "spike": poison.spike,
}


@cache
def trained(name: str) -> Run:
    """A run of one of these, which diverges where it is poisoned."""
    folder, experiment = Path(mkdtemp()) / "run", EXPERIMENTS[name]()
    try:
        train(experiment, folder)
    except Diverged:
        assert name != "spike"
    return Run(folder, experiment=experiment)


@cache
def explained(name: str, step: int = POISONED) -> Explanation:
    return explain_step(rerun(trained(name), step))


@pytest.mark.parametrize(
    ("name", "phase", "primitive", "line", "passes"),
    [
        ("log", "forward pass", "log", "# LOG", ("layer 3 of 0…4",)),
        pytest.param("sqrt", "backward pass", "div", "# SQRT", ("layer 3 of 0…4",), marks=pytest.mark.slow),
        pytest.param("exp", "forward pass", "exp", "# EXP", (), marks=pytest.mark.slow),
        pytest.param(
            "microbatches",
            "forward pass",
            "log",
            "# LOG",
            ("microbatch 1 of 0…1", "layer 3 of 0…4"),
            marks=pytest.mark.slow,
        ),
        ("mesh", "forward pass", "log", "# LOG", ("layer 3 of 0…4",)),
        pytest.param(
            "mesh and microbatches",
            "backward pass",
            "div",
            "# SQRT",
            ("microbatch 1 of 0…1", "layer 3 of 0…4"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_poison_example_is_explained_by_line_layer_and_example(
    name: str, phase: str, primitive: str, line: str, passes: tuple[str, ...]
) -> None:
    found = explained(name)
    assert found.reproduced.exactly
    assert found.reproduced.steps == (1, 2, 3, 4)
    fault = found.fault
    assert fault is not None
    assert (fault.phase, fault.primitive, fault.parts) == (phase, primitive, passes)
    assert fault.frame is not None
    assert Path(fault.frame.file).name == "poison.py"
    assert fault.frame.source.endswith(line)
    assert found.poisoned == 1
    assert found.examples[0].where == f"example {poison.POISON} of Arrays"
    first = verdict(found)
    assert all(words in first for words in (phase, f"poison.py:{fault.frame.line}", "example 13", *passes))
    assert len(page(found).splitlines()) <= 40


def test_it_says_what_goes_in_and_comes_out_and_the_parameter_of_the_layer() -> None:
    text = page(explained("log"))
    assert re.search(r"out  f32\[8,8\] in \S+, 8 of 64 not finite \(8 -inf\), first at \[3,0\]", text)
    assert "parameter: kernel[3], the last one that was read" in text
    assert "x: [0 0 0 0 0 0 0 0]" in text
    assert "· Tower" in text


def test_a_rate_that_jumps_is_explained_in_its_step_and_in_the_next() -> None:
    own, following = explained("spike", 9), explained("spike", 10)
    assert "learning rate of step 9 is 50 times that of the step before: 0.05" in verdict(own)
    assert re.search(r"update of (kernel\[\d\]|head) is 50\.\d+ times", verdict(own))
    assert "learning rate of step 9 is 50 times" in verdict(following)
    assert re.search(r"gradient of (kernel\[\d\]|head) is \d+\.\d+ times its median", verdict(following))
    assert own.fault is None
    quiet = explained("spike", 8)
    assert verdict(quiet).endswith("nothing in it is out of line")


def test_a_step_after_the_first_that_is_not_finite_points_to_that_one(tmp_path: Path) -> None:
    found = explained("log", 6)
    assert verdict(found) == (
        "step 6 begins with a state that is not finite: the first such step is 4, so replay --step 4"
    )


def log_of_steps(folder: Path, records: list[tuple[int, float, float, int]]) -> None:
    """A steps.bin by the documented format."""
    data = b"jaxtrain steps 1"
    for record in records:
        body = struct.pack("<qffQB", *record, 0)
        data += body + struct.pack("<I", zlib.crc32(body))
    (folder / "steps.bin").write_bytes(data)


def copied(name: str, tmp_path: Path) -> Run:
    run = trained(name)
    (tmp_path / "run").mkdir()
    for file in ("experiment.json", "environment.json", "metrics.jsonl", "events.jsonl"):
        (tmp_path / "run" / file).write_bytes((run.folder / file).read_bytes())
    return Run(tmp_path / "run", experiment=run.experiment)


def test_steps_are_compared_bit_by_bit_with_the_log_and_what_differs_is_named(tmp_path: Path) -> None:
    run, moment = copied("spike", tmp_path), explained("spike", 9).moment
    lines = [line for line in read_metrics(run.folder) if line["split"] == "train"]
    records = [(line["step"], line["loss"], line["gradient_norm"], 0) for line in lines]
    metrics = {step: {**found, "batch": np.zeros(2, np.uint32)} for step, found in moment.metrics.items()}
    log_of_steps(run.folder, records)
    same = reproduced(run.folder, metrics)
    assert (same.exactly, same.file, same.steps) == (True, "steps.bin", tuple(range(1, 10)))
    environment = json.loads((run.folder / "environment.json").read_text())
    environment["packages"]["jax"] = "0.0.1"
    write_json(run.folder / "environment.json", environment)
    ulp = np.nextafter(np.float32(records[4][1]), np.float32(9))
    log_of_steps(run.folder, [*records[:4], (5, float(ulp), *records[4][2:]), *records[5:]])
    other = reproduced(run.folder, metrics)
    assert other.step == 5
    assert other.difference.startswith("the numbers differ: loss was")
    assert f"jax was 0.0.1 and is {jax.__version__}" in other.causes
    found = replace(explained("spike", 9), reproduced=other)
    assert "not reproduced: at step 5 (steps.bin) the numbers differ: loss was" in page(found)
    assert as_json(found)["reproduced"]["bitwise"] is False


def test_other_data_are_named_before_the_numbers_that_they_give(tmp_path: Path) -> None:
    run, moment = copied("spike", tmp_path), explained("spike", 9).moment
    metrics = {1: {**moment.metrics[1], "batch": np.array([1, 7], np.uint32)}}
    loss, norm = (float(moment.metrics[1][name]) for name in ("loss", "gradient_norm"))
    log_of_steps(run.folder, [(1, loss, norm, 7 + 2**32)])
    assert reproduced(run.folder, metrics).exactly
    log_of_steps(run.folder, [(1, 0.0, 0.0, 8 + 2**32)])
    found = reproduced(run.folder, metrics)
    assert found.difference == ("the data differ: the batch's checksum was 0000000100000008 and is 0000000100000007")


def test_without_a_log_of_steps_whole_periods_of_metrics_are_compared(tmp_path: Path) -> None:
    run, moment = copied("spike", tmp_path), explained("spike", 9).moment
    assert reproduced(run.folder, moment.metrics).file == "metrics.jsonl"
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    lines[2]["gradient_norm"] *= 1.0000001
    (run.folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert reproduced(run.folder, moment.metrics).step == 3
    (run.folder / "metrics.jsonl").unlink()
    nothing = reproduced(run.folder, moment.metrics)
    assert (nothing.exactly, nothing.steps, nothing.difference) == (False, (), "")


def test_a_checkpoint_a_few_steps_earlier_is_preferred_and_a_damaged_one_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def best(saved: list[int], step: int, since: int = 0) -> int:
        return max(saved, key=lambda each: preference(each, step, since))

    assert best([0, 500, 1000], 1400) == 1000
    assert best([0, 500, 1000], 1001) == 1000
    assert best([0, 970, 990, 1000], 1001) == 990
    assert best([0, 4], 5) == 0
    assert best([0, 4, 6], 8, since=4) == 6
    from jaxtrain.runs.checkpoints import Checkpoints

    original = Checkpoints.restore

    def damaged(self: Any, abstract: Any, step: Any = None) -> Any:
        if step == 4:
            raise Damaged("checkpoints/4/state", None, "a bit was flipped")
        return original(self, abstract, step)

    monkeypatch.setattr(Checkpoints, "restore", damaged)
    monkeypatch.setattr(rerun_module, "preference", lambda saved, step, since: saved)
    moment = rerun(trained("spike"), 7)
    assert moment.start == 0
    assert "checkpoint of step 4 is damaged" in moment.notes[0]


def test_a_run_from_a_checkpoint_is_bitwise_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rerun_module, "preference", lambda saved, step, since: saved)
    found = explain_step(rerun(trained("spike"), 11))
    assert found.moment.start == 8
    assert found.reproduced.exactly
    assert found.reproduced.steps == (9, 10, 11)


def test_the_mesh_of_the_step_is_taken_from_the_log_of_the_run(tmp_path: Path) -> None:
    run = copied("spike", tmp_path)
    events = [(0, {"data": 1}), (4, {"data": 4, "tensor": 2}), (8, {"data": 1})]
    lines = [{"kind": "begun", "step": step, "mesh": mesh} for step, mesh in events]
    (run.folder / "events.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert layout_of(run, 4) == (Layout(), 0)
    assert layout_of(run, 5) == (MESH, 4)
    assert layout_of(run, 9) == (Layout(), 8)


def test_missing_devices_and_steps_are_said_and_one_device_is_offered() -> None:
    run = trained("mesh")
    with pytest.raises(ConfigError, match=r"--step 13: .* has steps 1 to 12"):
        rerun(run, 13)
    run = Run(run.folder, experiment=replace(run.experiment, layout=Layout({"data": 16})))
    with pytest.raises(ConfigError, match=r"(?s)trained on 16 devices \(mesh data 16\), and 8 are here.*one-device"):
        rerun_module.devices_for(run, run.experiment.layout)
    found = explain_step(rerun(trained("mesh"), POISONED, ONE_DEVICE))
    assert found.moment.program.mesh.size == 1
    assert found.fault is not None
    assert found.fault.parts == ("layer 3 of 0…4",)


def test_shares_are_those_of_a_reference_in_numpy() -> None:
    experiment = poison.experiment()
    batch = next(experiment.data.batches())
    optimizer = experiment.optimizer.transformation(12, {})
    state = init_state(experiment.task, optimizer, jax.random.key(0), batch)
    kernels, head = np.asarray(state.params["kernel"], np.float64), np.asarray(state.params["head"], np.float64)

    hidden = [np.asarray(batch["x"], np.float64)]
    for kernel in kernels:
        hidden.append(0.5 * hidden[-1] @ kernel)
    errors = hidden[-1] @ head - batch["target"]
    gradients = []
    for row, error in enumerate(errors):
        back, parts = 2 * error * head, [2 * error * hidden[-1][row]]
        for kernel, below in zip(kernels[::-1], hidden[-2::-1], strict=True):
            parts.append(0.5 * np.outer(below[row], back).ravel())
            back = 0.5 * kernel @ back
        gradients.append(np.concatenate(parts))
    whole = np.sum(gradients, 0)
    found = {share.row: share for share in shares(experiment.task, state, batch).rows}
    for row, error in enumerate(errors):
        np.testing.assert_allclose(found[row].of_loss, error**2 / (errors**2).sum(), rtol=1e-4)
        np.testing.assert_allclose(found[row].gradient, np.linalg.norm(gradients[row]), rtol=1e-4)
        np.testing.assert_allclose(found[row].of_gradient, gradients[row] @ whole / (whole @ whole), rtol=1e-4)


def test_texts_are_shown_and_tokens_are_decoded_and_numbers_that_are_not_finite_named() -> None:
    data = Pipeline(
        Arrays({"text": np.array(["one two", "three"])}), (Tokenize(Bytes(), 9),), batch_size=2, shuffle=False
    )
    task = LanguageModel(model=Transformer(vocab=256, blocks=Blocks(width=8, layers=1, heads=2)))
    fields = content_of(data, task, next(data.batches()), 0, 1)
    assert fields["text"] == "'three'"
    assert fields["tokens"] == "9 tokens: 'three'"
    bad = {"x": np.array([[1, 2], [3, np.nan]], np.float32), "y": np.array([np.inf, 1]), "n": np.array([1, 2])}
    assert wrong_numbers(bad) == [(1, "x[1] is nan"), (0, "y is inf")]


def test_a_range_is_that_of_the_finite_numbers() -> None:
    values = np.array([[1, np.nan, 3], [np.inf, -2.5, np.inf]], np.float32)
    assert range_of(values) == "f32[2,3] in -2.5…3, 3 of 6 not finite (1 NaN, 2 inf), first at [0,1]"
    assert range_of(np.array([3, 1], np.int32)) == "i32[2] in 1…3"


def fault(function: Callable[..., Any], *arguments: Any) -> Evaluated | None:
    """The first fault of a function; its arguments are named 0, 1, …."""
    traced = jax.make_jaxpr(function)(*arguments)
    values = [Flow(x, str(number)) for number, x in enumerate(arguments)]
    return first_fault(Evaluation().run(traced.jaxpr, traced.consts, values, Place()))


ZEROS = np.zeros(3, np.float32)
ONES = np.ones(3, np.float32)


def test_infinities_of_masks_and_values_that_are_not_chosen_are_no_faults() -> None:
    def masked(x: jax.Array) -> jax.Array:
        guarded = jnp.where(x > 0, jnp.log(x), 0)  # -inf, and not chosen
        weights = jax.nn.softmax(jnp.where(jnp.arange(3) < 2, x, -jnp.inf))
        return guarded + weights

    assert fault(masked, ZEROS) is None
    found = fault(lambda x: masked(x) + jnp.sqrt(x - 1), ZEROS)
    assert found is not None
    assert found.primitive == "sqrt"


def test_of_two_faults_the_first_is_named_and_of_two_branches_the_one_that_is_chosen() -> None:
    both = fault(lambda x: jnp.log(x) + jnp.sqrt(x - 1), ZEROS)
    chosen = fault(lambda x: jnp.where(x > 0, jnp.log(x), jnp.sqrt(x - 1)), ZEROS)
    assert both is not None
    assert chosen is not None
    assert (both.primitive, chosen.primitive) == ("log", "sqrt")


def test_a_loop_that_runs_backward_is_taken_apart_backward() -> None:
    factors = np.array([1e20, 1e20, 1, 1], np.float32)  # the product overflows in the last pass, which is number 0
    found = fault(lambda y, k: jax.lax.scan(lambda y, k: (y * k, None), y, k, reverse=True)[0], np.float32(1), factors)
    assert found is not None
    assert found.parts == ("layer 0 of 0…3",)


def test_a_row_whose_scores_are_all_masked_is_a_fault_of_the_subtraction() -> None:
    found = fault(lambda x: jax.nn.softmax(jnp.where(x > 0, x, -jnp.inf)), ZEROS)
    assert found is not None
    assert found.primitive == "sub"


@pytest.mark.parametrize(
    ("wrap", "parts"),
    [
        (jax.jit, ()),
        (jax.checkpoint, ()),
        (lambda f: lambda x: jax.lax.cond(x[0] == 0, f, lambda x: x, x), ()),
        (
            lambda f: (
                lambda x: jax.lax.while_loop(
                    lambda now: now[0] < 3 - x[0], lambda now: (now[0] + 1, f(now[1] - (now[0] == 2))), (0.0, x + 1)
                )[1]
            ),
            ("pass 2",),
        ),
        (
            lambda f: lambda x: jax.lax.scan(lambda y, z: (f(y + z), None), x, jnp.array([1.0, 0.0, -1.0]))[0],
            ("pass 2",),
        ),
        (
            lambda f: (
                lambda x: jax.lax.scan(
                    lambda y, z: jax.lax.scan(lambda y, _: (f(y - z), None), y, None, 2), x + 1, jnp.array([0.0, 1.0])
                )[0]
            ),
            ("pass 1", "pass 0"),
        ),
    ],
    ids=["jit", "remat", "cond", "while", "scan", "scan in scan"],
)
def test_a_fault_is_found_inside_of(wrap: Callable[[Any], Any], parts: tuple[str, ...]) -> None:
    def inner(x: jax.Array) -> jax.Array:
        return jnp.where(jnp.log(x) < 0, x, jnp.abs(x)) + 0 * jnp.log(x)

    found = fault(wrap(inner), ZEROS)
    assert found is not None
    assert found.primitive == "log"
    assert len(found.parts) == len(parts)
    assert all(got.startswith(wanted) for got, wanted in zip(found.parts, parts, strict=True))


def test_the_backward_pass_of_remat_over_stacked_layers_names_the_layer() -> None:
    kernels = np.array([1.0, 1.0, 0.0, 1.0], np.float32)

    def loss(kernels: jax.Array, x: jax.Array) -> jax.Array:
        layer = jax.checkpoint(lambda x, kernel: (x + jnp.sqrt(kernel * x), None))
        return jax.lax.scan(layer, x, kernels)[0].sum()

    found = fault(jax.grad(loss), kernels, ONES)
    assert found is not None
    assert found.parts == ("layer 2 of 0…3",)
    assert "sqrt" in found.frames[0].source


def test_a_notebook_opens_the_step_and_its_cells_run(tmp_path: Path) -> None:
    run = trained("log")
    code = str(Path(poison.__file__)) + ":log"
    found = explain_step(rerun(Run(run.folder, code), POISONED))
    write_notebook(tmp_path / "step.ipynb", found, code, "run")
    written = json.loads((tmp_path / "step.ipynb").read_text())
    assert (written["nbformat"], written["nbformat_minor"]) == (4, 4)
    import nbformat

    nbformat.validate(nbformat.from_dict(written))
    names: dict[str, Any] = {}
    for cell in written["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "cell", "exec"), names)
    assert names["row"] == 3
    assert np.isnan(float(names["loss"].mean))
    assert int(names["state"].step) == POISONED - 1


@pytest.mark.slow
def test_a_transformer_with_dropout_and_averaged_parameters_is_reproduced(tmp_path: Path) -> None:
    run, _ = train(replace(tiny.main(), steps=3, evals={}), tmp_path / "run")
    found = explain_step(rerun(run, 3), top=16)
    assert found.reproduced.exactly
    assert found.fault is None
    assert sum(example.share.of_gradient for example in found.examples) == pytest.approx(1, 1e-3)


@pytest.mark.slow
def test_the_verb_prints_a_page_or_json_and_its_exit_code_says_whether_it_is_bitwise(tmp_path: Path) -> None:
    file = str(Path(poison.__file__))
    words = [sys.executable, "-m", "jaxtrain"]

    def call(*more: str) -> subprocess.CompletedProcess[str]:
        where = launch.environment(8)
        if "replay" in more:  # it simulates the devices of the run by itself
            flags = where["XLA_FLAGS"].split()
            where["XLA_FLAGS"] = " ".join(flag for flag in flags if "device_count" not in flag)
        return subprocess.run([*words, *more], env=where, capture_output=True, text=True, timeout=240, check=False)

    run = str(tmp_path / "run")
    assert call("train", f"{file}:mesh", "--run", run).returncode == 4
    done = call("replay", run, "--step", "4", "--code", f"{file}:mesh", "--notebook", str(tmp_path / "step.ipynb"))
    assert done.returncode == 0, done.stderr
    assert "log at" in done.stdout.splitlines()[0]
    assert "bitwise the same as the run" in done.stdout
    assert (tmp_path / "step.ipynb").is_file()
    columns: dict[str, Any] = {**read_steps(tmp_path / "run")}
    columns["loss"][0] *= 2
    (tmp_path / "run" / "steps.bin").unlink()
    StepsLog(tmp_path / "run").append(columns)
    done = call("replay", run, "--step", "4", "--code", f"{file}:mesh", "--json", "--top", "1")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["reproduced"]["step"] == 1
    assert found["first_not_finite"]["passes"] == ["layer 3 of 0…4"]
    assert found["examples"][0]["where"] == "example 13 of Arrays"
