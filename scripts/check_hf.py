"""Whether `transformers` computes what models of ours compute, from the folders that `to_hugging_face` writes of them.

`uv run python scripts/check_hf.py`: it runs reference_hf.py in an environment of its own, of 5 GB.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from jaxtrain.models import Bert, Blocks, Rope, Transformer
from jaxtrain.models.huggingface import from_hugging_face, to_hugging_face
from jaxtrain.sharding.layout import plain

PACKAGES = ("torch==2.15.0", "transformers==5.24.0")

SMALL: dict[str, Any] = {"width": 64, "layers": 3, "heads": 4, "mlp": 96}
DECODERS = {
    "llama": Blocks(**SMALL),
    "llama3": Blocks(
        **SMALL, kv_heads=1, head_dim=24, norm_epsilon=1e-5, rope=Rope(base=2e3, factor=4, trained_length=16)
    ),
    "qwen2": Blocks(**SMALL, kv_heads=2, qkv_bias=True, rope=Rope(base=1e6)),
    "qwen2_head_dim": Blocks(**SMALL, kv_heads=2, qkv_bias=True, head_dim=32),
    "qwen3": Blocks(**SMALL, kv_heads=2, qk_norm=True, head_dim=32),
}
MODELS: dict[str, Any] = {
    **{
        name: Transformer(vocab=96, tied="3" in name, scaled_embedding=False, blocks=blocks)
        for name, blocks in DECODERS.items()
    },
    "bert": Bert(vocab=96, positions=32, pooling="dense", blocks=Blocks(**SMALL, norm_epsilon=1e-12)),
    "bert_classifier": Bert(
        vocab=96, positions=32, outputs=5, pooling="dense", blocks=Blocks(**SMALL, norm_epsilon=1e-7)
    ),
}


def write(name: str, folder: Path) -> None:
    model = MODELS[name]
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 96, (3, 32), np.int32)
    more = {}
    if isinstance(model, Bert):
        ids[1, 9:] = 0
        more = {"types": rng.integers(0, 2, ids.shape, np.int32)}
    variables = jax.tree.map(
        lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), plain(model.init(jax.random.key(0), ids))
    )
    outputs, _ = model.apply(variables, ids, **{f"{key}_BL": x for key, x in more.items()})
    to_hugging_face(model, variables, folder)
    assert from_hugging_face(folder, model=model)[0] == model
    key = "dense" if name == "bert" else "logits"
    save_file({"ids": ids, **more, key: np.asarray(outputs)}, folder / "outputs.safetensors")


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / name for name in MODELS]
        for folder in folders:
            write(folder.name, folder)
        packages = [word for package in PACKAGES for word in ("--with", package)]
        script = Path(__file__).with_name("reference_hf.py")
        command = ["uv", "run", "--no-project", "--python", "3.11", *packages, "python", str(script), "--check"]
        sys.exit(subprocess.run([*command, *map(str, folders)], check=False).returncode)


if __name__ == "__main__":
    main()
