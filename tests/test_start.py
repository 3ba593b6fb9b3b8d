"""A run that begins with the parameters of another run or of a file."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from jaxtrain import ConfigError, Experiment, Layout, Program, Start
from jaxtrain.base.errors import Damaged
from jaxtrain.data import Arrays, Pipeline
from jaxtrain.experiment import Retention
from jaxtrain.experiment.experiment import fingerprint
from jaxtrain.models import Blocks, Precision, Rope, Transformer
from jaxtrain.models.huggingface import hugging_face_model
from jaxtrain.optimizers import AdamW, ConstantRate, Frozen, Groups
from jaxtrain.runs.folder import Run
from jaxtrain.runs.json_lines import read_lines
from jaxtrain.runs.start import FirstState
from jaxtrain.sharding.layout import named_leaves, path_name
from jaxtrain.tasks import Classification, LanguageModel
from jaxtrain.train import train


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that keeps an average, whose best step by its (falling) loss is the second."""
    keep = Retention(last=2, best="validation/loss", mode="max")
    runtime = replace(tiny.main().runtime, eval_every=2, save_every=2, keep=keep)
    run, _ = train(replace(tiny.main(), steps=4, runtime=runtime), tmp_path_factory.mktemp("runs") / "first")
    return run.folder


def flat(tree: Any) -> dict[str, np.ndarray]:
    return {path_name(path): np.asarray(leaf) for path, leaf in named_leaves(tree)}


def averages(run: Path, step: int | None = None) -> dict[str, np.ndarray]:
    return flat(Run(run, code=tiny.__file__).restore(step).state.evaluated.params)


def task(vocab: int = 64, precision: Precision | None = None) -> LanguageModel:
    chosen = precision or Precision()
    blocks = Blocks(width=32, layers=2, heads=4, kv_heads=2, mlp=64, dropout=0.1, precision=chosen)
    return LanguageModel(model=Transformer(vocab=vocab, blocks=blocks))


def begun(start: Start, mesh: dict[str, int] | None = None, **changes: Any) -> tuple[Program, Any, dict[str, Any]]:
    experiment = replace(tiny.main(), start=start, layout=Layout(mesh or {}), **changes)
    program = Program(experiment, jax.devices()[: 8 if mesh else 1])
    made = FirstState(program)
    return program, made.make(), made.facts


