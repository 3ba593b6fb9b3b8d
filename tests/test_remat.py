"""What the backward pass keeps, read off its residuals, and how blocks are scanned, read off the jaxpr."""

import contextlib
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jaxprs import equations

from jaxtrain import Layout
from jaxtrain.models import Blocks, Experts, Model, Transformer, ViT
from jaxtrain.models.layers import Remat
from jaxtrain.sharding.constraints import scope

LAYERS, B, L, D, KV, M = 3, 2, 8, 16, 8, 48
SMALL = Blocks(width=D, layers=LAYERS, heads=4, kv_heads=2, mlp=M)
TOKENS, IMAGES = jnp.ones((B, L), jnp.int32), jnp.ones((B, 4, 8, 1))

MODELS: dict[str, tuple[Callable[[Blocks], Model], jax.Array]] = {
    "decoder": (lambda blocks: Transformer(vocab=20, blocks=blocks), TOKENS),
    "encoder": (lambda blocks: Transformer(vocab=20, causal=False, pooled=True, blocks=blocks), TOKENS),
    "experts": (lambda blocks: Transformer(vocab=20, blocks=replace(blocks, experts=Experts(count=4))), TOKENS),
    "vit": (lambda blocks: ViT(outputs=4, blocks=blocks), IMAGES),  # 2 × 4 patches
}
"""Every model with blocks, and inputs of B rows of L positions."""


def arrays(tree: Any) -> Any:
    """A tree of arrays without the names of their dims."""
    return jax.tree.map(lambda leaf: getattr(leaf, "value", leaf), tree, is_leaf=lambda leaf: hasattr(leaf, "axes"))


def initial(model: Model, inputs: jax.Array) -> Any:
    return jax.eval_shape(lambda: arrays(model.init(jax.random.key(0), inputs)))


def kept(name: str, **changes: Any) -> list[jax.ShapeDtypeStruct]:
    """The arrays that a model's forward pass keeps for its backward pass."""
    make, inputs = MODELS[name]
    return residuals(make(replace(SMALL, **changes)), inputs)


def residuals(model: Model, inputs: jax.Array, within: Any = None) -> list[jax.ShapeDtypeStruct]:
    with within or contextlib.nullcontext():
        backward = jax.eval_shape(
            lambda given: jax.vjp(lambda variables: model.apply(variables, inputs)[0], given)[1],
            initial(model, inputs),
        )
    return jax.tree.leaves(backward)


def of_blocks(found: list[jax.ShapeDtypeStruct]) -> Counter[tuple[int, ...]]:
    """The shapes of those that are kept once a block."""
    return Counter(x.shape[1:] for x in found if x.shape[:1] == (LAYERS,))


def size(found: list[jax.ShapeDtypeStruct]) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in found)


@pytest.mark.parametrize("name", MODELS)
def test_full_remat_keeps_of_every_block_its_parameters_and_its_input_and_nothing_else(name: str) -> None:
    make, inputs = MODELS[name]
    params = jax.tree.leaves(initial(make(SMALL), inputs).params["blocks"])
    assert of_blocks(kept(name, remat="full")) == Counter([(B, L, D), *(leaf.shape[1:] for leaf in params)])


@pytest.mark.parametrize("name", ["decoder", "encoder", "vit"])
def test_remat_of_all_but_dots_keeps_the_outputs_of_weight_matmuls_as_well(name: str) -> None:
    outputs = [(B, L, D), (B, L, KV), (B, L, KV), (B, L, D), (B, L, M), (B, L, M)]
    # Query, key, value, attention output, gate, up; what comes down is added to the residual stream, whose gradient needs it not.
    more = of_blocks(kept(name, remat="dots"))
    more.subtract(of_blocks(kept(name, remat="full")))
    assert +more == Counter(outputs)
    assert min(more.values()) >= 0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_the_more_is_recomputed_the_less_is_kept_and_by_default_nothing_is_recomputed(name: str) -> None:
    none, dots, full = (size(kept(name, remat=remat)) for remat in ("none", "dots", "full"))
    assert full < dots < none
    assert size(kept(name)) == none


def test_the_stages_of_a_pipeline_recompute_their_blocks_too() -> None:
    layout, inputs = Layout({"stage": 3}), jnp.ones((6, L), jnp.int32)

    def size_of(remat: Remat) -> int:
        model = Transformer(vocab=20, blocks=replace(SMALL, remat=remat))
        return size(residuals(model, inputs, scope(layout, layout.abstract_mesh(3), 6)))

    assert size_of("full") < size_of("dots") < size_of("none")


def scans(layers: int, **changes: Any) -> list[tuple[int, int]]:
    """The length and the unrolling of every scan in a decoder's forward pass."""
    model = Transformer(vocab=20, blocks=replace(SMALL, layers=layers, **changes))
    found = equations(lambda variables: model.apply(variables, TOKENS), initial(model, TOKENS))
    return [(each.params["length"], each.params["unroll"]) for each in found if each.primitive.name == "scan"]


def test_blocks_are_scanned_and_unrolled_as_the_config_says() -> None:
    assert scans(4) == [(4, 1)]
    assert scans(4, unroll=2) == [(4, 2)]
    assert scans(4, unroll=3) == [(4, 3)]
    assert scans(2, unroll=8) == [(2, 2)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_a_deeper_model_is_traced_to_as_many_equations_as_a_flat_one(name: str) -> None:
    make, inputs = MODELS[name]

    def traced(layers: int) -> list[Any]:
        model = make(replace(SMALL, layers=layers))
        return equations(jax.grad(lambda variables: model.apply(variables, inputs)[0].sum()), initial(model, inputs))

    flat, deep = (Counter(each.primitive.name for each in traced(layers)) for layers in (2, 9))
    assert flat == deep
    loops = [each for each in traced(9) if each.primitive.name == "scan" and each.params["length"] == 9]
    assert [each.params["reverse"] for each in loops] == [False, True]


def test_recomputed_blocks_have_no_barriers_against_common_subexpressions_for_the_scan_is_one_already() -> None:
    model = Transformer(vocab=20, blocks=replace(SMALL, remat="full"))
    found = equations(jax.grad(lambda variables: model.apply(variables, TOKENS)[0].sum()), initial(model, TOKENS))
    assert {each.params["prevent_cse"] for each in found if "prevent_cse" in each.params} == {False}
