"""Checkpoints: what is saved comes back bit for bit, and what cannot come back is named."""

import dataclasses
import functools
import os
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxtrain.base.errors import ConfigError, Retry
from jaxtrain.experiment import Retention
from jaxtrain.runs.checkpoints import Checkpoints


@functools.partial(jax.tree_util.register_dataclass, data_fields=["params", "moments", "step", "key"], meta_fields=[])
@dataclasses.dataclass
class State:
    params: dict
    moments: object
    step: jax.Array
    key: jax.Array


def a_state(seed=0):
    kernel = jax.random.normal(jax.random.key(seed), (16, 8))
    params = {"mlp": {"kernel": kernel, "bias": jnp.full(8, 0.1, jnp.bfloat16)}, "none": jnp.zeros((0, 3))}
    return State(params, optax.adam(1e-3).init(params), jnp.int32(7), jax.random.key(seed + 1))


def laid_out(tree, place):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)), tree)


def on_mesh(shape, names, spec):
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names))
    return lambda x: NamedSharding(mesh, spec if x.ndim == 2 and x.size else PartitionSpec())


def on_one(x):
    return SingleDeviceSharding(jax.devices()[0])


def bits(tree):
    def leaf(x):
        return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    return [(str(x.dtype), x.shape, np.asarray(leaf(x)).tobytes()) for x in jax.tree.leaves(tree)]


def small(value):
    return {"x": jnp.full(4, value, jnp.float32)}


@pytest.fixture
def filled(tmp_path):
    state = a_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state, {})
        checkpoints.wait()
        yield checkpoints, laid_out(state, on_one)


def test_a_state_saved_on_eight_devices_comes_back_bit_for_bit_on_any_mesh(tmp_path):
    place = on_mesh((8,), ("fsdp",), PartitionSpec("fsdp"))
    state = jax.tree.map(lambda x: jax.device_put(x, place(x)), a_state())
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, state, {"batch": 64})
    both = PartitionSpec("data", "tensor")
    for other in (place, on_mesh((2, 4), ("data", "tensor"), both), on_one):
        abstract = laid_out(state, other)
        with Checkpoints(tmp_path) as checkpoints:
            back, record = checkpoints.restore(abstract)
        assert record == {"batch": 64}
        assert bits(back) == bits(state)
        assert jax.tree.structure(back) == jax.tree.structure(state)
        for leaf, wanted in zip(jax.tree.leaves(back), jax.tree.leaves(abstract), strict=True):
            assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


def test_a_leaf_without_sharding_lands_on_the_first_device(tmp_path):
    place = on_mesh((8,), ("fsdp",), PartitionSpec("fsdp"))
    state = jax.tree.map(lambda x: jax.device_put(x, place(x)), a_state())
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        back, _ = checkpoints.restore(laid_out(state, lambda x: None))
    assert {leaf.sharding for leaf in jax.tree.leaves(back)} == {SingleDeviceSharding(jax.devices()[0])}


def test_the_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    place = on_mesh((8,), ("fsdp",), PartitionSpec("fsdp"))
    x = jnp.arange(1024.0 * 1024).reshape(1024, 1024)
    state = {"x": jax.device_put(x, place(x))}
    before = bits(state)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(20):
            state = overwrite(state)
        jax.block_until_ready(state)
        back, _ = checkpoints.restore(laid_out(state, place))
    assert bits(back) == before


def test_every_leaf_that_is_missing_extra_or_of_another_dtype_is_named_and_none_is_cast(filled):
    checkpoints, abstract = filled
    kernel = abstract.params["mlp"]["kernel"]
    bias = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=on_one(None))
    params = {"mlp": {"kernal": kernel, "bias": bias}, "none": abstract.params["none"]}
    with pytest.raises(ConfigError) as error:
        checkpoints.restore(dataclasses.replace(abstract, params=params))
    assert str(error.value).splitlines()[1:] == [
        "  params/mlp/bias: saved bfloat16[8], wanted float32[8]",
        "  params/mlp/kernal: wanted float32[16,8], not saved; did you mean 'params/mlp/kernel'?",
        "  params/mlp/kernel: saved float32[16,8], not wanted",
    ]


