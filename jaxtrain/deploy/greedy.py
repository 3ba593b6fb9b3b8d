"""Golden texts: prompts with the likeliest tokens that follow, which every runtime has to give; and the loop over a
bundle's prefill and decode graphs. Needs no jax.

Shapes: B rows, L tokens of a padded prompt, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.deploy.generation import Generation
from jaxtrain.deploy.golden import TOLERANCE, decoded, encoded
from jaxtrain.deploy.values import is_count

GOLDEN_TOKENS = 8

LOGITS = 1024
"""Of the vocabulary, how many have their logits in a golden text."""

StepFunction = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""From tensors to outputs, by name, rows on dim 0."""


@dataclass(frozen=True)
class StepPair:
    """The two graphs of a bundle, as one runtime computes them. With jax the cache stays on the device."""

    prefill: StepFunction
    decode: StepFunction


def prompt_tensors(generation: Generation, prompts: Sequence[Sequence[int] | np.ndarray]) -> dict[str, np.ndarray]:
    """What prefill takes: `tokens` i32[B, L], and their `lengths`."""
    tokens_BL = np.zeros((len(prompts), generation.prompt), np.int32)
    for row_L, prompt in zip(tokens_BL, prompts, strict=True):
        row_L[: len(prompt)] = prompt
    return {"tokens": tokens_BL, "lengths": np.array([*map(len, prompts)], np.int32)}


class CachedRows:
    """Rows of tokens and their cache."""

    def __init__(self, steps: StepPair, generation: Generation, prompts: Sequence[Sequence[int] | np.ndarray]) -> None:
        self._steps = steps
        self._keep(steps.prefill(prompt_tensors(generation, prompts)))

    def add(self, token_B: np.ndarray) -> None:
        """One further token to each row."""
        self._keep(self._steps.decode({"token": token_B.astype(np.int32), **self._cache}))

    def _keep(self, made: Mapping[str, Any]) -> None:
        self.logits_BV: Any = made["logits"]
        """Of the token that follows each row, f32."""
        self._cache = {name: x for name, x in made.items() if name != "logits"}


@dataclass(frozen=True)
class GoldenText:
    """A prompt, the likeliest tokens that follow it, and the logits f32 before the first and before the last of these,
    of the first `LOGITS` tokens of the vocabulary.
    """

    prompt: Sequence[int]
    tokens: Sequence[int]
    first: np.ndarray
    last: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """As in golden.json."""
        return {name: encoded(getattr(self, name)) for name in ("prompt", "tokens", "first", "last")}

    @classmethod
    def from_json(cls, value: Any, generation: Generation, where: str) -> "GoldenText":
        """Raises ConfigError for what `to_json` does not write."""
        V = generation.logits.shape[0]
        try:
            prompt, tokens = value["prompt"], value["tokens"]
            first, last = (np.asarray(decoded(value[name]), np.float32) for name in ("first", "last"))
            sizes = (
                1 <= len(prompt) <= generation.prompt,
                len(prompt) + len(tokens) <= generation.context,
                len(tokens) > 0,
            )
            known = all(is_count(each) and each < V for each in (*prompt, *tokens))
            if not (all(sizes) and known and first.shape == last.shape == (min(V, LOGITS),)):
                raise ValueError("other sizes than the signature's")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"{where}: it is no prompt with its tokens and logits") from error
        return cls(prompt, tokens, first, last)


def golden_texts(value: Any, generation: Generation, where: str) -> list[GoldenText]:
    """Those of golden.json. Raises ConfigError for what `GoldenText.to_json` does not write."""
    found = value.get("texts")
    if not isinstance(found, list) or not found:
        raise ConfigError(f"{where}: it holds no golden texts")
    return [GoldenText.from_json(each, generation, f"{where}.texts.{number}") for number, each in enumerate(found)]


def likeliest_token(logits_BV: Any, vocab: int) -> np.ndarray:
    """The likeliest token of each row, i64[B]; of several the one with the lowest id."""
    return np.asarray(logits_BV)[:, :vocab].argmax(1)


def text_difference(texts: Sequence[GoldenText], steps: StepPair, generation: Generation) -> tuple[str, float]:
    """The first difference of what the graphs compute from golden texts, "" without one; and the largest of a logit, as
    a share of it where it is more than 1.
    """
    rows, largest = CachedRows(steps, generation, [each.prompt for each in texts]), 0.0
    found = [np.asarray(rows.logits_BV)]
    for n in range(max(len(each.tokens) for each in texts) - 1):
        rows.add(np.array([each.tokens[min(n, len(each.tokens) - 1)] for each in texts]))
        found.append(np.asarray(rows.logits_BV))
    for number, each in enumerate(texts):
        for n, wanted in enumerate(each.tokens):
            if (token := likeliest_token(found[n], generation.vocab)[number]) != wanted:
                return f"of golden text {number}, token {n} is {token}, expected {wanted}", largest
        for n, wanted_V in ((0, each.first), (len(each.tokens) - 1, each.last)):
            logits_V = found[n][number, : len(wanted_V)].astype(np.float64)
            apart_V = np.abs(logits_V - wanted_V) / np.maximum(np.abs(wanted_V), 1)
            if not apart_V.max() <= TOLERANCE:
                at = int(apart_V.argmax())
                pair = f"{logits_V[at]:.6g}, expected {wanted_V[at]:.6g}"
                return f"of golden text {number}, the logit of {at} before token {n} is {pair}", largest
            largest = max(largest, float(apart_V.max()))
    return "", largest
