"""Which architecture of `transformers` is which model of ours: its `config.json`, and the names of its tensors.

A path of ours that ends in `kernel` is the transpose of theirs; one below `blocks/block` is stacked of one tensor a
layer, whose number stands for {}. Not here: files.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from jaxtrain.base.errors import ConfigError
from jaxtrain.models.bert import Bert
from jaxtrain.models.rope import Rope
from jaxtrain.models.transformer import Blocks, Transformer

T = TypeVar("T")

Imported = Transformer | Bert
"""The models that there are architectures for."""

DECODER: Mapping[str, str] = {
    "embedding/table": "model.embed_tokens.weight",
    **{
        f"blocks/block/{ours}": f"model.layers.{{}}.{theirs}"
        for ours, theirs in {
            "norm_attention/scale": "input_layernorm.weight",
            "query/kernel": "self_attn.q_proj.weight",
            "query/bias": "self_attn.q_proj.bias",
            "key/kernel": "self_attn.k_proj.weight",
            "key/bias": "self_attn.k_proj.bias",
            "value/kernel": "self_attn.v_proj.weight",
            "value/bias": "self_attn.v_proj.bias",
            "norm_query/scale": "self_attn.q_norm.weight",
            "norm_key/scale": "self_attn.k_norm.weight",
            "attention_out/kernel": "self_attn.o_proj.weight",
            "norm_mlp/scale": "post_attention_layernorm.weight",
            "gate/kernel": "mlp.gate_proj.weight",
            "up/kernel": "mlp.up_proj.weight",
            "down/kernel": "mlp.down_proj.weight",
        }.items()
    },
    "norm/scale": "model.norm.weight",
    "head/kernel": "lm_head.weight",
}

ENCODER: Mapping[str, str] = {
    "embedding/table": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "types": "embeddings.token_type_embeddings.weight",
    "norm/scale": "embeddings.LayerNorm.weight",
    "norm/bias": "embeddings.LayerNorm.bias",
    **{
        f"blocks/block/{ours}/{part}": f"encoder.layer.{{}}.{theirs}.{their_part}"
        for ours, theirs in {
            "query": "attention.self.query",
            "key": "attention.self.key",
            "value": "attention.self.value",
            "attention_out": "attention.output.dense",
            "norm_attention": "attention.output.LayerNorm",
            "up": "intermediate.dense",
            "down": "output.dense",
            "norm_mlp": "output.LayerNorm",
        }.items()
        for part, their_part in {"scale" if "norm" in ours else "kernel": "weight", "bias": "bias"}.items()
    },
    "pooler/kernel": "pooler.dense.weight",
    "pooler/bias": "pooler.dense.bias",
}

CLASSIFIER: Mapping[str, str] = {
    **{ours: f"bert.{theirs}" for ours, theirs in ENCODER.items()},
    "head/kernel": "classifier.weight",
    "head/bias": "classifier.bias",
}

BUFFERS = ("*.position_ids", "*.rotary_emb.inv_freq")
"""Patterns of tensors that older versions saved and that are computed."""

UNUSED = ("pooler.*", "bert.pooler.*", "cls.*", "lm_head.weight")
"""Patterns of tensors that a model without that part leaves out, which the log says."""


class Settings:
    """The values of a `config.json`."""

    def __init__(self, file: Path, values: Mapping[str, Any]) -> None:
        self.file, self.values = file, values

    def value(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The value of this type. Raises ConfigError for another, and for none where there is no default."""
        found = self.values.get(key)
        found = default if found is None else found
        if kind is float and type(found) is int:
            found = float(found)
        if type(found) is not kind:
            words = "missing" if found is None else f"{found!r}, not of type {kind.__name__}"
            raise ConfigError(f"{self.file}: {key} is {words}")
        return cast(T, found)

    def only(self, key: str, *known: Any) -> None:
        """Raises ConfigError for a value that is not one of these, of which the first is the default."""
        if (found := self.values.get(key, known[0])) not in known:
            words = " or ".join(map(repr, dict.fromkeys(known)))
            raise ConfigError(f"{self.file}: {key} is {found!r}; models here have {words}")

    def part(self, key: str) -> "Settings | None":
        """The object at a key; None where there is none."""
        found = self.values.get(key)
        if found is not None and not isinstance(found, dict):
            raise ConfigError(f"{self.file}: {key} is {found!r}, not an object")
        return Settings(self.file, found) if found else None