def test_another_shape_is_never_cut_or_padded(filled):
    checkpoints, abstract = filled
    abstract.params["mlp"]["kernel"] = jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=on_one(None))
    with pytest.raises(ConfigError, match=r"params/mlp/kernel: saved float32\[16,8\], wanted float32\[16,4\]"):
        checkpoints.restore(abstract)


def test_another_kind_of_random_key_is_refused(filled):
    checkpoints, abstract = filled
    key = jax.ShapeDtypeStruct((), jax.random.key(0, impl="rbg").dtype, sharding=on_one(None))
    with pytest.raises(ConfigError, match=r"key: saved key<fry>\[\], wanted key<rbg>\[\]"):
        checkpoints.restore(dataclasses.replace(abstract, key=key))


def test_two_leaves_of_one_path_are_refused(tmp_path):
    x = jnp.zeros(1)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ConfigError, match="same path"):
        checkpoints.save(1, {"a/b": x, "a": {"b": x}}, {})


def test_an_unknown_step_says_which_there_are(filled, tmp_path):
    checkpoints, abstract = filled
    with pytest.raises(ConfigError, match=r"no checkpoint of step 6 in .*; there are \[5\]"):
        checkpoints.restore(abstract, 6)
    with pytest.raises(ConfigError, match="there are no checkpoints in"):
        Checkpoints(tmp_path / "empty").restore(abstract)


def test_the_last_those_of_every_kth_step_and_the_best_are_kept(tmp_path):
    scores = {1: 0.5, 2: 0.9, 3: float("nan"), 4: 0.7, 5: 0.8, 6: 0.1}
    with Checkpoints(tmp_path, Retention(last=1, every=4, best="validation/accuracy", mode="max")) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, small(step), {}, {"validation/accuracy": score, "train/loss": 1.0})
        checkpoints.save(7, small(7), {})
        assert (checkpoints.steps(), checkpoints.latest(), checkpoints.best()) == ([2, 4, 7], 7, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "4", "7"]
    with Checkpoints(tmp_path, Retention(best="validation/accuracy", mode="max")) as checkpoints:
        assert checkpoints.best() == 2


def test_the_lowest_is_the_best_when_asked_for_and_the_later_of_equals(tmp_path):
    with Checkpoints(tmp_path, Retention(last=1, best="loss")) as checkpoints:
        for step, loss in enumerate([3.0, 1.0, 1.0, 2.0], start=1):
            checkpoints.save(step, small(step), {}, {"loss": loss})
        assert (checkpoints.steps(), checkpoints.best()) == ([3, 4], 3)
    with Checkpoints(tmp_path / "all", Retention(last=9, best="loss")) as checkpoints:
        for step, loss in enumerate([3.0, 1.0, 1.0, 2.0], start=1):
            checkpoints.save(step, small(step), {}, {"loss": loss})
        assert (checkpoints.steps(), checkpoints.best()) == ([1, 2, 3, 4], 3)
    with Checkpoints(tmp_path, Retention(best="accuracy")) as checkpoints:
        assert checkpoints.best() is None
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best() is None


def test_a_best_metric_that_does_not_exist_is_refused_with_the_nearest_name(tmp_path):
    with Checkpoints(tmp_path, Retention(best="validation/acuracy")) as checkpoints:
        with pytest.raises(ConfigError, match="did you mean 'validation/accuracy'"):
            checkpoints.save(1, small(1), {}, {"validation/accuracy": 0.5, "loss": 1.0})
        assert checkpoints.steps() == []


@pytest.mark.parametrize("fields", [{"last": 0}, {"every": 0}, {"mode": "most"}])
def test_a_retention_that_keeps_nothing_is_refused(fields):
    with pytest.raises(ConfigError, match=str(*fields)):
        Retention(**fields)


