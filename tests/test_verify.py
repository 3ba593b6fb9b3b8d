"""`jaxtrain verify`: what passes, and who is named where something does not."""

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from flax import nnx
from test_rooms import imports

from jaxtrain import ConfigError, Experiment
from jaxtrain.analysis.hlo import source_lines
from jaxtrain.analysis.shrink import shrink
from jaxtrain.analysis.verify import candidates, read_mesh, verify
from jaxtrain.data import Arrays, Pipeline
from jaxtrain.datasets.build import build
from jaxtrain.datasets.spec import Dataset
from jaxtrain.experiment.files import load, load_kind
from jaxtrain.models import Blocks, Experts, Model, NGrams, Precision, Transformer, ViT
from jaxtrain.models.attention import Attention
from jaxtrain.models.base import PREDICTION, Shaped
from jaxtrain.models.layers import Linear
from jaxtrain.models.sizes import Activations
from jaxtrain.models.transformer import TransformerModule
from jaxtrain.models.variables import Context, Extras, Variables
from jaxtrain.optimizers import AdamW
from jaxtrain.sharding.constraints import shard
from jaxtrain.tasks import Regression

ROOT = Path(__file__).parents[1]
ALL = {"data": 2, "fsdp": 2, "tensor": 2}


@dataclass(frozen=True, kw_only=True)
class Misnamed(Transformer):
    """A transformer with other names on the dims of one of its kernels."""

    kernel: str
    axes: tuple[str, str]

    def build(self, rngs: nnx.Rngs, inputs: Shaped) -> nnx.Module:
        module = super().build(rngs, inputs)
        assert isinstance(module, TransformerModule)
        getattr(module.blocks.block, self.kernel).kernel.set_metadata("axes", ("layers", *self.axes))
        return module


@dataclass(frozen=True, kw_only=True)
class Doubled(Transformer):
    """A transformer whose last norm's gradient grows with the number of devices, as if it were summed too often."""

    def apply(
        self, variables: Variables, inputs: Any, context: Context = PREDICTION, **more: jax.Array
    ) -> tuple[Any, Extras]:
        scale, devices = variables.params["norm"]["scale"], jax.sharding.get_abstract_mesh().size
        wrong = scale + (devices - 1) * (scale - jax.lax.stop_gradient(scale))
        params = {**variables.params, "norm": {"scale": wrong}}
        return super().apply(Variables(params), inputs, context, **more)


WIDE = Blocks(width=128, layers=2, heads=8, mlp=256)


class SeriesModule(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, blocks: Blocks, features: int):
        self.first = Linear(rngs, (features, blocks.width), (None, "embed"), blocks.precision)
        self.blocks = blocks.stack(rngs, causal=False)
        self.last = Linear(rngs, (blocks.width, 1), ("embed", "outputs"), blocks.precision)

    def __call__(self, x_BLF: jax.Array, context: Context) -> Any:
        x_BLD = shard(self.first(x_BLF), "batch", "residual_length", None)
        x_BLD, aux_losses = self.blocks(x_BLD, context.keys_B, None)
        return self.last(x_BLD.mean(1)), aux_losses


@dataclass(frozen=True, kw_only=True)
class Unknown(Model):
    """A user's model of time series f32[B, L, F], which tells `verify` nothing."""

    blocks: Blocks = WIDE

    def build(self, rngs: nnx.Rngs, inputs: Shaped) -> nnx.Module:
        return SeriesModule(rngs, self.blocks, inputs.shape[-1])


@dataclass(frozen=True, kw_only=True)
class Series(Unknown):
    """The same, with what `verify` needs to know."""

    def shrunk(self, devices: int) -> "Series":
        return replace(self, blocks=self.blocks.shrunk(devices))

    def describe(self, inputs: Shaped) -> Activations:
        return self.blocks.describe(inputs.shape[1], causal=False)


def series(model: Model) -> Experiment:
    rng = np.random.default_rng(0)
    columns = {
        "x": rng.normal(size=(40, 16, 3)).astype(np.float32),
        "target": rng.normal(size=40).astype(np.float32),
    }
    return Experiment(
        task=Regression(model=model, inputs="x"),
        data=Pipeline(Arrays(columns), batch_size=8),
        optimizer=AdamW(),
        steps=2,
    )


def with_model(kind: type[Transformer], **more: Any) -> Experiment:
    blocks = Blocks(width=64, layers=2, heads=8, mlp=192)
    return replace(tiny.main(), task=replace(tiny.main().task, model=kind(vocab=64, blocks=blocks, **more)))


@pytest.mark.slow
def test_a_small_experiment_passes(capsys):
    assert verify(tiny.main(), jax.devices(), [ALL])
    said = capsys.readouterr().out
    assert "8 simulated devices, 5 steps of 8 rows of the experiment's own data, in f32" in said
    assert "The mesh trains as one device does" in said


