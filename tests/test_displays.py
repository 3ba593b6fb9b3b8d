"""What notebooks show: escaped, well-formed, true to what jax says, and imported only when it is needed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtrain import ZERO1, ConfigError, Layout, Mean, Program, Run, show
from jaxtrain.base.ranges import Checked
from jaxtrain.experiment import Runtime
from jaxtrain.reports.html import cell
from jaxtrain.reports.notebook.layouts import layout_html
from jaxtrain.reports.parts import parts_held, planned_parts
from jaxtrain.reports.pictures import curve_svg
from jaxtrain.runs.metrics_log import MetricsLog
from jaxtrain.runs.steps_log import StepsLog
from jaxtrain.tasks.classification_metrics import Confusion
from jaxtrain.train import train

EVIL = "<script>alert('x')</script><img src=x onerror=\"alert(1)\">"


class Words(HTMLParser):
    """The text of a page, its elements, and whether each that is opened is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words, self.elements, self.open = list[str](), list[str](), list[str]()
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def shown(value: object) -> Words:
    return Words(getattr(value, "_repr_html_")())  # noqa: B009


@dataclass(frozen=True)
class Named(Checked):
    text: str = ""
    table: tuple[str, ...] = ()


def test_all_text_is_escaped_in_values_names_paths_and_metrics(tmp_path: Path) -> None:
    folder = tmp_path / EVIL.replace("/", "_")
    log = MetricsLog(folder)
    (folder / "experiment.json").write_text('{"experiment": {}, "config": {}, "fingerprint": ""}')
    log.metrics(1, EVIL, {EVIL: 1.0, "loss": 1.0})
    run = Run.__new__(Run)
    run.folder = folder
    found = [
        shown(Named(EVIL, (EVIL,))),
        shown(Layout({EVIL: 2}, rules={"batch": EVIL, EVIL: None})),
        shown(show({EVIL: np.zeros(2)})),
        shown(show({EVIL: Mean(np.float32(1), np.float32(1))})),
        shown(run),
    ]
    for each in found:
        assert "<script>" in each.text()  # as text
        assert not {"script", "img"} & set(each.elements)


@pytest.mark.parametrize("spec", [P("a", "b"), P("b", "a"), P(("a", "b")), P(("b", "a"), None), P(None, "b"), P()])
def test_planned_parts_are_those_that_jax_makes(spec: P) -> None:
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    array = jax.device_put(jnp.zeros((16, 8)), NamedSharding(mesh, spec))
    numbers = np.vectorize(lambda device: device.id)(mesh.devices)
    assert planned_parts(spec, (16, 8), {"a": 4, "b": 2}, numbers) == parts_held(array)
    starts = {shard.device.id: tuple(each.start or 0 for each in shard.index) for shard in array.addressable_shards}
    assert {device: part.start for part in parts_held(array) for device in part.devices} == starts


def test_the_picture_of_an_array_names_the_devices_of_each_part() -> None:
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    array = jax.device_put(jnp.zeros((16, 8)), NamedSharding(mesh, P("a")))
    words = shown(show(array)).words
    assert [each for each in words if each in ("0 1", "2 3", "4 5", "6 7")] == ["0 1", "2 3", "4 5", "6 7"]
    assert "P(a, None)" in " ".join(words) or "P(a)" in " ".join(words)
    assert "512 B, 128 B a device" in " ".join(words)


def test_a_layout_says_what_it_splits_and_what_is_replicated_without_counting_devices() -> None:
    found = shown(Layout({"fsdp": 4, "tensor": 2}, optimizer_rules=ZERO1)).text()
    assert "Layout fsdp 4 × tensor 2" in found
    assert "mlp tensor 2 by tensor" in found
    assert "embed fsdp 4 by fsdp" in found
    assert "4 by fsdp, of the optimizer's state" in found
    assert "drawn for" not in found
    assert "drawn for 8 devices as an example" in shown(Layout({"data": -1, "tensor": 2})).text()
    assert "drawn for 48 devices as an example" in shown(Layout({"data": -1, "tensor": 24})).text()
    assert "data 6 × tensor 2" in Words(show(Layout({"data": -1, "tensor": 2}), devices=12).html).text()
    with pytest.raises(ConfigError, match="multiple of 2"):
        show(Layout({"data": -1, "tensor": 2}), devices=7)


