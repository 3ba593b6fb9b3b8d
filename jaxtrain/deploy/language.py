"""The prefill and decode graphs of a language model's bundle: made, compared with the model without a cache, written.

Shapes: B golden texts, L tokens that the cache has room for, V vocabulary.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtrain.base.errors import ConfigError
from jaxtrain.data.tokens.files import SEPARATOR
from jaxtrain.deploy.generation import STEP_FILES, Generation, tokens_of
from jaxtrain.deploy.golden import TOLERANCE
from jaxtrain.deploy.greedy import (
    GOLDEN_TOKENS,
    LOGITS,
    GoldenText,
    StepPair,
    likeliest_token,
    prompt_tensors,
    text_difference,
)
from jaxtrain.deploy.inputs import Tensor, TokenIds
from jaxtrain.deploy.onnx.conversion import Request, write_requests
from jaxtrain.deploy.predictor import Predictor
from jaxtrain.deploy.signature import Row
from jaxtrain.deploy.stablehlo import StableHlo
from jaxtrain.generation.functions import (
    decode_function,
    export_generation,
    prefill_function,
    variables_of,
)
from jaxtrain.generation.run import texts_of

_PROMPTS = (1, 3, 12, 48)  # tokens, if the context has room

_CLEAR = 10 * TOLERANCE
"""The least that a golden token's logit is above all others: a smaller margin could flip the argmax elsewhere."""

_log = logging.getLogger("jaxtrain.deploy")


@dataclass(frozen=True)
class LanguageGraphs:
    """What a language model's bundle has more than others."""

    generation: Generation
    contents: Mapping[str, bytes]
    """Serialised StableHLO by file."""
    steps: StepPair
    texts: Sequence[GoldenText]
    largest: float
    """The largest difference of a logit from that of the model without a cache."""


