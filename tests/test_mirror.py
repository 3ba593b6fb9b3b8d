"""Checkpoints on a bucket: each gets there whole, comes back where the machine is lost, and its faults stop nothing."""

import json
import shutil
import sys
import uuid
import zlib
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import jax
import jax.numpy as jnp
import launch
import pytest
import tiny
from s3 import S3, s3

from jaxtrain.base.errors import ConfigError, DamagedCheckpoint, Retry
from jaxtrain.experiment import Experiment, Retention, Runtime
from jaxtrain.runs import upkeep
from jaxtrain.runs.begin import begin
from jaxtrain.runs.bucket import Bucket
from jaxtrain.runs.checkpoints import Checkpoints
from jaxtrain.runs.json_lines import read_lines
from jaxtrain.runs.mirror import Mirror, Stay
from jaxtrain.train import train


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A bucket with nothing on it."""
    return f"file://{tmp_path}/bucket/run" if request.param == "file" else f"memory://{uuid.uuid4()}/run"


def opened(folder: Path, url: str, keep: Retention | None = None, fingerprint: str = "a") -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    checkpoints.mirror_to(Mirror(Bucket(url, fingerprint)))
    return checkpoints


def small(value: float) -> dict[str, jax.Array]:
    return {"x": jnp.full(4, value, jnp.float32)}


def saved(
    folder: Path,
    url: str,
    *steps: int,
    keep: Retention | None = None,
    scores: dict[int, float] | None = None,
    fingerprint: str = "a",
) -> None:
    with opened(folder, url, keep, fingerprint) as checkpoints:
        for step in steps:
            checkpoints.save(step, small(step), {"step": step}, {"v/loss": scores[step]} if scores else None)
            checkpoints.wait()


def restored(folder: Path, url: str, keep: Retention | None = None) -> tuple[int | None, float, list[str]]:
    """The step that is resumed from, what it holds, and the events."""
    events: list[str] = []
    with opened(folder, url, keep) as checkpoints:
        checkpoints.report_to(lambda kind, **facts: events.append(f"{kind} {facts.get('step', '')}"))
        step = checkpoints.latest()
        wanted: Any = {"x": jax.ShapeDtypeStruct((4,), jnp.float32)}
        state, _ = checkpoints.restore(wanted)
    return step, float(state["x"][0]), events


def files(url: str) -> tuple[Any, str]:
    """The file system of a bucket, which remembers nothing, and the path in it."""
    return fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)


def names(url: str) -> list[str]:
    """What is at the top of a bucket."""
    fs, root = files(url)
    return sorted(name.rpartition("/")[2] for name in fs.ls(root, detail=False))


def damage(url: str, step: int) -> str:
    """Flip a bit of an array's bytes on the bucket; returns the name of the file."""
    fs, root = files(url)
    name = max((name for name in fs.find(f"{root}/{step}/state") if "/d/" in name), key=fs.size)
    data = bytearray(fs.cat_file(name))
    data[len(data) // 2] ^= 1
    fs.pipe_file(name, bytes(data))
    return name.rpartition("/")[2]


def test_a_bucket_has_the_bytes_of_each_checkpoint_that_stays_and_no_other(tmp_path: Path, url: str) -> None:
    saved(tmp_path / "checkpoints", url, 1, 2, 3, 4, keep=Retention(last=2, every=1000))
    assert names(url) == ["3", "4", "run.json"]
    fs, root = files(url)
    for step in ("3", "4"):
        local = tmp_path / "checkpoints" / step
        here = {path.relative_to(local).as_posix(): path.read_bytes() for path in local.rglob("*") if path.is_file()}
        there = {name.partition(f"/run/{step}/")[2]: fs.cat_file(name) for name in fs.find(f"{root}/{step}")}
        assert here == there
        assert "manifest.jsonl" in here


def test_a_folder_without_checkpoints_gets_the_newest_one_of_the_bucket(tmp_path: Path, url: str) -> None:
    saved(tmp_path / "old" / "checkpoints", url, 1, 2)
    assert restored(tmp_path / "new" / "checkpoints", url) == (2, 2.0, ["fetched 2"])
    assert [path.name for path in (tmp_path / "new" / "checkpoints").iterdir()] == ["2"]


def test_of_a_damaged_object_the_checkpoint_before_is_used_and_the_damaged_one_set_aside(
    tmp_path: Path, url: str
) -> None:
    saved(tmp_path / "old" / "checkpoints", url, 1, 2)
    damage(url, 2)
    assert restored(tmp_path / "new" / "checkpoints", url) == (1, 1.0, ["fetched 1", "damaged 2"])
    assert names(url) == ["1", "damaged", "run.json"]
    assert names(f"{url}/damaged/2") == ["manifest.jsonl", "record", "state"]
    saved(tmp_path / "new" / "checkpoints", url, 2)
    assert names(url) == ["1", "2", "damaged", "run.json"]
    assert restored(tmp_path / "third" / "checkpoints", url) == (2, 2.0, ["fetched 2"])


def test_a_missing_object_is_damage_and_the_file_is_named(tmp_path: Path, url: str) -> None:
    saved(tmp_path / "old" / "checkpoints", url, 1)
    fs, root = files(url)
    fs.rm_file(f"{root}/1/record/metadata")
    with opened(tmp_path / "new" / "checkpoints", url) as checkpoints, pytest.raises(DamagedCheckpoint) as caught:
        checkpoints.latest()
    assert str(caught.value).startswith(f"{url}/1/record/metadata: it is missing\nno checkpoint in {url} is good")
    assert names(url) == ["1", "run.json"]
    assert list((tmp_path / "new" / "checkpoints").iterdir()) == []


def test_a_checkpoint_without_its_manifest_is_not_used_and_later_sent_again(tmp_path: Path, url: str) -> None:
    saved(tmp_path / "old" / "checkpoints", url, 1, 2)
    fs, root = files(url)
    fs.rm_file(f"{root}/2/manifest.jsonl")
    assert restored(tmp_path / "new" / "checkpoints", url)[0] == 1
    saved(tmp_path / "old" / "checkpoints", url)
    with opened(tmp_path / "old" / "checkpoints", url) as checkpoints:
        checkpoints.wait()
    assert restored(tmp_path / "third" / "checkpoints", url)[0] == 2


def test_local_damage_is_never_sent_and_the_bucket_cures_a_folder_that_has_nothing_good(
    tmp_path: Path, url: str
) -> None:
    folder = tmp_path / "checkpoints"
    saved(folder, url, 1)
    damage(f"file://{folder}", 1)
    with (
        opened(folder, f"{url}-other") as checkpoints,
        pytest.raises(Retry, match=r"could not be sent.*its bytes have changed"),
    ):
        checkpoints.wait()
    assert not files(url)[0].exists(f"{url}-other/1/manifest.jsonl")
    assert restored(folder, url) == (1, 1.0, ["fetched 1"])
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == ["1"]


def test_the_best_one_comes_back_too(tmp_path: Path, url: str) -> None:
    keep = Retention(last=1, best="v/loss")
    saved(tmp_path / "old" / "checkpoints", url, 1, 2, 3, keep=keep, scores={1: 5.0, 2: 1.0, 3: 3.0})
    assert names(url) == ["2", "3", "run.json"]
    with opened(tmp_path / "new" / "checkpoints", url, keep) as checkpoints:
        assert checkpoints.latest() == 3
        assert checkpoints.best() == 2
        assert not checkpoints.improves(4, {"v/loss": 2.0})
        assert checkpoints.improves(4, {"v/loss": 0.5})


def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, url: str) -> None:
    saved(tmp_path / "old" / "checkpoints", url, 1)
    fs, root = files(url)
    fs.pipe_file(f"{root}/1/up", b"bad")
    body = json.dumps({"files": {"../../up": [3, zlib.crc32(b"bad")]}, "arrays": {}}) + "\n"
    text = f'{{"crc32": "{zlib.crc32(body.encode()):08x}"}}\n{body}'
    fs.pipe_file(f"{root}/1/manifest.jsonl", text.encode())
    with (
        opened(tmp_path / "new" / "checkpoints", url) as checkpoints,
        pytest.raises(DamagedCheckpoint, match="not a path inside of the folder"),
    ):
        checkpoints.latest()
    assert list(tmp_path.rglob("up")) == (
        [] if url.startswith("memory") else [tmp_path / "bucket" / "run" / "1" / "up"]
    )