@pytest.mark.parametrize("mesh", [None, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
@pytest.mark.slow
def test_the_averaged_parameters_of_a_run_come_in_the_shards_of_the_new_one(first: Path, mesh: Any) -> None:
    program, state, facts = begun(Start(str(first)), mesh)
    found, expected = flat(state.params), averages(first)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    for leaf, wanted in zip(jax.tree.leaves(state.params), jax.tree.leaves(program.state.params), strict=True):
        assert leaf.sharding == wanted.sharding
    assert int(state.step) == 0
    own = {name: leaf for name, leaf in flat(state.opt_state).items() if "/average/" in name}
    assert len(own) == len(expected)  # the average begins there too
    np.testing.assert_array_equal(own["4/average/norm/scale"], expected["norm/scale"])
    assert facts == {"source": str(first), "arrays": len(expected)}


@pytest.mark.slow
def test_the_best_step_and_a_given_one_can_be_the_start(first: Path) -> None:
    best, last = flat(begun(Start(str(first), step="best"))[1].params), averages(first)
    np.testing.assert_array_equal(best["norm/scale"], averages(first, 2)["norm/scale"])
    assert not np.array_equal(best["embedding/table"], last["embedding/table"])
    with pytest.raises(ConfigError, match=r"has no checkpoint of step 3: there are \[2, 4\]"):
        begun(Start(str(first), step=3))


@pytest.mark.slow
def test_verbs_take_the_best_step_too(first: Path) -> None:
    run = Run(first, code=tiny.__file__)
    best = flat(run.restore("best").state.params)
    np.testing.assert_array_equal(best["norm/scale"], flat(run.restore(2).state.params)["norm/scale"])


@pytest.mark.slow
def test_a_run_says_what_it_began_with_and_trains_on(first: Path, tmp_path: Path) -> None:
    groups = Groups(groups={"embedding/*": AdamW(schedule=ConstantRate(peak=1e-2)), "*": Frozen()})
    start = Start(str(first), only=("blocks/*",))
    experiment = replace(tiny.main(), start=start, optimizer=groups, steps=2)
    run, state = train(experiment, tmp_path / "second")
    events = {line["kind"]: line for line in read_lines(run.folder / "events.jsonl")}
    assert events["started"]["arrays"] == 9
    assert events["started"]["drawn"] == ["embedding/table", "norm/scale"]
    assert events["started"]["unused"] == ["embedding/table", "norm/scale"]
    np.testing.assert_array_equal(
        flat(state.frozen)["blocks/block/query/kernel"], averages(first)["blocks/block/query/kernel"]
    )


@pytest.mark.slow
def test_another_head_is_left_out_by_only_and_named_otherwise(first: Path) -> None:
    with pytest.raises(ConfigError) as error:
        begun(Start(str(first)), task=task(vocab=80))
    said = str(error.value)
    assert "embedding/table: wanted float32[80,32], found float32[64,32]" in said
    assert "choose by start.only what to set" in said
    _, state, facts = begun(Start(str(first), only=("blocks/*", "norm/*")), task=task(vocab=80))
    assert facts["drawn"] == facts["unused"] == ["embedding/table"]
    assert state.params["embedding"]["table"].shape == (80, 32)


@pytest.mark.parametrize(
    ("start", "says"),
    [
        ({"only": ("bloks/*",)}, "start.only: no array matches 'bloks/*'; known: blocks/"),
        ({"rename": {"encoder": "blocks"}}, "has nothing below 'encoder'"),
        ({"rename": {"blocks": "layers"}}, "blocks/block/query/kernel: wanted float32[2,32,32], not found"),
    ],
)
@pytest.mark.slow
def test_names_that_do_not_fit_are_refused(first: Path, start: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        begun(Start(str(first), **start))
    assert says in str(error.value)


def test_arrays_of_a_file_are_renamed_and_cast_where_that_is_allowed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table, scale = rng.normal(size=(64, 32)).astype(np.float16), rng.normal(size=32).astype(np.float32)
    file = tmp_path / "weights.npz"
    np.savez(file, **{"tokens.table": table, "norm.scale": scale})
    start = Start(str(file), only=("embedding/*", "norm/*"), rename={"tokens": "embedding"})
    with pytest.raises(ConfigError, match=r"embedding/table: float16\[64,32\] to float32\[64,32\]: set start.cast"):
        begun(start)
    _, state, facts = begun(replace(start, cast=True), {"fsdp": 8})
    np.testing.assert_array_equal(state.params["embedding"]["table"], table.astype(np.float32))
    np.testing.assert_array_equal(state.params["norm"]["scale"], scale)
    assert facts["cast"] == ["embedding/table: float16[64,32] to float32[64,32]"]


def test_a_file_of_safetensors_is_a_start_too(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    scale = np.arange(32, dtype=np.float32)
    save_file({"norm.scale": scale}, tmp_path / "weights.safetensors")
    _, state, _ = begun(Start(str(tmp_path / "weights.safetensors"), only=("norm/*",)))
    np.testing.assert_array_equal(state.params["norm"]["scale"], scale)


WEIGHTS = Path(__file__).parent / "references" / "huggingface"


@pytest.mark.parametrize("mesh", [None, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
@pytest.mark.slow
def test_a_folder_of_transformers_is_a_start_too(mesh: Any) -> None:
    model: Any = hugging_face_model(WEIGHTS / "qwen2")
    task = LanguageModel(model=model)
    program, state, facts = begun(Start(str(WEIGHTS / "qwen2")), mesh, task=task)
    assert facts == {"source": str(WEIGHTS / "qwen2"), "arrays": 15}
    file = load_file(WEIGHTS / "qwen2" / "model.safetensors")
    up = state.params["blocks"]["block"]["up"]["kernel"]
    assert up.sharding == program.state.params["blocks"]["block"]["up"]["kernel"].sharding
    np.testing.assert_array_equal(up[1], file["model.layers.1.mlp.up_proj.weight"].T)
    np.testing.assert_array_equal(state.params["embedding"]["table"], file["model.embed_tokens.weight"])


@pytest.mark.slow
def test_settings_of_a_folder_of_transformers_that_differ_are_in_the_log() -> None:
    model: Any = hugging_face_model(WEIGHTS / "qwen2")
    blocks = replace(model.blocks, rope=Rope(), dropout=0.1, precision=Precision())
    task = LanguageModel(model=replace(model, blocks=blocks))
    with pytest.raises(ConfigError, match=r"norm/scale: bfloat16\[32\] to float32\[32\]: set start.cast"):
        begun(Start(str(WEIGHTS / "qwen2")), task=task)
    _, state, facts = begun(Start(str(WEIGHTS / "qwen2"), cast=True), task=task)
    assert facts["other_settings"] == ["blocks.rope.base: 1000000.0 → 10000.0"]
    assert state.params["norm"]["scale"].dtype == np.float32


@pytest.mark.slow
def test_an_encoder_of_transformers_gets_a_new_head() -> None:
    model: Any = hugging_face_model(WEIGHTS / "bert")
    inputs = Arrays({"tokens": np.ones((8, 16), np.int32), "label": np.arange(8, dtype=np.int32) % 3})
    task = Classification(model=replace(model, outputs=3), inputs="tokens", classes=("a", "b", "c"))
    trunk = Start(str(WEIGHTS / "bert"), only=("embedding/*", "positions", "types", "norm/*", "blocks/*"))
    _, state, facts = begun(trunk, task=task, data=Pipeline(inputs, batch_size=8), evals={})
    assert facts["drawn"] == ["head/bias", "head/kernel"]
    assert facts["unused"] == ["pooler/bias", "pooler/kernel"]
    file = load_file(WEIGHTS / "bert" / "model.safetensors")
    query = state.params["blocks"]["block"]["query"]
    np.testing.assert_array_equal(query["kernel"][0], file["encoder.layer.0.attention.self.query.weight"].T)
    np.testing.assert_array_equal(query["bias"][1], file["encoder.layer.1.attention.self.query.bias"])


def test_the_identity_of_a_folder_of_transformers_is_that_of_weights_and_settings(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(WEIGHTS / "llama", tmp_path / "one"))
    before = Start(str(folder)).identity()
    (folder / "README.md").write_text("more words")
    folder = folder.rename(tmp_path / "two")
    assert Start(str(folder)).identity() == before
    settings = (folder / "config.json").read_text()
    (folder / "config.json").write_text(settings.replace("1e-05", "1e-06"))
    assert Start(str(folder)).identity() != before
    with pytest.raises(ConfigError, match=r"two is a folder of weights, which has no steps: leave out step='best'"):
        Start(str(folder), step="best")


@pytest.mark.parametrize("name", ["missing", "weights.bin"])
def test_what_is_neither_run_nor_file_of_arrays_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"is neither a run folder nor a file .npz or .safetensors"):
        begun(Start(str(tmp_path / name)))


def test_the_content_of_the_source_is_in_the_fingerprint_and_its_path_is_not(tmp_path: Path) -> None:
    def written(name: str, value: float) -> Experiment:
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "w.npz", **{"norm.scale": np.full(32, value, np.float32)})
        return replace(tiny.main(), start=Start(str(tmp_path / name / "w.npz"), only=("norm/*",)))

    one, same, other = (fingerprint(written(*each)) for each in (("a", 1.0), ("b", 1.0), ("c", 2.0)))
    assert one == same
    assert one != other
    assert one != fingerprint(tiny.main())


@pytest.mark.slow
def test_optimizer_state_follows_the_parameters_it_starts_from(first: Path) -> None:
    """Master weights of bf16 parameters are those that were read, not those that were drawn."""
    _, state, _ = begun(Start(str(first), cast=True), task=task(precision=Precision(params="bfloat16")))
    table = state.params["embedding"]["table"]
    np.testing.assert_array_equal(flat(state.opt_state.master)["embedding/table"], table.astype(jnp.float32))
    np.testing.assert_array_equal(table, averages(first)["embedding/table"].astype(jnp.bfloat16))


def test_a_start_that_would_set_nothing_or_asks_a_file_for_a_step_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^start.only: it is empty, so that nothing would be set"):
        Start("runs/first", only=())
    with pytest.raises(ConfigError, match=r"^start.step: a.npz is a file, which has no steps: leave out step=3$"):
        Start("a.npz", step=3)


def test_two_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "twice.npz", **{"a/scale": np.ones(2), "b/scale": np.ones(2)})
    with pytest.raises(ConfigError, match=r"start.rename: a/scale and b/scale of .*twice.npz would both be norm/scale"):
        begun(Start(str(tmp_path / "twice.npz"), rename={"a": "norm", "b": "norm"}))
    np.savez(tmp_path / "dots.npz", **{"a.scale": np.ones(2), "a/scale": np.ones(2)})
    with pytest.raises(ConfigError, match=r"has both a.scale and a/scale, and dots in names are read as /"):
        begun(Start(str(tmp_path / "dots.npz")))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_numbers_that_are_not_finite_here_are_no_parameters(tmp_path: Path, value: float) -> None:
    scale = np.ones(32)
    scale[3] = value
    np.savez(tmp_path / "one.npz", **{"norm/scale": scale})
    start = Start(str(tmp_path / "one.npz"), only=("norm/scale",), cast=True)
    with pytest.raises(Damaged, match=r"one.npz: params/norm/scale holds NaN or infinity, or numbers beyond float32"):
        begun(start)


@pytest.mark.parametrize("dtype", [np.complex64, np.int32, bool])
def test_only_floats_are_cast(tmp_path: Path, dtype: Any) -> None:
    np.savez(tmp_path / "one.npz", **{"norm/scale": np.ones(32, dtype)})
    with pytest.raises(ConfigError, match=rf"norm/scale: wanted float32\[32\], found {np.dtype(dtype)}\[32\]"):
        begun(Start(str(tmp_path / "one.npz"), only=("norm/scale",), cast=True))


@pytest.mark.parametrize("name", ["weights.npz", "weights.safetensors"])
@pytest.mark.parametrize("size", [0, 100, -100])
def test_a_file_that_is_cut_off_is_named(tmp_path: Path, name: str, size: int) -> None:
    from safetensors.numpy import save_file

    file = tmp_path / name
    arrays = np.ones(512, np.float32)
    save_file({"norm": arrays}, file) if file.suffix == ".safetensors" else np.savez(file, norm=arrays)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(Damaged, match=rf"{name}: it is not an? \.{file.suffix[1:]}"):
        begun(Start(str(file)))


def test_a_file_of_objects_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", **{"norm/scale": np.array([{}, []], object)})
    with pytest.raises(Damaged, match=r"objects.npz: it is not an .npz of numbers"):
        begun(Start(str(tmp_path / "objects.npz")))
