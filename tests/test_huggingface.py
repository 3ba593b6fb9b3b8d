"""Weights in the format of `transformers`, held against what that computed (scripts/reference_hf.py), and the refusal of
all that no model here computes.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from launch import free_port
from safetensors.numpy import load_file, save_file

from jaxtrain import ConfigError, Layout
from jaxtrain.base.errors import Damaged
from jaxtrain.models import Bert, Blocks, Experts, LoRA, Precision, Rope, Transformer
from jaxtrain.models.huggingface import from_hugging_face, hugging_face_model, to_hugging_face
from jaxtrain.models.variables import Variables
from jaxtrain.sharding.constraints import scope
from jaxtrain.sharding.layout import named_leaves, path_name, plain

REFERENCES = Path(__file__).parent / "references" / "huggingface"
TOLERANCE = 1e-5
"""The differences seen are up to 3e-6, of logits up to 4."""

WIDTHS: dict[str, Any] = {"width": 32, "layers": 2, "heads": 4, "mlp": 48}
CASES = [
    ("llama", {}, "logits"),
    ("llama_rope", {}, "logits"),
    ("qwen2", {}, "logits"),
    ("qwen3", {}, "logits"),
    ("bert", {"pooling": "mean"}, "mean"),
    ("bert", {"pooling": "first"}, "first"),
    ("bert", {"pooling": "dense"}, "dense"),
    ("bert_classifier", {}, "logits"),
]
EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}


def wide(name: str, **changes: Any) -> Any:
    """The model of a reference, with parameters in f32."""
    model: Any = hugging_face_model(REFERENCES / name)
    return replace(model, blocks=replace(model.blocks, precision=Precision()), **changes)


def outputs(model: Any, variables: Variables, name: str, layout: Layout | None = None) -> np.ndarray:
    given = load_file(REFERENCES / name / "outputs.safetensors")
    more = {"types_BL": given["types"]} if "types" in given else {}
    layout = layout or Layout()
    with scope(layout, layout.make_mesh(), 1):
        return np.asarray(jax.jit(model.apply)(variables, given["ids"], **more)[0])


QUICK = ("qwen3", "bert-mean")


def slow_unless_quick(*parts: Any) -> Any:
    words = [part for part in parts if isinstance(part, str)]
    quick = words[0] in QUICK or "-".join(words) in QUICK
    return pytest.param(*parts, id="-".join(map(str, filter(None, parts))), marks=[] if quick else pytest.mark.slow)


@pytest.mark.parametrize(("name", "changes", "key"), [slow_unless_quick(*case) for case in CASES])
def test_the_outputs_are_those_of_transformers(name: str, changes: dict[str, Any], key: str) -> None:
    model, variables = from_hugging_face(REFERENCES / name, model=wide(name, **changes))
    wanted = load_file(REFERENCES / name / "outputs.safetensors")[key]
    np.testing.assert_allclose(outputs(model, variables, name), wanted, rtol=0, atol=TOLERANCE)


def test_a_config_is_a_model() -> None:
    precision = Precision(params="bfloat16")
    blocks = Blocks(**WIDTHS, kv_heads=2, head_dim=8, precision=precision)
    decoder = Transformer(vocab=64, tied=False, scaled_embedding=False, blocks=replace(blocks, norm_epsilon=1e-5))
    assert hugging_face_model(REFERENCES / "llama") == decoder
    rope = Rope(base=500.0, factor=8.0, trained_length=32)
    assert hugging_face_model(REFERENCES / "llama_rope") == replace(
        decoder, tied=True, blocks=replace(blocks, rope=rope)
    )
    qwen2 = replace(blocks, head_dim=None, qkv_bias=True, rope=Rope(base=1e6))
    assert hugging_face_model(REFERENCES / "qwen2") == replace(decoder, blocks=qwen2)
    qwen3 = replace(blocks, qk_norm=True, head_dim=16)
    assert hugging_face_model(REFERENCES / "qwen3") == replace(decoder, tied=True, blocks=qwen3)
    encoder = Bert(vocab=64, positions=40, blocks=Blocks(**WIDTHS, norm_epsilon=1e-12, precision=precision))
    assert hugging_face_model(REFERENCES / "bert") == encoder
    assert hugging_face_model(REFERENCES / "bert_classifier") == replace(encoder, outputs=3, pooling="dense")


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        slow_unless_quick(name, mesh) if not mesh else pytest.param(name, mesh, marks=pytest.mark.slow)
        for name in ("llama", "llama_rope", "qwen2", "qwen3", "bert", "bert_classifier")
        for mesh in ({}, EIGHT)
    ],
)
def test_a_folder_read_and_written_has_the_same_bytes(name: str, mesh: dict[str, int], tmp_path: Path) -> None:
    whole: Any = hugging_face_model(REFERENCES / name)
    given = replace(whole, pooling="dense") if isinstance(whole, Bert) else whole
    model, variables = from_hugging_face(REFERENCES / name, Layout(mesh), given)
    to_hugging_face(model, variables, tmp_path / "new", like=REFERENCES / name)
    theirs, ours = (folder / "model.safetensors" for folder in (REFERENCES / name, tmp_path / "new"))
    assert theirs.read_bytes() == ours.read_bytes()
    again: Any = hugging_face_model(tmp_path / "new")
    head_dim = whole.blocks.head_dim or again.blocks.head_dim  # it may be written though it was left out
    assert again == replace(whole, blocks=replace(whole.blocks, head_dim=head_dim))
    before, after = (json.loads((file.parent / "config.json").read_text()) for file in (theirs, ours))
    assert after["pad_token_id"] == before["pad_token_id"]
    assert after["architectures"] == before["architectures"]


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "bert"])
@pytest.mark.slow
def test_shards_hold_their_part_and_compute_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, whole = [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *given: read.append(whole(*given)) or read[-1])
    given = wide(name, pooling="dense") if name == "bert" else wide(name)
    model, variables = from_hugging_face(REFERENCES / name, Layout(EIGHT), given)
    file = load_file(REFERENCES / name / "model.safetensors")
    assert sum(read) == sum(array.nbytes for array in file.values())  # nothing twice, though dims are replicated
    up = variables.params["blocks"]["block"]["up"]["kernel"]
    assert {shard.data.shape for shard in up.addressable_shards} == {(2, 16, 24)}
    one, alone = from_hugging_face(REFERENCES / name, model=given)
    for split, same in zip(jax.tree.leaves(variables), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(split, same)
    np.testing.assert_allclose(
        outputs(model, variables, name, Layout(EIGHT)), outputs(one, alone, name), rtol=0, atol=TOLERANCE
    )


@pytest.mark.slow
def test_blocks_in_rounds_are_stacked_of_the_same_layers(tmp_path: Path) -> None:
    flat = wide("llama")
    rounds = replace(flat, blocks=replace(flat.blocks, rounds=2))
    one, two = (from_hugging_face(REFERENCES / "llama", model=model)[1] for model in (flat, rounds))
    found = two.params["blocks"]["block"]["up"]["kernel"]
    assert found.shape == (2, 1, 32, 48)
    np.testing.assert_array_equal(found[:, 0], one.params["blocks"]["block"]["up"]["kernel"])
    to_hugging_face(rounds, two, tmp_path / "new")
    new = load_file(tmp_path / "new" / "model.safetensors")
    for key, array in load_file(REFERENCES / "llama" / "model.safetensors").items():
        np.testing.assert_array_equal(new[key], array.astype(np.float32))


def split(folder: Path) -> Path:
    """The tensors of a folder in two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, part in parts.items() for name in part}}))
    return index


