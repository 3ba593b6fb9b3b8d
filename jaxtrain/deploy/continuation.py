"""Texts continued by a bundle's prefill and decode graphs, with the tokens that its run would draw.

Shapes: B rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import jax
import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.data.tokens.tokenizers import Bytes, HuggingFace
from jaxtrain.deploy.bundle import Bundle
from jaxtrain.deploy.generation import BYTE_TOKENS, Generation
from jaxtrain.deploy.greedy import CachedRows, StepPair
from jaxtrain.generation.decoder import ENDED, check_finite
from jaxtrain.generation.run import Texts, encoded_prompts, fitting, pieces_of
from jaxtrain.generation.sampling import AS_IT_IS, Sampling, check_tokens, next_tokens

_draw = jax.jit(next_tokens, static_argnames="vocab")


def continued(
    bundle: Bundle,
    prompts: Sequence[str],
    tokens: int | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
    context: int | None = None,
) -> Iterator[tuple[int, str]]:
    """Pieces of text as they come, each with the number of its prompt: arguments as those of `generate_run`.

    Raises ConfigError where the bundle has no such graphs, and where prompt and text are more than the cache has room
    for.
    """
    steps, generation, sampling = bundle.steps, bundle.signature.generation, sampling or AS_IT_IS
    assert generation is not None
    if isinstance(prompts, str) or not prompts:
        raise ConfigError("generate: give a list of prompts, even of one")
    if tokens is not None and tokens < 1:
        raise ConfigError(f"generate: {tokens} tokens: give at least 1")
    room = f"the bundle has room for {generation.context} tokens"
    if context is not None and context > generation.context:
        raise ConfigError(f"--context {context}: {room}: generate from its run")
    check_tokens(sampling.stop, generation.vocab, "Sampling.stop")
    tokenizer = Bytes() if generation.tokens == BYTE_TOKENS else HuggingFace(str(bundle.folder / generation.tokens))
    texts = Texts(tokenizer, generation.begins, ends=generation.stop is not None)
    ids = encoded_prompts(prompts, texts)
    for number, prompt in enumerate(ids):  # of a tokenizer with more tokens than the model has
        check_tokens(prompt, generation.logits.shape[0], f"generate: prompt {number}")
    tokens = fitting(ids, tokens, context or generation.context, room, "with its run, ")
    if generation.stop is not None:
        sampling = replace(sampling, stop=(*sampling.stop, generation.stop))
    return pieces_of(_drawn(steps, generation, ids, tokens, sampling, seed), ids, texts, stop)


def _drawn(
    steps: StepPair, generation: Generation, prompts: Sequence[np.ndarray], tokens: int, sampling: Sampling, seed: int
) -> Iterator[list[np.ndarray]]:
    """Of each row its next token, or none once it ended."""
    rows = CachedRows(steps, generation, prompts)
    seeds_B = ((seed + np.arange(len(prompts))) % 2**32).astype(np.uint32)
    done_B, limits = np.zeros(len(prompts), bool), sampling.limits()
    for n in range(tokens):
        token_B = np.array(_draw(rows.logits_BV, seeds_B, np.int32(n), limits, vocab=generation.vocab))
        token_B[done_B] = ENDED
        check_finite(token_B[:, None])
        done_B |= np.isin(token_B, sampling.stop)
        yield [token_B[row : row + 1][~done_B[row : row + 1]] for row in range(len(prompts))]
        if done_B.all():
            return
        if n + 1 < tokens:
            rows.add(np.maximum(token_B, 0))
