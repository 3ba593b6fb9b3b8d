"""`jaxtrain generate`: text as it comes, cut within no character, from the tokens of the run's own tokenizer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_cli import Result, call

from jaxtrain import ConfigError, Experiment, Run, load
from jaxtrain.data import Arrays, Bytes, Pipeline, Tokenize, Tokens, Windows, train_bpe, write_tokens
from jaxtrain.data.tokens.tokenizers import HuggingFace, Tokenizer
from jaxtrain.generation.run import generate_run
from jaxtrain.generation.sampling import Sampling
from jaxtrain.generation.text import TextStream
from jaxtrain.models import Blocks, Transformer
from jaxtrain.optimizers import AdamW, ConstantRate
from jaxtrain.runs.begin import begin
from jaxtrain.tasks import LanguageModel
from jaxtrain.train import train

TEXTS = ["good film, naïve ½ 空", "bad film 🎬🎬", "a\nb and so on", "the last one of them all"] * 8
GREEDY = Sampling(temperature=0)
__all__ = ["call"]  # the fixture


def pieces(text: str | bytes, stops: tuple[str, ...] = (), every: int = 1, tokenizer: Tokenizer | None = None):
    """What a stream gives after "x" for the tokens of a text, `every` at a time, and what its end gives."""
    tokenizer = tokenizer or Bytes()
    tokens = np.frombuffer(text, np.uint8) if isinstance(text, bytes) else tokenizer.encode([text])[0]
    stream = TextStream(tokenizer, tokenizer.encode(["x"])[0], stops)
    return [stream.add(tokens[at : at + every]) for at in range(0, len(tokens), every)], stream.end()


def test_a_character_comes_whole_with_its_last_byte():
    assert pieces("aé空🎬") == (["a", "", "é", "", "", "空", "", "", "", "🎬"], "")
    assert pieces("aé空🎬", every=4) == (["aé", "空", "🎬"], "")


def test_bytes_that_are_no_text_come_once_what_follows_shows_it():
    assert pieces(b"a\xffb\xe7") == (["a", "", "\ufffdb", ""], "\ufffd")
    assert pieces(b"\xe7\xa9b") == (["", "", "\ufffdb"], "")


def test_a_stop_text_ends_before_it_and_what_may_begin_one_waits():
    assert pieces("one. two", (". ",)) == (["o", "n", "e", "", "", "", "", ""], "")
    assert pieces("1.2. 3", (". ",)) == (["1", "", ".2", "", "", ""], "")
    assert pieces("aab", ("aac",)) == (["", "", "aab"], "")
    assert pieces("aa", ("aac",)) == (["", ""], "aa")
    assert pieces("a; b. c", (". ", "; "), every=7) == (["a"], "")
    assert pieces("x", ("xx",)) == ([""], "x")  # the prompt's own text begins no stop text


def test_subword_tokens_come_as_the_text_they_are_part_of(tmp_path: Path):
    tokenizer = train_bpe(TEXTS, 300, tmp_path / "bpe.json")
    for text in ("naïve ½ 空", "film 🎬🎬!", "  two  spaces"):
        parts, rest = pieces(text, tokenizer=tokenizer)
        assert "".join(parts) + rest == text
        assert "\ufffd" not in "".join(parts)


def experiment(tokenizer: Tokenizer | None = None, folder: Path | None = None) -> Experiment:
    source = Windows(Arrays({"text": TEXTS}), 24)
    if tokenizer is not None and folder is not None:
        paths = write_tokens(folder, "tokens", TEXTS, tokenizer)
        source = Tokens(tuple(map(str, paths)), 24, tokenizer)
    blocks = Blocks(width=16, layers=1, heads=2, mlp=16)
    return Experiment(
        task=LanguageModel(model=Transformer(vocab=320, blocks=blocks, ngrams=(2,), buckets=64)),
        data=Pipeline(source, batch_size=4, threads=0),
        optimizer=AdamW(schedule=ConstantRate(peak=1e-2)),
        steps=2,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on bytes, whose model has more outputs than there are bytes."""
    folder = tmp_path_factory.mktemp("generate") / "run"
    train(experiment(), folder)
    return folder


