"""What signature.json says of a language model's two graphs: prefill, which reads prompts, and decode, which reads one
further token a row. Needs numpy alone.

Not here: who computes them, and which token is drawn.
"""

from dataclasses import dataclass
from typing import Any

from jaxtrain.base.errors import ConfigError
from jaxtrain.deploy.inputs import Input, Tensor, Text, TokenIds
from jaxtrain.deploy.values import check_keys, is_count, is_size

STEP_FILES = ("prefill", "decode")
"""The names of the graphs' files, before `.stablehlo` and `.onnx`."""

BYTE_TOKENS = "bytes"

_ARRAYS = ("prefill_inputs", "prefill_outputs", "decode_inputs", "decode_outputs")

_FACTS = ("prompt", "context", "vocab", "stop", "begins", "tokens")


@dataclass(frozen=True)
class StepGraph:
    """What a graph takes and gives."""

    tensors: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Generation:
    """How a bundle continues texts.

    prompt: the tokens that prefill takes of each row, padded with 0 at the end. context: the most tokens of a prompt
    and what follows it, which the cache has room for. vocab: tokens from this one on are never generated. stop: the
    token that ends a text, which separates documents; None where there is none. begins: whether an empty prompt begins
    with it. tokens: how texts become tokens, `bytes` or the name of a tokenizer file. logits, cache: the arrays that
    both graphs give.
    """

    prompt: int
    context: int
    vocab: int
    stop: int | None
    begins: bool
    tokens: str
    logits: Tensor
    cache: tuple[Tensor, ...]

    @property
    def graphs(self) -> tuple[StepGraph, StepGraph]:
        """Prefill and decode."""
        prompts = Tensor("tokens", "int32", (self.prompt,)), Tensor("lengths", "int32", ())
        made = (self.logits, *self.cache)
        return StepGraph(prompts, made), StepGraph((Tensor("token", "int32", ()), *self.cache), made)

    def to_json(self) -> dict[str, Any]:
        """As in signature.json."""
        arrays = [[each.to_json() for each in of] for graph in self.graphs for of in (graph.tensors, graph.outputs)]
        return {name: getattr(self, name) for name in _FACTS} | dict(zip(_ARRAYS, arrays, strict=True))

    @classmethod
    def from_json(cls, value: Any, inputs: tuple[Input, ...], where: str) -> "Generation":
        """Raises ConfigError, naming the place, for what `to_json` does not write.

        inputs: of the signature: exactly one, the text.
        """
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: it is no JSON object")
        check_keys(value, {*_FACTS, *_ARRAYS}, set(), where)
        made = value["prefill_outputs"]
        if not (isinstance(made, list) and len(made) > 1 and all(isinstance(each, dict) for each in made)):
            raise ConfigError(f"{where}.prefill_outputs: they are no list of logits and of the arrays of a cache")
        logits, *cache = (Tensor.from_json(each, f"{where}.prefill_outputs.{n}") for n, each in enumerate(made))
        found = cls(**{name: value[name] for name in _FACTS}, logits=logits, cache=tuple(cache))
        sizes, stop = all(map(is_size, (found.prompt, found.context, found.vocab))), found.stop
        good = {
            "prompt": sizes and found.prompt <= found.context,
            "stop": stop is None or (sizes and is_count(stop) and stop < found.vocab),
            "begins": isinstance(found.begins, bool) and not (found.begins and stop is None),
            "tokens": [found.tokens] == [tokens_of(each) for each in inputs],
            "prefill_outputs": logits == Tensor("logits", "float32", logits.shape) and len(logits.shape) == 1,
        }
        good["vocab"] = sizes and good["prefill_outputs"] and found.vocab <= logits.shape[0]
        wrong = [name for name in good if not good[name]]
        wrong = wrong or [name for name, each in found.to_json().items() if each != value[name]]
        if wrong:
            raise ConfigError(f"{where}.{wrong[0]}: it does not fit the rest of the signature")
        return found


def tokens_of(kind: Input) -> str | None:
    """How an input becomes tokens, as `Generation.tokens`; None where it does not."""
    if isinstance(kind, TokenIds):
        return kind.tokenizer
    return BYTE_TOKENS if isinstance(kind, Text) else None
