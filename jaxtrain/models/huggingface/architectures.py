"""Which architecture of `transformers` is which model of ours: its `config.json`, and the names of its tensors.

A path of ours that ends in `kernel` is the transpose of theirs; one below `blocks/block` is stacked of one tensor a
layer, whose number stands for {}. Not here: files.
"""

from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from jaxtrain.base.errors import ConfigError
from jaxtrain.models.bert import Bert
from jaxtrain.models.rope import Rope
from jaxtrain.models.transformer import Blocks, Transformer

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


DECODER_SETTINGS: Mapping[str, str] = {
    "vocab_size": "vocab",
    "tie_word_embeddings": "tied",
    "hidden_size": "blocks.width",
    "intermediate_size": "blocks.mlp",
    "num_hidden_layers": "blocks.layers",
    "num_attention_heads": "blocks.heads",
    "num_key_value_heads": "blocks.kv_heads",
    "head_dim": "blocks.head_dim",
    "rms_norm_eps": "blocks.norm_epsilon",
}

ENCODER_SETTINGS: Mapping[str, str] = {
    "vocab_size": "vocab",
    "max_position_embeddings": "positions",
    "type_vocab_size": "types",
    "pad_token_id": "padding",
    "hidden_size": "blocks.width",
    "intermediate_size": "blocks.mlp",
    "num_hidden_layers": "blocks.layers",
    "num_attention_heads": "blocks.heads",
    "layer_norm_eps": "blocks.norm_epsilon",
}

LLAMA3: Mapping[str, str] = {
    "factor": "factor",
    "low_freq_factor": "low",
    "high_freq_factor": "high",
    "original_max_position_embeddings": "trained_length",
}
"""The settings of the scaling of rotary position embeddings, by the names of `Rope`'s fields."""

DERIVED = {"blocks.mlp": "blocks.hidden", "blocks.kv_heads": "blocks.groups", "blocks.head_dim": "blocks.head_width"}
"""What a field stands for where it is None."""

DEFAULTS: Mapping[str, Any] = {
    "tie_word_embeddings": False,
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
"""What `transformers` takes for a setting that is not there, where every architecture takes the same."""

DECODER_FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_sliding_window": (False, None),
    "partial_rotary_factor": (None, 1.0),
    "pretraining_tp": (1, None),
}
"""The values that settings may have, of which the first is that of one that is not there."""

ENCODER_FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
}


class Settings:
    """The values of a `config.json`."""

    def __init__(self, file: Path, values: Mapping[str, Any]) -> None:
        self.file, self.values = file, values

    def value(self, key: str, defaults: Mapping[str, Any]) -> Any:
        """A value. Raises ConfigError where there is none, and no default."""
        found = self.values.get(key)
        if found is None and key not in defaults:
            raise ConfigError(f"{self.file}: {key} is missing")
        return defaults[key] if found is None else found

    def only(self, key: str, *known: Any) -> None:
        """Raises ConfigError for a value that is not one of these, of which the first is the default."""
        if (found := self.values.get(key, known[0])) not in known:
            words = " or ".join(map(repr, known))
            raise ConfigError(f"{self.file}: {key} is {found!r}; models here have {words}")

    def part(self, key: str) -> "Settings":
        """The object at a key, empty where there is none. Raises ConfigError for anything else."""
        if not isinstance(found := self.values.get(key) or {}, dict):
            raise ConfigError(f"{self.file}: {key} is {found!r}, not an object")
        return Settings(self.file, found)

    def rope(self) -> Rope:
        """The rotary position embedding. Raises ConfigError for scalings other than Llama 3's."""
        scaling = Settings(self.file, {**self.part("rope_scaling").values, **self.part("rope_parameters").values})
        base = scaling.value("rope_theta", {"rope_theta": self.value("rope_theta", {"rope_theta": 10_000.0})})
        scaling.only("partial_rotary_factor", None, 1.0)
        kind = "rope_type" if "rope_type" in scaling.values else "type"
        scaling.only(kind, "default", "llama3")
        if scaling.values.get(kind) != "llama3":
            return Rope(base=base)
        return Rope(base=base, **{ours: scaling.value(theirs, {}) for theirs, ours in LLAMA3.items()})


