"""Where each value of an experiment came from is recorded, and stays when a run resumes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import tiny

from jaxtrain import fit
from jaxtrain.base.config import to_json
from jaxtrain.cli.flags import parse
from jaxtrain.data import Arrays, Pipeline, Standardize
from jaxtrain.experiment.files import Origin
from jaxtrain.experiment.origins import given_paths, json_paths, origins, read_origins
from jaxtrain.experiment.run_file import read_saved
from jaxtrain.runs.begin import begin
from jaxtrain.runs.folder import Run

FILE = Path(tiny.__file__)


def recorded(run: Run) -> dict[str, str]:
    return read_origins(read_saved(run.folder))


def test_a_value_is_from_the_command_line_the_file_or_a_default(tmp_path: Path):
    chosen = parse(str(FILE), ["--optimizer.schedule.peak", "0.5", "--seed=0", "--log-every", "1", "--steps", "6"])
    found = recorded(begin(tmp_path / "run", chosen.experiment, chosen.origin))
    assert found["optimizer.schedule.peak"] == "command line"
    assert found["seed"] == "command line"  # though 0 is the default
    assert found["runtime.log_every"] == "command line"  # though the file says 1 too
    assert found["steps"] == "command line"
    assert found["optimizer.schedule.warmup"] == "file"
    assert found["optimizer.kind"] == "file"
    assert found["data.source.rows"] == "file"
    assert found["evals.validation.batch_size"] == "file"
    assert found["runtime.save_every"] == "file"
    assert "optimizer.b2" not in found  # a default of AdamW
    assert "runtime.deadlines.lock" not in found
    assert "layout.mesh" not in found


def test_the_flag_of_a_mapping_covers_its_entries(tmp_path: Path):
    chosen = parse(str(FILE), ["--layout.mesh", "data", "2", "--data.no-shuffle"])
    assert chosen.origin.flags == ("layout.mesh", "data.shuffle")
    found = recorded(begin(tmp_path / "run", chosen.experiment, chosen.origin))
    assert found["layout.mesh.data"] == "command line"
    assert found["data.shuffle"] == "command line"


def test_flags_of_a_verb_are_no_fields():
    words = ["--run", "runs/x", "--verify", "--keep.last", "3", "--check-export"]
    assert given_paths(tiny.main(), words) == ("runtime.keep.last",)


def test_an_experiment_of_a_notebook_is_from_python(tmp_path: Path):
    found = recorded(begin(tmp_path / "run", tiny.main(), None))
    assert {found[path] for path in ("steps", "optimizer.kind", "task.model.vocab")} == {"python"}


def test_what_is_fitted_and_the_horizon_are_derived(tmp_path: Path):
    x = np.arange(40, dtype=np.float32).reshape(20, 2)
    data = Pipeline(Arrays({"x": x}), batch_size=4, transforms=(Standardize(("x",)),))
    experiment = fit(replace(tiny.main(), data=data, evals={}))
    saved = to_json(experiment)
    before = to_json(replace(experiment, seed=3))
    found = origins(experiment, saved, before, (), "file")
    assert found["seed"] == "derived"  # it is another than before
    fitted = [path for path in json_paths(saved) if path.startswith("data.transforms.0.fitted")]
    assert fitted
    assert {found[path] for path in fitted} == {"derived"}
    assert found["data.transforms.0.kind"] == "file"
    given = {"task": {"fitted_by": 1}}
    assert origins(experiment, given, given, (), "file") == {"task.fitted_by": "file"}  # only a field named `fitted`
    run = begin(tmp_path / "run", tiny.main(), Origin(FILE, "main"))
    horizon = [path for path, origin in recorded(run).items() if origin == "derived"]
    assert horizon == ["optimizer.schedule.steps"]


def test_a_run_that_resumes_keeps_the_origins_of_what_stays(tmp_path: Path):
    first = parse(str(FILE), ["--optimizer.schedule.peak", "0.5"])
    begin(tmp_path / "run", first.experiment, first.origin)
    again = replace(first.experiment, runtime=replace(first.experiment.runtime, save_every=7))
    found = recorded(begin(tmp_path / "run", again, None))
    assert found["optimizer.schedule.peak"] == "command line"
    assert found["optimizer.schedule.warmup"] == "file"
    assert found["runtime.save_every"] == "python"


def test_origins_are_not_in_the_fingerprint_and_old_or_odd_ones_are_read(tmp_path: Path):
    one, two = begin(tmp_path / "one", tiny.main(), None), begin(tmp_path / "two", tiny.main(), Origin(FILE, "main"))
    assert one.saved["fingerprint"] == two.saved["fingerprint"]
    saved = json.loads((two.folder / "experiment.json").read_text())
    assert read_origins({**saved, "origins": {"seed": 3, "steps": "file"}}) == {"steps": "file"}
    del saved["origins"]
    (two.folder / "experiment.json").write_text(json.dumps(saved))
    assert read_origins(read_saved(two.folder)) == {}
    assert recorded(begin(tmp_path / "two", tiny.main(), None))["steps"] == "python"  # from now on they are known
