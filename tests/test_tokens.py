"""Token files, tokenizers and packing."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from test_datasets import sentence
from tiny import main

from jaxtrain import ConfigError, Program
from jaxtrain.data import Bytes, Damaged, HuggingFace, Mixture, Packed, Pipeline, Take, Tokens
from jaxtrain.data.tokens.files import Documents, write_tokens
from jaxtrain.data.tokens.packing import plan_packing
from jaxtrain.data.tokens.tokenizers import train_bpe
from jaxtrain.models import Blocks, Transformer
from jaxtrain.models.base import PREDICTION
from jaxtrain.sharding.layout import plain
from jaxtrain.tasks import LanguageModel


def documents(count: int = 40) -> list[str]:
    rng = np.random.default_rng(0)
    return [(sentence(i) * 4)[: int(rng.integers(1, 200))] for i in range(count)]


@pytest.fixture
def paths(tmp_path) -> tuple[str, ...]:
    return tuple(map(str, write_tokens(tmp_path, "some", documents(), Bytes(), per_file=1500)))


def test_documents_come_back_as_written_over_several_files(paths):
    source = Documents(paths)
    assert len(paths) > 2
    assert [Bytes().decode(source[i]["tokens"]) for i in range(len(source))] == documents()
    assert source[0]["tokens"].dtype == np.uint16


@pytest.mark.parametrize("length", [1, 7, 64, 300])
def test_a_stream_holds_every_token_once_as_a_target_with_a_separator_after_each_document(paths, length):
    for path in paths:
        source, stored = Tokens((path,), length), Documents((path,))
        stream = np.concatenate([np.append(stored[i]["tokens"], 0) for i in range(len(stored))])
        assert len(source) == (len(stream) - 1) // length
        for i in range(len(source)):
            np.testing.assert_array_equal(source[i]["tokens"], stream[i * length : (i + 1) * length + 1])
            assert source[i]["tokens"].dtype == np.int32
    assert len(Tokens(paths, length)) == sum(len(Tokens((path,), length)) for path in paths)
    last = len(Tokens(paths, length)) - 1
    np.testing.assert_array_equal(
        Tokens(paths, length)[last]["tokens"], Tokens(paths[-1:], length)[len(Tokens(paths[-1:], length)) - 1]["tokens"]
    )


@pytest.mark.parametrize("length", [20, 63, 250])
def test_packed_rows_hold_every_document_once_and_cut_only_those_longer_than_a_row(paths, length):
    plan_packing(paths, length)
    rows = Packed(paths, length)
    pieces = Counter()
    for i in range(len(rows)):
        row = rows[i]
        assert row["tokens"].shape == row["segments"].shape == (length + 1,)
        assert (np.diff(row["segments"][row["segments"] > 0]) >= 0).all()
        assert not row["tokens"][row["segments"] == 0].any()
        for segment in range(1, row["segments"].max() + 1):
            pieces[Bytes().decode(row["tokens"][row["segments"] == segment])] += 1
    wanted = Counter()
    for text in documents():
        raw = text.encode()
        wanted.update(raw[at : at + length + 1].decode() for at in range(0, len(raw), length + 1))
    assert pieces == wanted


def test_best_fit_wastes_little(tmp_path):
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 400, 500)
    paths = tuple(map(str, write_tokens(tmp_path, "x", ("a" * size for size in sizes), Bytes())))
    plan_packing(paths, 511)
    least = -(-int(sizes.sum()) // 512)
    assert len(Packed(paths, 511)) <= 1.02 * least


@pytest.mark.slow
def test_a_packed_document_is_scored_as_if_it_were_alone(paths):
    plan_packing(paths, 255)
    row = Packed(paths, 255)[1]
    assert row["segments"].max() >= 2
    task = LanguageModel(model=Transformer(blocks=Blocks(width=32, layers=2, heads=2)))
    batch = {**{name: x[None] for name, x in row.items()}, "mask": np.ones(1, bool)}
    variables = plain(task.init(jax.random.key(0), batch))
    loss = jax.jit(task.loss)(variables, batch, PREDICTION).mean
    total, weight = 0.0, 0.0
    for segment in range(1, row["segments"].max() + 1):
        tokens = row["tokens"][row["segments"] == segment]
        alone = task.loss(variables, {"tokens": tokens[None], "mask": np.ones(1, bool)}, PREDICTION).mean
        total, weight = total + float(alone.total), weight + float(alone.weight)
    assert float(loss.weight) == weight
    assert float(loss.total) == pytest.approx(total, rel=1e-5)
    unaware = task.loss(variables, {"tokens": batch["tokens"], "mask": batch["mask"]}, PREDICTION).mean
    assert float(unaware) != pytest.approx(float(loss), rel=1e-3)


def test_packing_without_a_plan_is_refused(paths):
    with pytest.raises(ConfigError, match=r"no plan .*plan_packing\(paths, 99\)"):
        len(Packed(paths, 99))


def test_a_plan_is_followed_only_as_written_and_for_the_files_it_was_made_for(paths):
    plan = plan_packing(paths, 99)
    with pytest.raises(ConfigError, match=r"planned for other files.*plan_packing\(paths, 99\)"):
        len(Packed(paths[:1], 99))
    raw = plan.read_bytes()
    for size in (0, 100, len(raw) - 8):
        plan.write_bytes(raw[:size])
        with pytest.raises(Damaged, match=r"packed-99.npy: it is not a plan"):
            len(Packed(paths, 99))
    plan.write_bytes(raw[:-6] + bytes([raw[-6] ^ 1]) + raw[-5:])
    with pytest.raises(Damaged, match=r"packed-99.npy: the plan of rows does not match"):
        len(Packed(paths, 99))
    plan.write_bytes(raw)
    assert len(Packed(paths, 99)) > 0


def test_a_flipped_token_is_found_in_its_document(paths):
    raw = bytearray(Path(paths[1]).read_bytes())
    raw[len(raw) // 2] ^= 1
    Path(paths[1]).write_bytes(raw)
    found = []
    for source in (Documents(paths[:1]), Documents(paths[1:2])):
        for index in range(len(source)):
            try:
                source[index]
            except Damaged as error:
                found.append((error.file, error.record == index, error.why))
    assert found == [(paths[1], True, "its tokens do not match their checksum")]


@pytest.mark.parametrize("change", ["cut", "grown", "another magic", "header"])
def test_a_token_file_that_is_not_whole_is_named(paths, change):
    path = Path(paths[0])
    raw = path.read_bytes()
    changed = {
        "cut": raw[:-9],
        "grown": raw + b"\0",
        "another magic": b"x" + raw[1:],
        "header": raw[:20] + b"!" + raw[21:],
    }
    path.write_bytes(changed[change])
    other = path.rename(path.with_name(f"{change}.bin"))  # what was opened before stays open
    with pytest.raises(Damaged, match=rf"{change}.bin: it "):
        len(Documents((str(other),)))


def test_a_missing_token_file_names_the_nearest(paths):
    with pytest.raises(ConfigError, match=r"did you mean 'some-00000.bin'"):
        len(Documents((paths[0].replace("some", "sone"),)))


def test_a_trained_bpe_gives_back_every_text_in_fewer_tokens(tmp_path):
    texts = [sentence(i) for i in range(200)]
    made = train_bpe(texts, 400, tmp_path / "bpe.json")
    again = HuggingFace(str(tmp_path / "bpe.json"))
    assert made.identity() == again.identity()
    assert again.vocab == 400
    for text in (*texts[:5], "Adorei! Não daria nenhuma :) 🙂"):
        (tokens,) = again.encode([text])
        assert again.decode(tokens) == text
        assert tokens.min() > 0  # 0 stands between documents
    assert len(again.encode(texts[:1])[0]) < len(texts[0].encode()) / 2
    with pytest.raises(ConfigError, match="vocab 200 must be more than"):
        train_bpe(texts, 200, tmp_path / "small.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"bad.json is not a tokenizer file"):
        HuggingFace(str(tmp_path / "bad.json")).encode(["x"])


def test_a_model_with_fewer_tokens_than_its_data_is_refused(tmp_path):
    made = train_bpe([sentence(i) for i in range(200)], 400, tmp_path / "bpe.json")
    paths = tuple(map(str, write_tokens(tmp_path, "some", documents(), made)))
    for source in (Tokens(paths, 8), Take(Tokens(paths, 8), 5), Mixture((Tokens(paths, 8), Tokens(paths, 8)), (1, 1))):
        short, enough = (
            replace(
                main(),
                task=LanguageModel(model=Transformer(vocab=vocab, blocks=Blocks(width=32, layers=1, heads=2))),
                data=Pipeline(source, batch_size=8),
                evals={},
            )
            for vocab in (256, 400)
        )
        with pytest.raises(ConfigError, match=r"task.model.vocab: 256 is less than the 400 tokens of the data"):
            Program(short)
        Program(enough)
