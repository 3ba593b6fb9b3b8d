"""The notebooks run from top to bottom, and are stored with what they showed."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "experiments" / "notebooks").glob("*.ipynb"))


def kinds(notebook: Any) -> list[set[str]]:
    """For each cell of code, the kinds of output that it has."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [{kind for output in cell.outputs for kind in output.get("data", {})} for cell in cells]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")  # of the notebook's own machinery
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_shows_what_is_stored_in_it_and_every_layout_in_it_prints_the_same_losses(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    stored = kinds(notebook)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert kinds(notebook) == stored
    assert sum("text/html" in each for each in stored) >= 3
    printed = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    rows = [line.partition("}")[2] for line in printed.splitlines() if line.startswith("{") and "[" in line]
    assert len(rows) == (3 if path.stem == "train_step" else 0)
    losses = [[float(loss) for loss in row.strip(" []").split(",")] for row in rows]
    for each in losses[1:]:
        assert each == pytest.approx(losses[0], rel=1e-4)
