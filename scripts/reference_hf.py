"""Logits that Hugging Face's `transformers` computes with random weights, for tests/test_huggingface.py to hold ours against.

`uv run --no-project --with torch==2.15.0 --with transformers==5.24.0 python scripts/reference_hf.py` (5 GB) writes
tests/references/huggingface/NAME: config.json as transformers saves it, tensors in bf16 so that they are small, token
ids, and the f32 outputs for them in outputs.safetensors. With `--check FOLDER…` it reads folders that ours wrote, whose
`outputs.safetensors` has our outputs, and compares.
"""

import argparse
import json
import sys
from pathlib import Path

import safetensors.torch
import torch
import transformers

OUT = Path(__file__).parent.parent / "tests" / "references" / "huggingface"
SEED = 0
STEEPER = 8.0
"""Weights are drawn with this many times transformers' own deviation of 0.02, so that attention is far from even and
every option shows in the outputs."""

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
DECODER = SMALL | {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
BERT = SMALL | {"num_attention_heads": 4, "max_position_embeddings": 40}

CASES = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER | {"rms_norm_eps": 1e-5}),
    "llama_rope": (
        "LlamaForCausalLM",
        "LlamaConfig",
        DECODER | {"rope_parameters": LLAMA3, "tie_word_embeddings": True},
    ),
    "qwen2": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        DECODER | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", DECODER | {"head_dim": 16, "tie_word_embeddings": True}),
    "bert": ("BertModel", "BertConfig", BERT),
    "bert_classifier": ("BertForSequenceClassification", "BertConfig", BERT | {"num_labels": 3}),
}


def outputs_of(model: torch.nn.Module, ids: torch.Tensor, types: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """What the model computes: logits; of a BertModel the mean of its last hidden state over tokens, and its pooler's."""
    with torch.no_grad():
        if types is None:
            return {"logits": model(input_ids=ids).logits}
        mask = (ids != 0).long()
        found = model(input_ids=ids, attention_mask=mask, token_type_ids=types)
        if hasattr(found, "logits"):
            return {"logits": found.logits}
        hidden, weight = found.last_hidden_state, mask[..., None].float()
        mean = (hidden * weight).sum(1) / weight.sum(1)
        return {"mean": mean, "first": hidden[:, 0], "dense": found.pooler_output}


def make(name: str) -> None:
    architecture, config_kind, settings = CASES[name]
    transformers.set_seed(SEED)
    config = getattr(transformers, config_kind)(**settings, attn_implementation="eager")
    model = getattr(transformers, architecture)(config).eval()
    draws = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for weight in model.parameters():  # biases and norms too, which begin as 0 and 1
            weight += 0.02 * STEEPER * torch.randn(weight.shape, generator=draws)
            weight.copy_(weight.bfloat16().float())
    length = 40
    ids = torch.randint(1, settings["vocab_size"], (4, length), generator=draws)
    types = None
    if config_kind == "BertConfig":
        ids[1, 17:] = 0
        types = torch.randint(0, 2, ids.shape, generator=draws)
    outputs = outputs_of(model, ids, types)
    model.bfloat16().save_pretrained(OUT / name)
    (OUT / name / "generation_config.json").unlink(missing_ok=True)
    given = {"ids": ids.int()} | ({} if types is None else {"types": types.int()})
    safetensors.torch.save_file(
        given | {key: x.contiguous() for key, x in outputs.items()}, OUT / name / "outputs.safetensors"
    )
    print(name, {key: (tuple(x.shape), round(float(x.std()), 3)) for key, x in outputs.items()})


def check(folder: Path) -> float:
    """The greatest difference between transformers' outputs and those beside the weights."""
    config = json.loads((folder / "config.json").read_text())
    kind = getattr(transformers, config["architectures"][0])
    model, info = kind.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    assert not any(info[key] for key in info if key != "error_msgs"), info
    ours = safetensors.torch.load_file(folder / "outputs.safetensors")
    types = ours.pop("types", None)
    found = outputs_of(model.float().eval(), ours.pop("ids").long(), None if types is None else types.long())
    return max(float((found[key] - x).abs().max()) for key, x in ours.items())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", nargs="+", type=Path)
    arguments = parser.parse_args()
    if arguments.check:
        found = {str(folder): check(folder) for folder in arguments.check}
        print(*(f"{folder}: {difference:.2e}" for folder, difference in found.items()), sep="\n")
        sys.exit(max(found.values()) > 1e-4)
    for name in CASES:
        make(name)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "seed": SEED}
    (OUT / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