def language_graphs(predictor: Predictor, rows: Sequence[Row], weights: Mapping[str, Any]) -> LanguageGraphs | str:
    """Of a model that has a cache; else why there are none, in a sentence.

    rows: raw inputs, whose beginnings become golden prompts. weights: on the device.

    Raises ConfigError where a graph computes something else than the model does without a cache.
    """
    task, kept = predictor.task, predictor.kept
    context = kept.row[str(task.inputs)][1][0] - 1
    try:
        texts = texts_of(kept)
        exported = export_generation(task.model, predictor.weights, prompt=context, length=context)
        made = jax.tree.unflatten(exported[0].out_tree, exported[0].out_avals)
        arrays = [Tensor(name, x.dtype.name, tuple(x.shape[1:])) for name, x in made.items()]
        logits, *cache = sorted(arrays, key=lambda each: each.name != "logits")
        vocab, stop = min(texts.tokenizer.vocab, logits.shape[0]), SEPARATOR if texts.ends else None
        tokens = str(tokens_of(predictor.signature.inputs[0]))
        generation = Generation(context, context, vocab, stop, texts.begins, tokens, logits, tuple(cache))
        Generation.from_json(generation.to_json(), predictor.signature.inputs, "generation")
    except (ConfigError, TypeError, ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        return next(iter(str(error).strip().splitlines()), type(error).__name__)
    contents = {f"{name}.stablehlo": bytes(one.serialize()) for name, one in zip(STEP_FILES, exported, strict=True)}
    graphs = zip(contents.items(), generation.graphs, strict=True)
    steps = StepPair(*(StableHlo(content, weights, graph, name).step for (name, content), graph in graphs))
    golden = _golden(predictor, generation, rows, weights)
    if not golden:
        return "of every golden prompt, two next tokens are equally likely"
    difference, largest = text_difference(golden, steps, generation)
    if difference:
        raise ConfigError(f"the exported graphs continue texts otherwise than the model without a cache: {difference}")
    return LanguageGraphs(generation, contents, steps, golden, largest)


def _golden(
    predictor: Predictor, generation: Generation, rows: Sequence[Row], weights: Mapping[str, Any]
) -> list[GoldenText]:
    """Prompts with the tokens and logits of the model without a cache; tokens end before one that is hardly likelier
    than another.
    """
    prompts, model = _prompts(predictor, generation, rows), predictor.task.model
    tokens_BL, lengths_B = prompt_tensors(generation, prompts).values()
    whole = jax.jit(lambda weights, tokens_BL: model.apply(variables_of(weights), tokens_BL)[0])
    logits: list[np.ndarray] = []
    for n in range(min(GOLDEN_TOKENS, generation.context - int(lengths_B.max()))):
        logits_BLV = np.asarray(jax.device_get(whole(weights, tokens_BL)), np.float32)
        logits.append(logits_BLV[np.arange(len(prompts)), lengths_B + n - 1])
        tokens_BL[np.arange(len(prompts)), lengths_B + n] = likeliest_token(logits[-1], generation.vocab)
    found = []
    for row, prompt in enumerate(prompts):
        made = tokens_BL[row, len(prompt) :].tolist()
        count = next((n for n, each in enumerate(logits) if not _is_clear(each[row, : generation.vocab])), len(logits))
        if generation.stop in made[:count]:
            count = made.index(generation.stop) + 1
        if count:
            first, last = (logits[n][row, :LOGITS] for n in (0, count - 1))
            found.append(GoldenText(prompt, made[:count], first, last))
    return found


def _prompts(predictor: Predictor, generation: Generation, rows: Sequence[Row]) -> list[list[int]]:
    """The beginnings of some raw inputs, of different lengths; and an empty one, where the model has a token for it."""
    [kind] = predictor.signature.inputs
    pad = kind.pad if isinstance(kind, TokenIds) else 0
    most, found = max(generation.context - GOLDEN_TOKENS, 1), []
    for place, length in zip(np.linspace(0, len(rows) - 1, len(_PROMPTS)).round().astype(int), _PROMPTS, strict=True):
        ids = kind.row(rows[place][kind.name]).astype(np.int32)
        ids = ids[(ids != pad) & (ids != generation.stop)]
        found += [ids[: min(length, most)].tolist()] if len(ids) else []
    return found + ([[SEPARATOR]] if generation.begins or not found else [])


def _is_clear(logits_V: np.ndarray) -> bool:
    """Whether the likeliest token is so by far more than rounding."""
    second, first = np.sort(logits_V)[-2:]
    return bool(first - second > _CLEAR * max(abs(first), 1))


def write_language_onnx(predictor: Predictor, graphs: LanguageGraphs, folder: Path) -> dict[str, Any]:
    """Writes prefill.onnx and decode.onnx, which read the weights of weights.safetensors there; what was seen of them,
    or why there are none, which is logged.
    """
    generation, model, steps = graphs.generation, predictor.task.model, graphs.steps
    prompts = prompt_tensors(generation, [each.prompt for each in graphs.texts])
    first = jax.device_get(dict(steps.prefill(prompts)))
    token = {"token": np.array([each.tokens[0] for each in graphs.texts], np.int32)}
    further = token | {name: x for name, x in first.items() if name != "logits"}
    second = jax.device_get(dict(steps.decode(further)))
    functions = prefill_function(model, generation.context), decode_function(model)
    parts = zip(STEP_FILES, functions, generation.graphs, ((prompts, first), (further, second)), strict=True)
    shared: dict[str, Any] = {"weights": predictor.weights, "name": predictor.signature.name}
    shared |= {"folder": folder.absolute(), "stored": True}
    requests = [
        Request(function, tensors=of.tensors, outputs=of.outputs, examples=(seen,), file=f"{file}.onnx", **shared)
        for file, function, of, seen in parts
    ]
    try:
        answers = write_requests(requests)
    except ConfigError as error:
        _log.warning("the bundle has no ONNX of prefill and decode: %s", error)
        return {"why": str(error)}
    return {file: each["onnx"] for file, each in zip(STEP_FILES, answers, strict=True)}
