"""Measures what it costs to grow: `python scripts/bench_scale.py [optimal] [bubble] [compile]`; all three by default.

    uv run --with 'libtpu==0.0.42.*' python scripts/bench_scale.py optimal-tpu                       # v5e:2x4, v5p:2x2x2
    uv run --with 'libtpu==0.0.42.*' python scripts/bench_scale.py optimal-tpu v6e:2x4 --mesh "data 2 tensor 4"

`optimal` compares the bytes that a compiled step moves with the textbook's, on eight simulated devices; `optimal-tpu`
does the same for TPU slices of eight chips, none of which need be there: the compiler comes with libtpu (200 MB; 0.0.42
is that of jax 0.10.2) and takes one to three minutes a mesh. `bubble` is the part of the time that the stages of a
pipeline wait, and `compile` how compiling grows with the mesh.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np

from jaxtrain import MEGATRON, ZERO1, Experiment, Layout, Program
from jaxtrain.analysis.hlo import IGNORED, Key, collectives, counted, moved
from jaxtrain.analysis.textbook import textbook
from jaxtrain.data import Arrays, Pipeline
from jaxtrain.models import Blocks, Experts, Precision, Transformer
from jaxtrain.optimizers import AdamW
from jaxtrain.tasks import LanguageModel

MESHES: tuple[Layout, ...] = (
    Layout({"data": 8}),
    Layout({"fsdp": 8}),
    Layout({"tensor": 8}),
    Layout({"tensor": 8}, MEGATRON),
    Layout({"data": 2, "fsdp": 4}),
    Layout({"data": 2, "tensor": 4}),
    Layout({"fsdp": 2, "tensor": 4}),
    Layout({"fsdp": 4, "tensor": 2}, MEGATRON),
    Layout({"data": 2, "fsdp": 2, "tensor": 2}),
    Layout({"data": 2, "stage": 4}),
    Layout({"tensor": 2, "stage": 4}),
    Layout({"expert": 8}),
    Layout({"fsdp": 4, "expert": 2}),
    Layout({"expert": 4, "tensor": 2}),
    Layout({"data": 2, "context": 4}),
    Layout({"fsdp": 2, "context": 4}),
    Layout({"context": 4, "tensor": 2}),
    Layout({"fsdp": 2, "context": 2, "tensor": 2}, MEGATRON),
    Layout({"fsdp": 4, "stage": 2}),
    Layout({"expert": 2, "stage": 4}),
    Layout({"context": 2, "stage": 4}),
    Layout({"tensor": 4, "stage": 2}, MEGATRON),
    Layout({"data": 8}, optimizer_rules=ZERO1),
    Layout({"data": 4, "tensor": 2}, optimizer_rules=ZERO1),
)
GROWING: tuple[Layout, ...] = (
    Layout({"data": -1}),
    Layout({"data": -1, "fsdp": 8}),
    Layout({"data": -1, "fsdp": 4, "tensor": 2}),
    Layout({"data": -1, "stage": 4}),
    Layout({"data": -1, "expert": 4}),
    Layout({"data": -1, "context": 4}),
)

SMALL = Blocks(width=64, layers=4, heads=8, mlp=192)
"""Sizes that give every kind of array another number of bytes."""
LARGE = Blocks(width=1024, layers=4, heads=8, mlp=3072, precision=Precision(compute="bfloat16"))
"""Large enough for a TPU's compiler to choose as it would in earnest."""
IGNORED_TPU = 64 * 1024
"""Norms' scales, and a softmax's maximum and sum, of the larger model."""

BYTES, TIMES = 1.05, 2.0
"""The aims: bytes over the textbook's; compile time for 256 devices over that for 8."""