@pytest.mark.slow
def test_a_users_model_is_shrunk_and_described_by_itself(capsys):
    assert verify(series(Series()), jax.devices(), [ALL])
    said = capsys.readouterr().out
    assert "task.model.blocks.width: 128 → 64" in said
    [row] = [line for line in said.splitlines() if line.startswith("data 2 fsdp 2 tensor 2 ")]
    assert row.endswith("passes")
    assert 0.9 < float(row.split()[-2]) <= 1.05  # its bytes over those of the formulas


@pytest.mark.slow
def test_of_a_model_that_does_not_describe_itself_only_parameters_and_gradients_are_judged(capsys):
    assert verify(series(Unknown()), jax.devices(), [{"data": 2, "tensor": 4}])
    said = capsys.readouterr().out
    assert "made smaller" not in said
    assert "are activations, for which there is no formula" in said


def test_neither_analysis_nor_the_loop_knows_an_architecture():
    known = {f"jaxtrain.models.{name}" for name in ("attention", "experts", "ngrams", "ring", "transformer", "vit")}
    package = ROOT / "jaxtrain"
    for file in (*(package / "analysis").rglob("*.py"), *package.glob("*.py")):
        if file.name != "__init__.py":
            assert not known & set(imports(file)), file
            assert "jaxtrain.models" not in imports(file), file


@pytest.mark.slow
def test_a_kernel_whose_dims_have_each_others_names_fails_and_is_named_by_its_line(capsys):
    experiment = with_model(Misnamed, kernel="up", axes=("mlp", "embed"))
    assert not verify(experiment, jax.devices(), [{"tensor": 8}], strict=True)
    said = capsys.readouterr().out
    assert "The mesh trains as one device does. Error (--strict): 1 of 1 send more than needed: tensor 8." in said
    assert "most of the rest are:" in said
    assert "transformer.py" in said
    assert "self.up(h_BLD)" in said


@pytest.mark.slow
def test_what_is_sent_beyond_the_textbook_is_a_warning_unless_strict(capsys):
    experiment = with_model(Misnamed, kernel="up", axes=("mlp", "embed"))
    assert verify(experiment, jax.devices(), [{"tensor": 8}], updates=1)
    said = capsys.readouterr().out
    assert "8 simulated devices, 1 step of 8 rows" in said
    [row] = [line for line in said.splitlines() if line.startswith("tensor 8 ")]
    assert row.endswith("passes, but sends too much")
    assert "self.up(h_BLD)" in said
    assert "The mesh trains as one device does. Warning: 1 of 1 send more than needed: tensor 8." in said


@pytest.mark.slow
def test_a_kernel_that_no_longer_splits_fails_and_is_named_by_its_size(capsys):
    experiment = with_model(Misnamed, kernel="query", axes=("embed", "outputs"))
    assert not verify(experiment, jax.devices(), [{"tensor": 8}], strict=True)
    assert "as large as blocks/block/query/kernel" in capsys.readouterr().out


def test_a_gradient_that_differs_fails_and_is_named(capsys):
    assert not verify(with_model(Doubled), jax.devices(), [{"data": 8}])
    said = capsys.readouterr().out
    assert "the first gradient differs by" in said
    assert "most in norm/scale" in said
    assert "the loss differs by" in said


def test_an_unknown_name_of_an_axis_is_a_mistake_on_one_device_already():
    with pytest.raises(ConfigError, match=r"blocks/block/up/kernel: layout.rules has no dim named 'mpl'; did you mean"):
        verify(with_model(Misnamed, kernel="up", axes=("embed", "mpl")), jax.devices(), [ALL])


def test_a_mesh_that_is_asked_for_and_does_not_fit_is_refused_and_named():
    with pytest.raises(ConfigError, match=r"tensor 8: .*'heads' has 4 entries"):
        verify(tiny.main(), jax.devices(), [{"tensor": 8}])


def test_attention_that_only_some_meshes_or_devices_support_becomes_auto():
    implementations: tuple[Attention, ...] = ("ring", "cudnn")
    for attention in implementations:
        whole = with_model(Transformer)
        model = Transformer(vocab=64, blocks=Blocks(width=32, heads=4, attention=attention))
        small = shrink(replace(whole, task=replace(whole.task, model=model)), 8)
        assert isinstance(small.task.model, Transformer)
        assert small.task.model.blocks.attention == "auto"


def test_what_is_made_small_divides_as_before():
    blocks = Blocks(width=768, layers=12, heads=12, kv_heads=4, mlp=2048, precision=Precision(compute="bfloat16"))
    whole = with_model(Transformer)
    whole = replace(whole, task=replace(whole.task, model=Transformer(vocab=50_304, blocks=blocks)), microbatches=4)
    small = shrink(whole, 8)
    assert isinstance(small.task.model, Transformer)
    assert small.task.model.blocks == Blocks(width=72, layers=4, heads=12, kv_heads=4, mlp=144)
    assert small.task.model.vocab == 256
    assert small.microbatches == 1
    tokens = next(small.data.batches())["tokens"]
    assert tokens.shape == (8, 17)
    np.testing.assert_array_equal(tokens, next(replace(whole.data, batch_size=8).batches())["tokens"] % 256)


