"""What the memory of a step is taken by, and what would save most of it."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import pytest
import tiny

from jaxtrain.analysis.hlo import temporaries
from jaxtrain.analysis.memory import Plan, account, changes, plan, savings
from jaxtrain.cli import memory as cli_memory
from jaxtrain.cli.terminal import report_error
from jaxtrain.sharding.layout import Layout

HLO = """HloModule jit_f

FileNames
1 "/mine/model.py"

FunctionNames
1 "loss"

FileLocations
1 {file_name_id=1 function_name_id=1 line=6 end_line=6 column=11 end_column=51}

StackFrames
1 {file_location_id=1 parent_frame_id=1}

%fused (p: f32[4]) -> f32[4] {
  %inside.1 = f32[1000000]{0} broadcast(%p), dimensions={}
}

%body (p.1: (f32[8])) -> (f32[8]) {
  %attention = f32[16,64]{1,0} fusion(%p.1), kind=kLoop, calls=%fused, metadata={op_name="dot" stack_frame_id=1}
  ROOT %t = (f32[8]{0}) tuple(%p.1)
}

ENTRY %main (x: f32[4096]) -> (f32[4096]) {
  %x = f32[4096]{0} parameter(0)
  %logits = bf16[10,3]{1,0} copy(%x), metadata={op_name="logits"}
  %again = bf16[10,3]{1,0} copy(%logits), metadata={op_name="logits"}
  %w = (f32[8]{0}) while(%x), condition=%cond, body=%body
  %new = f32[4096]{0} add(%x, %x)
  ROOT %out = (f32[4096]{0}) tuple(%new)
}
"""


def test_temporaries_are_made_in_loops_too_but_not_inside_of_fusions_and_are_not_returned():
    found = [(one.bytes, one.type, one.where, one.frame) for one in temporaries(HLO)]
    assert found == [(4096, "f32[16,64]", "dot", 1), (60, "bf16[10,3]", "logits", 0)]


@pytest.fixture(scope="module")
def planned():
    return plan(tiny.main(), jax.devices()[:1])


def test_parameters_optimizer_state_and_batch_are_counted_as_by_hand(planned):
    # A row of the batch: 17 tokens of i32 and a mask of one byte; 16 rows. Adam has two moments, and there is an average.
    assert planned.groups["batch"] == 16 * (17 * 4) + 16
    assert planned.groups["gradients"] == planned.groups["parameters"]
    assert 3 * planned.groups["parameters"] <= planned.groups["optimizer state"] < 3.1 * planned.groups["parameters"]
    assert planned.peak > sum(planned.groups.values()) * 0.9
    assert any("jaxtrain/models/" in line and ", line " in line for line in planned.largest)


@pytest.mark.slow
def test_a_parameter_that_is_split_counts_as_its_part():
    split = plan(tiny.fsdp(), jax.devices()[:4])
    whole = plan(tiny.main(), jax.devices()[:1])
    assert whole.groups["parameters"] / 4 <= split.groups["parameters"] < whole.groups["parameters"] / 3


def test_the_changes_that_save_most_come_first_with_what_they_save(planned, monkeypatch):
    peaks = {"microbatches": 90, "remat": 50, "batch_size": 60}
    names = {name: experiment for name, experiment in changes(tiny.main(), jax.devices()[:1])}
    assert [name.split()[0] for name in names] == ["microbatches", "remat", "batch_size", "layout.offload"]

    def fake(experiment, devices):
        name = next(name for name, one in names.items() if one == experiment)
        if "offload" in name:
            raise ValueError("no such memory here")
        return Plan(peaks[name.split()[0]], {}, ())

    monkeypatch.setattr("jaxtrain.analysis.memory.plan", fake)
    found = savings(tiny.main(), Plan(100, {"optimizer state": 45}, ()), jax.devices()[:1])
    assert [line.split()[0] for line in found] == ["remat", "layout.offload", "batch_size"]
    assert [line.rpartition(": ")[2] for line in found] == ["50 B less", "45 B less", "40 B less"]


def test_with_several_devices_splitting_over_them_is_among_the_changes():
    names = [name for name, _ in changes(replace(tiny.main(), layout=Layout({"data": -1})), jax.devices()[:4])]
    assert names[-1] == "layout.mesh fsdp -1 (4 devices)"


def test_an_account_in_brief_has_three_lines(planned, monkeypatch):
    monkeypatch.setattr("jaxtrain.analysis.memory.plan", lambda experiment, devices: planned)
    lines = account(tiny.main(), jax.devices()[:1], brief=True).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("a device needs ")
    assert "parameters " in lines[0]
    assert lines[1].startswith("largest temporaries: ")
    assert lines[2] == "what would help: none that is known here: use more devices, or a smaller model"


GPU = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12884901888 bytes."
TPU = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (17.38G) exceeds available HBM (15.75G). HLO module: jit_step."
)


@pytest.mark.parametrize("text", [GPU, TPU])
def test_an_error_of_a_device_without_memory_is_told_with_the_account_in_five_lines(
    text, monkeypatch, capsys, tmp_path
):
    calls = []

    def run(command, **options):
        calls.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="one\ntwo\nthree\n")

    monkeypatch.setattr(cli_memory.subprocess, "run", run)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["jaxtrain", "train", "lm.py", "--run", "r", "--microbatches", "2", "--verify"])
    assert report_error(jax.errors.JaxRuntimeError(text)) == 3
    lines = capsys.readouterr().err.splitlines()
    assert text[:100] in lines[0]
    assert lines[1:4] == ["one", "two", "three"]
    assert len(lines) == 5
    assert calls[0][1:] == ["-m", "jaxtrain", "memory", "lm.py", "--microbatches", "2", "--brief", "--devices", "8"]


@pytest.mark.slow
def test_a_training_that_really_does_not_fit_ends_with_3_and_says_what_takes_it_and_what_would_help(tmp_path):
    (tmp_path / "tiny.py").write_text((Path(__file__).parent / "tiny.py").read_text())
    limit = f"ulimit -v 7000000; exec {sys.executable} -m jaxtrain"
    command = f"{limit} train tiny.py --run r --data.batch-size 65536 --steps 2 --optimizer.schedule.warmup 0"
    own = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=own, capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("jaxtrain: "))
    assert done.returncode == 3, done.stderr
    assert len(lines) - first <= 5
    assert "parameters " in lines[first + 1]
    assert "largest temporaries: " in lines[first + 2]
    assert "what would help: " in lines[first + 3]
