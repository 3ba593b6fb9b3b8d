from dataclasses import replace

import jax
import pytest

from jaxtrain import RULES, ConfigError, Experiment, Layout
from jaxtrain.analysis.explain import explain, size, table
from jaxtrain.data import Pipeline
from jaxtrain.datasets import Digits
from jaxtrain.models import Blocks, ViT
from jaxtrain.optimizers import SGD, AdamW
from jaxtrain.tasks import Classification

D, M, LAYERS, HEADS = 512, 1024, 2, 64
EXPERIMENT = Experiment(
    task=Classification(
        model=ViT(patch=4, blocks=Blocks(width=D, layers=LAYERS, heads=HEADS, mlp=M)),
        inputs="image",
        classes=tuple("0123456789"),
    ),
    data=Pipeline(Digits("train"), batch_size=1024),
    optimizer=AdamW(),
    steps=2,
    layout=Layout({"data": -1, "fsdp": 8, "tensor": 4}),
)
KERNELS = LAYERS * (4 * D * D + 3 * D * M) * 4
OTHERS = {
    "patches": 16 * D * 4,
    "positions": 4 * D * 4,
    "head": D * 10 * 4,
    "norms": (2 * LAYERS + 1) * D * 4,
}


def parts(experiment, devices):
    """The head line, the cells of every parameter by its name, and those of every total."""
    head, parameters, totals = explain(experiment, devices).split("\n\n")

    def cells(text):
        rows = [[cell.strip() for cell in line.split("  ") if cell] for line in text.splitlines()[2:]]
        return {row[0]: row[1:] for row in rows}

    return head, cells(parameters), cells(totals)


def test_512_devices_are_explained_with_none_of_them_there():
    assert jax.device_count() == 8
    head, rows, _ = parts(EXPERIMENT, 512)
    assert head == "512 devices: data 16 × fsdp 8 × tensor 4"
    assert rows["blocks/block/up/kernel"] == [
        "2×512×1024", "float32", "layers, embed, mlp", "P(None, fsdp, tensor)", size(LAYERS * D * M * 4 / 32)
    ]  # fmt: skip
    assert rows["positions"][-2:] == ["P(None, fsdp)", size(4 * D * 4 / 8)]


def test_what_is_replicated_says_why():
    _, rows, _ = parts(EXPERIMENT, 512)
    assert rows["norm/scale"][-1] == "replicated: no rule splits norm"
    _, rows, _ = parts(replace(EXPERIMENT, layout=Layout({"data": -1})), 512)
    assert rows["head/kernel"][-1] == "replicated: embed goes to fsdp, of size 1 here; no rule splits outputs"
    assert all(row[-1].startswith("replicated: ") for row in rows.values())
    head, rows, _ = parts(replace(EXPERIMENT, layout=Layout()), 512)
    assert head == "1 device: data 1"
    assert not any("replicated" in row[-1] for row in rows.values())


def test_totals_are_those_computed_by_hand():
    _, rows, totals = parts(EXPERIMENT, 512)
    whole = KERNELS + sum(OTHERS.values())
    local = KERNELS // 32 + (OTHERS["patches"] + OTHERS["positions"] + OTHERS["head"]) // 8 + OTHERS["norms"]
    assert totals["parameters"] == [f"{whole // 4:,}", size(whole), size(local)]
    # Two moments for every parameter, the counts of Adam and of the schedule.
    assert totals["optimizer state"] == [f"{2 * whole // 4 + 2:,}", size(2 * whole + 8), size(2 * local + 8)]
    row = 64 * 4 + 4 + 1  # image, label, mask
    assert totals["batch of 1024"] == [f"{1024 * 66:,}", size(1024 * row), size(1024 // 128 * row)]
    assert len(rows) == 7 + 2 + 4


def test_an_optimizer_with_one_moment_needs_half_of_that():
    _, _, totals = parts(replace(EXPERIMENT, optimizer=SGD()), 512)
    whole = KERNELS + sum(OTHERS.values())
    assert totals["optimizer state"][0] == f"{whole // 4 + 1:,}"
    _, _, averaged = parts(replace(EXPERIMENT, optimizer=SGD(ema=0.9)), 512)
    assert averaged["optimizer state"][0] == f"{2 * whole // 4 + 2:,}"


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        (Layout({"data": -1, "fsdp": 3}), "needs a multiple of 3 devices, but there are 512"),
        (Layout({"data": 256}), "needs 256 devices, but there are 512"),
        (Layout({"fsdp": 2048}), "needs 2048 devices"),
        (Layout({"tensor": 512}), "dim 'heads' has 64 entries, which the mesh axes tensor=512 do not divide"),
        (
            Layout({"data": 2, "fsdp": 256}, {**RULES, "mlp": "fsdp"}),
            "'mlp' and 'embed' are both on the mesh axis 'fsdp'",
        ),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(layout, says):
    with pytest.raises(ConfigError) as raised:
        explain(replace(EXPERIMENT, layout=layout), 512)
    assert says in str(raised.value)


def test_tables_line_up_and_sizes_are_readable():
    assert table([("name", "x"), ("a", "long word")]) == "name  x\n───────────────\na     long word"
    assert [size(count) for count in (0, 1023, 1536, 5 * 2**20, 2**30, 3 * 2**50)] == [
        "0 B", "1023 B", "1.5 KiB", "5 MiB", "1 GiB", "3072 TiB"
    ]  # fmt: skip


def test_the_pipeline_bubble_and_an_offloaded_optimizer_are_shown():
    deep = replace(EXPERIMENT, layout=Layout({"data": -1, "stage": 2}, offload=True), microbatches=4)
    head, rows, _ = parts(deep, 16)
    assert head.splitlines() == [
        "16 devices: data 8 × stage 2",
        "pipeline: 2 stages, 1 round, 4 microbatches, bubble 20.0%",
        "optimizer state in host memory",
    ]
    assert rows["blocks/block/up/kernel"][3] == "P(stage, None, None)"
    with pytest.raises(ConfigError, match="'expert' = 2 splits expert, but no array of this experiment has such a dim"):
        explain(replace(EXPERIMENT, layout=Layout({"data": -1, "expert": 2})), 16)
