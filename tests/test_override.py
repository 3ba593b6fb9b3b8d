"""`override`: the same paths, types, ranges and messages as the flags of the command line."""

from pathlib import Path
from typing import Any

import films
import numpy as np
import pytest
import tiny

import jaxtrain
from jaxtrain.base.errors import ConfigError
from jaxtrain.cli.flags import parse
from jaxtrain.data.transforms.fitted import Standardize
from jaxtrain.experiment import Experiment
from jaxtrain.experiment.experiment import fingerprint
from jaxtrain.experiment.override import flag_words, full_path, override_all, settings, value_at

HERE = Path(__file__).parent

SAME: dict[str, tuple[str, Any, list[str]]] = {
    "a float": ("optimizer.schedule.peak", 3e-4, ["--optimizer.schedule.peak", "3e-4"]),
    "a whole number for a float": ("optimizer.schedule.peak", 1, ["--optimizer.schedule.peak", "1"]),
    "a number of numpy": ("optimizer.schedule.peak", np.float32(0.5), ["--optimizer.schedule.peak", "0.5"]),
    "a count": ("steps", 7, ["--steps", "7"]),
    "None": ("optimizer.clip", None, ["--optimizer.clip", "None"]),
    "a whole number for a float or None": ("optimizer.clip", 2, ["--optimizer.clip", "2"]),
    "no": ("data.shuffle", False, ["--data.no-shuffle"]),
    "yes": ("evals.test.shuffle", True, ["--evals.test.shuffle"]),
    "a field of a split": ("evals.test.batch-size", 4, ["--evals.test.batch-size", "4"]),
    "an entry of a tuple": ("data.transforms.0.length", 8, ["--data.transforms.0.length", "8"]),
    "a tuple": ("task.classes", ("no", "yes", "perhaps"), ["--task.classes", "no", "yes", "perhaps"]),
    "a mapping": ("layout.mesh", {"data": 2, "tensor": 4}, ["--layout.mesh", "data", "2", "tensor", "4"]),
    "a field of runtime": ("log_every", 3, ["--log-every", "3"]),
    "a field inside of runtime": ("keep.last", 5, ["--keep.last", "5"]),
    "a field of a class of the file": ("data.source.rows", 30, ["--data.source.rows", "30"]),
}


def rounds() -> list[list[str]]:
    """The cases in groups in which no field is there twice, so that few command lines are parsed."""
    found: list[list[str]] = []
    for what, (path, _, _) in SAME.items():
        fits = [group for group in found if path not in [SAME[other][0] for other in group]]
        if fits:
            fits[0].append(what)
        else:
            found.append([what])
    return found


@pytest.mark.parametrize("group", rounds(), ids=lambda group: ", ".join(group))
def test_fields_are_set_as_their_flags_set_them_and_the_words_of_their_values_are_read_back(group: list[str]):
    made, words = films.main(), list[str]()
    for what in group:
        path, value, flag = SAME[what]
        made, before = jaxtrain.override(made, path, value), made
        assert settings(made) != settings(before)
        words += flag
    parsed = parse(str(HERE / "films.py"), words).experiment
    assert settings(made) == settings(parsed)
    assert fingerprint(made) == fingerprint(parsed)
    paths = [SAME[what][0] for what in group]
    assert [type(value_at(made, path)) for path in paths] == [type(value_at(parsed, path)) for path in paths]
    own = [word for path in paths for word in flag_words(films.main(), path, value_at(made, path))]
    assert settings(parse(str(HERE / "films.py"), own).experiment) == settings(made)


WRONG: dict[str, tuple[str, Any, str]] = {
    "no such field": ("optimizer.schedule.peek", 1.0, "no field 'optimizer.schedule.peek' in this experiment; did you"),
    "the nearest one": ("task.model.widht", 8, "did you mean 'task.model.width'?"),
    "no such split": ("evals.tset.batch_size", 8, "did you mean 'evals.test.batch_size'?"),
    "no such entry": ("data.transforms.3.length", 8, "did you mean 'data.transforms.0.length'?"),
    "a field of runtime": ("log_evry", 8, "did you mean 'log_every'?"),
    "out of range": ("optimizer.schedule.peak", -1.0, "optimizer.schedule.peak: -1.0 is not at least 0"),
    "not a number": ("optimizer.schedule.peak", float("nan"), "nan is not a finite number at least 0"),
    "a text": ("steps", "many", "steps: 'many' is a value of type str, not int"),
    "a fraction": ("steps", 1.5, "steps: 1.5 is a value of type float, not int"),
    "yes for a count": ("steps", True, "steps: True is a value of type bool"),
    "an unknown choice": ("keep.mode", "mex", "did you mean 'max'?"),
    "a list": ("task.classes", ["a", "b"], "write a tuple, ('a', 'b')"),
    "an unknown axis": ("layout.mesh", {"dta": 8}, "mesh axis 'dta'; did you mean 'data'?"),
    "inside of a number": ("steps.x", 8, "no field 'steps.x'"),
    "nothing": ("", 8, "no field ''"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named_with_the_nearest_right_name(what: str):
    path, value, message = WRONG[what]
    with pytest.raises(ConfigError) as error:
        jaxtrain.override(films.main(), path, value)
    assert message in str(error.value)


def test_the_experiment_that_is_given_stays_as_it_is():
    before = films.main()
    jaxtrain.override(before, "data.transforms.0.length", 8)
    assert settings(before) == settings(films.main())


def test_values_that_only_fit_together_are_set_together():
    with pytest.raises(ConfigError, match="width 32 over 3 heads"):
        jaxtrain.override(tiny.main(), "task.model.blocks.heads", 3)
    both: dict[str, object] = {
        "task.model.blocks.heads": 3,
        "task.model.blocks.kv_heads": 1,
        "task.model.blocks.width": 48,
    }
    made = override_all(tiny.main(), both)
    assert {path: value_at(made, path) for path in both} == both


def test_one_field_cannot_be_given_twice_or_with_a_part_of_it():
    with pytest.raises(ConfigError, match="one field is given twice"):
        override_all(films.main(), {"log_every": 2, "runtime.log-every": 3})
    with pytest.raises(ConfigError, match="data is given, and a part of it too"):
        override_all(films.main(), {"data.batch_size": 2, "data": films.main().data})


def test_a_whole_part_may_be_replaced_by_another_of_its_kind():
    other = tiny.main().optimizer
    made = jaxtrain.override(films.main(), "optimizer", other)
    assert isinstance(made, Experiment)
    assert made.optimizer == other


def test_paths_are_completed_and_values_in_memory_or_fitted_are_no_settings():
    assert full_path(films.main(), "keep.save-best") == "runtime.keep.save_best"
    paths = settings(films.main())
    assert paths["data.transforms.0.length"] == 16
    assert "data.transforms" not in paths  # only its parts
    assert not any("fitted" in path for path in settings(Standardize(("x",))))
