"""`compare` of real runs that differ in one planted way names just that, and the step from which it acts."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from jaxtrain.data import Arrays, Pipeline
from jaxtrain.experiment import Experiment, Runtime
from jaxtrain.experiment.files import load
from jaxtrain.models import Blocks, Transformer
from jaxtrain.optimizers import AdamW, CosineDecay
from jaxtrain.reports.compare.comparison import Comparison, compare
from jaxtrain.runs.steps_log import read_steps
from jaxtrain.sharding.layout import Layout
from jaxtrain.train import train

FILE = """
from dataclasses import dataclass, replace

import jax.numpy as jnp
from test_compare import experiment
from scale import SCALE

from jaxtrain.experiment import Experiment
from jaxtrain.tasks import LanguageModel

FROM = 1000


@dataclass(frozen=True, kw_only=True)
class Scaled(LanguageModel):
    def loss(self, variables, batch, context):
        found = super().loss(variables, batch, context)
        scale = jnp.where(context.step >= FROM, 2.0, SCALE)
        return replace(found, mean=replace(found.mean, total=found.mean.total * scale))


def main() -> Experiment:
    made = experiment()
    return replace(made, task=Scaled(model=made.task.model))
"""
CHANGED = 37
"""The row of the training data that one of the runs has otherwise."""


def experiment() -> Experiment:
    rows = np.stack([tiny.Counting(64)[index]["tokens"] for index in range(64)])
    model = Transformer(vocab=64, blocks=Blocks(width=16, layers=1, heads=2, mlp=32))
    made = tiny.main()
    return replace(
        made,
        task=replace(made.task, model=model),
        data=Pipeline(Arrays({"tokens": rows}), batch_size=8, seed=3),
        optimizer=adamw(peak=1e-2),
        evals={"validation": Pipeline(Arrays({"tokens": rows[:24]}), batch_size=8, shuffle=False)},
        steps=8,
        runtime=Runtime(log_every=1),
    )


def with_another_example(made: Experiment) -> Experiment:
    source = made.data.source
    assert isinstance(source, Arrays)
    rows = source.columns["tokens"].copy()
    rows[CHANGED, 3] = (rows[CHANGED, 3] + 1) % 64
    return replace(made, data=replace(made.data, source=Arrays({"tokens": rows})))


def with_another_rate(made: Experiment) -> Experiment:
    return replace(made, optimizer=adamw(peak=2e-2))


def adamw(peak: float) -> AdamW:
    return AdamW(schedule=CosineDecay(peak=peak), weight_decay=0.1)


PLANTED: Mapping[str, Callable[[Experiment], Experiment]] = {
    "seed": lambda made: replace(made, seed=1),
    "rate": with_another_rate,
    "example": with_another_example,
    "mesh": lambda made: replace(made, layout=Layout({"data": 8})),
}


@dataclass(frozen=True)
class Planted:
    """A repository with runs of its experiment, each of which is made when it is first wanted."""

    folder: Path

    def git(self, *words: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True).stdout

    def run(self, name: str) -> Path:
        folder = self.folder / name
        if folder.exists():
            return folder
        if name in ("package", "dirty"):
            shutil.copytree(self.run("base"), folder)
            environment = json.loads((folder / "environment.json").read_text())
            if name == "package":
                environment["packages"]["optax"] = "0.0.1"
            else:
                environment["git"]["diff"] = self.git("diff", "one", "two")
            (folder / "environment.json").write_text(json.dumps(environment))
            return folder
        self.git("checkout", "-qf", "two" if name == "revision" else "one")
        if name == "file":
            (self.folder / "planted.py").write_text(FILE.replace("FROM = 1000", "FROM = 4"))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            sys.modules.pop("scale", None)
            made, origin = load("planted.py")
            train(PLANTED.get(name, lambda made: made)(made), folder, origin)
            sys.modules.pop("scale", None)
            sys.modules.pop("planted", None)
        return folder


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Planted:
    made = Planted(tmp_path_factory.mktemp("planted"))
    for name, scale in (("one", 1.0), ("two", 1.5)):
        (made.folder / ".gitignore").write_text("*/\n")
        (made.folder / "planted.py").write_text(FILE)
        (made.folder / "scale.py").write_text(f"SCALE = {scale}\n")
        if name == "one":
            made.git("init", "-q")
        made.git("add", ".")
        made.git("commit", "-qm", name)
        made.git("tag", name)
    return made


@pytest.fixture
def of(planted, monkeypatch) -> Callable[..., Comparison]:
    """Compares `base` with others of these runs, in their repository."""
    monkeypatch.chdir(planted.folder)
    return lambda *names: compare([planted.run(name) for name in ("base", *names)])


def named(found: Comparison) -> list[tuple[str, str]]:
    return [(each.kind, each.name) for each in found.differences]


@pytest.mark.slow
def test_a_run_of_the_same_is_the_same_to_the_last_bit(of):
    found = of("same")
    assert named(found) == []
    assert found.acts_from(1) == "batches and losses are the same in all 8 steps, to the last bit"
    assert "no difference: of data, experiment, code" in found.text()
    for score in found.scores:
        verdict = score.against[1]
        assert verdict is not None
        assert verdict.words == "not told apart: equal on all 24 examples"


def test_a_seed_is_named_and_acts_from_the_first_step(of):
    found = of("seed")
    assert named(found) == [("seed", "seed")]
    assert found.differences[0].values == (0, 1)
    assert "seed: 0 (default) → 1 (file)" in found.text()
    assert (found.partings[0].batch, found.partings[0].loss) == (None, 1)
    assert "batches are the same in all 8 steps; losses part at step 1 (relative" in found.text()


def test_a_rate_is_named_and_acts_from_the_first_update(of):
    found = of("rate")
    assert named(found) == [("experiment", "optimizer.schedule.peak")]
    assert (found.partings[0].batch, found.partings[0].loss) == (None, 2)
    text = found.text()
    assert "optimizer.schedule.peak: 0.01 (file) → 0.02 (file)" in text
    assert "so the difference acts from the update of step 1 on" in text
    assert "rounding" not in text


def test_one_changed_example_is_named_and_acts_from_the_batch_that_holds_it(of, planted):
    found = of("example")
    assert named(found) == [("data", "data.source.columns.tokens")]
    parting = found.partings[0]
    batches = [read_steps(planted.run(name))["batch"] for name in ("base", "example")]
    assert parting.batch == 1 + int((batches[0] != batches[1]).argmax())
    assert int((batches[0] != batches[1]).sum()) == 1
    assert parting.batch > 1
    assert parting.loss == parting.batch
    assert f"batches part at step {parting.batch}; losses part at step {parting.batch}" in found.text()


@pytest.mark.slow
def test_a_change_in_the_experiments_file_is_shown_and_acts_from_its_step(of):
    found = of("file")
    assert named(found) == [("code", "the experiment's file planted.py")]
    text = found.text()
    assert "-FROM = 1000\n" in text
    assert "+FROM = 4\n" in text
    assert found.partings[0].loss == 5  # the loss of step 5 is computed after 4 updates
    assert "batches are the same in all 8 steps; losses part at step 5" in text


@pytest.mark.slow
def test_a_change_between_revisions_is_shown(of):
    found = of("revision")
    (difference,) = found.differences
    assert (difference.kind, difference.name) == ("code", "git revision: scale.py")
    assert "-SCALE = 1.0\n+SCALE = 1.5\n" in difference.text
    assert found.partings[0].loss == 1
    assert found.runs[0].environment["git"]["revision"][:12] in found.text()


def test_a_change_that_was_not_committed_is_shown(of):
    found = of("dirty")
    (difference,) = found.differences
    assert (difference.name, difference.values) == ("not committed: scale.py", ("as committed", "changed"))
    assert "+SCALE = 1.5" in difference.text


@pytest.mark.slow
def test_elsewhere_revisions_are_named_without_their_changes(planted, tmp_path, monkeypatch):
    two = [planted.run("base"), planted.run("revision")]
    monkeypatch.chdir(tmp_path)
    (difference,) = compare(two).differences
    assert difference.name == "git revision"
    assert "the repository of these revisions is not here" in difference.text


def test_a_version_of_a_package_is_named(of):
    found = of("package")
    assert [(each.name, each.values[1]) for each in found.differences] == [("optax", "0.0.1")]
    assert found.partings[0].first is None


@pytest.mark.slow
def test_of_another_mesh_batches_are_the_same_and_losses_part_by_rounding(of):
    found = of("mesh")
    assert named(found) == [("layout", "layout.mesh.data")]
    parting = found.partings[0]
    assert parting.batch is None
    assert parting.loss is not None
    assert 0 < parting.relative < 1e-6
    assert f"losses part at step {parting.loss} by rounding (relative" in found.acts_from(1)


def test_many_runs_are_compared_with_the_first_and_grouped_by_seed(of):
    found = of("seed", "rate", "dirty")
    assert len(found.partings) == 3
    assert [score.groups for score in found.seeds][:1] == [(("base", "seed"),)]
    assert {("seed", "seed"), ("experiment", "optimizer.schedule.peak")} <= {*named(found)}
    text = found.text()
    for name in ("seed", "rate", "dirty"):
        assert f"base and {name}: " in text
    assert "not committed: scale.py of dirty" in text


def test_as_json_and_as_a_frame_it_holds_the_same(of):
    found = of("rate", "seed")
    made = json.loads(json.dumps(found.as_json(), default=str))
    assert [run["name"] for run in made["runs"]] == ["base", "rate", "seed"]
    assert made["partings"][0]["loss"] == 2
    frame = found.frame()
    first = frame[(frame.metric == "loss") & (frame.run == "base")]["value"].item()
    rows = frame[(frame.metric == "loss") & (frame.run == "rate")]
    assert len(frame) == 3 * len(found.scores)
    assert rows["difference"].item() == pytest.approx(rows["value"].item() - first, rel=1e-4)
