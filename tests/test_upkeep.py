"""The checkpoints of a run between trainings: list, verify, prune, go back to a step."""

import os
import shutil

import pytest
from test_damage import sound, truncate

from jaxtrain.base.errors import ConfigError, DamagedCheckpoint, ExitCode, Retry
from jaxtrain.cli import checkpoints as verbs
from jaxtrain.experiment import Retention
from jaxtrain.runs import upkeep
from jaxtrain.runs.lock import Lock

__all__ = ["sound"]


@pytest.fixture
def run(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "run")
    (tmp_path / "run" / "experiment.json").write_text("{}")
    return tmp_path / "run"


def steps(run):
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir())


def test_each_checkpoint_is_listed_with_metrics_and_health(run):
    os.truncate(run / "checkpoints" / "2" / "state" / "_METADATA", 0)
    lines = list(upkeep.listed(run))
    assert [line.split("  ")[0] for line in lines] == ["step 1", "step 2", "step 3"]
    assert "t/loss 3" in lines[0]
    assert lines[0].endswith("  good")
    assert "_METADATA: it has 0 bytes" in lines[1]


def test_verify_names_every_damaged_file_and_ends_with_1(run, capsys):
    assert verbs.verify(run) == ExitCode.FINISHED
    damaged = [run / "checkpoints" / "1" / "manifest.jsonl", run / "checkpoints" / "3" / "metrics" / "metrics"]
    for file in damaged:
        truncate(file)
    assert verbs.verify(run) == ExitCode.FAILED
    assert [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()] == [str(file) for file in damaged]


def test_prune_deletes_what_is_not_kept_and_never_the_last_good_one(run):
    assert list(upkeep.prune(run, Retention(last=1, best="t/loss"))) == ["step 1 deleted"]
    assert steps(run) == [2, 3]
    truncate(run / "checkpoints" / "3" / "record" / "metadata")
    assert list(upkeep.prune(run, Retention(last=1))) == ["step 2 stays: it is the newest good one"]
    assert steps(run) == [2, 3]


def test_a_run_goes_back_to_a_step_and_the_later_ones_are_kept_elsewhere(run):
    assert len(list(upkeep.restore_to(run, 1))) == 2
    assert (steps(run), sorted(path.name for path in (run / "set_aside").iterdir())) == ([1], ["2", "3"])


def test_a_run_does_not_go_back_to_a_missing_or_a_damaged_step_or_while_it_has_an_owner(run):
    with pytest.raises(ConfigError, match=r"no checkpoint of step 7 .* \[1, 2, 3\]"):
        list(upkeep.restore_to(run, 7))
    truncate(run / "checkpoints" / "1" / "state" / "manifest.ocdbt")
    with pytest.raises(DamagedCheckpoint, match=r"1/state/manifest\.ocdbt"):
        list(upkeep.restore_to(run, 1))
    with Lock() as owner:
        owner.take(run)
        for verb in (lambda: verbs.restore_to(run, 2), lambda: verbs.prune(run)):
            with pytest.raises(Retry, match="is being written by process"):
                verb()
        assert steps(run) == [1, 2, 3]
    verbs.restore_to(run, 2)  # the lock that a run leaves behind when it ends is free
    assert steps(run) == [1, 2]
    with pytest.raises(ConfigError, match="is not a run"):
        verbs.verify(run / "checkpoints")
