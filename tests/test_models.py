import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_layouts
from flax import nnx

from jaxtrain import ConfigError, Layout, Program
from jaxtrain.models import Bert, Blocks, Model, NGrams, Precision, ResNet, Rope, Transformer, ViT, transformer
from jaxtrain.models.attention import BLOCK, attention
from jaxtrain.models.layers import dot, dropout, rows_by_product
from jaxtrain.models.ngrams import word_hashes
from jaxtrain.models.notes import note, notes
from jaxtrain.models.rope import rotate
from jaxtrain.models.variables import Context
from jaxtrain.sharding.layout import AxisNamed, plain

SMALL = Blocks(width=16, layers=2, heads=2, mlp=32)
TOKENS = np.random.default_rng(0).integers(1, 20, (3, 8), np.int32)
MODELS: dict[str, tuple[Model, np.ndarray, tuple[int, ...]]] = {
    "decoder": (Transformer(vocab=20, blocks=SMALL), TOKENS, (3, 8, 20)),
    "untied": (Transformer(vocab=20, outputs=5, tied=False, blocks=SMALL), TOKENS, (3, 8, 5)),
    "encoder": (
        Transformer(vocab=20, outputs=2, tied=False, causal=False, pooled=True, blocks=SMALL),
        TOKENS,
        (3, 2),
    ),
    "grouped": (Transformer(vocab=20, blocks=replace(SMALL, kv_heads=1)), TOKENS, (3, 8, 20)),
    "optioned": (
        Transformer(vocab=20, scaled_embedding=False, blocks=replace(SMALL, qkv_bias=True, qk_norm=True, head_dim=6)),
        TOKENS,
        (3, 8, 20),
    ),
    "bert": (Bert(vocab=20, positions=8, blocks=SMALL), TOKENS, (3, 16)),
    "vit": (ViT(outputs=4, blocks=SMALL), np.random.default_rng(0).random((3, 4, 6, 1), np.float32), (3, 4)),
    "ngrams": (NGrams(buckets=32, words=4, width=4), np.full((3, 12), ord("a"), np.uint8), (3, 2)),
}


@functools.cache
def initial(model, shape, dtype):
    return jax.jit(lambda key: plain(model.init(key, jnp.zeros(shape, dtype))))(jax.random.key(1))


def applied(model, inputs, keys=None, variables=None):
    variables = initial(model, inputs.shape, inputs.dtype) if variables is None else variables
    return np.asarray(jax.jit(model.apply)(variables, inputs, Context(keys_B=keys))[0])


def close(one, two, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(one, np.float32), np.asarray(two, np.float32), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_builds_and_applies_with_no_mesh(name):
    model, inputs, shape = MODELS[name]
    named = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.asarray(inputs)))
    for leaf in jax.tree.leaves(named, is_leaf=lambda x: isinstance(x, AxisNamed)):
        assert len(leaf.axes) == len(leaf.value.shape)
    variables = initial(model, inputs.shape, inputs.dtype)
    assert variables.state == {}
    nodes = jax.tree.leaves(variables.params, is_leaf=lambda x: not isinstance(x, dict))
    assert all(isinstance(node, jax.Array) for node in nodes)  # nothing but dicts and arrays
    out = applied(model, inputs)
    assert (out.shape, out.dtype) == (shape, np.float32)
    assert np.isfinite(out).all()


def test_the_first_logits_are_near_those_of_chance_and_blocks_are_stacked():
    model, inputs, _ = MODELS["untied"]
    assert np.abs(applied(model, inputs)).max() < 5
    blocks = initial(model, inputs.shape, inputs.dtype).params["blocks"]["block"]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(blocks)} == {SMALL.layers}
    first, second = blocks["up"]["kernel"]
    assert not np.array_equal(first, second)


def test_a_later_token_changes_no_earlier_logit_of_a_causal_model():
    model = MODELS["decoder"][0]
    changed = TOKENS.copy()
    changed[:, 5] = 1 + changed[:, 5] % 18
    before, after = applied(model, TOKENS), applied(model, changed)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (np.abs(before[:, 5:] - after[:, 5:]).max(axis=(0, 2)) > 1e-6).all()


def test_every_token_counts_in_a_model_that_is_not_causal():
    model = MODELS["encoder"][0]
    for position in (0, 7):
        changed = TOKENS.copy()
        changed[:, position] = 1 + changed[:, position] % 18
        assert (np.abs(applied(model, TOKENS) - applied(model, changed)) > 1e-7).all()


