"""Every layout that cannot be is refused, in words that name the place, the sizes and what to do."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import test_scaling
import tiny
from flax import nnx
from test_program import LineModule

from jaxtrain import RULES, ConfigError, Experiment, Layout, Program
from jaxtrain.data import Arrays, Pipeline
from jaxtrain.models import Experts, Model
from jaxtrain.optimizers import SGD
from jaxtrain.tasks import Regression


def refused(experiment: Experiment, devices: int = 8) -> str:
    with pytest.raises(ConfigError) as error:
        Program(experiment, jax.devices()[:devices]).lower()
    return str(error.value)


def on(layout: Layout, **changes) -> Experiment:
    return replace(tiny.main(), layout=layout, **changes)


class Misnamed(Model):
    """A model that names one dim of a matrix."""

    def build(self, rngs: nnx.Rngs, inputs) -> nnx.Module:
        module = LineModule(rngs, inputs.shape[-1], "float32")
        module.kernel.set_metadata("axes", ("embed",))
        return module


def test_a_parameter_with_fewer_names_than_dims_is_refused_and_named():
    columns = {"x": np.ones((8, 3), np.float32), "target": np.ones(8, np.float32)}
    task = Regression(model=Misnamed(), inputs="x")
    experiment = Experiment(task=task, data=Pipeline(Arrays(columns), batch_size=8), optimizer=SGD(), steps=1)
    assert refused(experiment) == "params/kernel: 1 dim names ('embed',) for 2 dims (3, 1)"


def test_an_activation_with_fewer_names_than_dims_is_refused_too():
    layout = Layout({"data": 2})
    with pytest.raises(ConfigError, match=r"^here: 1 dim names \('batch',\) for 2 dims \(4, 5\)$"):
        layout.spec(("batch",), {"data": 2}, (4, 5), "here")


def test_an_evaluation_of_other_fields_or_dtypes_than_training_is_refused():
    one = tiny.main()
    columns = {"tokens": np.ones((4, 17), np.uint8)}
    said = refused(replace(one, evals={"test": Pipeline(Arrays(columns), batch_size=4)}))
    assert said == (
        "evals.test: its batches hold tokens uint8, mask bool, but those trained on tokens int32, mask bool"
    )
    columns = {"tokens": np.ones((4, 17), np.int32), "more": np.ones(4, np.int32)}
    said = refused(replace(one, evals={"test": Pipeline(Arrays(columns), batch_size=4)}))
    assert "evals.test: its batches hold tokens int32, more int32, mask bool" in said


def test_an_evaluation_whose_batch_the_mesh_does_not_divide_is_refused_before_training():
    data = Pipeline(tiny.Counting(20), batch_size=10)
    said = refused(on(Layout({"data": 4}), evals={"test": data}), 4)
    assert said.startswith("evals.test: a batch of 10: dim 'batch' has 10 entries, which the mesh axes data=4 do not")


@pytest.mark.parametrize(
    ("mesh", "says"),
    [
        ({"data": 16}, "layout.mesh: {'data': 16} needs 16 devices, but there are 8"),
        ({"data": 4, "tensor": 4}, "layout.mesh: {'data': 4, 'tensor': 4} needs 16 devices, but there are 8"),
        ({"data": -1, "tensor": 16}, "needs a multiple of 16 devices, but there are 8"),
        ({"data": 4}, "layout.mesh: {'data': 4} needs 4 devices, but there are 8"),  # half of them would idle
    ],
    ids=str,
)
def test_a_mesh_of_another_number_of_devices_is_refused(mesh, says):
    assert says in refused(on(Layout(mesh)))


def test_a_mesh_on_fewer_devices_than_are_there_is_refused_too():
    assert "needs 2 devices, but there is 1: change a size" in refused(on(Layout({"data": 2})), 1)


def test_a_device_without_the_memory_to_offload_to_is_named():
    devices = test_scaling.slices(1, 2)
    with pytest.raises(ConfigError, match=r"^layout\.offload: a none has no 'pinned_host' memory here: leave it out$"):
        Layout({"data": 2}, offload=True).make_mesh(devices)


def test_rules_for_the_optimizers_state_are_held_against_the_mesh_as_those_of_parameters_are():
    said = refused(on(Layout({"tensor": 2}, optimizer_rules={"embed": "tensor"})), 2)
    assert said.startswith(
        "params/blocks/block/attention_out/kernel: dims 'heads' and 'embed' are both on the mesh axis"
    )
    said = refused(
        on(
            Layout({"data": 3}, optimizer_rules={"embed": "data"}),
            data=Pipeline(tiny.Counting(9), batch_size=3),
            evals={},
        ),
        3,
    )
    assert "dim 'embed' has 32 entries, which the mesh axes data=3 do not divide" in said
    with pytest.raises(
        ConfigError, match=r"layout\.optimizer_rules: layout\.rules has no dim named 'embd'; did you mean 'embed'"
    ):
        Layout({"data": 2}, optimizer_rules={"embd": "data"})


def test_one_device_is_not_silently_taken_where_several_processes_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match=r'layout\.mesh: \{\} is one device, but there are 8: say \{"data": -1\}'):
        Layout().make_mesh()


class Device(SimpleNamespace):
    """What stands for a device, and can be in a mesh."""

    __hash__ = object.__hash__


def test_the_devices_of_several_slices_are_laid_out_with_the_outermost_axis_across_them():
    # In an order that, left as it is, would lay the inner axis across slices.
    devices = [Device(**vars(device)) for device in test_scaling.slices(2, 4)]
    mixed: Any = [device for pair in zip(devices[:4], devices[4:], strict=True) for device in pair]
    mesh = Layout({"data": -1, "fsdp": 4}).make_mesh(mixed)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4}
    of = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert of.tolist() == [[0] * 4, [1] * 4]


def test_a_mesh_axis_that_splits_nothing_is_refused_with_what_to_say_instead():
    said = refused(on(Layout({"expert": 2})), 2)
    assert said == (
        "layout.mesh: axis 'expert' = 2 splits expert, but no array of this experiment has such a dim: "
        "leave it out, name dims by param_axes, or say data"
    )
    rules = {**RULES, "extra": "pod"}
    said = refused(on(Layout({"pod": 2}, rules)), 2)
    assert said.endswith("axis 'pod' = 2 splits extra, but no array of this experiment has such a dim: leave it out")


def test_a_capacity_of_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"Experts\.capacity: 0 is not above 0 \(None drops no token\)"):
        Experts(count=4, capacity=0)