@pytest.mark.parametrize("step", [1, 2])
def test_a_step_that_is_not_later_than_every_saved_one_is_refused(tmp_path, step):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, small(2), {"first": True})
        with pytest.raises(ValueError, match=f"step {step} is not later than step 2"):
            checkpoints.save(step, small(1), {"first": False})
        back, record = checkpoints.restore(laid_out(small(0), on_one))
        assert (checkpoints.steps(), bits(back), record) == ([2], bits(small(2)), {"first": True})


def test_a_record_of_nested_json_comes_back(tmp_path):
    record = {"examples": 12, "name": "é", "nested": {"list": [1.5, None, True]}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, small(1), record)
        assert checkpoints.restore(laid_out(small(0), on_one))[1] == record


def test_a_reader_neither_creates_nor_cleans_nor_saves_and_sees_new_checkpoints(tmp_path, caplog):
    cut_off = tmp_path / "9.orbax-checkpoint-tmp"
    with Checkpoints(tmp_path / "nowhere", read_only=True) as reader:
        assert reader.steps() == []
    assert not (tmp_path / "nowhere").exists()
    with Checkpoints(tmp_path) as writer, Checkpoints(tmp_path, read_only=True) as reader:
        writer.save(1, small(1), {})
        writer.wait()
        cut_off.mkdir()
        assert reader.steps() == [1]
        with Checkpoints(tmp_path, read_only=True) as late:
            assert late.steps() == [1]
            with pytest.raises(ValueError, match="reading only"):
                late.save(2, small(2), {})
    assert cut_off.exists()
    assert caplog.text == ""


def test_a_record_that_is_no_json_is_refused_before_anything_is_written(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(TypeError, match="not JSON serializable"):
            checkpoints.save(1, small(1), {"no json": object()})
        assert (checkpoints.steps(), list(tmp_path.iterdir())) == ([], [])


def test_a_save_that_fails_is_an_event_and_the_next_is_tried_and_only_the_last_counts_at_the_end(tmp_path):
    folder, events = tmp_path / "checkpoints", []
    checkpoints = Checkpoints(folder)
    checkpoints.report_to(lambda kind, **facts: events.append((kind, facts["step"], facts["why"])))
    checkpoints.save(1, small(1), {})
    assert checkpoints.steps() == [1]
    shutil.move(folder, tmp_path / "away")
    folder.write_text("in the way")
    checkpoints.save(2, small(2), {})
    with pytest.raises(Retry, match=r"step 2 could not be saved .*Not a directory.*resumes from step 1"):
        checkpoints.wait()
    folder.unlink()
    shutil.move(tmp_path / "away", folder)
    assert checkpoints.save(3, small(3), {}) == 0
    assert checkpoints.save(4, small(4), {}) == 3
    assert (checkpoints.wait(), checkpoints.steps()) == (4, [3, 4])
    assert [event[:2] for event in events] == [("save_failed", 2)]
    checkpoints.close()


KILLED = """
import os, signal, sys, pathlib, jax
from jaxtrain.runs.checkpoints import Checkpoints
checkpoints = Checkpoints(pathlib.Path(sys.argv[1]))
checkpoints.save(1, {"x": jax.numpy.full(4, 1.0)}, {})
checkpoints.wait()
checkpoints.save(2, {"x": jax.random.normal(jax.random.key(0), (1 << 23,))}, {})
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_save_cut_off_by_kill_9_is_never_seen_and_is_removed_before_the_next_save(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stderr == ""
    assert {p.name.split(".")[0] for p in tmp_path.iterdir() if "tmp" in p.name} == {"2"}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
        back, _ = checkpoints.restore(laid_out(small(0), on_one))
        assert bits(back) == bits(small(1))
        checkpoints.save(2, small(2), {})
        assert checkpoints.steps() == [1, 2]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]
