"""Law: no module but the table of rules knows the name of a mesh axis. Under other names everything is the same."""

import ast
import math
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import jax
import pytest
import tiny
from conftest import FAST
from test_collectives import collectives, counted, textbook

import jaxtrain
from jaxtrain import RULES, ZERO1, ConfigError, Experiment, Layout, Program
from jaxtrain.models import Experts, Transformer

PACKAGE = Path(jaxtrain.__file__).parent
STEPS = 3


def axes_of(rule: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (rule,) if isinstance(rule, str) else tuple(rule or ())


STANDARD = tuple(dict.fromkeys(axis for rule in RULES.values() for axis in axes_of(rule)))
OTHERS = {"data": "replica", "fsdp": "shards", "tensor": "columns", "stage": "segment", "expert": "home"}
NAMES = {axis: OTHERS.get(axis, f"my_{axis}") for axis in STANDARD}
"""Another name for every mesh axis of the standard table."""


def renamed(layout: Layout) -> Layout:
    """The same layout where every mesh axis has its other name."""

    def table(rules):
        return {name: tuple(NAMES[axis] for axis in axes_of(rule)) for name, rule in rules.items()}

    return Layout(
        {NAMES[axis]: size for axis, size in layout.mesh.items()}, table(layout.rules), table(layout.optimizer_rules)
    )


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def on(layout: Layout, microbatches: int = 1, **blocks) -> Experiment:
    one = tiny.main()
    model = one.task.model
    assert isinstance(model, Transformer)
    model = replace(model, blocks=replace(model.blocks, **blocks))
    return replace(one, task=replace(one.task, model=model), layout=layout, microbatches=microbatches)


def trained(experiment: Experiment) -> tuple[list[float], Counter]:
    """The losses of the first steps, and how often a step sends which arrays (kind, mesh axes, bytes)."""
    program = Program(experiment, jax.devices()[: math.prod(experiment.layout.mesh.values())])
    step, state, losses = program.lower().compile(FAST), program.init(), []
    batches = program.batches(experiment.data)
    for batch in islice(batches, STEPS):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    batches.close()
    return losses, counted(collectives(step.as_text() or "", program.mesh.shape, ignored=0))


@pytest.mark.parametrize(
    ("layout", "microbatches", "blocks"),
    [
        slow(Layout({"data": 4}), 2, {}),
        slow(Layout({"data": 2, "fsdp": 2, "tensor": 2}), 2, {}),
        slow(Layout({"data": 2, "stage": 2}), 2, {}),
        slow(Layout({"data": 2, "fsdp": 2}, optimizer_rules=ZERO1), 1, {}),
        slow(Layout({"context": 2}), 1, {}),
        slow(Layout({"data": 2, "expert": 2}), 2, {"experts": Experts(count=4)}),
    ],
    ids=lambda value: " ".join(value.mesh) if isinstance(value, Layout) else None,
)
def test_under_other_names_of_the_mesh_axes_every_loss_and_collective_is_the_same(layout, microbatches, blocks):
    losses, sent = trained(on(layout, microbatches, **blocks))
    others, other_sent = trained(on(renamed(layout), microbatches, **blocks))
    assert others == losses
    assert len(set(losses)) == STEPS
    assert other_sent == under_other_names(sent)
    assert sent.total() > 0


def under_other_names(sent: Counter) -> Counter:
    def other(axes: str) -> str:
        return "×".join(NAMES[axis] for axis in axes.split("×"))

    return Counter({(kind, other(axes), bytes): times for (kind, axes, bytes), times in sent.items()})


@pytest.mark.parametrize("mesh", [{"data": 2, "stage": 2}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_the_textbook_asks_for_the_same_under_other_names_of_the_mesh_axes(mesh):
    experiments = [on(layout, 2) for layout in (Layout(mesh), renamed(Layout(mesh)))]
    usual, other = (textbook(each, each.layout.abstract_mesh(math.prod(mesh.values()))) for each in experiments)
    assert other == under_other_names(usual)
    assert usual.total() > 0


def test_the_axes_that_split_rows_alone_are_read_off_the_rules():
    every = dict.fromkeys(STANDARD, 2)
    assert Layout().row_axes(every) == ("data",)
    assert Layout().row_axes({"data": 1, "fsdp": 8}) == ()
    assert Layout(optimizer_rules=ZERO1).row_axes(every) == ("data",)  # the parameters are still whole
    rules = {**RULES, "batch": ("pod", "data", "fsdp")}
    assert Layout({}, rules).row_axes({"pod": 2, "data": 2, "fsdp": 2}) == ("pod", "data")
    assert Layout({}, {**rules, "embed": ("fsdp", "pod")}).row_axes({"pod": 2, "data": 2, "fsdp": 2}) == ("data",)


@pytest.mark.slow
def test_gradients_of_microbatches_are_summed_over_two_row_axes_once_at_the_end():
    rules = {**RULES, "batch": ("pod", "data", "fsdp")}
    losses, sent = trained(on(Layout({"pod": 2, "data": 2}, rules), 2))
    more_losses, more_sent = trained(on(Layout({"pod": 2, "data": 2}, rules), 4))
    assert more_losses == pytest.approx(losses, rel=2e-6)
    assert sent == more_sent  # in the loop they would be sent twice as often
    parameters = jax.tree.leaves(Program(on(Layout()), jax.devices()[:1]).state.params)
    kernels = {("all-reduce", "pod×data", leaf.size * 4) for leaf in parameters}
    assert kernels <= sent.keys()


@pytest.mark.slow
def test_cutting_a_batch_into_microbatches_moves_no_row_between_devices():
    _, sent = trained(on(Layout({"fsdp": 2}), 2))
    assert {kind for kind, _, _ in sent} == {"all-gather", "all-reduce"}  # no all-to-all, no permute


def test_microbatches_that_do_not_divide_the_rows_of_a_device_name_its_axes():
    rules = {**RULES, "batch": ("pod", "data", "fsdp")}
    with pytest.raises(ConfigError, match=r"^microbatches: 8 do not divide a batch of 16 on pod=2 × data=2$"):
        Program(on(Layout({"pod": 2, "data": 2}, rules), 8), jax.devices()[:4])
    with pytest.raises(ConfigError, match=r"^microbatches: 3 do not divide a batch of 16$"):
        Program(on(Layout(), 3), jax.devices()[:1])


OTHER_MEANINGS = {
    # A folder, a room or a command by this name, and what the clock accounts for.
    "data": {
        "registry",
        "main",
        "combine",
        "fit",
        "stored",
        "clock",
        "folder",
        "journal",
        "train",
        "rendezvous",
        "server",
        "stop",
        "begin",
        "run_file",
        "verify_resume",
        "card",
        "runs/trackers/mlflow",
        *(
            f"reports/{name}"
            for name in (
                "compare/comparison",
                "compare/differences",
                "compare/scores",
                "compare/text",
                "lineage/things",
                "lineage/tree",
                "notebook/values",
                "report/curves",
                "report/record",
                "status",
                "time_account",
                "watch",
            )
        ),
    },
    # What a module is called with.
    "context": {"checks", "generation"},
    # What an input of a bundle becomes.
    "tensor": {"card", "signature"},
    # A column of a table.
    "stage": {"report", "measure", "stopwatch"},
}
"""String constants of these modules that mean something else than the mesh axis of this name."""


def test_no_module_but_the_table_of_rules_names_a_mesh_axis():
    # Names of both a mesh axis and a dim cannot be told apart here; the test of other names can.
    names = set(STANDARD) - RULES.keys()
    assert {"data", "fsdp", "tensor", "stage"} <= names
    found, tables = [], []
    for file in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(file.read_text())
        if any(isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "RULES" for node in tree.body):
            tables.append(file)
            continue
        constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value in names]
        found += [
            f"{file.relative_to(PACKAGE)}:{node.lineno}: {node.value!r}"
            for node in constants
            if OTHER_MEANINGS.get(str(node.value), set()).isdisjoint(
                {file.stem, str(file.relative_to(PACKAGE).with_suffix(""))}
            )
        ]
    assert found == []
    assert len(tables) == 1
