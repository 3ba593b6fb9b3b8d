import contextlib
import dataclasses
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny

from jaxtrain import ConfigError, Experiment, Layout, Run, optimizers
from jaxtrain.base.config import check_types, difference, flatten, from_json, to_json
from jaxtrain.data import Arrays, Flip, Pipeline, Source
from jaxtrain.datasets import Digits
from jaxtrain.experiment import Retention, Runtime
from jaxtrain.experiment.experiment import fingerprint
from jaxtrain.experiment.files import functions, load, load_code
from jaxtrain.experiment.validate import check_evals
from jaxtrain.models import Blocks, NGrams, Transformer, ViT
from jaxtrain.optimizers import AdamW, ConstantRate
from jaxtrain.tasks import Classification, LanguageModel, Regression, Spearman
from jaxtrain.train import train

FOLDER = Path(__file__).parents[1] / "experiments"
WRITTEN = [f"{file}:{name}" for file in sorted(FOLDER.glob("*.py")) for name in functions(load_code(file), Experiment)]


def digits(**changes):
    return replace(
        Experiment(
            task=Classification(
                model=ViT(patch=4, blocks=Blocks(width=16, layers=1, heads=2)),
                inputs="image",
                classes=tuple("0123456789"),
            ),
            data=Pipeline(Digits("train"), (Flip(),), batch_size=8),
            optimizer=AdamW(),
            steps=3,
            evals={"test": Pipeline(Digits("test"), batch_size=8)},
        ),
        **changes,
    )


def arrays(seed=0, **changes):
    rng = np.random.default_rng(seed)
    columns = {"text": rng.integers(97, 103, (16, 12), np.uint8), "target": rng.random(16, np.float32)}
    return Experiment(
        task=Regression(model=NGrams(outputs=1, buckets=64, words=4, width=4), inputs="text"),
        data=Pipeline(Arrays(columns), batch_size=8),
        optimizer=AdamW(schedule=ConstantRate(peak=1e-2)),
        steps=2,
        **changes,
    )


OTHERS = {"float32": "bfloat16", "auto": "dense", "none": "full", "min": "max", "train": "test"}


