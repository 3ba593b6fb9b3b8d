"""A short soak: `scripts/soak.py` for as long as you like."""

from pathlib import Path

import pytest
from soak import CODES, SCENARIOS, soak


@pytest.mark.slow
def test_runs_that_are_killed_in_every_way_end_as_those_left_alone_and_leave_nothing(tmp_path: Path) -> None:
    assert soak(6, ["SIGKILL", "worker", "coordinator", "other process"], 0, tmp_path) == []


def test_the_soak_knows_every_way_to_stop_and_runs_in_one_and_two_processes_and_on_two_meshes() -> None:
    assert {"SIGKILL", "SIGTERM", "SIGINT", "SIGUSR1", "SIGTERM twice", "SIGINT twice"} < CODES.keys()
    assert {processes for _, _, processes in SCENARIOS} == {1, 2}
    assert len({function for function, *_ in SCENARIOS}) == 3
