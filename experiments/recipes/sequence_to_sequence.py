"""An encoder and a decoder (Vaswani et al. 2017, arXiv:1706.03762) for rows of different lengths: numbers in Portuguese
words to digits. Rows of like length come in one batch, which is computed at the width of its bucket. After 600 steps it
writes 0.96 of new numbers without a mistake; looking up a digit for each word does so for 0.64.

    uv run jaxtrain train experiments/recipes/sequence_to_sequence.py --run runs/numbers
    uv run jaxtrain predict runs/numbers "dois mil e cem" --code experiments/recipes/sequence_to_sequence.py

Shapes: B batch, S source length, T target length, D width, H heads, K head dim, V tokens of the target.
"""

import functools
import zlib
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain import Experiment, Mean
from jaxtrain.base.allowed import Allowed
from jaxtrain.base.errors import ConfigError, nearest
from jaxtrain.base.ranges import PositiveInt
from jaxtrain.data import Bucketed, Mapped, Pad, Pipeline, Source, Transform
from jaxtrain.models import Blocks, Model
from jaxtrain.models.layers import Embedding, Linear, RMSNorm, Stack, fold, residual
from jaxtrain.models.transformer import Block
from jaxtrain.optimizers import AdamW, CosineDecay
from jaxtrain.sharding import shard
from jaxtrain.tasks import Loss, Task
from jaxtrain.tasks.base import cross_entropy

NAMES = """
zero um dois três quatro cinco seis sete oito nove
dez onze doze treze catorze quinze dezesseis dezessete dezoito dezenove
vinte trinta quarenta cinquenta sessenta setenta oitenta noventa
cento duzentos trezentos quatrocentos quinhentos seiscentos setecentos oitocentos novecentos
cem mil milhão milhões e
"""
WORDS = ("", *NAMES.split())
"""The tokens of a source; the first one is padding."""
UNITS, TENS, HUNDREDS = WORDS[1:21], WORDS[21:29], WORDS[29:38]

LENGTH, WIDTHS = 18, (6, 12)
"""Words of a source at most, and in the narrower buckets."""
LONGEST, END, START = 10, 10, 11
"""Tokens of a target at most: its digits, and the end. What comes before the first one is the start."""


