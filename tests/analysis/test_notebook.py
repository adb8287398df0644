"""The notebook: a short version runs from a fresh kernel; the one in the repository is executed, without traces."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")

NOTEBOOK = ROOT / "analysis_paper.ipynb"
PICTURES = {
    "method",
    "positions",
    "blend",
    "logits",
    "maps",
    "entropy",
    "differences",
    "sweeps",
    "needle",
    "perplexity",
}


def _outputs(path: Path) -> list[Any]:
    cells = nbformat.read(path, as_version=4).cells
    return [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.mark.timeout(300)
def test_a_short_version_executes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALI_DATA", str(tmp_path / "absent"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("GALI_MODELS", raising=False)
    command = [sys.executable, "tools/run_notebook.py", "--short", "--images", str(tmp_path), "--output"]
    done = subprocess.run([*command, str(tmp_path / "short.ipynb")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for ending in ("png", "svg"):
        assert {path.stem for path in tmp_path.glob(f"*.{ending}")} >= PICTURES
    outputs = _outputs(tmp_path / "short.ipynb")
    assert sum("image/png" in output["data"] for output in outputs) >= len(PICTURES)
    said = " ".join(output["data"].get("text/markdown", "") for output in outputs)
    assert "No file for" in said
    assert str(tmp_path) not in said


def test_the_notebook_is_executed_and_trimmed() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert {output["output_type"] for cell in code for output in cell.outputs} == {"display_data"}
    assert {kind for output in _outputs(NOTEBOOK) for kind in output["data"]} <= {"image/png", "text/markdown"}
    assert sum("image/png" in output["data"] for output in _outputs(NOTEBOOK)) >= len(PICTURES)


def test_the_notebook_names_no_machine_and_holds_no_function() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        assert not re.search(r"^\s*(def|class) ", cell.source, re.MULTILINE)
        texts = [output["data"].get("text/markdown", "") for output in cell.get("outputs", [])]
        assert not re.search(r"/(home|root|tmp|work|Users)/", " ".join([cell.source, *texts]))