def other(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 3 or 2
    if isinstance(value, str):
        return OTHERS.get(value, value + "x")
    if value is None:
        return 1
    return (*value, value[0]) if value else ("x",)


def changed(value, path=""):
    """(path, copy) for every copy of a value in which one field, however deep, is another."""
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield from ((where, {**value, name: copy}) for where, copy in changed(entry, f"{path}.{name}"))
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            for where, copy in changed(getattr(value, field.name), f"{path}.{field.name}".lstrip(".")):
                with contextlib.suppress(ConfigError, TypeError):  # a value that its class does not take
                    yield where, replace(value, **{field.name: copy})
    else:
        yield path, other(value)


NOT_IN_FINGERPRINT = ("steps", "layout.", "runtime.")
READING = ("workers", "threads", "prefetch")


def is_harmless(path):
    return path.startswith(NOT_IN_FINGERPRINT) or path.rpartition(".")[2] in READING


@pytest.mark.parametrize("where", WRITTEN, ids=lambda where: Path(where).name)
def test_every_written_experiment_is_the_same_after_being_saved(where):
    experiment, origin = load(where)
    assert origin.file.stem in sys.modules
    assert from_json(json.loads(json.dumps(to_json(experiment)))) == experiment


@pytest.mark.parametrize("kind", [optimizers.AdamW, optimizers.SGD, optimizers.Lion, optimizers.Muon])
def test_optimizers_layouts_and_keeps_are_the_same_after_being_saved(kind):
    experiment = digits(
        optimizer=kind(clip=None, decayed=("kernel", "table"), schedule=optimizers.WSD(peak=3e-4)),
        layout=Layout({"data": -1, "tensor": 2}),
        runtime=Runtime(keep=Retention(3, 5, "test/loss", "max")),
    )
    assert from_json(json.loads(json.dumps(to_json(experiment)))) == experiment


def test_a_fingerprint_changes_with_every_field_but_the_harmless_ones():
    before = {}
    for experiment in (digits(), digits(task=LanguageModel(model=Transformer(blocks=Blocks(layers=1))))):
        mark = fingerprint(experiment)
        for path, new in changed(experiment):
            before[path] = fingerprint(new) == mark
    assert len(before) > 50
    assert {path for path, same in before.items() if same} == {path for path in before if is_harmless(path)}
    assert {"steps", "layout.rules.embed", "runtime.keep.last", "data.workers", "evals.test.threads"} <= before.keys()
    assert {"seed", "data.seed", "microbatches", "optimizer.schedule.peak", "task.model.blocks.width"} <= before.keys()


def test_a_fingerprint_changes_with_the_kind_and_the_order_of_values():
    assert fingerprint(digits(optimizer=optimizers.AdamW())) != fingerprint(digits(optimizer=optimizers.Lion(b2=0.999)))
    assert fingerprint(digits(evals={})) != fingerprint(digits())
    two = replace(digits().data, transforms=(Flip(), Flip("label")))
    turned = replace(two, transforms=two.transforms[::-1])
    assert fingerprint(digits(data=two)) != fingerprint(digits(data=turned))


def test_a_fingerprint_changes_with_the_content_of_the_data():
    assert fingerprint(arrays()) == fingerprint(arrays())
    assert fingerprint(arrays()) != fingerprint(arrays(seed=1))
    assert flatten(digits())["data.source.identity"] == Digits("train").identity()


def test_differences_name_every_path_with_both_values():
    one, two = flatten(digits()), flatten(digits(seed=3, evals={}))
    lines = difference(one, two).splitlines()
    assert "  seed: 0 → 3" in lines
    assert "  evals.test.batch_size: 8 → —" in lines
    assert not any(line.startswith("  data") for line in lines)


def test_kinds_from_elsewhere_are_refused_without_running_their_code(tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('this ran')")
    monkeypatch.syspath_prepend(tmp_path)
    saved = to_json(digits())
    saved["optimizer"] = {"$kind": "evil_module:Optimizer"}
    with pytest.raises(ConfigError, match="comes from the module 'evil_module', which is not imported"):
        from_json(saved)
    for kind in (
        "os:system",
        "jaxtrainx:Layout",
        "jaxtrain.sharding.layout:RULES",
        "jaxtrain.base.errors:nearest",
        "RULES",
        "None",
    ):
        with pytest.raises(ConfigError):
            from_json({"$kind": kind})
    assert "evil_module" not in sys.modules


def test_kinds_of_the_experiment_file_come_back_with_its_code(tmp_path, monkeypatch):
    file = tmp_path / "own_kind.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom jaxtrain.optimizers import AdamW\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Mine(AdamW):\n    own: int = 3\n"
    )
    module = load_code(file)
    experiment = digits(optimizer=module.Mine(own=5))
    saved = json.loads(json.dumps(to_json(experiment)))
    assert from_json(saved) == experiment
    monkeypatch.delitem(sys.modules, "own_kind")
    with pytest.raises(ConfigError, match=r"Mine comes from the module 'own_kind'.*--code FILE"):
        from_json(saved)


def test_a_kind_that_cannot_be_found_again_is_not_saved():
    @dataclass(frozen=True, kw_only=True)
    class Hidden(AdamW):
        pass

    with pytest.raises(ConfigError, match="Hidden cannot be found again"):
        to_json(digits(optimizer=Hidden()))


def test_a_field_that_is_unknown_is_refused_with_the_nearest():
    saved = to_json(digits())
    saved["task"]["model"]["blocks"]["widht"] = 3
    with pytest.raises(ConfigError, match="Blocks has no field 'widht'; did you mean 'width'"):
        from_json(saved)


def test_a_value_that_is_no_plain_value_cannot_be_saved():
    with pytest.raises(ConfigError, match="a set cannot be part of an experiment"):
        to_json({"x": {1, 2}})


def wrong(value: Any) -> Any:
    """A value that is not of its field's type, which a type checker would refuse before the test can."""
    return value


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": "3"}, "steps: '3' is a value of type str, not int"),
        ({"steps": np.int64(3)}, "steps: .* is a value of type int64, not int"),
        (
            {"optimizer": AdamW(decayed=wrong(["kernel"]))},
            r"decayed: \['kernel'\] is .* list, not tuple\[str, ...\]",
        ),
        ({"task": "digits"}, "task: 'digits' is a value of type str, not jaxtrain.tasks.base.Task"),
        ({"evals": {"test": Digits("test")}}, "evals: .*Digits.* is a value of type dict"),
        (
            {"task": Classification(model=NGrams(), inputs="image", classes=wrong(("a", 1)))},
            "task.classes: .* is a value of type tuple",
        ),
        (
            {"runtime": Runtime(keep=Retention(best="tset/loss"))},
            "keep.best: 'tset/loss' is of no split in evals; did you mean 'test'",
        ),
        ({"microbatches": 0}, "microbatches: 0 is not at least 1"),
    ],
    ids=str,
)
def test_a_value_of_another_type_than_its_fields_is_refused(changes, says):
    with pytest.raises(ConfigError, match=says):
        digits(**changes)


