"""Short saved names: old ones are known for ever, and none stands for two classes."""

from collections.abc import Iterator
from dataclasses import make_dataclass

import pytest

from jaxtrain.base import registry
from jaxtrain.base.errors import ConfigError
from jaxtrain.base.registry import find_kind, name_of, own_kinds
from jaxtrain.optimizers import AdamW


@pytest.fixture
def fresh() -> Iterator[None]:
    """The kinds are looked for anew, before the test and after it."""
    own_kinds.cache_clear()
    yield
    own_kinds.cache_clear()


def test_a_class_of_the_package_is_saved_by_its_bare_name_and_found_by_it() -> None:
    assert name_of(AdamW) == "AdamW"
    assert find_kind("AdamW") is AdamW


def test_a_class_is_found_by_a_name_of_an_older_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.RENAMED, "Adam", "AdamW")
    assert find_kind("Adam") is AdamW
    with pytest.raises(ConfigError, match="this version of jaxtrain has no 'Adamm'"):
        find_kind("Adamm")


def test_two_classes_of_one_name_are_an_error_of_the_package(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    monkeypatch.setattr(registry, "ROOMS", ("optimizers", "experiment"))
    monkeypatch.setattr(registry, "_dataclasses", lambda module: {"Same": make_dataclass("Same", ["x"])})
    with pytest.raises(AssertionError, match="two classes named Same"):
        own_kinds()