def test_a_bucket_of_another_experiment_is_refused_and_left_as_it_is(tmp_path: Path, url: str) -> None:
    saved(tmp_path / "old" / "checkpoints", url, 1)
    with (
        opened(tmp_path / "new" / "checkpoints", url, fingerprint="b") as checkpoints,
        pytest.raises(ConfigError, match="another experiment"),
    ):
        checkpoints.latest()
    with opened(tmp_path / "new" / "checkpoints", url, fingerprint="b") as checkpoints:
        checkpoints.save(9, small(9), {})
        with pytest.raises(Retry, match="another experiment"):
            checkpoints.wait()
    assert names(url) == ["1", "run.json"]


def test_a_run_that_goes_back_deletes_the_later_checkpoints_and_says_so_before(tmp_path: Path, url: str) -> None:
    folder = tmp_path / "checkpoints"
    saved(folder, url, 1, 2, 3, keep=Retention(last=9))
    shutil.rmtree(folder / "3")
    assert restored(folder, url)[::2] == (1 + 1, ["mirror_is_later "])
    shutil.rmtree(folder / "2")
    with opened(folder, url, Retention(last=9)) as checkpoints:
        assert checkpoints.latest() == 1
        checkpoints.save(2, small(20), {})
        checkpoints.wait()
    assert names(url) == ["1", "2", "run.json"]
    assert restored(tmp_path / "new" / "checkpoints", url)[:2] == (2, 20.0)