def spelled(number):
    """A number below a thousand million in words: 321 is "trezentos e vinte e um"."""
    if number < 20:
        return UNITS[number]
    if number == 100:
        return "cem"
    if number < 1000:
        unit, head = (10, TENS[number // 10 - 2]) if number < 100 else (100, HUNDREDS[number // 100 - 1])
        return f"{head} e {spelled(number % unit)}" if number % unit else head
    unit, one, many = (1000, "mil", "mil") if number < 10**6 else (10**6, "um milhão", "milhões")
    head, rest = one if number < 2 * unit else f"{spelled(number // unit)} {many}", number % unit
    joint = "e " if rest < 100 or rest in range(100, 1000, 100) else ""
    return f"{head} {joint}{spelled(rest)}" if rest else head


@dataclass(frozen=True)
class Numbers(Source):
    """Numbers of one to nine digits, as many of each, in words and in digits. No number is of both splits."""

    split: str
    rows: PositiveInt

    def __len__(self):
        return self.rows

    def __getitem__(self, index):
        rng = np.random.default_rng((self.split == "test", index))
        while True:
            digits = int(rng.integers(9))
            number = int(rng.integers(10**digits if digits else 0, 10 ** (digits + 1)))
            if (zlib.crc32(str(number).encode()) % 5 == 0) == (self.split == "test"):
                return {"words": spelled(number), "digits": str(number)}

    def identity(self):
        return f"numbers:{self.split}:{self.rows}"


@dataclass(frozen=True)
class Encode(Transform):
    """`source`, the words as tokens, and `target`, the digits and the end; it is empty where the digits are unknown."""

    def __call__(self, example, rng):
        words, digits = example["words"].lower().split(), example.get("digits")
        for word in words:
            if word not in WORDS:
                raise ConfigError(f"{word!r} is no word of a number{nearest(word, WORDS)}")
        target = [] if digits is None else [*map(int, digits), END]
        source = [WORDS.index(word) for word in words]
        return {"source": np.array(source, np.int32), "target": np.array(target, np.int32)}


@dataclass(frozen=True, kw_only=True)
class EncoderDecoder(Model):
    """`source` i[B, S], of which `source_mask` marks what counts, and the tokens before each position of the target
    i[B, T] to logits f32[B, T, V].
    """

    blocks: Blocks

    def build(self, rngs, inputs):
        # The ring, which `auto` may choose where the length is split, has its positions in another order.
        return EncoderDecoderModule(replace(self.blocks, attention="dense"), rngs)

    def shrunk(self, devices):
        return replace(self, blocks=self.blocks.shrunk(devices))


class EncoderDecoderModule(nnx.Module):
    """Two stacks of blocks; those of the decoder see what the encoder made of the source. The tables have a few rows
    more than there are tokens, so that 2, 4 and 8 devices can split them.
    """

    def __init__(self, blocks, rngs):
        self.words = Embedding(rngs, 48, blocks.width, blocks.precision)
        self.encoder, self.encoder_norm = blocks.stack(rngs, causal=False), RMSNorm(blocks.width, blocks.precision)
        self.tokens = Embedding(rngs, 16, blocks.width, blocks.precision)
        make = functools.partial(DecoderBlock, blocks)
        self.decoder = Stack(make, blocks.layers, rngs, blocks.remat, blocks.unroll)
        self.decoder_norm = RMSNorm(blocks.width, blocks.precision)

    def __call__(self, inputs, context, before_BT):
        return self.decode(self.encode(inputs, context.keys_B), before_BT, context.keys_B)

    def encode(self, inputs, keys_B=None):
        valid_BS = inputs["source_mask"].astype(jnp.int32)  # padding is a segment of its own
        x_BSD, _ = self.encoder(self.words(inputs["source"]), fold(keys_B, 0), valid_BS)
        return self.encoder_norm(x_BSD), inputs["source_mask"]

    def decode(self, source, before_BT, keys_B=None):
        x_BTD, _ = self.decoder(self.tokens(before_BT), fold(keys_B, 1), source)
        return self.tokens.logits(self.decoder_norm(x_BTD)).astype(jnp.float32)


class DecoderBlock(nnx.Module):
    """Attention to the source, then a causal block of a transformer."""

    def __init__(self, config, rngs):
        D, axes = config.width, ("embed", "heads")
        self.norm, self.block = RMSNorm(D, config.precision), Block(config, rngs, causal=True)
        self.query, self.key, self.value = (Linear(rngs, (D, D), axes, config.precision) for _ in range(3))
        self.out = Linear(rngs, (D, D), ("heads", "embed"), config.precision, (2 * config.layers) ** -0.5)
        self.heads = config.heads

    def __call__(self, x_BTD, keys_B, source):
        source_BSD, valid_BS = source
        q_BTHK = self.by_head(self.query(shard(self.norm(x_BTD), "batch", "length", None)))
        k_BSHK, v_BSHK = self.by_head(self.key(source_BSD)), self.by_head(self.value(source_BSD))
        mixed_BTHK = jax.nn.dot_product_attention(q_BTHK, k_BSHK, v_BSHK, mask=valid_BS[:, None, None])
        mixed_BTHK = shard(mixed_BTHK, "batch", "length", "heads", None)
        return self.block(x_BTD + residual(self.out(mixed_BTHK.reshape(x_BTD.shape))), keys_B, None)

    def by_head(self, x_BLD):
        return shard(x_BLD.reshape(*x_BLD.shape[:2], self.heads, -1), "batch", "length", "heads", None)


@dataclass(frozen=True, kw_only=True)
class SequenceToSequence(Task):
    """Learns each token of `target` from the source and the right tokens before it; `predict` decodes greedily."""

    inputs: tuple[str, ...] = ("source", "source_mask")
    widths: tuple[PositiveInt, ...] = WIDTHS

    def loss(self, variables, batch, context):
        target_BT, counts_BT = batch["target"], batch["target_mask"] & batch["mask"][:, None]
        before_BT = jnp.pad(target_BT[:, :-1], ((0, 0), (1, 0)), constant_values=START)  # teacher forcing

        def at_width(width):
            source = {name: x_BS[:, :width] for name, x_BS in self.read(batch).items()}
            return self.model.apply(variables, source, context, before_BT=before_BT)

        longest = (batch["source_mask"] * batch["mask"][:, None]).sum(1).max()
        # One program holds the step at every width, the last one whole, and runs that of the batch. Without checkpoints
        # it would keep activations of every width for the backward pass, zeros for those that did not run.
        steps = [jax.checkpoint(functools.partial(at_width, width)) for width in (*self.widths, None)]
        logits_BTV, extras = jax.lax.switch(sum(longest > width for width in self.widths), steps)
        losses_BT, right_BT = cross_entropy(logits_BTV, target_BT), logits_BTV.argmax(-1) == target_BT
        metrics = {
            "accuracy": Mean.of(right_BT, counts_BT),
            # What greedy decoding gets right: as long as it is right, it sees the right tokens too.
            "sequence_accuracy": Mean.of((right_BT | ~counts_BT).all(1), batch["mask"]),
        }
        return Loss.of(Mean.of(losses_BT, counts_BT), metrics, extras, counts_BT.sum(1))

    def predict(self, variables, batch):
        inputs = self.read(batch)
        module: Any = self.model.module(variables, inputs)
        source = module.encode(inputs)

        def decode(place, before_BT):
            logits_BTV = module.decode(source, before_BT[:, :-1])
            return before_BT.at[:, place + 1].set(logits_BTV[:, place].argmax(-1))

        start_BT = jnp.full((inputs["source"].shape[0], LONGEST + 1), START)
        return {"tokens": jax.lax.fori_loop(0, LONGEST, decode, start_BT)[:, 1:]}

    def allowed(self):
        return {
            "source": Allowed(0, len(WORDS) - 1, why="words by number"),
            "target": Allowed(0, END, why="digits and the end"),
        }

    def describe(self, prediction):
        tokens = prediction["tokens"].tolist()
        return "".join(map(str, tokens[: tokens.index(END) if END in tokens else None]))


def main() -> Experiment:
    """Two blocks on either side."""
    pads = (Pad("source", LENGTH), Pad("target", LONGEST))
    train, test = (Mapped(Numbers(split, rows), (Encode(),)) for split, rows in (("train", 20_000), ("test", 500)))
    return Experiment(
        task=SequenceToSequence(model=EncoderDecoder(blocks=Blocks(width=64, layers=2, heads=4))),
        data=Bucketed(train, pads, batch_size=64, by="source", widths=WIDTHS),
        optimizer=AdamW(schedule=CosineDecay(peak=3e-3, warmup=50)),
        steps=600,
        evals={"test": Pipeline(test, pads, batch_size=64, shuffle=False)},
    )
