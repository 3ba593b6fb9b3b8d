"""Generation with a cache gives, token for token, what computing whole rows gives, on every mesh; `jax.export` keeps it.

The reference computes the logits of the whole row anew for each token, limits them in numpy and draws by itself.
"""

import functools
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from test_sampling import kept_by_numpy

from jaxtrain import MEGATRON, RULES, ConfigError, Layout
from jaxtrain.base.errors import Diverged
from jaxtrain.generation import Decoder, Sampling, generate
from jaxtrain.generation.decoder import decoding_layout
from jaxtrain.generation.functions import export_generation
from jaxtrain.models import Blocks, Experts, LoRA, Model, NGrams, Precision, Recurrent, Transformer
from jaxtrain.models.variables import Variables
from jaxtrain.sharding.constraints import scope
from jaxtrain.sharding.layout import path_name, plain

V, MOST = 64, 32
MOVED = re.compile(r"= \w+\[([\d,]+)\]\S* (all-gather|all-reduce|all-to-all|collective-permute|copy|transpose)\(")
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


@functools.cache
def decoder(name: str) -> Decoder:
    return Decoder(MODELS[name])


def generated(name: str, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int = 0) -> list[list[int]]:
    return [row.tolist() for row in decoder(name).generate(variables(name), prompts, TOKENS, sampling, seed)]


@pytest.mark.parametrize(
    "name", ["n-grams", *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name != "n-grams")]
)
def test_rows_of_different_lengths_are_those_of_the_uncached_model(name: str):
    for sampling, seed in ((GREEDY, 0), (DRAWN, 3)):
        expected = uncached(name, PROMPTS, sampling, seed)
        assert generated(name, PROMPTS, sampling, seed) == expected
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
    meshed = Decoder(MODELS[name], layout, devices)
    for sampling in (GREEDY, DRAWN):
        found = meshed.generate(variables(name), PROMPTS[:3], TOKENS, sampling)
        assert [row.tolist() for row in found] == uncached(name, PROMPTS[:3], sampling)


@pytest.mark.slow
def test_a_decode_step_sends_no_keys_and_values_and_copies_none():
    """On a mesh that splits the cache by length and heads; of its bytes a device has a quarter."""
    layout = Layout({"context": 2, "tensor": 2})
    model = Transformer(vocab=V, blocks=blocks(kv_heads=2))
    meshed = Decoder(model, layout, jax.devices()[:4])
    placed = meshed.placed(plain(model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))))
    T, rows = 512, np.zeros(2, np.int32)
    carry = {"seeds": rows.astype(np.uint32), "done": rows > 0, "count": rows[0], "limits": {}, "stop": rows[:0]}
    with scope(meshed.layout, meshed.mesh):
        begin = meshed._begin.lower(placed, np.zeros((2, 32), np.int32), rows + 3, carry, length=T).compile()
        first = begin(placed, np.zeros((2, 32), np.int32), rows + 3, carry)
        key = first["cache"]["key_0"]
        assert key.shape == (2, 2, T, 8)
        assert key.sharding.shard_shape(key.shape) == (2, 1, T // 2, 8)
        text = meshed._continue.lower(placed, first, 4, most=T).compile().as_text()
    moved: list[tuple[str, str]] = MOVED.findall(text or "")
    shapes = [(name, 4 * int(np.prod(list(map(int, shape.split(",")))))) for shape, name in moved]
    assert {"all-reduce"} <= {name for name, _ in shapes}
    assert max(size for _, size in shapes) < key.nbytes / 4


def test_a_row_does_not_depend_on_the_others_and_comes_in_pieces_too():
    together, given = generated("n-grams", PROMPTS, DRAWN, 3), variables("n-grams")
    assert generated("n-grams", [[3], [4], PROMPTS[2], [5]], DRAWN, 3)[2] == together[2]
    assert generated("n-grams", PROMPTS[2:] * 2, DRAWN, 5)[0] == together[2]  # row 0 of seed 5 is row 2 of seed 3
    assert generated("n-grams", PROMPTS, DRAWN, 4)[2] != together[2]
    pieces = list(decoder("n-grams").stream(given, PROMPTS, TOKENS, DRAWN, seed=3, every=2))
    assert [len(piece[0]) for piece in pieces] == [1, 2, 2, 1]
    assert [np.concatenate(row).tolist() for row in zip(*pieces, strict=True)] == together


def test_other_numbers_of_a_sampling_and_of_tokens_need_no_other_program():
    generated("n-grams", PROMPTS, DRAWN)
    sizes: Any = operator.methodcaller("_cache_size")
    programs = decoder("n-grams")._begin, decoder("n-grams")._continue
    before = [sizes(program) for program in programs]
    other = Sampling(temperature=0.5, top_k=3, top_p=0.7, min_p=0.2)
    decoder("n-grams").generate(variables("n-grams"), PROMPTS, TOKENS - 1, other, seed=9)
    assert [sizes(program) for program in programs] == before


def test_a_stop_token_ends_its_row_alone_and_all_ended_ends_the_loop():
    free = generated("n-grams", PROMPTS, GREEDY)
    stop = free[0][2]
    cut = [row[: row.index(stop)] if stop in row else row for row in free]
    assert len(cut[0]) == 2
    assert max(map(len, cut)) == TOKENS
    assert generated("n-grams", PROMPTS, replace(GREEDY, stop=(stop,))) == cut
    first = replace(GREEDY, stop=tuple(row[0] for row in free))
    pieces = list(decoder("n-grams").stream(variables("n-grams"), PROMPTS, TOKENS, first))
    assert [[row.tolist() for row in piece] for piece in pieces] == [[[]] * 4]


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_tokens_that_a_tokenizer_does_not_have_are_never_drawn(sampling: Sampling):
    rows = Decoder(MODELS["n-grams"], vocab=20).generate(variables("n-grams"), PROMPTS, TOKENS, sampling)
    assert max(max(row) for row in rows) < 20


def test_the_cache_is_donated(monkeypatch: pytest.MonkeyPatch):
    carries, run = [], decoder("n-grams")._continue

    def spy(*given: Any, **named: Any) -> Any:
        carries.append(given[1])
        return run(*given, **named)

    monkeypatch.setattr(decoder("n-grams"), "_continue", spy)
    generated("n-grams", PROMPTS, GREEDY)
    assert all(x.is_deleted() for x in carries[0]["cache"].values())


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_logits_that_are_not_finite_end_with_the_prompt_that_has_them(sampling: Sampling):
    given = variables("n-grams")
    table = given.params["embedding"]["table"].at[33].set(jnp.nan)
    broken = Variables({**given.params, "embedding": {"table": table}}, given.state)
    with pytest.raises(Diverged, match="prompt 1 are not finite"):
        decoder("n-grams").generate(broken, [[7], [5, 33, 2], [8], [9]], TOKENS, sampling)


WRONG: dict[str, tuple[Model, Any, dict[str, Any], str]] = {
    "no prompt": (MODELS["tied"], [], {}, "at least one prompt"),
    "empty prompt": (MODELS["tied"], [[1], []], {}, "prompt 1 is empty"),
    "token of no vocabulary": (MODELS["tied"], [[1, V]], {}, "prompt 0: tokens are whole numbers from 0 to 63"),
    "no whole numbers": (MODELS["tied"], [[1.5]], {}, "whole numbers"),
    "no tokens": (MODELS["tied"], [[1]], {"tokens": 0}, "at least 1"),
    "stop token": (MODELS["tied"], [[1]], {"sampling": Sampling(stop=(V,))}, "Sampling.stop"),
    "no cache": (NGrams(), [[1]], {}, "NGrams cannot generate, since it keeps no cache"),
    "pooled": (Transformer(vocab=V, blocks=blocks(), pooled=True), [[1]], {}, "predicts no next token"),
    "not causal": (Transformer(vocab=V, blocks=blocks(), causal=False), [[1]], {}, "predicts no next token"),
    "other outputs": (Recurrent(vocab=V, outputs=3, width=32, tied=False), [[1]], {}, "predicts no next token"),
    "capacity": (
        Transformer(vocab=V, blocks=blocks(experts=Experts(count=4, capacity=1.0))),
        [[1]],
        {},
        "experts.capacity: 1.0 drops tokens",
    ),
}


@pytest.mark.parametrize("which", WRONG)
def test_what_cannot_be_generated_is_one_message(which: str):
    model, prompts, more, message = WRONG[which]
    shapes = jax.eval_shape(lambda: plain(model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))))
    given = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    options: dict[str, Any] = {"tokens": 3} | more
    with pytest.raises(ConfigError, match=message):
        generate(model, given, prompts, **options)