def test_a_display_does_not_start_jax() -> None:
    code = (
        "from jaxtrain import Layout; Layout({'data': -1})._repr_html_(); import jax; jax.config.update('jax_platforms', 'none')\n"
        "try: jax.devices()\nexcept RuntimeError: print('not started')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["not", "started"]


def test_a_value_is_drawn_by_a_module_that_is_imported_only_then() -> None:
    code = (
        "import sys, jaxtrain; from jaxtrain import Layout; x = Layout(); print(repr(x)[:7], 'jaxtrain.reports' in sys.modules)\n"
        "x._repr_html_(); print('jaxtrain.reports.notebook' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["Layout(", "False", "True"]


def test_a_state_is_a_tree_with_the_names_of_dims_bytes_and_sharding_of_every_array() -> None:
    experiment = replace(tiny.main(), layout=Layout({"fsdp": 4, "tensor": 2}))
    program = Program(experiment)
    found = show(program)
    lines = {line.split()[0]: line.split() for line in repr(found).splitlines() if "/" in line}
    # table f32[64, 32]: vocab over 2 of tensor, embed over 4 of fsdp: 8,192 bytes, an eighth of them on a device
    row = ["64×32", "vocab,", "embed", "float32", "8", "KiB", "1", "KiB", "P(tensor,", "fsdp)"]
    for path in ("params/embedding/table", "opt_state/1/mu/embedding/table", "opt_state/4/average/embedding/table"):
        assert lines[path][1:] == row
    assert lines["params/norm/scale"][1:] == ["32", "norm", "float32", "128", "B", "128", "B", "replicated"]
    words = Words(found.html)
    assert "vocab, embed" in words.words
    assert "details" in words.elements
    assert shown(program).text() == words.text()
    total = sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((program.state.params, program.state.opt_state))
    )
    assert f"{total / 1024:.4g} KiB" in repr(found).splitlines()[-1]


def test_a_model_is_shown_with_the_shapes_of_its_inputs_alone() -> None:
    model = tiny.main().task.model
    found = repr(show(model, inputs=jax.ShapeDtypeStruct((2, 16), np.int32)))
    assert "params/blocks/block/up/kernel" in found
    assert "2×32×64  layers, embed, mlp" in found
    with pytest.raises(ConfigError, match=r"give inputs="):
        show(model)
    with pytest.raises(ConfigError, match="a str is none of these"):
        show("text")


def test_metrics_show_their_values_and_a_confusion_matrix_its_counts() -> None:
    confusion = Confusion(np.array([[50.0, 3], [2, 40]]))
    found = shown(show({"loss": Mean(np.float32(3), np.float32(2)), "errors": confusion}))
    assert "loss 1.5 Mean" in found.text()
    assert "errors/accuracy 0.9474" in found.text()  # 90 of 95
    assert "0 50 3 1 2 40" in found.text()
    assert repr(show({"loss": Mean(np.float32(3), np.float32(2))})).splitlines()[-1].split() == ["loss", "1.5"]
    assert shown(Mean(np.float32(3), np.float32(0))).text().startswith("Mean nan")


def test_an_experiment_shows_its_decisions_and_every_field() -> None:
    found = shown(tiny.main()).text()
    assert "task LanguageModel of Transformer" in found
    assert "data Counting of 100 examples, batches of 16" in found
    assert "kv_heads 2" in found
    assert "weight_decay 0.1" in found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(replace(tiny.main(), steps=2, evals={}, runtime=Runtime(log_every=1)), folder)
    return folder


@pytest.mark.parametrize("steps", ["steps.bin", "damaged", "none"])
def test_a_run_shows_its_state_last_metrics_and_the_curve_of_its_loss(
    steps: str, trained: Path, tmp_path: Path
) -> None:
    run = Run(shutil.copytree(trained, tmp_path / "run"), code=tiny.__file__)
    path = run.folder / "steps.bin"
    if steps == "damaged":
        path.write_bytes(path.read_bytes()[:-3] + b"abc")
    if steps == "none":
        path.unlink()
    found = shown(run)
    assert f"{run.folder}" in found.text()
    assert "finished" in found.text()
    assert "step 2 of 2" in found.text()
    last = float(run.metrics()["loss"].iloc[-1])
    assert f"{last:.4g}" in found.text()
    assert "polyline" in found.elements
    assert shown(run.experiment).text().startswith("Experiment task LanguageModel")


def test_a_run_that_cannot_be_read_says_so_and_a_named_pipe_does_not_hang_it(tmp_path: Path) -> None:
    (tmp_path / "experiment.json").write_text("{}")
    os.mkfifo(tmp_path / "metrics.jsonl")
    os.mkfifo(tmp_path / "steps.bin")
    run = Run.__new__(Run)
    run.folder = tmp_path
    found = shown(run).text()
    assert "metrics.jsonl is no file" in found
    assert "unreadable" in found


def test_a_curve_keeps_its_lowest_and_highest_points_and_breaks_at_nan() -> None:
    y = np.ones(100_000)
    y[[12_345, 77_777]], y[50_000] = (-7.0, 9.0), np.nan
    picture = ElementTree.fromstring(str(curve_svg(np.arange(100_000.0), y, "step", "loss")))
    lines = [each for each in picture.iter() if each.tag.endswith("polyline")]
    points = [tuple(map(float, point.split(","))) for line in lines for point in line.attrib["points"].split()]
    assert len(lines) == 2
    assert len(points) < 1000
    heights = [y for _, y in points]
    assert (min(heights), max(heights)) == (8.0, 118.0)  # 9 at the top of the frame, -7 at its foot
    assert curve_svg(np.arange(3.0), np.full(3, np.nan), "step", "loss") == ""


def test_pictures_of_many_devices_draw_some_and_say_of_how_many() -> None:
    found = Words(cell(layout_html(Layout({"fsdp": 512})))).text()
    assert "of 512 × 1 these are drawn" in found
    assert found.count(" 511 ") == 0


def test_steps_of_a_run_are_drawn_without_a_gap_in_them(tmp_path: Path) -> None:
    StepsLog(tmp_path).append(
        {"step": [1, 2, 3], "loss": [3, 2, 1], "gradient_norm": [1, 1, 1], "batch": [0, 0, 0], "skipped": [0, 0, 0]}
    )
    (tmp_path / "experiment.json").write_text("{}")
    run = Run.__new__(Run)
    run.folder = tmp_path
    assert "loss from 3 to 1 over step" in shown(run).text()
