"""The loop over tokens: a model's prefill and decode steps, compiled for a mesh.

Not here: text, which is `generation/text.py`, and what a block computes.

Shapes: B rows, padded to what the mesh divides; L tokens of the longest prompt, padded; T tokens that the cache has
room for; V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxtrain.base.errors import ConfigError, Diverged
from jaxtrain.generation.sampling import AS_IT_IS, NOT_FINITE, Sampling, check_tokens, next_tokens
from jaxtrain.models.base import Model
from jaxtrain.models.variables import Variables
from jaxtrain.program import Program
from jaxtrain.sharding.constraints import scope, shard
from jaxtrain.sharding.layout import Layout, mesh_axes

Prompts = Sequence[Sequence[int] | np.ndarray]

Carry = dict[str, Any]
"""Between two tokens: the `cache`; of each row the last `token`, whether it is `done`, and its seed in `seeds`; the
`count` of tokens; `limits` and `stop` of the `Sampling`.
"""

ENDED = -1
"""In place of the tokens of a row after its stop token."""

PADDED_TO = 32
"""Prompts and caches are as long as a multiple of this, so that few lengths are compiled."""


def decoding_layout(layout: Layout) -> Layout:
    """The same mesh with rules by which neither positions nor layers are split: a step has one position, which passes
    all layers. Mesh axes that split these alone split the dim `cache`, the positions of keys and values.
    """
    along = {axis for name in ("batch", "kv_heads") for axis in mesh_axes(layout.rules.get(name))}
    former = ("length", "residual_length", "layers")
    axes = dict.fromkeys(axis for name in former for axis in mesh_axes(layout.rules.get(name)))
    free = tuple(axis for axis in axes if axis not in along)
    return replace(layout, rules={**layout.rules, **dict.fromkeys(former), "cache": free or None})


class Decoder:
    """Generates from a model that has a cache; its programs are compiled once for each padded length and batch.

    Row i draws its n-th token with the n-th key of the seed `seed + i` (mod 2³²), whatever rows are beside it and
    whatever the mesh.
    """

    def __init__(
        self,
        model: Model | Program,
        layout: Layout | None = None,
        devices: Sequence[jax.Device] | None = None,
        vocab: int | None = None,
    ) -> None:
        """Compiles nothing yet.

        model: that of a program is taken with its mesh, unless `layout` gives another.
        vocab: tokens from this one on are never generated; None is any that the model has outputs for.
        """
        self.model: Model = model.experiment.task.model if isinstance(model, Program) else model
        own, self._vocab = model.experiment.layout if isinstance(model, Program) else Layout(), vocab
        self.layout = decoding_layout(own if layout is None else layout)
        given = layout is None and isinstance(model, Program)
        self.mesh: Mesh = model.mesh if given else self.layout.make_mesh(devices)
        self._begin = jax.jit(self._first, static_argnames="length")
        self._continue = jax.jit(self._following, static_argnames="most", donate_argnames="carry")

    def generate(
        self, variables: Variables, prompts: Prompts, tokens: int, sampling: Sampling = AS_IT_IS, seed: int = 0
    ) -> list[np.ndarray]:
        """Up to `tokens` further tokens of each prompt, i32[n] each; fewer where a stop token ended the row.

        Raises ConfigError for prompts without tokens or with others than the model's, and Diverged where logits are
        not finite.
        """
        parts = list(self.stream(variables, prompts, tokens, sampling, seed, every=tokens))
        return [np.concatenate(row) for row in zip(*parts, strict=True)]

    def stream(
        self,
        variables: Variables,
        prompts: Prompts,
        tokens: int,
        sampling: Sampling = AS_IT_IS,
        seed: int = 0,
        every: int = 1,
    ) -> Iterator[list[np.ndarray]]:
        """The same tokens as they come: of each row the first one, then up to `every` at a time."""
        self._check(prompts, tokens, sampling)
        rows = math.prod(self.mesh.shape.get(axis, 1) for axis in mesh_axes(self.layout.rules["batch"]))
        B = -(-len(prompts) // rows) * rows
        lengths_B = np.array([*map(len, prompts), *[1] * (B - len(prompts))], np.int32)
        L = _padded(int(lengths_B.max()), PADDED_TO)
        ids_BL = np.zeros((B, L), np.int32)
        for ids_L, prompt in zip(ids_BL, prompts, strict=False):
            ids_L[: len(prompt)] = prompt
        across = math.prod(self.mesh.shape.get(axis, 1) for axis in mesh_axes(self.layout.rules["cache"]))
        length = _padded(int(lengths_B.max()) + tokens, math.lcm(PADDED_TO, across))
        seeds_B, number_B = (seed + np.arange(B)) % 2**32, np.arange(B)
        rows_B = {"seeds": seeds_B.astype(np.uint32), "done": number_B >= len(prompts)}
        sharding = self.layout.batch_sharding(self.mesh, B)
        ids_BL, lengths_B, rows_B = jax.device_put((ids_BL, lengths_B, rows_B), sharding)
        limits = {"limits": sampling.limits(), "stop": np.array(sampling.stop, np.int32), "count": np.int32(0)}
        variables = self.placed(variables)
        with scope(self.layout, self.mesh):
            carry = self._begin(variables, ids_BL, lengths_B, {**rows_B, **limits}, length=length)
        yield self._rows(carry["token"][:, None], len(prompts), sampling)
        left = tokens - 1
        while left and not bool(carry["done"].all()):
            count = min(every, left)
            with scope(self.layout, self.mesh):
                made, carry = self._continue(variables, carry, count, most=length)
            yield self._rows(made[:, :count], len(prompts), sampling)
            left -= count

    def placed(self, variables: Variables) -> Variables:
        """The variables on the mesh; leaves that are placed so already are not copied."""
        named = jax.eval_shape(lambda: self.model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
        sizes = self.mesh.shape
        specs = Variables(self.layout.specs(named.params, sizes), self.layout.specs(named.state, sizes, "state"))
        return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(self.mesh, spec)), variables, specs)

    def _check(self, prompts: Prompts, tokens: int, sampling: Sampling) -> None:
        allowed = self.model.allowed()
        vocab = math.inf if allowed is None else allowed.most + 1
        if not len(prompts):
            raise ConfigError("generate: give at least one prompt")
        if tokens < 1:
            raise ConfigError(f"generate: {tokens} tokens: give at least 1")
        for number, prompt in enumerate(prompts):
            if not len(prompt):
                raise ConfigError(f"generate: prompt {number} is empty: the first token follows at least one other")
            check_tokens(prompt, vocab, f"generate: prompt {number}")
        check_tokens(sampling.stop, vocab, "Sampling.stop")

    def _rows(self, tokens_BN: jax.Array, rows: int, sampling: Sampling) -> list[np.ndarray]:
        """The tokens of each row without stop tokens."""
        found = np.asarray(jax.device_get(tokens_BN))[:rows]
        check_finite(found)
        return [row[(row != ENDED) & ~np.isin(row, sampling.stop)] for row in found]

    def _first(self, variables: Variables, ids_BL: jax.Array, lengths_B: jax.Array, carry: Carry, length: int) -> Carry:
        """The cache after the prompts, and the first token."""
        logits_BV, cache = self.model.prefill(variables, ids_BL, lengths_B, length)
        return self._chosen(logits_BV, {**carry, "cache": cache})

    def _following(self, variables: Variables, carry: Carry, count: jax.Array, most: int) -> tuple[jax.Array, Carry]:
        """The next `count` tokens i32[B, most], as many as there are before all rows ended."""

        def unfinished(state: tuple[jax.Array, jax.Array, Carry]) -> jax.Array:
            return (state[0] < count) & ~state[2]["done"].all()

        def step(state: tuple[jax.Array, jax.Array, Carry]) -> tuple[jax.Array, jax.Array, Carry]:
            n, made_BT, carry = state
            logits_BV, cache = self.model.decode(variables, jnp.maximum(carry["token"], 0), carry["cache"])
            carry = self._chosen(logits_BV, {**carry, "cache": cache})
            return n + 1, jax.lax.dynamic_update_slice_in_dim(made_BT, carry["token"][:, None], n, 1), carry

        none_BT = shard(jnp.full((len(carry["token"]), most), ENDED, jnp.int32), None, None)
        return jax.lax.while_loop(unfinished, step, (jnp.zeros((), jnp.int32), none_BT, carry))[1:]

    def _chosen(self, logits_BV: jax.Array, carry: Carry) -> Carry:
        """With the next token of each row, and the rows that end there."""
        logits_BV, count, done_B = shard(logits_BV, "batch", None), carry["count"], carry["done"]
        token_B = next_tokens(logits_BV, carry["seeds"], count, carry["limits"], self._vocab)
        token_B = shard(jnp.where(done_B, ENDED, token_B), None)
        done_B = shard(done_B | (token_B < 0) | (token_B[:, None] == carry["stop"]).any(1), None)
        return {**carry, "token": token_B, "done": done_B, "count": count + 1}


def check_finite(tokens_BN: np.ndarray) -> None:
    """Raises Diverged for tokens that could not be drawn."""
    if (tokens_BN == NOT_FINITE).any():
        row = int((tokens_BN == NOT_FINITE).any(1).argmax())
        raise Diverged(f"generate: the logits of prompt {row} are not finite: look at the checkpoint's parameters")


def _padded(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def generate(
    model: Model | Program,
    variables: Variables,
    prompts: Prompts,
    tokens: int,
    sampling: Sampling = AS_IT_IS,
    seed: int = 0,
) -> list[np.ndarray]:
    """Up to `tokens` further tokens of each prompt: `Decoder.generate`, compiled anew in every call."""
    return Decoder(model).generate(variables, prompts, tokens, sampling, seed)