def test_axes_that_split_no_row_and_no_head_split_the_cache():
    layout = decoding_layout(Layout({"context": 2, "tensor": 2, "stage": 2}, MEGATRON))
    assert layout.rules["cache"] == ("context",)  # tensor splits heads and stage rows
    assert [layout.rules[name] for name in ("length", "residual_length", "layers")] == [None, None, None]
    other = decoding_layout(Layout({"stage": 2}, {**RULES, "batch": "data"}))
    assert other.rules["cache"] == ("context", "stage")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_exported_prefill_and_decode_give_the_same_tokens_for_any_number_of_rows(name: str):
    weights = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(variables(name))}
    exported = export_generation(MODELS[name], weights, prompt=16, length=MOST)
    assert all(one.platforms == ("cpu", "cuda", "tpu") for one in exported)
    prefill, decode = (export.deserialize(one.serialize()).call for one in exported)
    expected = uncached(name, PROMPTS, GREEDY)
    for rows in (4, 1, 3):
        ids = np.array([prompt + [0] * (16 - len(prompt)) for prompt in PROMPTS[:rows]], np.int32)
        lengths = np.array([len(prompt) for prompt in PROMPTS[:rows]], np.int32)
        made, found = prefill(weights, {"tokens": ids, "lengths": lengths}), []
        for _ in range(TOKENS):
            token = np.asarray(made.pop("logits").argmax(-1), np.int32)
            found.append(token)
            made = dict(decode(weights, {"token": token, **made}))
        assert np.stack(found, 1).tolist() == expected[:rows]


@pytest.mark.slow
def test_on_an_accelerator_keys_and_values_are_kept_in_the_dtype_of_the_matmuls():
    model = Transformer(vocab=V, blocks=blocks(attention="dense", precision=Precision(compute="bfloat16")))
    given = plain(model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))
    ids = np.array([PROMPTS[2]], np.int32)
    layout = decoding_layout(Layout())
    with scope(layout, layout.make_mesh(jax.devices()[:1]), platform="gpu"):
        logits, cache = jax.jit(lambda: model.prefill(given, jnp.array(ids[:, :5]), jnp.array([5]), MOST))()
        assert cache["key_0"].dtype == cache["value_1"].dtype == jnp.bfloat16
        for at in range(5, ids.shape[1]):
            logits, cache = jax.jit(lambda cache, at=at: model.decode(given, jnp.array(ids[:, at]), cache))(cache)
        expected = jax.jit(lambda: model.apply(given, ids)[0])()[:, -1]
    assert float(np.abs(expected).max()) > 0.5
    np.testing.assert_allclose(logits, expected, atol=0.03)