def test_every_model_is_shrunk_to_sizes_with_the_same_divisors():
    rough = Precision("bfloat16", "bfloat16")
    assert NGrams(buckets=2**18, words=7, precision=rough).shrunk(8) == NGrams(buckets=4096, words=7)
    assert NGrams(buckets=2**18 + 2).shrunk(8).buckets == 4098  # 2 divides it, 4 does not
    assert NGrams(buckets=64).shrunk(8).buckets == 64
    assert Transformer(vocab=8, ngrams=(2,), buckets=2**16).shrunk(8).buckets == 256
    assert ViT(patch=4, blocks=WIDE).shrunk(8) == ViT(patch=4, blocks=replace(WIDE, width=64, mlp=128))
    experts = Blocks(width=128, layers=2, heads=8, mlp=256, experts=Experts(count=8, width=512))
    assert experts.shrunk(8).experts == Experts(count=8, width=64)
    apart = Blocks(width=256, layers=2, heads=4, head_dim=128, mlp=256).shrunk(8)  # 4 heads of 128 in a width of 256
    assert (apart.width, apart.head_dim, apart.head_width) == (64, 16, 16)
    assert Blocks(width=256, heads=4, head_dim=36).shrunk(8).head_width == 12


def test_a_vision_transformer_describes_its_patches():
    known = ViT(patch=4, blocks=WIDE).describe(jax.ShapeDtypeStruct((8, 32, 24, 3), np.float32))
    assert known == Activations(length=48, width=128, layers=2, heads=8, kv_heads=8, top_k=2)


@pytest.mark.parametrize(
    ("words", "mesh"),
    [("fsdp", {"fsdp": 8}), ("data 2 tensor 4", {"data": 2, "tensor": 4}), ("data=2,fsdp=4", {"data": 2, "fsdp": 4})],
)
def test_meshes_are_written_as_they_are_printed(words, mesh):
    assert read_mesh(words, 8) == mesh


@pytest.mark.parametrize("words", ["data two", "data 2 fsdp", "data 2 data 4", ""])
def test_a_mesh_that_cannot_be_read_is_refused(words):
    with pytest.raises(ConfigError, match="write axes and sizes"):
        read_mesh(words, 8)


def test_a_program_without_source_lines_has_none():
    assert source_lines("HloModule x", 3) == []


def test_an_experiments_own_mesh_and_all_single_axes_pairs_and_triples_are_tried():
    tried = candidates(["data", "fsdp", "tensor"], {"tensor": 2, "data": 4}, 8)
    assert [options[0] for options in tried] == [
        {"tensor": 2, "data": 4},
        {"data": 8},
        {"fsdp": 8},
        {"tensor": 8},
        {"data": 2, "fsdp": 4},
        {"data": 2, "tensor": 4},
        {"fsdp": 2, "tensor": 4},
        {"data": 2, "fsdp": 2, "tensor": 2},
    ]
    assert tried[4] == [{"data": 2, "fsdp": 4}, {"data": 4, "fsdp": 2}]
    assert candidates(["data", "fsdp"], {"data": 2}, 2) == [[{"data": 2}], [{"fsdp": 2}]]


@pytest.mark.slow
def test_the_command_tries_every_mesh_that_fits_and_says_why_others_do_not():
    command = [sys.executable, "-m", "jaxtrain", "verify", "tests/tiny.py", "--devices", "2"]
    done = subprocess.run(
        [*command, "--task.model.blocks.kv-heads", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = [line.split("  ")[0] for line in done.stdout.splitlines() if line.endswith("passes")]
    assert passed == ["data 2", "fsdp 2", "stage 2", "context 2"]
    assert "  tensor 2: an activation" in done.stdout
    assert "'kv_heads' has 1 entries" in done.stdout
    assert "  expert 2: layout.mesh: axis 'expert' = 2 splits expert" in done.stdout
    assert "All 4 meshes train as one device does" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sentiment", "digits", "char_lm", "bncc"])
def test_every_shipped_experiment_passes(name, tmp_path, monkeypatch):
    if name == "bncc":
        monkeypatch.setenv("JAXTRAIN_DATA", str(tmp_path))
        build(load_kind(f"{ROOT}/experiments/datasets.py:bncc", Dataset)[0], tmp_path)
    experiment, _ = load(f"{ROOT}/experiments/{name}.py")
    no_fsdp = name in ("sentiment", "bncc")  # whose arrays have no dim that fsdp splits
    assert verify(experiment, jax.devices(), [{"data": 4, "tensor": 2} if no_fsdp else ALL])