def test_what_the_bucket_alone_has_stays_there_if_the_retention_keeps_it(tmp_path: Path, url: str) -> None:
    keep = Retention(last=1, every=2)
    saved(tmp_path / "old" / "checkpoints", url, 1, 2, 3, keep=keep)
    assert names(url) == ["2", "3", "run.json"]
    with opened(tmp_path / "new" / "checkpoints", url, keep) as checkpoints:
        assert checkpoints.latest() == 3
        checkpoints.save(5, small(5), {})
        checkpoints.wait()
    assert names(url) == ["2", "5", "run.json"]


def test_what_a_faulty_bucket_does_is_said_at_the_next_save_and_training_goes_on(tmp_path: Path, url: str) -> None:
    class AtOnce(Mirror):
        def send(self, checkpoints: Path, stay: Stay) -> None:
            super().send(checkpoints, stay)
            wait(self._begun)

    class Faulty(Bucket):
        def check_owner(self, write: bool) -> bool:
            raise OSError(5, "no such luck")

    events = []
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.mirror_to(AtOnce(Faulty(url, "a")))
        checkpoints.report_to(lambda kind, **facts: events.append((kind, facts["why"])))
        checkpoints.save(1, small(1), {})
        assert checkpoints.save(2, small(2), {}) == 1
        assert events == [("mirror_failed", "[Errno 5] no such luck")]


def test_scores_that_a_saved_step_is_given_later_get_to_the_bucket(tmp_path: Path, url: str) -> None:
    with opened(tmp_path / "checkpoints", url, Retention(best="v/loss")) as checkpoints:
        checkpoints.save(1, small(1), {})
        checkpoints.wait()
        checkpoints.improves(1, {"v/loss": 0.25})
        checkpoints.wait()
    fs, root = files(url)
    assert json.loads(fs.cat_file(f"{root}/1/metrics/metrics")) == {"v/loss": 0.25}
    with opened(tmp_path / "new" / "checkpoints", url, Retention(best="v/loss")) as checkpoints:
        assert (checkpoints.latest(), checkpoints.best()) == (1, 1)


def test_an_old_checkpoint_stays_on_the_bucket_until_a_newer_one_is_there(tmp_path: Path, url: str) -> None:
    keep = Retention(last=1)
    saved(tmp_path / "checkpoints", url, 1, keep=keep)
    with Checkpoints(tmp_path / "checkpoints", keep) as checkpoints:
        checkpoints.save(2, small(2), {})
        checkpoints.wait()
    damage(f"file://{tmp_path}/checkpoints", 2)
    with opened(tmp_path / "checkpoints", url, keep) as checkpoints, pytest.raises(Retry):
        checkpoints.wait()
    assert restored(tmp_path / "new" / "checkpoints", url)[0] == 1