def _rope(given: Settings) -> Rope:
    base = given.value("rope_theta", float, 10_000.0)
    scaling = given.part("rope_parameters") or given.part("rope_scaling")
    if scaling is None:
        return Rope(base=base)
    base = scaling.value("rope_theta", float, base)
    scaling.only("partial_rotary_factor", None, 1.0)
    kind = scaling.values.get("rope_type", scaling.values.get("type", "default"))
    if kind == "default":
        return Rope(base=base)
    if kind != "llama3":
        raise ConfigError(f"{given.file}: the rope type is {kind!r}; models here have 'default' or 'llama3'")
    return Rope(
        base=base,
        factor=scaling.value("factor", float),
        low=scaling.value("low_freq_factor", float),
        high=scaling.value("high_freq_factor", float),
        trained_length=scaling.value("original_max_position_embeddings", int),
    )


def _decoder(given: Settings, **options: Any) -> Transformer:
    given.only("hidden_act", "silu", "swish")
    for key in ("attention_bias", "mlp_bias"):
        given.only(key, False, None)
    given.only("partial_rotary_factor", None, 1.0)
    given.only("pretraining_tp", 1, None)
    if given.value("use_sliding_window", bool, False) or "sliding_attention" in (given.values.get("layer_types") or ()):
        raise ConfigError(f"{given.file}: use_sliding_window or layer_types limit attention; models here do not")
    width, heads = given.value("hidden_size", int), given.value("num_attention_heads", int)
    head_dim = given.value("head_dim", int, options.pop("head_dim", None) or width // max(heads, 1))
    blocks = Blocks(
        width=width,
        layers=given.value("num_hidden_layers", int),
        heads=heads,
        kv_heads=given.value("num_key_value_heads", int, heads),
        head_dim=None if head_dim * heads == width else head_dim,
        mlp=given.value("intermediate_size", int),
        rope=_rope(given),
        norm_epsilon=given.value("rms_norm_eps", float, 1e-6),
        **options,
    )
    tied = given.value("tie_word_embeddings", bool, False)
    return Transformer(vocab=given.value("vocab_size", int), tied=tied, scaled_embedding=False, blocks=blocks)


def _decoder_settings(model: Imported) -> dict[str, Any]:
    assert isinstance(model, Transformer)
    blocks, rope = model.blocks, model.blocks.rope
    llama3 = {
        "rope_type": "llama3",
        "factor": rope.factor,
        "low_freq_factor": rope.low,
        "high_freq_factor": rope.high,
        "original_max_position_embeddings": rope.trained_length,
    }
    return {
        "vocab_size": model.vocab,
        "hidden_size": blocks.width,
        "intermediate_size": blocks.hidden,
        "num_hidden_layers": blocks.layers,
        "num_attention_heads": blocks.heads,
        "num_key_value_heads": blocks.groups,
        "head_dim": blocks.head_width,
        "hidden_act": "silu",
        "rms_norm_eps": blocks.norm_epsilon,
        "rope_theta": rope.base,
        "rope_scaling": None if rope.factor == 1 else llama3,
        "tie_word_embeddings": model.tied,
        "attention_bias": False,
        "use_sliding_window": False,
    }


def _encoder(given: Settings, **options: Any) -> Bert:
    given.only("hidden_act", "gelu")
    given.only("position_embedding_type", "absolute", None)
    for key in ("is_decoder", "add_cross_attention"):
        given.only(key, False, None)
    blocks = Blocks(
        width=given.value("hidden_size", int),
        layers=given.value("num_hidden_layers", int),
        heads=given.value("num_attention_heads", int),
        mlp=given.value("intermediate_size", int),
        norm_epsilon=given.value("layer_norm_eps", float, 1e-12),
    )
    return Bert(
        vocab=given.value("vocab_size", int),
        positions=given.value("max_position_embeddings", int),
        types=given.value("type_vocab_size", int),
        padding=given.value("pad_token_id", int, 0),
        blocks=blocks,
        **options,
    )


def _classifier(given: Settings) -> Bert:
    labels = given.part("id2label")
    outputs = len(labels.values) if labels else given.value("num_labels", int, 2)
    return _encoder(given, pooling="dense", outputs=outputs)


def _encoder_settings(model: Imported) -> dict[str, Any]:
    assert isinstance(model, Bert)
    blocks = model.blocks
    labels = {str(number): f"LABEL_{number}" for number in range(model.outputs or 0)}
    return {
        "vocab_size": model.vocab,
        "hidden_size": blocks.width,
        "intermediate_size": blocks.hidden,
        "num_hidden_layers": blocks.layers,
        "num_attention_heads": blocks.heads,
        "hidden_act": "gelu",
        "layer_norm_eps": blocks.norm_epsilon,
        "max_position_embeddings": model.positions,
        "type_vocab_size": model.types,
        "pad_token_id": model.padding,
        **({"id2label": labels, "label2id": {label: int(key) for key, label in labels.items()}} if labels else {}),
    }


class Architecture(NamedTuple):
    """An architecture of `transformers`."""

    kind: str
    """Its `model_type`."""
    names: Mapping[str, str]
    """The names of its tensors by our paths."""
    model: Callable[[Settings], Imported]
    """Our model for its settings. Raises ConfigError for settings that we have no model for."""
    settings: Callable[[Imported], dict[str, Any]] = _decoder_settings
    """The settings that give this model."""


ARCHITECTURES: Mapping[str, Architecture] = {
    "LlamaForCausalLM": Architecture("llama", DECODER, _decoder),
    "Qwen2ForCausalLM": Architecture("qwen2", DECODER, lambda given: _decoder(given, qkv_bias=True)),
    "Qwen3ForCausalLM": Architecture("qwen3", DECODER, lambda given: _decoder(given, qk_norm=True, head_dim=128)),
    "BertModel": Architecture("bert", ENCODER, _encoder, _encoder_settings),
    "BertForSequenceClassification": Architecture("bert", CLASSIFIER, _classifier, _encoder_settings),
    "BertForMaskedLM": Architecture("bert", CLASSIFIER, _encoder, _encoder_settings),
    "BertForPreTraining": Architecture("bert", CLASSIFIER, _encoder, _encoder_settings),
}
"""By name. Of those of BERT's pre-training only the encoder is read."""


def architecture_of(model: Any) -> str:
    """The name of the architecture that computes what a model does. Raises ConfigError where none does."""
    if isinstance(model, Transformer):
        blocks = model.blocks
        name = "Qwen3ForCausalLM" if blocks.qk_norm else "Qwen2ForCausalLM" if blocks.qkv_bias else "LlamaForCausalLM"
        without = {
            "causal=False": not model.causal,
            "pooled=True": model.pooled,
            "ngrams": model.ngrams,
            "other outputs than the vocabulary": model.outputs not in (None, model.vocab),
            "scaled_embedding=True": model.scaled_embedding,
            "experts": blocks.experts.count,
            "qkv_bias together with qk_norm": blocks.qkv_bias and blocks.qk_norm,
        }
    elif isinstance(model, Bert):
        name = "BertForSequenceClassification" if model.outputs else "BertModel"
        without = {f"outputs with pooling={model.pooling!r}": model.outputs and model.pooling != "dense"}
    else:
        name, without = "", {f"a {type(model).__name__}": True}
    if wrong := [words for words, found in without.items() if found]:
        raise ConfigError(f"to_hugging_face: none of {', '.join(ARCHITECTURES)} has {', '.join(wrong)}")
    return name
