"""Generation with a cache gives, token for token, what computing whole rows gives, on every mesh; `jax.export` keeps it.

The reference computes the logits of the whole row anew for each token, limits them in numpy and draws by itself.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export
from test_sampling import kept_by_numpy

from jaxtrain import MEGATRON, RULES, ConfigError, Layout
from jaxtrain.base.errors import Diverged
from jaxtrain.generation import Decoder, Sampling, generate
from jaxtrain.generation.decoder import decoding_layout
from jaxtrain.generation.functions import export_generation, generation_signature
from jaxtrain.models import Blocks, Experts, LoRA, Model, NGrams, Recurrent, Transformer
from jaxtrain.models.variables import Variables
from jaxtrain.sharding.layout import path_name, plain

V, MOST = 64, 32
PROMPTS = [[5, 9, 2, 33, 60], [7], [1, 1, 1, 8, 9, 9, 3, 50, 12], [21, 40]]
TOKENS = 6
GREEDY, DRAWN = Sampling(temperature=0), Sampling(temperature=0.8, top_k=30, top_p=0.9, min_p=0.01)


def blocks(**fields: Any) -> Blocks:
    sizes: dict[str, Any] = {"width": 32, "layers": 2, "heads": 4, "mlp": 64}
    return Blocks(**(sizes | fields))


MODELS: dict[str, Model] = {
    "n-grams": Transformer(vocab=V, blocks=blocks(kv_heads=2), tied=False, ngrams=(2, 4), buckets=128),
    "tied": Transformer(vocab=V, blocks=blocks(layers=4, rounds=2, unroll=2, remat="full")),
    "experts": Transformer(vocab=V, blocks=blocks(experts=Experts(count=4, shared=1))),
    "LoRA": LoRA(model=Transformer(vocab=V, blocks=blocks(dropout=0.1)), layers=("blocks/block/*",), rank=2),
    "recurrent": Recurrent(vocab=V, width=32, layers=2, state=48, tied=False),
}


@functools.cache
def variables(name: str) -> Variables:
    """Random ones, so that no two tokens are about as likely."""
    rng = np.random.default_rng(7)
    shapes = jax.eval_shape(lambda: plain(MODELS[name].init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), shapes)


@functools.cache
def whole(name: str) -> Any:
    return jax.jit(lambda variables, ids: MODELS[name].apply(variables, ids)[0])


def uncached(name: str, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int = 0) -> list[list[int]]:
    """What computing the whole row for each token gives."""
    fields = {field: getattr(sampling, field) for field in ("temperature", "top_k", "top_p", "min_p")}
    rows = []
    for number, prompt in enumerate(prompts):
        ids, key = list(prompt), jax.random.key(seed + number)
        for n in range(TOKENS):
            padded = np.array([ids + [0] * (MOST - len(ids))], np.int32)
            logits = np.asarray(whole(name)(variables(name), padded)[0, len(ids) - 1], np.float64)
            if sampling.temperature:
                noise = np.asarray(jax.random.gumbel(jax.random.fold_in(key, n), (V,)))
                logits = np.where(kept_by_numpy(logits, **fields), logits / sampling.temperature + noise, -np.inf)
            ids.append(int(logits.argmax()))
        rows.append(ids[len(prompt) :])
    return rows


def cached(name: str, prompts: Any, sampling: Sampling, seed: int = 0, **more: Any) -> list[list[int]]:
    decoder = Decoder(MODELS[name], **more)
    return [row.tolist() for row in decoder.generate(variables(name), prompts, TOKENS, sampling, seed)]


@pytest.mark.parametrize(
    "name", ["n-grams", *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name != "n-grams")]
)
def test_rows_of_different_lengths_are_those_of_the_uncached_model(name: str):
    decoder = Decoder(MODELS[name])
    for sampling, seed in ((GREEDY, 0), (DRAWN, 3)):
        found = decoder.generate(variables(name), PROMPTS, TOKENS, sampling, seed)
        expected = uncached(name, PROMPTS, sampling, seed)
        assert [row.tolist() for row in found] == expected
        assert len({tuple(row) for row in expected}) == len(PROMPTS)


MESHES: dict[str, tuple[str, Mapping[str, int], Mapping[str, Any]]] = {
    "data and tensor": ("n-grams", {"data": 2, "tensor": 2}, RULES),
    "fsdp": ("n-grams", {"fsdp": 4}, RULES),
    "megatron": ("n-grams", {"tensor": 2}, MEGATRON),
    "context": ("n-grams", {"context": 2, "data": 2}, RULES),
    "stage": ("tied", {"stage": 2}, {**RULES, "batch": ("data", "fsdp")}),
    "expert": ("experts", {"expert": 4}, RULES),
    "recurrent": ("recurrent", {"fsdp": 2, "tensor": 2}, RULES),
}


@pytest.mark.slow
@pytest.mark.parametrize("which", MESHES)
def test_every_mesh_generates_the_same(which: str):
    name, mesh, rules = MESHES[which]
    layout, devices = Layout(mesh, rules), jax.devices()[: int(np.prod(list(mesh.values())))]
    decoder = Decoder(MODELS[name], layout, devices)
    for sampling in (GREEDY, DRAWN):
        found = decoder.generate(variables(name), PROMPTS[:3], TOKENS, sampling)
        assert [row.tolist() for row in found] == uncached(name, PROMPTS[:3], sampling)