class Architecture(NamedTuple):
    """An architecture of `transformers`."""

    kind: str
    """Its `model_type`."""
    model: Imported
    """Our model of it, of any size."""
    names: Mapping[str, str] = DECODER
    """The names of its tensors by our paths."""
    defaults: Mapping[str, Any] = DEFAULTS

    @property
    def tables(self) -> tuple[Mapping[str, str], Mapping[str, tuple[Any, ...]]]:
        """Our paths by the names of settings, and the values that others may have."""
        encoder = isinstance(self.model, Bert)
        return (ENCODER_SETTINGS, ENCODER_FIXED) if encoder else (DECODER_SETTINGS, DECODER_FIXED)

    def configured(self, given: Settings) -> Imported:
        """Our model for these settings. Raises ConfigError for settings that no model here has."""
        table, fixed = self.tables
        for key, known in fixed.items():
            given.only(key, *known)
        if "sliding_attention" in (given.values.get("layer_types") or ()):
            raise ConfigError(f"{given.file}: layer_types holds sliding_attention; models here attend to all positions")
        found = {path: given.value(key, self.defaults) for key, path in table.items()}
        whole = {path: value for path, value in found.items() if "." not in path}
        inner = {path.partition(".")[2]: value for path, value in found.items() if "." in path}
        if isinstance(self.model, Bert) and self.model.outputs:
            whole["outputs"] = len(given.part("id2label").values) or given.value("num_labels", {"num_labels": 2})
        if isinstance(self.model, Transformer):
            inner["rope"] = given.rope()
        try:
            return replace(self.model, **whole, blocks=replace(self.model.blocks, **inner))
        except ConfigError as error:
            raise ConfigError(f"{given.file}: {error}") from None

    def settings(self, model: Imported) -> dict[str, Any]:
        """The settings that give this model."""
        table, fixed = self.tables
        found = {key: known[0] for key, known in fixed.items() if known[0] is not None}
        found |= {key: attrgetter(DERIVED.get(path, path))(model) for key, path in table.items()}
        if isinstance(model, Bert):
            labels = [f"LABEL_{number}" for number in range(model.outputs or 0)]
            more = {"id2label": dict(enumerate(labels)), "label2id": {label: at for at, label in enumerate(labels)}}
            return found | more if labels else found
        rope = model.blocks.rope
        scaling = {"rope_type": "llama3"} | {theirs: getattr(rope, ours) for theirs, ours in LLAMA3.items()}
        return found | {"rope_theta": rope.base, "rope_scaling": None if rope.factor == 1 else scaling}


_CAUSAL = Transformer(scaled_embedding=False)
_QWEN3 = replace(_CAUSAL, blocks=Blocks(qk_norm=True))
_CLASSIFIER = Bert(outputs=2, pooling="dense")

ARCHITECTURES: Mapping[str, Architecture] = {
    "LlamaForCausalLM": Architecture("llama", _CAUSAL),
    "Qwen2ForCausalLM": Architecture("qwen2", replace(_CAUSAL, blocks=Blocks(qkv_bias=True))),
    "Qwen3ForCausalLM": Architecture("qwen3", _QWEN3, defaults={**DEFAULTS, "head_dim": 128}),
    "BertModel": Architecture("bert", Bert(), ENCODER),
    "BertForSequenceClassification": Architecture("bert", _CLASSIFIER, CLASSIFIER),
    "BertForMaskedLM": Architecture("bert", Bert(), CLASSIFIER),
    "BertForPreTraining": Architecture("bert", Bert(), CLASSIFIER),
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