def text(run: Path, *prompts: str, **more) -> list[str]:
    texts = list(prompts)
    for number, piece in generate_run(Run(run), prompts, **more):
        texts[number] += piece
    return texts


def test_the_command_prints_each_prompt_with_its_text(call, run: Path):
    one = call("generate", run, "good", "bad", "--tokens", 6, "--temperature", 0)
    assert one.code == 0
    assert one.out == "".join(f"{line}\n" for line in text(run, "good", "bad", tokens=6, sampling=GREEDY))
    assert one.out.startswith("good")


def test_the_first_token_is_the_one_that_predict_names(call, run: Path):
    predicted = call("predict", run, "good").out
    (made,) = text(run, "good", tokens=1, sampling=GREEDY)
    assert predicted.startswith(f"next: {made[4:].encode()!r}")


REFUSED = {
    ("good", "--tokens", "25"): "4 tokens of a prompt and 25 more are above 24, and the run trained on rows of 24 "
    "tokens: give --tokens 20, or --context 29 goes beyond what it trained on",
    ("x" * 24,): "a prompt has 24 tokens, and the run trained on rows of 24 tokens: shorten it",
    (): "give at least one text",
    ("good", "--tokens", "0"): "--tokens 0: give at least 1",
    ("good", "--context", "1"): "--context 1: give at least 2",
    ("good", "--seed", "-1"): "--seed -1: give a number from 0",
    ("good", "--top-p", "1.5"): "Sampling.top_p: 1.5 is not",
    ("good", "--top-k", "0"): "Sampling.top_k: 0 is not at least 1",
    ("good", "--temperature", "-1"): "Sampling.temperature: -1.0 is not",
    ("good", "--step", "7"): "7",
    ("good", "--mesh", "data two"): "write axes and sizes",
    ("good", "--mesh", "tensors 2"): "no rule uses the mesh axis 'tensors'; did you mean 'tensor'?",
}


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_what_cannot_be_done_is_one_message(call, run: Path, arguments: tuple[str, ...]):
    found: Result = call("generate", run, *arguments)
    assert found.code == 2
    assert REFUSED[arguments] in found.err
    assert found.out == ""
    assert "Traceback" not in found.err


@pytest.mark.slow
def test_the_context_may_be_gone_beyond_and_is_filled_by_default(run: Path):
    assert len(text(run, "good", sampling=GREEDY)[0].encode()) <= 24
    limited = text(run, "good", sampling=GREEDY, tokens=20)[0]
    assert text(run, "good", sampling=GREEDY)[0] == limited
    assert text(run, "good", sampling=GREEDY, tokens=40, context=44)[0].startswith(limited.rstrip("\ufffd"))


def test_a_task_that_is_no_language_model_is_refused(tmp_path: Path, call):
    digits, _ = load(str(Path(__file__).parents[1] / "experiments" / "digits.py"))
    begin(tmp_path / "digits", digits, None)
    found = call("generate", tmp_path / "digits", "good")
    assert (found.code, found.out) == (2, "")
    assert "is no language model" in found.err


@pytest.mark.slow
def test_a_run_on_subword_tokens_encodes_and_decodes_by_its_tokenizer(tmp_path: Path):
    tokenizer = train_bpe(TEXTS, 300, tmp_path / "bpe.json")
    train(experiment(tokenizer, tmp_path), tmp_path / "run")
    (found,) = text(tmp_path / "run", "good film", tokens=12, sampling=GREEDY)
    assert found.startswith("good film")
    assert text(tmp_path / "run", "", tokens=4)[0] != ""  # a separator is before it
    data = Pipeline(Arrays({"text": TEXTS}), (Tokenize(HuggingFace(tokenizer.path), 16),), batch_size=4)
    train(replace(experiment(), data=data), tmp_path / "padded")
    assert text(tmp_path / "padded", "good film", tokens=4)[0].startswith("good film")
    with pytest.raises(ConfigError, match="a prompt is empty, and no token of this model begins a document"):
        text(tmp_path / "padded", "")