@pytest.mark.parametrize("name", ["log_every", "eval_every", "save_every"])
def test_intervals_below_one_step_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name}.*0"):
        replace(Runtime(), **{name: 0})


def test_whole_numbers_and_unknown_annotations_are_accepted():
    check_types(AdamW(schedule=ConstantRate(peak=1), clip=1, weight_decay=0))
    check_types(Arrays({"x": np.zeros(3)}))


def test_arrays_in_memory_can_be_trained_on_and_gone_on_with(tmp_path):
    train(arrays(), tmp_path / "run")
    _, state = train(arrays(), tmp_path / "run")
    assert int(state.step) == 2
    with pytest.raises(ConfigError, match=r"in memory \(uint8\[16, 12\]\).*Run\(folder, experiment=…\)"):
        _ = Run(tmp_path / "run").experiment
    restored = Run(tmp_path / "run", experiment=arrays()).restore()
    assert jax.tree.all(jax.tree.map(np.array_equal, restored.state.params, state.params))
    with pytest.raises(ConfigError, match=r"run of another experiment(.|\n)*data.source.columns.text"):
        Run(tmp_path / "run", experiment=arrays(seed=1))
    assert "target" not in json.loads((tmp_path / "run" / "experiment.json").read_text())["experiment"]["data"]


def test_a_file_gives_its_main_or_first_function(tmp_path):
    made = "from jaxtrain.optimizers import AdamW\nfrom test_experiment import Experiment, digits\n\n\n"
    one = "def zebra() -> Experiment:\n    return digits(seed=1)\n\n\n"
    one += "def apple() -> 'Experiment':\n    return digits(seed=2)\n"
    main = "\n\ndef main() -> Experiment:\n    return digits(seed=3)\n"
    (tmp_path / "without_main.py").write_text(made + one)
    (tmp_path / "with_main.py").write_text(made + one + main)
    assert load(f"{tmp_path}/without_main.py")[0].seed == 1
    assert load(f"{tmp_path}/without_main.py:apple")[0].seed == 2
    experiment, origin = load(f"{tmp_path}/with_main.py")
    assert (experiment.seed, origin.function, origin.file) == (3, "main", tmp_path / "with_main.py")


def test_a_source_of_the_experiment_file_is_part_of_the_meaning():
    @dataclass(frozen=True)
    class Counted(Source):
        size: int = 4

        def __len__(self):
            return self.size

        def __getitem__(self, index):
            return {"x": index}

        def identity(self):
            return f"counted {self.size}"

    assert flatten(digits(data=Pipeline(Counted())))["data.source.identity"] == "counted 4"


@pytest.mark.parametrize("name", ["", "a/b", "..", "a\x00"])
def test_a_split_whose_name_would_break_split_slash_metric_is_refused(name):
    experiment = replace(tiny.main(), evals={name: tiny.main().data})
    with pytest.raises(
        ConfigError,
        match=rf"^evals: {re.escape(repr(name))} is not a name of a split, whose metrics are named split/metric$",
    ):
        check_evals(experiment)


def test_a_host_metric_with_the_name_of_another_number_is_refused():
    with pytest.raises(ConfigError, match=r"^host_metrics: 'step' is logged already, as something else"):
        check_evals(replace(tiny.main(), host_metrics={"step": Spearman()}))