def copied(name: str, to: Path) -> Path:
    return Path(shutil.copytree(REFERENCES / name, to / name))


def test_tensors_in_several_files_are_found_by_their_index(tmp_path: Path) -> None:
    folder = copied("qwen3", tmp_path)
    split(folder)
    one, other = from_hugging_face(REFERENCES / "qwen3")[1], from_hugging_face(folder)[1]
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model.norm.weight": "../elsewhere.safetensors"}, "'../elsewhere.safetensors' is not a name"),
        ({"model.norm.weight": "model.bin"}, "model.bin is not a .safetensors of this folder"),
        ({"model.norm.weight": "model-00003.safetensors"}, "model-00003.safetensors is not a .safetensors"),
        ({"model.other.weight": "model-00001-of-00002.safetensors"}, "model.other.weight is not in the file that"),
        ({"model.norm.weight": None}, "weight_map is not the file of each tensor"),
    ],
)
def test_an_index_that_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    index = split(copied("qwen3", tmp_path))
    content = json.loads(index.read_text())
    content["weight_map"] |= change
    index.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=says):
        from_hugging_face(index.parent)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("llama", {"architectures": ["LlamaForCausalM"]}, "did you mean 'LlamaForCausalLM'"),
        ("llama", {"architectures": ["GemmaForX"]}, "architectures is .*; known: BertFor"),
        ("llama", {"architectures": None}, "architectures is None"),
        ("llama", {"auto_map": {"AutoModel": "own.Llama"}}, "auto_map: neither code of its own is run"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config: neither"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; models here have 'silu' or 'swish'"),
        ("llama", {"attention_bias": True}, "attention_bias is True"),
        ("llama", {"mlp_bias": True}, "mlp_bias is True"),
        ("llama", {"hidden_size": None}, "hidden_size is missing"),
        ("llama", {"hidden_size": "32"}, "Blocks.width: '32' is a value of type str"),
        ("llama", {"hidden_size": True}, "Blocks.width: True is a value of type bool"),
        ("llama", {"num_attention_heads": 0}, "Blocks.heads: 0 is not at least 1"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
            "rope_type is 'yarn'; models here have 'default' or 'llama3'",
        ),
        ("llama", {"rope_parameters": {"type": "linear", "factor": 2.0}}, "type is 'linear'"),
        ("llama", {"rope_parameters": {"rope_type": "llama3"}}, "factor is missing"),
        ("llama", {"rope_parameters": [1]}, r"rope_parameters is \[1\], not an object"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window is True"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types holds sliding_attention"),
        ("qwen3", {"attention_bias": True}, "attention_bias is True"),
        ("bert", {"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'; models here have 'gelu'"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ("bert", {"is_decoder": True}, "is_decoder is True"),
    ],
)
def test_settings_that_no_model_here_has_are_named(tmp_path: Path, name: str, change: dict, says: str) -> None:
    folder = copied(name, tmp_path)
    settings = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=says) as error:
        from_hugging_face(folder)
    assert "config.json: " in str(error.value)