def test_a_checkpoint_that_is_deleted_while_it_is_sent_is_no_fault(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, original = tmp_path / "checkpoints", Bucket.send

    def send(self: Bucket, checkpoint: Path) -> None:
        if checkpoint.name == "1":
            shutil.rmtree(checkpoint)
        original(self, checkpoint)

    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, small(step), {})
    monkeypatch.setattr(Bucket, "send", send)
    with opened(folder, url) as checkpoints:
        checkpoints.report_to(lambda kind, **facts: pytest.fail(kind))
        checkpoints.wait()
    assert names(url) == ["2", "run.json"]


def test_a_url_that_is_none_is_refused() -> None:
    for wrong in ("bucket/prefix", "s3://", "://x", ""):
        with pytest.raises(ConfigError, match="not a URL such as s3://bucket/prefix"):
            Runtime(checkpoints=wrong)


def test_a_missing_package_or_an_unknown_protocol_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for wrong, why in (("s3://b/p", r"pip install 'jaxtrain\[bucket\]'"), ("s4://b/p", "Protocol not known: s4")):
        experiment = replace(tiny.main(), runtime=Runtime(checkpoints=wrong))
        with pytest.raises(ConfigError, match=why):
            begin(tmp_path / "run", experiment, None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_has_nothing_gets_the_files_that_explain_the_run_and_one_that_has_some_keeps_them(
    tmp_path: Path, url: str
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
    for name in ("metrics.jsonl", "events.jsonl", "steps.bin", "experiment.json", "flight.json"):
        (old / name).write_text(name)
    (new / "experiment.json").write_text("its own")
    saved(old / "checkpoints", url, 1)
    fs, root = files(url)
    assert names(f"{url}/run") == ["events.jsonl", "experiment.json", "metrics.jsonl", "steps.bin"]
    (old / "metrics.jsonl").write_text("more")
    with opened(old / "checkpoints", url) as checkpoints:
        checkpoints.wait()
        assert fs.cat_file(f"{root}/run/metrics.jsonl") == b"more"
        (old / "events.jsonl").write_text("the end")
    assert fs.cat_file(f"{root}/run/events.jsonl") == b"the end"
    assert restored(new / "checkpoints", url) == (1, 1.0, ["fetched 1", "fetched "])
    found = {path.name: path.read_text() for path in new.iterdir() if path.is_file()}
    own = {"experiment.json": "its own", "metrics.jsonl": "more", "events.jsonl": "the end", "steps.bin": "steps.bin"}
    assert found == own


def test_a_file_that_cannot_be_read_keeps_no_checkpoint_from_the_bucket(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Bucket, run: Path) -> None:
        raise OSError(5, "no such luck")

    monkeypatch.setattr(Bucket, "send_files", fails)
    saved(tmp_path / "checkpoints", url, 1)
    assert names(url) == ["1", "run.json"]


@pytest.fixture
def mirrored(tmp_path: Path, url: str) -> Path:
    """A run with checkpoints 1 to 4 here and on the bucket, of which 1 is only there."""
    experiment = replace(tiny.main(), runtime=Runtime(checkpoints=url))
    run = begin(tmp_path / "run", experiment, None)
    saved(run.folder / "checkpoints", url, 1, 2, 3, 4, keep=Retention(last=9), fingerprint=run.saved["fingerprint"])
    shutil.rmtree(run.folder / "checkpoints" / "1")
    return run.folder


def steps(run: Path) -> list[int]:
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir())


def test_pruning_reaches_the_bucket_and_leaves_the_newest_there(mirrored: Path, url: str) -> None:
    lines = ["step 2 deleted", f"step 1 deleted in {url}", f"step 2 deleted in {url}"]
    assert list(upkeep.prune(mirrored, Retention(last=2))) == lines
    assert (steps(mirrored), names(url)) == ([3, 4], ["3", "4", "run", "run.json"])
    assert list(upkeep.prune(mirrored, Retention(last=2))) == []
    shutil.rmtree(mirrored / "checkpoints")
    (mirrored / "checkpoints").mkdir()
    fs, root = files(url)
    fs.rm_file(f"{root}/4/manifest.jsonl")
    assert list(upkeep.prune(mirrored, Retention(last=1))) == []  # 4 is not complete
    assert names(url) == ["3", "4", "run", "run.json"]


def test_a_run_that_goes_back_does_so_on_the_bucket_too_and_to_a_step_that_is_only_there(
    mirrored: Path, url: str, tmp_path: Path
) -> None:
    lines = list(upkeep.restore_to(mirrored, 1))
    assert lines[0] == f"step 1 is fetched from {url}"
    assert lines[-3:] == [f"step {step} is set aside in {url}/set_aside/{step}" for step in (4, 3, 2)]
    assert (steps(mirrored), names(url)) == ([1], ["1", "run", "run.json", "set_aside"])
    assert names(f"{url}/set_aside/4") == ["manifest.jsonl", "record", "state"]
    fingerprint = json.loads((mirrored / "experiment.json").read_text())["fingerprint"]
    saved(mirrored / "checkpoints", url, 4, fingerprint=fingerprint)
    assert list(upkeep.restore_to(mirrored, 1))[-1] == f"step 4 is set aside in {url}/set_aside/4-2"
    assert names(f"{url}/set_aside") == ["2", "3", "4", "4-2"]
    with pytest.raises(ConfigError, match="no checkpoint of step 9"):
        list(upkeep.restore_to(mirrored, 9))


def test_the_bucket_of_a_run_is_left_alone_by_a_copy_of_its_folder_and_another_run_s_by_all(
    mirrored: Path, url: str, tmp_path: Path
) -> None:
    before = names(url)
    shutil.copytree(mirrored, tmp_path / "copy")
    note = f"{url} stays as it is: this folder is not where the run was trained, {mirrored}"
    assert list(upkeep.prune(tmp_path / "copy", Retention(last=1))) == ["step 2 deleted", "step 3 deleted", note]
    assert list(upkeep.restore_to(tmp_path / "copy", 4)) == [note]
    assert names(url) == before
    files(url)[0].pipe_file(f"{files(url)[1]}/run.json", b'{"fingerprint": "another"}')
    for verb in (lambda: upkeep.prune(mirrored, Retention(last=1)), lambda: upkeep.restore_to(mirrored, 2)):
        with pytest.raises(ConfigError, match="holds those of another experiment"):
            list(verb())
    assert names(url) == before


# Against a server of S3, over its port.

__all__ = ["s3"]  # a fixture


def on(url: str) -> Experiment:
    """tiny.main, with checkpoints of steps 4, 8 and 12 on a bucket."""
    experiment = tiny.main()
    return replace(experiment, runtime=replace(experiment.runtime, checkpoints=url))


def kinds(run: Path) -> list[str]:
    """The kinds of a run's events."""
    return [line["kind"] for line in read_lines(run / "events.jsonl")]


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_lost_ends_with_the_same_bits_from_the_bucket(tmp_path: Path, s3: S3) -> None:
    experiment = on("s3://runs/one")
    run, _ = train(experiment, tmp_path / "run")
    expected, losses = [x.tobytes() for x in launch.final_leaves(run.folder, 12, "main", 1)], launch.losses(run.folder)
    assert names("s3://runs/one") == ["12", "4", "8", "run", "run.json"]
    kept = {name: (run.folder / name).read_bytes() for name in ("metrics.jsonl", "events.jsonl", "steps.bin")}
    assert {name: s3.files.cat_file(f"runs/one/run/{name}") for name in kept} == kept
    for folder in (tmp_path / "run", tmp_path / "another"):
        s3.files.rm("runs/one/12", recursive=True)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        train(experiment, folder)
        assert kinds(folder).count("fetched") == {"run": 1, "another": 3}[folder.name]  # of the run, one, and files
        assert "damaged" not in kinds(folder)
        assert [x.tobytes() for x in launch.final_leaves(folder, 12, "main", 1)] == expected
        assert launch.losses(folder) == losses
        assert (folder / "steps.bin").read_bytes() == kept["steps.bin"]
        assert names("s3://runs/one") == ["12", "4", "8", "run", "run.json"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["500", "cut", "refused"])
def test_a_server_that_fails_is_an_event_and_the_next_save_sends_what_is_missing(
    tmp_path: Path, s3: S3, fault: str
) -> None:
    url, events = "s3://runs/one", []
    with opened(tmp_path / "checkpoints", url) as checkpoints:
        checkpoints.report_to(lambda kind, **facts: events.append((kind, facts["why"])))
        checkpoints.save(1, small(1), {})
        checkpoints.wait()
        s3.set(fault)
        checkpoints.save(2, small(2), {})
        with pytest.raises(Retry, match=r"the last checkpoint could not be sent to s3://runs/one: .*, which sends it"):
            checkpoints.wait()
        s3.set("")
        assert restored(tmp_path / "other" / "checkpoints", url)[0] == 1
        assert {kind for kind, _ in events} == {"mirror_failed"}
        checkpoints.save(3, small(3), {})
        checkpoints.wait()
    assert names(url) == ["2", "3", "run.json"]
    assert restored(tmp_path / "third" / "checkpoints", url)[0] == 3


def test_a_checkpoint_whose_files_are_replaced_is_not_complete_until_all_are(tmp_path: Path, s3: S3) -> None:
    url, keep = "s3://runs/one", Retention(best="v/loss")
    with opened(tmp_path / "checkpoints", url, keep) as checkpoints:
        checkpoints.save(1, small(1), {})
        checkpoints.wait()
        checkpoints.improves(1, {"v/loss": 0.25})
        s3.set("cut")
        with pytest.raises(Retry):
            checkpoints.wait()
        s3.set("")
        with opened(tmp_path / "new" / "checkpoints", url, keep) as other:
            assert other.latest() is None


@pytest.mark.slow
def test_a_run_trains_to_its_end_without_the_server_and_the_same_command_sends_its_end(tmp_path: Path, s3: S3) -> None:
    experiment, run = on("s3://runs/one"), tmp_path / "run"
    s3.set("500")
    with pytest.raises(Retry, match="could not be sent"):
        train(experiment, run)
    assert set(launch.losses(run)) == set(range(1, 13))
    assert "mirror_failed" in kinds(run)
    s3.set("")
    train(experiment, run)
    assert names("s3://runs/one") == ["12", "4", "8", "run", "run.json"]
    assert s3.files.cat_file("runs/one/run/metrics.jsonl") == (run / "metrics.jsonl").read_bytes()


def test_a_run_without_checkpoints_does_not_begin_anew_while_the_bucket_cannot_be_read(tmp_path: Path, s3: S3) -> None:
    s3.set("refused")
    with pytest.raises(Retry, match="The run does not begin anew"):
        train(on("s3://runs/one"), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_server_that_fails_while_checkpoints_are_pruned_is_one_message(tmp_path: Path, s3: S3) -> None:
    url = "s3://runs/one"
    run = begin(tmp_path / "run", replace(tiny.main(), runtime=Runtime(checkpoints=url)), None)
    saved(run.folder / "checkpoints", url, 1, 2, keep=Retention(last=9), fingerprint=run.saved["fingerprint"])
    s3.set("refused")
    with pytest.raises(Retry, match=r"s3://runs/one fails: .* Once it works, run the same command again"):
        list(upkeep.prune(run.folder, Retention(last=1)))
    s3.set("")
    assert list(upkeep.prune(run.folder, Retention(last=1))) == [f"step 1 deleted in {url}"]
    assert names(url) == ["2", "run", "run.json"]
    assert list(upkeep.restore_to(run.folder, 2)) == []


@pytest.mark.slow
def test_a_damaged_object_on_the_server_is_set_aside_there(tmp_path: Path, s3: S3) -> None:
    url = "s3://runs/one"
    saved(tmp_path / "old" / "checkpoints", url, 1, 2, 3)
    assert names(url) == ["2", "3", "run.json"]
    damage(url, 3)
    assert restored(tmp_path / "new" / "checkpoints", url) == (2, 2.0, ["fetched 2", "damaged 3"])
    assert names(url) == ["2", "damaged", "run.json"]
    assert names(f"{url}/damaged/3") == ["manifest.jsonl", "record", "state"]


@pytest.mark.slow
def test_of_two_processes_the_first_one_sends_and_fetches_for_both(tmp_path: Path) -> None:
    run, url = tmp_path / "run", f"file://{tmp_path}/bucket"
    launch.train("data", run, "--checkpoints", url, processes=2)
    expected = [x.tobytes() for x in launch.final_leaves(run, 12, "data", devices=2)]
    assert names(url) == ["12", "4", "8", "run", "run.json"]
    shutil.rmtree(tmp_path / "bucket" / "12")
    shutil.rmtree(run / "checkpoints")
    launch.train("data", run, "--checkpoints", url, processes=2)
    assert kinds(run).count("fetched") == 1
    assert [x.tobytes() for x in launch.final_leaves(run, 12, "data", devices=2)] == expected
    assert names(url) == ["12", "4", "8", "run", "run.json"]
