"""Damage: every file of a checkpoint, damaged in every way, is noticed and named, and the checkpoint before is used."""

import json
import os
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from small_disk import run_on_small_disk

from jaxtrain.base.checksums import MANIFEST, Manifest
from jaxtrain.base.errors import ConfigError, DamagedCheckpoint, Retry
from jaxtrain.experiment import Retention
from jaxtrain.runs.checkpoints import Checkpoints


def state(value):
    return {"w": jnp.full((16, 8), value, jnp.float32), "b": jnp.full(3, value, jnp.bfloat16), "key": jax.random.key(7)}


ABSTRACT = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=SingleDeviceSharding(jax.devices()[0])), state(0)
)


def flip(position):
    def damage(file):
        data = bytearray(file.read_bytes())
        data[int(position * (len(data) - 1))] ^= 4
        file.write_bytes(data)

    return damage


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def become_a_folder(file):
    file.unlink()
    file.mkdir()


DAMAGES = {
    "head": flip(0),
    "middle": flip(0.5),
    "end": flip(1),
    "truncated": truncate,
    "emptied": lambda file: os.truncate(file, 0),
    "removed": lambda file: file.unlink(),
    "a folder": become_a_folder,
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\n"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A run's folder with the steps 1, 2 and 3, of which 2 is the best."""
    run = tmp_path_factory.mktemp("sound")
    with Checkpoints(run / "checkpoints", Retention(last=3, best="t/loss")) as checkpoints:
        for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0)):
            checkpoints.save(step, state(step), {"step": step}, {"t/loss": loss})
        checkpoints.wait()
    return run


def files_of(run, step):
    folder = run / "checkpoints" / str(step)
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def value(restored):
    return float(restored[0]["w"][0, 0]), restored[1]["step"]


def test_every_kind_of_file_is_there_to_be_damaged(sound):
    names = [name.as_posix() for name in files_of(sound, 3)]
    kinds = ("manifest.jsonl", "metrics/metrics", "record/metadata", "state/_METADATA", "state/_sharding")
    assert {*kinds, "state/array_metadatas/process_0", "state/manifest.ocdbt"} < {*names}
    assert sum(name.startswith("state/d/") for name in names) >= 1
    assert sum(name.startswith("state/ocdbt.process_0/") for name in names) >= 2


@pytest.mark.parametrize("how", DAMAGES)
def test_every_damaged_file_is_named_its_checkpoint_set_aside_and_the_one_before_used(sound, tmp_path, how):
    for number, name in enumerate(files_of(sound, 3)):
        run, events = tmp_path / str(number), []
        shutil.copytree(sound, run)
        DAMAGES[how](run / "checkpoints" / "3" / name)
        with Checkpoints(run / "checkpoints", read_only=True) as reader:
            assert value(reader.restore(ABSTRACT)) == (2.0, 2), name
            with pytest.raises(DamagedCheckpoint, match=str(name)):
                reader.restore(ABSTRACT, 3)
        assert (run / "checkpoints" / "3").is_dir()
        with Checkpoints(run / "checkpoints") as checkpoints:
            checkpoints.report_to(lambda kind, events=events, **facts: events.append((kind, facts["file"])))
            assert checkpoints.latest() == 2, name
            assert value(checkpoints.restore(ABSTRACT)) == (2.0, 2)
            checkpoints.save(3, state(3.0), {"step": 3})
            assert checkpoints.latest() == 3
        assert events == [("damaged", str(run / "checkpoints" / "3" / name))]
        assert [path.name for path in (run / "damaged").iterdir()] == ["3"]


def test_the_best_that_is_good_is_used_and_nothing_is_moved_where_none_is(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    (folder / "2" / MANIFEST).unlink()
    with Checkpoints(folder, Retention(best="t/loss"), read_only=True) as reader:
        assert value(reader.restore(ABSTRACT, "best")) == (3.0, 3)
    for step in (1, 3):
        truncate(folder / str(step) / "state" / "_METADATA")
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(DamagedCheckpoint, match=r"3/state/_METADATA.*\n.*manifest.jsonl: it is missing\n(.*\n)*no ch"),
    ):
        checkpoints.latest()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]


def test_a_second_damaged_checkpoint_of_one_step_lies_beside_the_first(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "run")
    for _ in range(2):
        truncate(tmp_path / "run" / "checkpoints" / "3" / "record" / "metadata")
        with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
            assert checkpoints.latest() == 2
            checkpoints.save(3, state(3.0), {})
    assert sorted(path.name for path in (tmp_path / "run" / "damaged").iterdir()) == ["3", "3-2"]