def without(name: str) -> Callable[[dict[str, np.ndarray]], object]:
    return lambda tensors: tensors.pop(name)


LAYER = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("model.norm.weight"), "model.norm.weight: missing"),
        (without(LAYER), f"{LAYER} is missing"),
        (without("model.layers.0.self_attn.q_proj.bias"), "model.layers.0.self_attn.q_proj.bias is missing"),
        (lambda tensors: tensors.update(more=np.zeros(2)), "more: the model has no such tensor"),
        (lambda tensors: tensors.update({"model.layers.2.mlp.up_proj.weight": tensors[LAYER]}), "layers.2.mlp.up_proj"),
        (lambda tensors: tensors.update({LAYER: tensors[LAYER][:-1]}), rf"{LAYER} BF16 \(47, 32\)"),
        (lambda tensors: tensors.update({LAYER: tensors[LAYER].astype(np.float32)}), rf"{LAYER} F32"),
        (
            lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"].T}),
            r"\[32, 64\], wanted \[64, 32\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, change: Callable[[dict], object], says: str) -> None:
    folder = copied("qwen2", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=says):
        from_hugging_face(folder)


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    folder = copied("llama", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = np.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(Damaged, match="norm/scale holds NaN"):
        from_hugging_face(folder)
    os.truncate(folder / "model.safetensors", 4000)
    with pytest.raises(Damaged, match=r"it is not a \.safetensors"):
        from_hugging_face(folder)


def test_a_pickle_is_refused_without_being_opened(tmp_path: Path) -> None:
    folder = copied("llama", tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin is a pickle, which can run code"):
        from_hugging_face(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ConfigError, match=r"has neither model\.safetensors nor model\.safetensors\.index\.json"):
        from_hugging_face(folder)


def test_parts_that_a_model_lacks_are_left_out_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    from_hugging_face(REFERENCES / "bert")
    assert caplog.messages == [f"{REFERENCES / 'bert'}: not used: pooler.dense.bias, pooler.dense.weight"]


def test_names_and_buffers_of_older_files_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = copied("bert", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    old = {f"bert.{name}": x for name, x in tensors.items()} | {"cls.predictions.bias": np.zeros(64, np.float32)}
    old["bert.embeddings.position_ids"] = np.arange(40)[None]
    for new, before in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
        old = {name.replace(new, before): x for name, x in old.items()}
    save_file(old, folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    (folder / "config.json").write_text(json.dumps(settings))
    found, wanted = from_hugging_face(folder)[1], from_hugging_face(REFERENCES / "bert")[1]
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert "cls.predictions.bias" in caplog.messages[0]
    assert "position_ids" not in caplog.text


DECODER = Transformer(vocab=16, tied=False, scaled_embedding=False, blocks=Blocks(width=16, layers=1, heads=2, mlp=16))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (replace(DECODER, scaled_embedding=True), "scaled_embedding=True"),
        (replace(DECODER, ngrams=(2,)), "ngrams"),
        (replace(DECODER, causal=False, pooled=True), "causal=False, pooled=True"),
        (replace(DECODER, outputs=3), "other outputs than the vocabulary"),
        (replace(DECODER, blocks=replace(DECODER.blocks, experts=Experts(count=2))), "experts"),
        (
            replace(DECODER, blocks=replace(DECODER.blocks, qk_norm=True, qkv_bias=True)),
            "qkv_bias together with qk_norm",
        ),
        (Bert(outputs=2), "outputs with pooling='mean'"),
        (LoRA(model=DECODER, layers=("*/query",)), "a LoRA"),
    ],
)
def test_a_model_that_no_architecture_computes_is_not_written(model: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"to_hugging_face: none of LlamaForCausalLM, .* has .*{says}"):
        to_hugging_face(model, Variables({}), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_arrays_of_another_model_are_not_written_and_no_folder_is_overwritten(tmp_path: Path) -> None:
    params = plain(DECODER.init(jax.random.key(0), np.ones((1, 2), np.int32))).params
    with pytest.raises(ConfigError, match=r"head/kernel is None, that of Transformer \[16, 16\]"):
        to_hugging_face(DECODER, Variables({name: x for name, x in params.items() if name != "head"}), tmp_path / "new")
    with pytest.raises(ConfigError, match=r"more is \[2\], that of Transformer None"):
        to_hugging_face(DECODER, Variables({**params, "more": np.ones(2)}), tmp_path / "new")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").touch()
    with pytest.raises(ConfigError, match="new cannot be written: Directory not empty"):
        to_hugging_face(DECODER, Variables(params), tmp_path / "new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "new"]


PROCESS = """
import json, os, sys
from pathlib import Path

import jax

folder, small, port, number = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(number))
from jaxtrain import Layout
from jaxtrain.models.huggingface import from_hugging_face


def count(word, file):
    return next(int(line.split()[1]) for line in Path(file).read_text().splitlines() if line.startswith(word))


from_hugging_face(small, Layout({"fsdp": 2}))  # what is imported and compiled the first time takes memory too
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
before = count("rchar", "/proc/self/io"), count("VmRSS", "/proc/self/status")
model, variables = from_hugging_face(folder, Layout({"fsdp": 2}))
after = count("rchar", "/proc/self/io"), count("VmHWM", "/proc/self/status")
up = variables.params["blocks"]["block"]["up"]["kernel"]
shapes = [shard.data.shape for shard in up.addressable_shards]
print(json.dumps({"read": after[0] - before[0], "peak": 1024 * (after[1] - before[1]), "shapes": shapes}))
"""


@pytest.mark.slow
def test_each_of_two_processes_reads_half_of_the_file(tmp_path: Path) -> None:
    blocks = Blocks(width=512, layers=12, heads=8, mlp=1536)
    model = Transformer(vocab=8192, tied=False, scaled_embedding=False, blocks=blocks)
    shapes = plain(jax.eval_shape(lambda: model.init(jax.random.key(0), np.ones((1, 2), np.int32))))
    to_hugging_face(model, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), tmp_path / "big")
    size = (tmp_path / "big" / "model.safetensors").stat().st_size
    assert size > 180e6
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "big"), str(REFERENCES / "llama"), str(free_port())]
    started = [
        subprocess.Popen([*command, str(number)], env=environment, stdout=subprocess.PIPE, text=True)
        for number in range(2)
    ]
    printed = [process.communicate(timeout=120)[0] for process in started]
    for text in printed:
        found = json.loads(text.splitlines()[-1])
        assert found["shapes"] == [[12, 256, 1536]]
        assert 0.5 * size <= found["read"] < 0.51 * size
        # Its half, the largest slice on the host and once more on its way to the device, and what is compiled.
        assert found["peak"] < 0.5 * size + 2 * 12 * 256 * 1536 * 4 + 24e6 < 0.85 * size


def test_names_of_dims_are_those_that_layouts_know() -> None:
    named = jax.eval_shape(lambda: wide("bert").init(jax.random.key(0), np.ones((1, 2), np.int32)))
    axes = {path_name(path): leaf.axes for path, leaf in named_leaves(named.params)}
    assert axes["blocks/block/query/bias"] == ("layers", "heads")
    assert axes["blocks/block/up/kernel"] == ("layers", "embed", "mlp")
    assert axes["positions"] == (None, "embed")