def test_padding_does_not_change_what_a_pooled_encoder_says():
    model, inputs, _ = MODELS["encoder"]
    variables = initial(model, inputs.shape, inputs.dtype)
    padded = np.pad(TOKENS, ((0, 0), (0, 5)))
    close(applied(model, TOKENS, variables=variables), applied(model, padded, variables=variables))
    assert np.isfinite(applied(model, np.zeros_like(TOKENS), variables=variables)).all()


def test_padding_does_not_change_what_bert_says_and_types_and_positions_do():
    model, inputs, _ = MODELS["bert"]
    model = replace(model, positions=12, padding=19)
    variables = initial(model, inputs.shape, inputs.dtype)
    said = applied(model, TOKENS, variables=variables)
    padded = np.pad(TOKENS, ((0, 0), (0, 4)), constant_values=19)
    close(said, applied(model, padded, variables=variables))
    assert np.isfinite(applied(model, np.full_like(TOKENS, 19), variables=variables)).all()
    typed = jax.jit(model.apply)(variables, TOKENS, types_BL=np.ones_like(TOKENS))[0]
    assert np.abs(said - typed).max() > 1e-3
    assert np.abs(said - applied(model, TOKENS[:, ::-1], variables=variables)).max() > 1e-4
    with pytest.raises(ConfigError, match=r"Bert.positions: rows of 13 tokens are longer than 12"):
        model.init(jax.random.key(0), np.ones((1, 13), np.int32))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"head_dim": 5}, "head_dim must give an even whole number for each head"),
        ({"head_dim": 0}, "Blocks.head_dim: 0 is not at least 1"),
        ({"width": 18, "heads": 4}, "width 18 over 4 heads must give an even whole number"),
        ({"norm_epsilon": 0.0}, "Blocks.norm_epsilon: 0.0 is not above 0"),
    ],
)
def test_options_of_blocks_that_make_no_sense_are_refused(changes, says):
    with pytest.raises(ConfigError, match=says):
        replace(SMALL, **changes)


@pytest.mark.parametrize("option", [{"kv_heads": 1}, {"head_dim": 4}, {"qk_norm": True}, {"rope": Rope(base=5.0)}])
def test_bert_refuses_options_that_its_blocks_lack(option):
    with pytest.raises(ConfigError, match=f"Bert.blocks.{next(iter(option))}: BERT's blocks are without"):
        Bert(blocks=replace(SMALL, **option))


def test_long_waves_turn_slower_and_short_ones_as_before():
    """Of 2 π · 100 / wavelength turns within 100 positions, those below 1 are divided by 4, those above 3 stay."""
    rope = Rope(base=100.0, factor=4.0, low=1.0, high=3.0, trained_length=100)
    plain_K = np.array([1.0, 100**-0.25, 100**-0.5, 100**-0.75])
    turns = plain_K * 100 / (2 * np.pi)  # 15.9, 5.03, 1.59, 0.503
    kept = (turns[2] - 1) / 2
    wanted = [1.0, plain_K[1], plain_K[2] * (kept + (1 - kept) / 4), plain_K[3] / 4]
    np.testing.assert_allclose(rope.frequencies(8), wanted, rtol=1e-12)
    np.testing.assert_array_equal(Rope(base=100.0).frequencies(8), plain_K)
    with pytest.raises(ConfigError, match=r"Rope.high: 1.0 must be above low, 1.0"):
        Rope(high=1.0)


