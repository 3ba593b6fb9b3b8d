"""Law: each layout lowers to the collectives that the textbook asks for, no more bytes."""

import math
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import FAST
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxtrain import Layout, Program
from jaxtrain.analysis.hlo import IGNORED, collectives, counted
from jaxtrain.analysis.textbook import textbook
from jaxtrain.experiment.files import load_code

scripts = load_code(Path(__file__).parents[1] / "scripts" / "bench_scale.py")

DEFAULT = ("data 8", "data 2 fsdp 2 tensor 2")


def sent(layout: Layout, microbatches: int | None = None):
    program = Program(scripts.experiment(layout, microbatches=microbatches))
    text = program.lower().compile(compiler_options=FAST).as_text() or ""
    assert text is not None
    return program, collectives(text, program.mesh.shape)


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(
            layout, id=scripts.named(layout), marks=[] if scripts.named(layout) in DEFAULT else pytest.mark.slow
        )
        for layout in scripts.MESHES
    ],
)
def test_a_step_sends_exactly_the_arrays_that_the_textbook_asks_for(layout):
    program, found = sent(layout)
    expected = {key: n for key, n in textbook(program.experiment, program.mesh).items() if key[2] >= IGNORED}
    assert dict(counted(found)) == expected


@pytest.mark.slow
def test_one_device_sends_nothing():
    program = Program(scripts.experiment(Layout()))
    text = program.lower().compile(compiler_options=FAST).as_text() or ""
    assert collectives(text, program.mesh.shape) == []


@pytest.mark.parametrize(
    "mesh", [{"data": 8}, pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, marks=pytest.mark.slow)], ids=str
)
def test_microbatches_reduce_gradients_over_data_once_a_step(mesh):
    program, found = sent(Layout(mesh), microbatches=2)
    over_data = [collective for collective in found if "data" in collective.axes]
    assert {collective.times for collective in over_data} == {1}
    parts = (leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(program.state.params))
    large = [4 * math.prod(shape) for shape in parts if 4 * math.prod(shape) >= IGNORED]
    assert sorted(collective.bytes for collective in over_data) == sorted(large)


HLO = """HloModule example

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], f32[256,8])) -> (s32[], f32[256,8]) {
  %both = (f32[256,8]{1,0}, bf16[1024]{0}) all-reduce(%x, %y), channel_id=1, replica_groups=GROUPS, to_apply=%add
}

%condition (state: (s32[], f32[256,8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(3)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

ENTRY %main (x: f32[256,8]) -> f32[256,8] {
  %scattered = f32[1024]{0} reduce-scatter(%x), channel_id=2, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  %tiny = f32[] all-reduce(%x), channel_id=3, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  %loop = (s32[], f32[256,8]) while(%state), condition=%condition, body=%body
}
"""


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("{{0,4},{1,5},{2,6},{3,7}}", ("data",)),
        ("[4,2]<=[8]", ("tensor",)),
        ("[4,2]<=[2,4]T(1,0)", ("data",)),
        ("[2,4]<=[8]", ("fsdp", "tensor")),
        ("mesh['axis_0'=2,'axis_1'=2,'axis_2'=2] {'axis_1'}", ("fsdp",)),
        ("mesh['axis_0'=2,'axis_1'=2,'axis_2'=2], device_ids=([2,2,2]T(2,1,0)) {'axis_0'}", ("tensor",)),
        ("mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}", ("fsdp", "tensor")),
        ("{}", ("data", "fsdp", "tensor")),
    ],
)
def test_the_parser_reads_bytes_axes_and_loops(groups, axes):
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(counted(collectives(HLO.replace("GROUPS", groups), mesh))) == {
        ("all-reduce", "×".join(axes), 256 * 8 * 4): 3,
        ("all-reduce", "×".join(axes), 1024 * 2): 3,
        ("reduce-scatter", "tensor", 2 * 1024 * 4): 1,
    }


def test_the_parser_refuses_what_it_cannot_read():
    with pytest.raises(ValueError, match="how often this loop runs"):
        collectives(HLO.replace("constant(3)", "parameter(0)").replace("GROUPS", "{}"), {"data": 8})
    with pytest.raises(ValueError, match="not that of a compiled program"):
        collectives("module @jit_train_step {}", {"data": 8})


def test_of_the_branches_of_a_conditional_the_one_that_sends_most_is_counted():
    def small(x: jax.Array) -> jax.Array:
        return jax.lax.psum(x[:4], "data").repeat(2, 0)

    def large(x: jax.Array) -> jax.Array:
        return jax.lax.psum(x, "data")

    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
    switch = jax.shard_map(
        lambda i, x: jax.lax.switch(i, [small, large], x), mesh=mesh, in_specs=(P(), P("data")), out_specs=P()
    )
    text = jax.jit(switch).lower(np.int32(0), np.ones((16, 1024), np.float32)).compile().as_text() or ""
    assert dict(counted(collectives(str(text), {"data": 2}))) == {("all-reduce", "data", 8 * 1024 * 4): 1}
