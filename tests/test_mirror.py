"""Checkpoints on a bucket: each gets there whole, comes back where the machine is lost, and its faults stop nothing."""

import json
import shutil
import sys
import uuid
import zlib
from dataclasses import replace
from pathlib import Path

import fsspec
import jax
import jax.numpy as jnp
import pytest
import tiny

from jaxtrain.base.errors import ConfigError, DamagedCheckpoint, Retry
from jaxtrain.experiment import Retention, Runtime
from jaxtrain.runs.begin import begin
from jaxtrain.runs.bucket import Bucket
from jaxtrain.runs.checkpoints import Checkpoints
from jaxtrain.runs.mirror import Mirror


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
    folder: Path, url: str, *steps: int, keep: Retention | None = None, scores: dict[int, float] | None = None
) -> None:
    with opened(folder, url, keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, small(step), {"step": step}, {"v/loss": scores[step]} if scores else None)
            checkpoints.wait()


def restored(folder: Path, url: str, keep: Retention | None = None) -> tuple[int | None, float, list[str]]:
    """The step that is resumed from, what it holds, and the events."""
    events: list[str] = []
    with opened(folder, url, keep) as checkpoints:
        checkpoints.report_to(lambda kind, **facts: events.append(f"{kind} {facts.get('step', '')}"))
        step = checkpoints.latest()
        state, _ = checkpoints.restore({"x": jax.ShapeDtypeStruct((4,), jnp.float32)})
    return step, float(state["x"][0]), events


def names(url: str) -> list[str]:
    """What is at the top of a bucket."""
    fs, root = fsspec.core.url_to_fs(url)
    return sorted(name.rpartition("/")[2] for name in fs.ls(root, detail=False))


def damage(url: str, step: int) -> str:
    """Flip a bit of an array's bytes on the bucket; returns the name of the file."""
    fs, root = fsspec.core.url_to_fs(url)
    name = max((name for name in fs.find(f"{root}/{step}/state") if "/d/" in name), key=fs.size)
    data = bytearray(fs.cat_file(name))
    data[len(data) // 2] ^= 1
    fs.pipe_file(name, bytes(data))
    return name.rpartition("/")[2]


def test_a_bucket_has_the_bytes_of_each_checkpoint_that_stays_and_no_other(tmp_path: Path, url: str) -> None:
    saved(tmp_path / "checkpoints", url, 1, 2, 3, 4, keep=Retention(last=2, every=1000))
    assert names(url) == ["3", "4", "run.json"]
    fs, root = fsspec.core.url_to_fs(url)
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
    saved(tmp_path / "new" / "checkpoints", url, 2)
    assert names(url) == ["1", "2", "damaged", "run.json"]
    assert restored(tmp_path / "third" / "checkpoints", url) == (2, 2.0, ["fetched 2"])


def test_a_missing_object_is_damage_and_the_file_is_named(tmp_path: Path, url: str) -> None:
    saved(tmp_path / "old" / "checkpoints", url, 1)
    fs, root = fsspec.core.url_to_fs(url)
    fs.rm_file(f"{root}/1/record/metadata")
    with opened(tmp_path / "new" / "checkpoints", url) as checkpoints, pytest.raises(DamagedCheckpoint) as caught:
        checkpoints.latest()
    assert str(caught.value).startswith(f"{url}/1/record/metadata: it is missing\nno checkpoint in {url} is good")
    assert names(url) == ["1", "run.json"]
    assert list((tmp_path / "new" / "checkpoints").iterdir()) == []


def test_a_checkpoint_without_its_manifest_is_not_used_and_later_sent_again(tmp_path: Path, url: str) -> None:
    saved(tmp_path / "old" / "checkpoints", url, 1, 2)
    fs, root = fsspec.core.url_to_fs(url)
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
    with opened(folder, f"{url}-other") as checkpoints, pytest.raises(Retry, match=r"could not be sent.*not those that"):
        checkpoints.wait()
    assert not fsspec.core.url_to_fs(url)[0].exists(f"{url}-other/1/manifest.jsonl")
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
    fs, root = fsspec.core.url_to_fs(url)
    fs.pipe_file(f"{root}/1/up", b"bad")
    body = json.dumps({"files": {"../../up": [3, zlib.crc32(b"bad")]}, "arrays": {}}) + "\n"
    text = f'{{"crc32": "{zlib.crc32(body.encode()):08x}"}}\n{body}'
    fs.pipe_file(f"{root}/1/manifest.jsonl", text.encode())
    with (
        opened(tmp_path / "new" / "checkpoints", url) as checkpoints,
        pytest.raises(DamagedCheckpoint, match="no path inside of the folder"),
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


def test_a_url_that_is_none_is_refused() -> None:
    for wrong in ("bucket/prefix", "s3://", "://x", ""):
        with pytest.raises(ConfigError, match="no URL such as s3://bucket/prefix"):
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