def qkv(length, heads=4, groups=2, rows=2, size=8):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((rows, length, heads, size), (rows, length, groups, size), (rows, length, groups, size))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def reference(q, k, v, causal, valid=None):
    """Attention with plain loops over heads, in numpy."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    repeat = q.shape[2] // k.shape[2]
    for head in range(q.shape[2]):
        scores = q[:, :, head] @ k[:, :, head // repeat].transpose(0, 2, 1) / q.shape[3] ** 0.5
        if causal:
            scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
        if valid is not None:
            scores = np.where(valid[:, None, :], scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, :, head] = weights / weights.sum(-1, keepdims=True) @ v[:, :, head // repeat]
    return out


@pytest.mark.parametrize("causal", [True, False])
def test_attention_with_grouped_heads_is_that_of_the_formula(causal):
    q, k, v = qkv(7)
    valid = np.arange(7) < np.array([[7], [4]])
    attend = jax.jit(functools.partial(attention, causal=causal, implementation="dense"))
    close(attend(q, k, v), reference(q, k, v, causal))
    apart = np.cumsum(~valid, axis=1)  # padding is apart from the rest, and each of it alone
    close(attend(q, k, v, segments_BL=apart)[valid], reference(q, k, v, causal, valid)[valid])
    close(attend(q, jnp.repeat(k, 2, axis=2), jnp.repeat(v, 2, axis=2)), reference(q, k, v, causal))


@pytest.mark.parametrize("length", [BLOCK, BLOCK + 1, 2 * BLOCK + 6])
def test_attention_by_blocks_is_dense_attention_in_values_and_gradients(length):
    q, k, v = qkv(length)
    valid = jnp.arange(length) < jnp.array([[length], [length // 2]])

    def results(implementation):
        def summed(q, k, v):
            out = attention(q, k, v, True, valid, implementation)
            return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

        return jax.jit(jax.value_and_grad(summed, (0, 1, 2), has_aux=True))(q, k, v)

    (_, dense), dense_grads = results("dense")
    (_, blocks), block_grads = results("blocks")
    close(dense, blocks)
    for one, two in zip(dense_grads, block_grads, strict=True):
        close(one, two)


def test_scores_of_rotated_heads_depend_on_the_distance_alone():
    q, k = (jnp.broadcast_to(x[:, :1], (1, 12, 1, 8)) for x in qkv(1, 1, 1, 1)[:2])
    scores = np.asarray(jnp.einsum("BLHK,BTHK->LT", rotate(q, None), rotate(k, None)))
    for distance in range(-11, 12):
        diagonal = np.diagonal(scores, distance)
        close(diagonal, np.full_like(diagonal, diagonal[0]), 1e-5)
    assert np.ptp(scores) > 0.1
    close(jnp.linalg.norm(rotate(q, None), axis=-1), jnp.linalg.norm(q, axis=-1))
    close(rotate(q, None)[:, 0], q[:, 0])


def test_products_in_bf16_and_their_gradients_are_near_those_in_f32():
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel, weights = (
        jax.random.normal(key, shape) for key, shape in zip(keys, ((2, 5, 64), (64, 32), (32,)), strict=True)
    )

    def results(compute):
        def summed(x, kernel):
            return (jnp.tanh(dot(x, kernel, Precision(compute=compute)) / 8) * weights).sum()

        value, grads = jax.jit(jax.value_and_grad(summed, (0, 1)))(x, kernel)
        assert all(grad.dtype == jnp.float32 for grad in grads)
        return (value, *grads)

    for exact, rough in zip(results("float32"), results("bfloat16"), strict=True):
        assert float(jnp.linalg.norm(exact - rough) / jnp.linalg.norm(exact)) < 0.02
        assert float(jnp.abs(exact - rough).max()) > 0  # it really was computed in bf16


def test_a_model_in_bf16_says_nearly_the_same_as_in_f32():
    model, inputs, _ = MODELS["decoder"]
    variables = initial(model, inputs.shape, inputs.dtype)
    rough = replace(model, blocks=replace(SMALL, precision=Precision(compute="bfloat16")))
    exact, found = applied(model, inputs, variables=variables), applied(rough, inputs, variables=variables)
    assert 0 < np.abs(exact - found).max() < 0.1


def test_dropout_drops_at_its_rate_and_keeps_the_mean():
    x = jnp.ones((64, 100))
    out = dropout(x, 0.25, jax.random.split(jax.random.key(0), 64))
    assert set(np.unique(out)) == {0, np.float32(1 / 0.75)}
    assert float((out == 0).mean()) == pytest.approx(0.25, abs=0.02)
    assert dropout(x, 0.25, None) is x
    assert not np.array_equal(out[0], out[1])


@pytest.mark.parametrize("name", ["decoder", "vit", "ngrams"])
@pytest.mark.slow
def test_what_is_dropped_in_a_row_does_not_depend_on_the_other_rows(name):
    model, inputs, _ = MODELS[name]
    if name == "ngrams":
        model, inputs = replace(model, dropout=0.5, width=64), np.tile(inputs, (1, 1))
    else:
        model = replace(model, blocks=replace(SMALL, dropout=0.5))
    variables = initial(model, inputs.shape, inputs.dtype)
    keys = jax.random.split(jax.random.key(3), 3)
    together = applied(model, inputs, keys, variables)
    order = np.array([2, 0])
    close(applied(model, inputs[order], keys[order], variables), together[order])
    assert np.abs(applied(model, inputs, None, variables) - together).max() > 1e-3
    assert np.abs(applied(model, inputs, keys[order[[0, 1, 1]]], variables) - together).max() > 1e-3


@pytest.mark.slow
def test_every_dropout_of_every_layer_draws_from_keys_of_its_own(monkeypatch):
    used = []

    def noted(x, rate, keys_B, order_L=None):
        used.extend(map(bytes, np.asarray(jax.random.key_data(keys_B))))
        return dropout(x, rate, keys_B, order_L)

    monkeypatch.setattr(transformer, "dropout", noted)
    model, inputs, _ = MODELS["decoder"]
    assert isinstance(model, Transformer)
    variables = initial(model, inputs.shape, inputs.dtype)
    with jax.disable_jit():  # so that the scan over layers runs with keys that have values
        model.apply(variables, jnp.asarray(inputs), Context(keys_B=jax.random.split(jax.random.key(3), 3)))
    # One after the embedding, and two a layer, each with a key for each of the three rows.
    assert len(used) == 3 * (1 + 2 * model.blocks.layers)
    assert len(set(used)) == len(used)


@pytest.mark.slow
def test_remat_and_unroll_change_no_gradient():
    model, inputs, _ = MODELS["decoder"]
    variables = initial(model, inputs.shape, inputs.dtype)
    ids, context = jnp.asarray(inputs), Context(keys_B=jax.random.split(jax.random.key(3), 3))

    def gradients(**changes):
        changed = replace(model, blocks=replace(SMALL, dropout=0.1, **changes))
        squares = jax.jit(jax.grad(lambda variables: jnp.square(changed.apply(variables, ids, context)[0]).mean()))
        return squares(variables)

    plain_grads = gradients()
    for changes in ({"remat": "dots"}, {"remat": "full"}, {"unroll": 2}):
        jax.tree.map(close, plain_grads, gradients(**changes))


def python_hashes(text, words):
    """The definition of `word_hashes`, one byte at a time."""
    found, now, inside_before = [], 0, False
    for byte in (*text, 0):
        byte = byte + 32 if 65 <= byte <= 90 else byte
        inside = 97 <= byte <= 122 or 48 <= byte <= 57 or byte >= 128 or byte == ord("'")
        if inside:
            now = (now * 0x01000193 + byte + 1) % 2**32
        elif inside_before:
            found.append(now)
            now = 0
        inside_before = inside
    return found[:words] + [0] * max(0, words - len(found)), min(len(found), words)


TRICKY = (
    "Adorei! Se eu pudesse dar 1000 estrelas não daria nenhuma :)",
    "It's a dog's life, isn't it? 'Tis",
    "GOOD Good gOOd good",
    "one two three four five six seven eight nine ten eleven",
    "  --  leading and trailing   ",
    "",
    "x",
    "...",
    "ação é ótimo—sim… 東京",
    "a" * 64,
    "the last word fills up to the very last byte of the sixty-four..",
)


def test_words_are_hashed_as_plain_python_does_it():
    raw = np.stack([np.frombuffer(text.encode()[:64].ljust(64, b"\0"), np.uint8) for text in TRICKY])
    for words in (8, 16):
        hashes, valid = jax.jit(word_hashes, static_argnums=1)(raw, words)
        for row, text in enumerate(TRICKY):
            expected, count = python_hashes(bytes(raw[row]), words)
            assert valid[row].tolist() == [True] * count + [False] * (words - count), text
            assert hashes[row].tolist() == expected, text
    same = hashes[TRICKY.index("GOOD Good gOOd good")]
    assert len(set(same[:4].tolist())) == 1
    apostrophes = int(valid[1].sum())
    assert apostrophes == len(["it's", "a", "dog's", "life", "isn't", "it", "'tis"])


def test_the_same_words_say_the_same_whatever_stands_between_and_after_them():
    model = NGrams(buckets=64, words=8, width=4)
    texts = ("good film, really", "GOOD...film really", "good film really   \n", "film good really")
    raw = np.stack([np.frombuffer(text.encode().ljust(32, b"\0"), np.uint8) for text in texts])
    one, two, three, other = applied(model, raw)
    close(one, two)
    close(one, three)
    assert np.abs(one - other).max() > 1e-4  # their pairs are others
    assert np.isfinite(applied(model, np.zeros_like(raw))).all()
    # Three words that just fit make no pair of the last with the first.
    variables = initial(model, raw.shape, raw.dtype)
    close(applied(replace(model, words=3), raw, variables=variables), applied(model, raw, variables=variables))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Blocks(width=30, heads=4), "width 30 over 4 heads must give an even whole number for each head"),
        (lambda: Blocks(width=12, heads=4), "width 12 over 4 heads must give an even whole number for each head"),
        (lambda: Blocks(width=16, heads=4, kv_heads=3), "heads 4 must be a multiple of kv_heads 3"),
        (
            lambda: Transformer(vocab=20, outputs=2),
            "tied embeddings give logits of the 20 entries of vocab, not of 2 outputs",
        ),
        (
            lambda: ViT(patch=4).build(nnx.Rngs(0), jnp.zeros((1, 6, 8, 1))),
            "images of 6×8 cannot be cut into patches of 4×4",
        ),
    ],
)
def test_numbers_that_do_not_fit_each_other_are_refused(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


@pytest.mark.parametrize(
    ("implementation", "message"),
    [("blocks", "the model has none: use 'dense'"), ("cudnn", "needs a GPU and bfloat16")],
)
def test_an_implementation_of_attention_that_does_not_work_here_is_refused(implementation, message):
    q = jnp.zeros((1, 4, 2, 8))
    with pytest.raises(ConfigError, match=message):
        attention(q, q, q, causal=False, implementation=implementation)


def test_notes_are_read_off_the_lowered_program():
    def scaled(x):
        with note("scale", "double"):
            return (2 * x).sum()

    def both(x):
        q_BLHK = x.reshape(1, 4, 2, 8)
        return scaled(x) + attention(q_BLHK, q_BLHK, q_BLHK, causal=True).sum()

    def scanned(x):
        return jax.lax.scan(lambda total, _: (total + scaled(x), None), jnp.zeros(()), length=2)[0]

    x = jnp.ones(64)
    assert notes(jax.jit(jax.grad(both)).lower(x)) == {"attention": ["blocks"], "scale": ["double"]}
    assert notes(jax.jit(jax.grad(scanned)).lower(x)) == {"scale": ["double"]}
    assert notes(jax.jit(jnp.sum).lower(x)) == {}
    q_BLHK = x.reshape(1, 4, 2, 8)
    dense = jax.jit(functools.partial(attention, causal=False)).lower(q_BLHK, q_BLHK, q_BLHK)
    assert notes(dense) == {"attention": ["dense"]}


def test_a_program_notes_the_attention_of_its_mesh():
    program = Program(test_layouts.experiment("lm", Layout({"context": 4})), jax.devices()[:4])
    assert program.notes(program.lower()) == {"attention": ["ring"]}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_by_a_one_hot_product_are_those_of_the_gather_in_values_and_gradients(dtype: str) -> None:
    rng = np.random.default_rng(0)
    table_VD = jnp.asarray(rng.normal(size=(11, 8)) * 10.0 ** rng.integers(-6, 7, (11, 8)), dtype)
    ids_BL = np.concatenate([rng.integers(0, 11, (4, 20)), np.full((4, 80), 3)], 1)  # one of them often
    weight_BLD = jnp.asarray(rng.normal(size=(4, 100, 8)), dtype)

    product_BLD, back = jax.vjp(lambda table: rows_by_product(table, jnp.asarray(ids_BL)), table_VD)
    np.testing.assert_array_equal(product_BLD, np.asarray(table_VD)[ids_BL])  # bit for bit
    assert product_BLD.dtype == dtype

    exact_VD = np.zeros((11, 8))
    np.add.at(exact_VD, ids_BL.ravel(), np.asarray(weight_BLD, np.float64).reshape(-1, 8))
    (product_VD,) = back(weight_BLD)
    (gather_VD,) = jax.vjp(lambda table: table[ids_BL], table_VD)[1](weight_BLD)
    scale = np.abs(np.asarray(weight_BLD, np.float64)).sum() / 8  # bounds what is summed, before it cancels
    tolerance = scale * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(product_VD, np.float64), exact_VD, rtol=0, atol=tolerance)
    np.testing.assert_allclose(np.asarray(gather_VD, np.float64), exact_VD, rtol=0, atol=tolerance)
    assert product_VD.dtype == gather_VD.dtype == dtype
    assert not np.asarray(product_VD)[np.setdiff1d(np.arange(11), ids_BL)].any()


def test_an_embedding_is_looked_up_by_ints_alone() -> None:
    model = Transformer(vocab=20, outputs=2, tied=False, causal=False, pooled=True, blocks=SMALL)
    variables = initial(model, (3, 8), np.int32)
    for ids in (TOKENS.astype(np.float32), TOKENS > 3):
        with pytest.raises(ConfigError, match=rf"^an embedding is looked up by ints, not by {ids.dtype}\[3, 8\]"):
            jax.eval_shape(model.apply, variables, ids)


@pytest.mark.parametrize("model", [ViT(outputs=4, blocks=SMALL), ResNet(outputs=4)])
def test_images_without_channels_are_named(model: ViT | ResNet) -> None:
    name = type(model).__name__
    with pytest.raises(
        ConfigError, match=rf"^{name} reads images \[B, Y, X, C\], not float32\[3, 8, 8\]: gray ones have"
    ):
        model.init(jax.random.key(0), jnp.zeros((3, 8, 8)))
