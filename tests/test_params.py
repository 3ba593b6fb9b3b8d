"""Models made of Flax's own layers: their parameters get names, or are replicated and reported."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FAST
from flax import nnx
from jax.sharding import PartitionSpec as P

from jaxtrain import ConfigError, Experiment, Layout, Program
from jaxtrain.analysis.explain import explain
from jaxtrain.data import Arrays, Pipeline
from jaxtrain.models import Model, Precision
from jaxtrain.models.base import PREDICTION, Shaped
from jaxtrain.models.layers import Linear, Stack
from jaxtrain.models.params import unnamed
from jaxtrain.models.variables import Context, Extras, Variables
from jaxtrain.optimizers import SGD, ConstantRate
from jaxtrain.sharding.constraints import shard
from jaxtrain.sharding.layout import plain
from jaxtrain.tasks import Classification

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(24, 8, 8, 1)).astype(np.float32)
INPUTS = jnp.asarray(IMAGES)
LABELS = RNG.integers(0, 3, 24).astype(np.int32)
ALL = {"data": 2, "fsdp": 2, "tensor": 2}


class ConvNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, width: int):
        partitioned = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("embed", "mlp"))
        self.conv = nnx.Conv(1, width, (3, 3), rngs=rngs)
        self.norm = nnx.GroupNorm(width, num_groups=2, rngs=rngs)
        self.hidden = nnx.List(
            [
                nnx.Linear(width, 2 * width, kernel_init=partitioned, rngs=rngs),
                nnx.Linear(2 * width, width, rngs=rngs, kernel_metadata={"axes": ("mlp", "embed")}),
            ]
        )
        self.last = nnx.Sequential(nnx.LayerNorm(width, rngs=rngs), nnx.Linear(width, 3, rngs=rngs))

    def __call__(self, image_BYXC: jax.Array, context: Context) -> jax.Array:
        # Without this constraint XLA (jaxlib 0.10.2) computes a wrong gradient of the convolution on three mesh axes.
        x = shard(nnx.relu(self.norm(self.conv(image_BYXC))), "batch", None, None, None).mean((1, 2))
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return self.last(x)


@dataclass(frozen=True, kw_only=True)
class Convolutional(Model):
    width: int = 8
    param_axes: ClassVar = {"conv/kernel": (None, None, None, "mlp"), "last/*/kernel": ("embed", "outputs")}

    def build(self, rngs: nnx.Rngs, inputs: Shaped) -> nnx.Module:
        return ConvNet(rngs, self.width)


def experiment(model: Model, layout: Layout) -> Experiment:
    return Experiment(
        task=Classification(model=model, inputs="image", classes=("a", "b", "c")),
        data=Pipeline(Arrays({"image": IMAGES, "label": LABELS}), batch_size=8, threads=0),
        optimizer=SGD(schedule=ConstantRate(peak=0.1)),
        steps=3,
        layout=layout,
    )


def train(model: Model, layout: Layout, devices: int) -> tuple[Program, list[float]]:
    program = Program(experiment(model, layout), jax.devices()[:devices])
    step, state, losses = program.lower().compile(compiler_options=FAST), program.init(), []
    for batch in [batch for _, batch in zip(range(3), program.experiment.data.batches(), strict=False)]:
        rows = layout.batch_sharding(program.mesh, 8)
        state, metrics = step(state, jax.device_put(dict(batch), rows))
        losses.append(float(metrics["loss"]))
    return program, losses


def test_a_model_of_flax_layers_computes_what_the_module_itself_does():
    model = Convolutional()
    variables = plain(model.init(jax.random.key(3), INPUTS))
    with nnx.use_eager_sharding(False):
        module = ConvNet(nnx.Rngs(jax.random.key(3)), 8)
    outputs, extras = model.apply(variables, INPUTS)
    np.testing.assert_array_equal(outputs, module(INPUTS, PREDICTION))
    assert extras == Extras({}, {})
    assert sorted(variables.params["hidden"]) == ["0", "1"]
    assert variables.state == {}


@pytest.mark.slow
def test_a_model_of_flax_layers_trains_on_a_mesh_as_on_one_device():
    program, losses = train(Convolutional(), Layout(ALL), 8)
    np.testing.assert_allclose(losses, train(Convolutional(), Layout(), 1)[1], rtol=2e-5)
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, program.state.params)
    assert specs["conv"] == {"kernel": P(None, None, None, "tensor"), "bias": P(None)}  # by a pattern of the model
    assert specs["hidden"]["0"]["kernel"] == P("fsdp", "tensor")  # by Flax's own metadata
    assert specs["hidden"]["1"]["kernel"] == P("tensor", "fsdp")  # by the metadata of this library
    assert specs["last"]["layers"]["1"]["kernel"] == P("fsdp", None)


UNNAMED = [
    "conv/bias",
    "hidden/0/bias",
    "hidden/1/bias",
    "last/layers/0/bias",
    "last/layers/0/scale",
    "last/layers/1/bias",
    "norm/bias",
    "norm/scale",
]


def test_parameters_without_names_are_replicated_and_listed_where_there_are_several_devices():
    program = Program(experiment(Convolutional(), Layout(ALL)))
    assert program.notes(program.lower()) == {"unnamed_parameters": UNNAMED}
    alone = Program(experiment(Convolutional(), Layout()), jax.devices()[:1])
    assert alone.notes(alone.lower()) == {}
    said = explain(program.experiment, 8)
    assert f"replicated, since their dims have no names: {', '.join(UNNAMED)}" in said
    [row] = [line for line in said.splitlines() if line.startswith("norm/scale")]
    assert row.endswith("replicated: its dims have no names")
    assert "replicated" not in explain(alone.experiment, 1)


@dataclass(frozen=True, kw_only=True)
class Given(Model):
    """Whatever module `make` builds; a dict of fields cannot be hashed."""

    make: Any
    options: dict = field(default_factory=dict)

    def build(self, rngs: nnx.Rngs, inputs: Shaped) -> nnx.Module:
        return self.make(rngs)


def test_a_layer_of_flax_may_be_the_whole_model():
    model = Given(make=lambda rngs: nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 2, rngs=rngs)))
    x, variables = jnp.ones((3, 4)), plain(model.init(jax.random.key(0), jnp.ones((3, 4))))
    one, other = variables.params["layers"]["0"], variables.params["layers"]["2"]
    hidden = np.maximum(np.asarray(x) @ one["kernel"] + one["bias"], 0)
    outputs, _ = model.apply(variables, x, Context(keys_B=jax.random.split(jax.random.key(0), 3)))
    np.testing.assert_allclose(outputs, hidden @ other["kernel"] + other["bias"], rtol=1e-5)


def test_an_embedding_of_flax_is_a_lookup():
    model, ids = Given(make=lambda rngs: nnx.Embed(16, 4, rngs=rngs)), jnp.array([[3, 0], [15, 3]])
    variables = plain(model.init(jax.random.key(0), ids))
    np.testing.assert_array_equal(model.apply(variables, ids)[0], np.asarray(variables.params["embedding"])[ids])


class Mlp(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.up = nnx.Linear(8, 8, rngs=rngs)
        self.norm = nnx.RMSNorm(8, scale_init=nnx.with_partitioning(nnx.initializers.ones, ("norm",)), rngs=rngs)
        self.down = Linear(rngs, (8, 8), ("mlp", "embed"), Precision())

    def __call__(self, x: jax.Array, keys_B: Any, rows: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        return x + self.down(nnx.relu(self.up(self.norm(x)))), {}


def test_stacked_flax_layers_have_the_names_of_the_stack():
    named = Given(make=lambda rngs: Stack(Mlp, 4, rngs, "none", 1, rounds=2)).init(jax.random.key(0), INPUTS).params
    block = named["block"]
    assert block["up"]["kernel"].axes == ("rounds", "layers", None, None)
    assert block["down"]["kernel"].axes == ("rounds", "layers", "mlp", "embed")
    assert block["norm"]["scale"].axes == ("rounds", "layers", "norm")
    assert block["up"]["kernel"].value.shape == (2, 2, 8, 8)
    assert unnamed(named) == ["block/up/bias", "block/up/kernel"]


class Temperature(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.temperature = nnx.Param(jnp.ones(()))


def test_a_number_has_no_dims_to_name():
    assert unnamed(Given(make=Temperature).init(jax.random.key(0), INPUTS).params) == []


class Constant(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.table = jnp.ones(3)


class Stateful(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.ticks = nnx.Variable(jnp.zeros(()))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda rngs: nnx.Sequential(nnx.BatchNorm(4, rngs=rngs)),
            [
                "Given: layers/0 is an nnx.BatchNorm, whose statistics microbatches would overwrite",
                "use jaxtrain.models.BatchNorm(width), called as norm(x, context), or nnx.GroupNorm",
            ],
        ),
        (
            lambda rngs: nnx.Sequential(nnx.Dropout(0.1, rngs=rngs)),
            ["Given: layers/0 is an nnx.Dropout", "jaxtrain.models.layers.dropout(x, rate, context.keys_B)"],
        ),
        (Stateful, ["Given: ticks is a Variable", "an nnx.Param if it is trained, else compute it in __call__"]),
        (Constant, ["Given: table is a plain array", "an nnx.Param if it is trained, else compute it in __call__"]),
        (lambda rngs: {"kernel": 1}, ["Given.build returned a dict of kernel, not an nnx.Module"]),
    ],
    ids=["batch norm", "dropout", "variable", "array", "no module"],
)
def test_a_variable_that_is_no_parameter_is_refused_and_named(make, words):
    with pytest.raises(ConfigError) as error:
        Given(make=make).init(jax.random.key(0), INPUTS)
    assert all(word in str(error.value) for word in words), error.value


@dataclass(frozen=True, kw_only=True)
class Mistyped(Convolutional):
    param_axes: ClassVar = {"convv/kernel": (None, None, None, "mlp")}


@dataclass(frozen=True, kw_only=True)
class Short(Convolutional):
    param_axes: ClassVar = {"conv/kernel": ("mlp",)}


def test_a_pattern_that_matches_no_parameter_or_names_too_few_dims_is_refused():
    said = "Mistyped.param_axes: no parameter matches 'convv/kernel'; did you mean 'conv/kernel'?"
    with pytest.raises(ConfigError) as error:
        Program(experiment(Mistyped(), Layout(ALL)))
    assert str(error.value) == said
    with pytest.raises(ConfigError, match=r"params/conv/kernel: 1 dim names \('mlp',\) for 4 dims"):
        Program(experiment(Short(), Layout(ALL)))


def test_what_stays_the_same_of_a_model_is_traced_once():
    built = []

    def make(rngs: nnx.Rngs) -> nnx.Module:
        built.append(rngs)
        return nnx.Linear(4, 2, rngs=rngs)

    model = Given(make=make)
    variables = Variables({"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)})
    for _ in range(3):
        model.apply(variables, jnp.ones((3, 4)))
    assert len(built) == 1
    replace(model).apply(variables, jnp.ones((3, 4)))
    assert len(built) == 2


def test_a_parameter_of_whole_numbers_is_refused_and_named():
    class Counts(nnx.Module):
        def __init__(self, rngs):
            self.counts = nnx.Param(jnp.arange(3))

    with pytest.raises(ConfigError, match=r"^Given: counts is an nnx.Param of int32, which has no gradient"):
        Given(make=Counts).init(jax.random.key(0), INPUTS)


def test_a_module_of_another_library_is_no_module():
    class Odd:
        dtype = np.float32  # as a module of Flax's older API has, without a shape

    with pytest.raises(ConfigError, match=r"^Given.build returned a Odd, not an nnx.Module$"):
        Given(make=lambda rngs: Odd()).init(jax.random.key(0), INPUTS)
