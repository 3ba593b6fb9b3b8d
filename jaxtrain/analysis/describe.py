"""The sizes that the textbook formulas need of a train step: mesh, parameters and activations.

Not here: the formulas, which are `analysis/textbook.py`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from jax.sharding import AbstractMesh, Mesh

from jaxtrain.experiment.experiment import Experiment
from jaxtrain.models.params import STACKED
from jaxtrain.models.sizes import Activations
from jaxtrain.sharding.layout import AxisNamed, Layout, Rule, mesh_axes, named_leaves, path_name
from jaxtrain.tasks.checks import abstract_variables


@dataclass(frozen=True)
class Parameter:
    """A parameter, as one device holds it while it is used."""

    path: str
    turns: int
    """How often a pass uses it in the scan over blocks; 0 for a parameter outside of the blocks."""
    stacked: int
    """The number of blocks whose part of it a device holds."""
    uses: int
    """How often a pass uses it outside of the blocks: twice for tied embeddings."""
    size: int
    """Bytes on a device after gathering; of a stacked parameter, for one block."""
    sent: int
    """`size` in the dtype of matmul operands."""
    gathered: tuple[str, ...]
    """Mesh axes that split both the parameter and the rows of a batch: it is all-gathered over these before use."""
    reduced: tuple[str, ...]
    """Mesh axes that split rows or positions but not the parameter: its gradient is summed over these."""
    kept: tuple[str, ...]
    """Mesh axes that split its optimizer state but not the parameter."""


@dataclass(frozen=True)
class Step:
    """The sizes of one train step."""

    mesh: Mapping[str, int]
    rows: tuple[str, ...]
    """Mesh axes that split the rows of a batch."""
    replicas: tuple[str, ...]
    """Those in `rows` that split no parameter."""
    heads: tuple[str, ...]
    """Mesh axes that split heads, mlp and vocabulary."""
    along: tuple[str, ...]
    """Mesh axes that split `length` everywhere."""
    residual: tuple[str, ...]
    """Mesh axes that split `length` only between blocks."""
    stages: tuple[str, ...]
    """Mesh axes that split the layers."""
    experts: tuple[str, ...]
    """Mesh axes that split experts."""
    activations: Activations | None
    """None if the model does not describe them."""
    batch: int
    """Rows on a device."""
    microbatches: int
    lookups: int
    """The number of embedding tables that are split by vocabulary."""
    accelerator: bool
    parameters: tuple[Parameter, ...] = ()

    def over(self, axes: Iterable[str]) -> int:
        """The number of devices along these mesh axes."""
        return math.prod(self.mesh[axis] for axis in axes)

    @property
    def itemsize(self) -> int:
        """Bytes of an element of a matmul operand. XLA for CPUs always sends f32."""
        return 2 if self.accelerator and self.activations and self.activations.compute == "bfloat16" else 4

    @property
    def scattered(self) -> str:
        """The collective that sums arrays of which each device keeps a shard. XLA for CPUs uses an all-reduce."""
        return "reduce-scatter" if self.accelerator else "all-reduce"

    @property
    def length(self) -> int:
        """Positions of a row on a device, within blocks."""
        return self.activations.length // self.over(self.along) if self.activations else 0

    @property
    def positions(self) -> int:
        """Positions of all rows on a device."""
        return self.batch * self.length

    @property
    def ticks(self) -> int:
        """Ticks of the pipeline schedule in a pass, including the bubble; 1 without a pipeline."""
        stages, rounds = self.over(self.stages), self.activations.rounds if self.activations else 1
        return self.microbatches * rounds + stages - 1 if self.stages else 1

    @property
    def turns(self) -> int:
        """Blocks that a device runs in a pass."""
        layers, rounds = (self.activations.layers, self.activations.rounds) if self.activations else (0, 1)
        return self.ticks * layers // (self.over(self.stages) * rounds) if self.stages else layers

    @property
    def inside(self) -> int:
        """Rows on a device that run through a block at once."""
        return self.batch * self.over(self.stages) // self.microbatches if self.stages else self.batch


def describe(experiment: Experiment, mesh: Mesh | AbstractMesh, accelerator: bool = False) -> Step:
    """The train step of an experiment on a mesh. accelerator: as compiled for TPUs and GPUs instead of CPUs."""
    task, layout, batch = experiment.task, experiment.layout, experiment.data.example()
    sizes = {axis: size for axis, size in mesh.shape.items() if size > 1}

    def split(*names: str) -> tuple[str, ...]:
        return tuple(axis for axis in sizes if any(axis in mesh_axes(layout.rules.get(name)) for name in names))

    leaves = {path_name(path): leaf for path, leaf in named_leaves(abstract_variables(task, batch).params)}
    step = Step(
        mesh=sizes,
        rows=split("batch"),
        replicas=tuple(axis for axis in sizes if axis in layout.row_axes(sizes)),
        heads=split("heads", "mlp", "vocab"),
        along=split("length"),
        residual=tuple(axis for axis in split("residual_length") if axis not in split("length")),
        stages=split("layers") if any("layers" in leaf.axes for leaf in leaves.values()) else (),
        experts=split("expert") if any("expert" in leaf.axes for leaf in leaves.values()) else (),
        activations=task.model.describe(task.read(batch)),
        batch=experiment.data.batch_size // math.prod(sizes[axis] for axis in split("batch")),
        microbatches=experiment.microbatches,
        lookups=sum(leaf.axes[:1] == ("vocab",) for leaf in leaves.values()),
        accelerator=accelerator,
    )
    return replace(step, parameters=tuple(_parameter(path, leaf, step, layout) for path, leaf in leaves.items()))


def _parameter(path: str, leaf: AxisNamed, step: Step, layout: Layout) -> Parameter:
    def held(rules: Mapping[str, Rule]) -> dict[str, str]:
        return {axis: name for name in leaf.axes if name for axis in mesh_axes(rules[name]) if axis in step.mesh}

    own, kept = held(layout.rules), held({**layout.rules, **layout.optimizer_rules})
    # Layers and experts stay where they are; activations are sent to them.
    gathered = tuple(axis for axis in step.rows if own.get(axis, "layers") not in ("layers", "expert"))
    stacked = [n for name, n in zip(leaf.axes, leaf.value.shape, strict=True) if name in STACKED]
    entries = math.prod(leaf.value.shape) // math.prod(stacked)
    entries //= step.over(axis for axis, name in own.items() if axis not in gathered and name != "layers")
    # Every position contributes to the gradient of a norm's scale, so it is summed over the residual axes too.
    summed = step.rows + step.along + (step.residual if "norm" in leaf.axes else ())
    tied = step.activations is not None and step.activations.tied
    return Parameter(
        path,
        turns=(step.turns if step.activations else math.prod(stacked)) if stacked else 0,
        stacked=math.prod(stacked) // step.over(step.stages if stacked else ()),
        uses=1 + (tied and leaf.axes[:1] == ("vocab",)),
        size=entries * leaf.value.dtype.itemsize,
        sent=entries * (step.itemsize if path.endswith("kernel") or tied else leaf.value.dtype.itemsize),
        gathered=gathered,
        reduced=tuple(axis for axis in step.mesh if axis in summed and axis not in own),
        kept=tuple(axis for axis in kept if axis not in own),
    )
