"""What the metadata of a field decides: whether it is in the fingerprint, and whether its object is saved."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from jaxtrain.base.config import IN_MEMORY, NOT_IN_FINGERPRINT, flatten, from_json, to_json
from jaxtrain.base.errors import ConfigError
from jaxtrain.data import Arrays
from jaxtrain.data.sources.items import Items
from jaxtrain.experiment.experiment import config_facts
from jaxtrain.optimizers import ConstantRate, LinearDecay

NOTE = {"help": "for another reader of the metadata"}


@dataclass(frozen=True)
class Held:
    here: object = field(metadata=IN_MEMORY | NOTE)
    size: int = 3
    threads: int = field(default=1, metadata=NOT_IN_FINGERPRINT | NOTE)

    def identity(self) -> str:
        return "held:7"


def test_a_field_is_left_out_of_the_fingerprint_by_its_flag_whatever_else_its_metadata_holds() -> None:
    assert flatten(Held(object())) == {"kind": "Held", ".identity": "held:7", "size": 3}


def test_an_object_in_memory_is_saved_by_its_identity_whatever_else_its_metadata_holds() -> None:
    saved = to_json(Held(object(), threads=2))
    assert saved["here"] == {"$array": "object", "identity": "held:7"}
    assert (saved["size"], saved["threads"]) == (3, 2)
    with pytest.raises(ConfigError, match="a object cannot be part of an experiment"):
        to_json(object())


def test_processes_agree_on_the_fields_that_are_not_in_the_fingerprint_too(tmp_path) -> None:
    file = tmp_path / "a.py"
    file.write_text("x = 1\n")
    held: Any = Held("x")
    assert config_facts(held, file) == {
        "kind": "Held",
        ".identity": "held:7",
        "size": 3,
        "here": "x",
        "threads": 1,
        "a.py": "9e26bf369911c45c",
    }


def saved(value: Any) -> Any:
    """The value as JSON, through text."""
    return json.loads(json.dumps(to_json(value)))


def test_arrays_in_memory_are_taken_from_the_value_that_is_given_and_no_others() -> None:
    value = Arrays({"x": np.arange(3), "y": np.zeros(3)})
    again = from_json(saved(value), memory=Arrays({"x": np.arange(3), "y": np.zeros(3)}))
    np.testing.assert_array_equal(again.columns["x"], [0, 1, 2])
    for other in (np.array([0, 1, 3]), np.arange(3, dtype=np.int32), np.arange(3.0)):
        with pytest.raises(
            ConfigError, match=r"in memory \(int64\[3\]\) differ from those that the run was trained on"
        ):
            from_json(saved(value), memory=Arrays({"x": other, "y": np.zeros(3)}))
    with pytest.raises(ConfigError, match=r"in memory \(int64\[3\]\) are not saved in the run folder"):
        from_json(saved(value))


def test_an_object_in_memory_is_taken_only_from_one_of_the_same_identity() -> None:
    rows = [{"x": 1}]
    assert from_json(saved(Items(rows, "one")), memory=Items(rows, "one")).items is rows
    with pytest.raises(ConfigError, match=r"in memory \(list\) differ from those that the run was trained on"):
        from_json(saved(Items(rows, "one")), memory=Items(rows, "two"))
    with pytest.raises(ConfigError, match=r"in memory \(list\) are not saved in the run folder"):
        from_json(saved(Items(rows, "one")))


def test_values_of_two_classes_with_equal_fields_have_another_fingerprint() -> None:
    one, two = flatten(ConstantRate(peak=0.1)), flatten(LinearDecay(peak=0.1))
    assert one == {"kind": "ConstantRate", "peak": 0.1, "warmup": 0, "start": 0.0, "steps": None}
    assert two == {"kind": "LinearDecay", "peak": 0.1, "warmup": 0, "start": 0.0, "steps": None, "floor": 0.0}
    assert flatten((ConstantRate(), LinearDecay()))["1.kind"] == "LinearDecay"