TPU = {
    "TPU_SKIP_MDS_QUERY": "1",  # no metadata server, no lock, no logs
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


def experiment(
    layout: Layout,
    blocks: Blocks = SMALL,
    vocab: int = 512,
    length: int = 24,
    rows: int = 16,
    microbatches: int | None = None,
) -> Experiment:
    """A language model on nothing in particular, with experts and as many microbatches as stages where a mesh has such."""
    if "expert" in layout.mesh:
        blocks = replace(blocks, experts=Experts(count=8))
    microbatches = microbatches or layout.mesh.get("stage", 1)
    tokens = Arrays({"tokens": np.zeros((rows, length + 1), np.int32)})
    return Experiment(
        task=LanguageModel(model=Transformer(vocab=vocab, blocks=blocks)),
        data=Pipeline(tokens, batch_size=rows),
        optimizer=AdamW(),
        steps=1,
        layout=layout,
        microbatches=microbatches,
    )


def named(layout: Layout) -> str:
    """A layout in a few words."""
    sizes = " ".join(f"{axis} {size}" for axis, size in layout.mesh.items())
    return sizes + " MEGATRON" * (layout.rules == MEGATRON) + " ZERO1" * (layout.optimizer_rules == ZERO1)


HEADER = f"{'mesh':26} {'kind':18} {'axes':18} {'count':>6} {'asked':>6} {'moved':>12} {'asked':>12} {'ratio':>6}  met"


def compare(program: Program, ignored: int, accelerator: bool) -> None:
    """Print what a device moves a step by kind and axes, beside the textbook; last the sum, which has an aim."""
    mesh, name = program.mesh.shape, named(program.experiment.layout)
    found = counted(collectives(program.lower().compile().as_text() or "", mesh, ignored))
    asked = textbook(program.experiment, program.mesh, accelerator)
    asked = Counter({key: times for key, times in asked.items() if key[2] >= ignored})
    for kind, axes in [*sorted({key[:2] for key in (*found, *asked)}), ("all", "")]:
        sides = [
            Counter({key: n for key, n in each.items() if kind == "all" or key[:2] == (kind, axes)})
            for each in (found, asked)
        ]
        count, wanted = (side.total() for side in sides)
        sent, least = (_sum(side, mesh) for side in sides)
        ratio = sent / least if least else float("inf")
        met = "" if kind != "all" else "yes" if ratio <= BYTES else "MISSED"
        print(
            f"{name:26} {kind:18} {axes:18} {count:6} {wanted:6} {sent:12.0f} {least:12.0f} {ratio:6.3f}  {met}",
            flush=True,
        )


def _sum(arrays: Counter[Key], mesh: dict[str, int]) -> float:
    return sum(moved(key, mesh) * times for key, times in arrays.items())


def optimal(meshes: Sequence[str]) -> None:
    """Bytes of the compiled step over the textbook's, on eight simulated devices."""
    print(f"bytes that a device moves a step, over those that the textbook asks for: aim ≤ {BYTES}\n{HEADER}")
    for layout in MESHES:
        if not meshes or named(layout) in meshes:
            compare(Program(experiment(layout), jax.devices()[:8]), IGNORED, accelerator=False)


def optimal_tpu(topologies: Sequence[str], meshes: Sequence[str]) -> None:
    """The same as compiled for TPU slices."""
    os.environ.update(TPU)
    from jax.experimental.topologies import get_topology_desc

    for topology in topologies or ("v5e:2x4", "v5p:2x2x2"):
        devices = get_topology_desc(platform="tpu", topology_name=topology).devices
        print(f"{topology}, {len(devices)} devices: aim ≤ {BYTES}\n{HEADER}")
        for layout in MESHES:
            if not meshes or named(layout) in meshes:
                started = time.monotonic()
                compare(
                    Program(experiment(layout, LARGE, vocab=8192, length=512), devices), IGNORED_TPU, accelerator=True
                )
                print(f"{'':26} compiled in {time.monotonic() - started:.0f} s")


def bubble() -> None:
    """The part of a pipeline's work that is of nothing, counted in the compiled step, beside the formula.

    Each block that a stage runs all-reduces over `tensor` twice in the forward pass: so many run, and so many have to.
    """
    print("waiting of pipeline stages: turns of a block on a stage, needed and run in a pass; aim: the formula's")
    print(
        f"{'stages':>6} {'rounds':>6} {'parts':>6} {'ticks':>6} {'needed':>6} {'run':>6} {'waits':>7} {'formula':>7}  met"
    )
    blocks = replace(SMALL, layers=8)
    for stages, rounds, parts in ((2, 1, 2), (2, 1, 8), (4, 1, 4), (4, 1, 8), (4, 1, 16), (4, 2, 4), (4, 2, 8)):
        layout = Layout({"tensor": 8 // stages, "stage": stages})
        program = Program(experiment(layout, replace(blocks, rounds=rounds), microbatches=parts), jax.devices()[:8])
        found = collectives(program.lower().compile().as_text() or "", program.mesh.shape)
        (ticks,) = {one.times for one in found if one.kind == "collective-permute"}
        forward = (one for one in found if one.axes == ("tensor",) and one.times > 1 and "transpose" not in one.where)
        run, needed = sum(one.times for one in forward) // 2, parts * blocks.layers // stages
        waits, formula = 1 - needed / run, (stages - 1) / (parts * rounds + stages - 1)
        met = "yes" if abs(waits - formula) < 1e-9 else "MISSED"
        print(
            f"{stages:6} {rounds:6} {parts:6} {ticks:6} {needed:6} {run:6} {waits:7.1%} {formula:7.1%}  {met}",
            flush=True,
        )


def compiling() -> None:
    """CPU seconds to trace and compile one step, for 8 and for 256 simulated devices, each in a process of its own."""
    print(f"CPU seconds to compile a step: for 256 devices over 8: aim ≤ {TIMES}, least of two rounds")
    print(f"{'mesh':26} {8:>8} {256:>8} {'ratio':>6}  met")
    for number, layout in enumerate(GROWING):
        few, many = (min(_compile_alone(number, devices) for _ in range(2)) for devices in (8, 256))
        met = "yes" if many <= TIMES * few else "MISSED"
        print(f"{named(layout):26} {few:8.1f} {many:8.1f} {many / few:6.2f}  {met}", flush=True)


def _compile_alone(number: int, devices: int) -> float:
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, __file__, "compile-here", str(number)]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def compile_here(number: int) -> None:
    """Print the CPU seconds that the step takes to trace and compile for all devices of this process."""
    setup = experiment(GROWING[number], rows=256, length=24, blocks=SMALL)
    jax.devices()
    started = time.process_time()
    Program(setup).lower().compile()
    print(time.process_time() - started)


def main(*words: str) -> None:
    """Run the sections that are named."""
    jax.config.update("jax_platforms", "cpu")
    if words[:1] == ("compile-here",):
        return compile_here(int(words[1]))
    jax.config.update("jax_num_cpu_devices", 8)
    meshes = words[words.index("--mesh") + 1 :] if "--mesh" in words else ()
    sections = words[: len(words) - len(meshes) - bool(meshes)]
    if sections[:1] == ("optimal-tpu",):
        return optimal_tpu(sections[1:], meshes)
    run = {"optimal": lambda: optimal(meshes), "bubble": bubble, "compile": compiling}
    for section in sections or run:
        run[section]()
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])
