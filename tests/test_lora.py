"""Low-rank adaptation: nothing changes at first, what is added is the low-rank product, and merging gives the same."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_groups import BATCH, TASK, close_trees, experiment, paths, run

from jaxtrain import ConfigError, Program
from jaxtrain.models import Blocks, LoRA, Model, Transformer
from jaxtrain.models.variables import Variables
from jaxtrain.optimizers import AdamW, ConstantRate, Frozen, Groups
from jaxtrain.sharding.layout import plain

IDS = jnp.asarray(BATCH["tokens"][:, :-1])
ADAPTED = LoRA(model=TASK.model, layers=("blocks/block/query", "blocks/block/value", "head"), rank=4, scale=0.5)
GROUPS = Groups(groups={"*/lora_*": AdamW(schedule=ConstantRate(peak=0.05)), "*": Frozen()})


def variables(model: Model = ADAPTED, random: bool = False) -> Variables:
    made = plain(model.init(jax.random.key(0), IDS))
    if not random:
        return made
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), made)


@pytest.mark.slow
def test_at_first_the_outputs_and_all_other_parameters_are_those_of_the_model() -> None:
    own, adapted = variables(TASK.model), variables()
    np.testing.assert_array_equal(ADAPTED.apply(adapted, IDS)[0], TASK.model.apply(own, IDS)[0])
    added = {path for path in paths(adapted.params) if "lora_" in path}
    assert added == {f"{layer}/lora_{end}" for layer in ADAPTED.layers for end in ("in", "out")}
    assert paths(adapted.params) - added == paths(own.params)
    np.testing.assert_array_equal(adapted.params["head"]["kernel"], own.params["head"]["kernel"])


def test_a_layer_adds_the_scaled_product() -> None:
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 6)), jnp.float32)
    model = LoRA(model=Line(), layers=("line",), rank=2, scale=0.5)
    given = jax.tree.map(lambda leaf: leaf + 0.1, plain(model.init(jax.random.key(0), x)))
    line = {name: np.asarray(leaf, np.float64) for name, leaf in given.params["line"].items()}
    expected = x @ line["kernel"] + line["bias"] + 0.5 * (x @ line["lora_in"]) @ line["lora_out"]
    np.testing.assert_allclose(model.apply(given, x)[0], expected, rtol=1e-5)
    assert line["lora_in"].shape == (6, 2)
    assert line["lora_out"].shape == (2, 4)


def test_merged_variables_of_the_model_itself_compute_the_same() -> None:
    given = variables(random=True)
    merged = ADAPTED.merged(given)
    assert paths(merged.params) == paths(variables(TASK.model).params)
    one, other = ADAPTED.apply(given, IDS)[0], TASK.model.apply(merged, IDS)[0]
    np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)
    assert np.abs(np.asarray(one) - np.asarray(TASK.model.apply(drop(given), IDS)[0])).max() > 0.1


def drop(given: Variables) -> Variables:
    return replace(ADAPTED, scale=0.0).merged(given)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh", [{"fsdp": 8}, pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, marks=pytest.mark.slow)], ids=str
)
def test_low_rank_matrices_alone_are_trained_on_a_mesh_as_on_one_device(mesh: dict[str, int]) -> None:
    task = replace(TASK, model=replace(ADAPTED, rank=8))
    _, alone = run(Program(replace(experiment(GROUPS), task=task), jax.devices()[:1]))
    first, split = run(Program(replace(experiment(GROUPS, mesh), task=task), jax.devices()))
    assert {path.rpartition("/")[2] for path in paths(split.params)} == {"lora_in", "lora_out"}
    close_trees(jax.device_get(split.params), jax.device_get(alone.params))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(split.frozen), first[1])
    assert np.abs(np.asarray(alone.params["head"]["lora_out"])).max() > 0.01


def test_a_pattern_without_a_linear_layer_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"LoRA.layers: no linear layer matches 'haed'; did you mean 'head'"):
        replace(ADAPTED, layers=("haed",)).init(jax.random.key(0), IDS)


@dataclass(frozen=True)
class Line(Model):
    """One layer of Flax's own."""

    def build(self, rngs, inputs):
        return LineModule(rngs, inputs.shape[-1])


class LineModule(nnx.Module):
    def __init__(self, rngs, features):
        self.line = nnx.Linear(features, 4, rngs=rngs)

    def __call__(self, x, context):
        return self.line(x)


assert isinstance(TASK.model, Transformer)


def test_lora_of_no_layers_and_lora_inside_of_lora_are_refused() -> None:
    inner = LoRA(model=Transformer(vocab=8, blocks=Blocks(width=8, layers=1, heads=2, mlp=8)), layers=("*/query",))
    tokens = np.ones((2, 4), np.int32)
    with pytest.raises(ConfigError, match=r"^LoRA.layers: name at least one"):
        replace(inner, layers=()).init(jax.random.key(0), tokens)
    with pytest.raises(ConfigError, match=r"^LoRA.model: LoRA inside of LoRA would add the same matrices twice"):
        replace(inner, model=inner).init(jax.random.key(0), tokens)
