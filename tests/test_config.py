"""What the metadata of a field decides: whether it is in the fingerprint, and whether its object is saved."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from jaxtrain.base.config import IN_MEMORY, NOT_IN_FINGERPRINT, flatten, to_json
from jaxtrain.base.errors import ConfigError
from jaxtrain.experiment.experiment import config_facts

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