def test_what_lies_about_in_the_folder_stops_nothing(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    for name in ("latest", "007", "٣", "4.5", "-1", "notes.txt"):
        (folder / name).mkdir()
    (folder / "8").write_text("a file")
    (folder / "1" / "metrics" / "metrics").write_text("[" * 100_000)
    (folder / "9").mkdir()
    with Checkpoints(folder, Retention(best="t/loss")) as checkpoints:
        assert (checkpoints.best(), checkpoints.latest()) == (2, 3)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax closes its loop under its reads
def test_a_checkpoint_of_a_version_without_manifests_is_restored_and_that_is_said(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "3"
    (folder / MANIFEST).unlink()
    record = json.loads((folder / "record" / "metadata").read_text())
    (folder / "record" / "metadata").write_text(json.dumps({**record, "sealed": False}))
    events = []
    with Checkpoints(folder.parent) as checkpoints:
        checkpoints.report_to(lambda kind, **facts: events.append((kind, facts["step"])))
        assert value(checkpoints.restore(ABSTRACT)) == (3.0, 3)
    assert events == [("unverified", 3)]
    for file in (folder / "state").rglob("d/*"):
        os.truncate(file, 0)
    with Checkpoints(folder.parent) as checkpoints, pytest.raises(Retry, match=r"cannot be read.*\nThis checkpoint is"):
        checkpoints.restore(ABSTRACT)
    with Checkpoints(folder.parent) as checkpoints:
        assert value(checkpoints.restore(ABSTRACT)) == (2.0, 2)


def test_the_bytes_of_arrays_are_held_against_their_checksums_from_before_they_were_written(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "3"
    manifest = Manifest.read(folder)
    assert manifest is not None
    w = np.full((16, 8), 3, np.float32)
    import zlib

    assert manifest.arrays["w"] == [{"at": [[0, 16], [0, 8]], "crc32": zlib.crc32(w.tobytes())}]
    Manifest(manifest.files, {**manifest.arrays, "w": [{"at": [[0, 16], [0, 8]], "crc32": 1}]}).write(folder)
    with Checkpoints(folder.parent, read_only=True) as reader, pytest.raises(DamagedCheckpoint, match="w is not what"):
        reader.restore(ABSTRACT)
    with Checkpoints(folder.parent, read_only=True, verify_bytes=100) as reader:
        assert value(reader.restore(ABSTRACT)) == (3.0, 3)


def test_files_above_the_limit_are_not_read_and_that_is_said(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "run")
    folder, events = tmp_path / "run" / "checkpoints", []
    flip(0.5)(folder / "3" / "state" / "_METADATA")
    with Checkpoints(folder, verify_bytes=300) as checkpoints:
        checkpoints.report_to(lambda kind, **facts: events.append((kind, facts["step"])))
        assert checkpoints.latest() == 3
    assert events == [("unverified", 3)]


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd"])
def test_a_manifest_that_names_files_outside_is_damaged_and_those_are_not_read(sound, tmp_path, name):
    shutil.copytree(sound, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    Manifest({name: (1, 1)}, {}).write(folder / "3")
    with Checkpoints(folder, read_only=True) as reader, pytest.raises(DamagedCheckpoint, match="not a path inside"):
        reader.restore(ABSTRACT, 3)


def test_an_evaluation_improves_only_on_a_better_finite_score_of_those_that_are_saved(tmp_path):
    keep = Retention(last=1, best="t/loss")
    with Checkpoints(tmp_path, keep) as checkpoints:
        assert not checkpoints.improves(1000, None)
        assert not checkpoints.improves(1000, {"t/loss": float("nan")})
        assert checkpoints.improves(1000, {"t/loss": 2.0})
        checkpoints.save(1, state(1), {}, {"t/loss": 2.0})
        assert [checkpoints.improves(1000, {"t/loss": loss}) for loss in (3.0, 2.0, float("-inf"), 1.0)] == [0, 0, 0, 1]
    with Checkpoints(tmp_path, keep) as checkpoints:
        assert [checkpoints.improves(1000, {"t/loss": loss}) for loss in (2.0, 1.9)] == [False, True]
    with Checkpoints(tmp_path, Retention(best="t/loss", save_best=False)) as checkpoints:
        assert not checkpoints.improves(1000, {"t/loss": 0.0})


FORBIDDEN = """
import os, pathlib, sys
from jaxtrain.base.errors import DamagedCheckpoint
from jaxtrain.experiment.saved import faults
if os.getuid() == 0:  # who may read everything
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
folder = pathlib.Path(sys.argv[1])
assert not list(faults(folder))
for path in sorted(folder.rglob("*")):
    if path.is_file():
        os.chmod(path, 0)
        print(path, *[str(fault) for fault in faults(folder)], sep="|")
        os.chmod(path, 0o600)
"""


@pytest.mark.slow
def test_files_that_may_not_be_read_are_damage_that_is_named(sound, tmp_path):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory(dir="/tmp") as parent:
        folder = shutil.copytree(sound / "checkpoints" / "3", Path(parent) / "3")
        os.chmod(parent, 0o755)
        if os.getuid() == 0:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, 65534, 65534)
        done = subprocess.run(
            [sys.executable, "-c", FORBIDDEN, str(folder)], capture_output=True, text=True, check=False, cwd="/tmp"
        )
    assert done.stderr == ""
    lines = [line.split("|") for line in done.stdout.splitlines()]
    assert len(lines) == len(files_of(sound, 3))
    assert all(f"{file}: it cannot be read (Permission denied)" == fault for file, fault in lines)


def test_a_step_that_does_not_exist_and_an_unreadable_folder_are_user_errors(sound):
    with Checkpoints(sound / "checkpoints", read_only=True) as reader, pytest.raises(ConfigError, match="there are"):
        reader.restore(ABSTRACT, 9)


FULL = """
import pathlib, sys, jax
from jaxtrain.base.errors import Retry
from jaxtrain.experiment import Retention
from jaxtrain.runs.checkpoints import Checkpoints
folder = pathlib.Path(sys.argv[1])
(folder / "ballast").write_bytes(bytes(700_000))
state = {"x": jax.random.normal(jax.random.key(0), (300, 500))}
checkpoints = Checkpoints(folder / "checkpoints", Retention(last=9))
checkpoints.report_to(lambda kind, **facts: print(kind, facts["step"], facts["why"]))
for step in range(1, 5):
    checkpoints.save(step, state, {})
try:
    checkpoints.wait()
except Retry as error:
    print("Retry", "resumes from step 2" in str(error))
print(sorted(path.name for path in (folder / "checkpoints").iterdir()))
(folder / "ballast").unlink()
checkpoints.save(5, state, {})
print(checkpoints.wait(), checkpoints.steps(), checkpoints.latest())
checkpoints.close()
"""


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_half_written_and_the_next_save_is_tried(tmp_path):
    done = run_on_small_disk(FULL, tmp_path / "disk", "2m")
    assert done.stdout.splitlines() == [
        "save_failed 3 No space left on device",
        "save_failed 4 No space left on device",
        "Retry True",
        "['1', '2']",
        "5 [1, 2, 5] 5",
    ]
    assert "Traceback" not in done.stderr


TWO = """
import os, pathlib, sys, jax, jax.numpy as jnp, numpy as np
number, port, folder = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", 2, number)
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtrain.runs.checkpoints import Checkpoints
place = NamedSharding(jax.make_mesh((2,), ("d",)), PartitionSpec("d"))
values = np.arange(32, dtype=np.float32).reshape(8, 4)
state = {"x": jax.make_array_from_callback((8, 4), place, lambda index: values[index])}
with Checkpoints(folder) as checkpoints:
    for step in (1, 2):
        checkpoints.save(step, state, {"step": step})
    checkpoints.wait()
multihost_utils.sync_global_devices("saved")
if number == 0:
    file = sorted((folder / "2" / "state" / "ocdbt.process_1").rglob("d/*"))[0]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
multihost_utils.sync_global_devices("damaged")
with Checkpoints(folder) as checkpoints:
    checkpoints.report_to(lambda kind, **facts: print(kind, facts["step"], "ocdbt.process_1" in facts["file"]))
    latest = checkpoints.latest()
    back, record = checkpoints.restore({"x": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=place)})
    print(latest, record["step"], *(np.asarray(shard.data).sum() for shard in back["x"].addressable_shards))
"""


@pytest.mark.slow
def test_two_processes_agree_on_the_newest_good_checkpoint_and_one_of_them_sets_the_damaged_one_aside(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    commands = [[sys.executable, "-c", TWO, str(number), port, str(tmp_path / "checkpoints")] for number in (0, 1)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    processes = [subprocess.Popen(each, stdout=-1, stderr=-1, text=True, env=environment) for each in commands]
    (first, _), (second, _) = [process.communicate(timeout=120) for process in processes]
    assert first.splitlines()[-2:] == ["damaged 2 True", "1 1 120.0"]
    assert second.splitlines()[-1] == "1 1 376.0"
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == ["2"]
