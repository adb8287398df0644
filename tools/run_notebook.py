"""Execute the analysis notebook from a fresh kernel and keep its pictures: python tools/run_notebook.py

What cells print, warn and count is left out of the file; pictures and Markdown stay. The file is written only if
every cell ran.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
KEPT = ("image/png", "text/markdown")

logger = logging.getLogger(__name__)


def execute(notebook: NotebookNode, timeout: int) -> None:
    """Run all cells in the repository's root. Raises `CellExecutionError` at the first that fails.

    timeout: seconds that a cell may take.
    """
    cells = [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    with tqdm(total=len(cells), unit="cell", desc="notebook") as bar:
        client = NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name="python3",
            resources={"metadata": {"path": str(ROOT)}},
            on_cell_executed=lambda **_: bar.update(),
        )
        client.execute()


def trim(notebook: NotebookNode) -> None:
    """Leave only pictures and Markdown among the outputs, and no trace of when and where they were made."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata.pop("execution", None)
        outputs = []
        for output in cell.outputs:
            data = {kind: content for kind, content in output.get("data", {}).items() if kind in KEPT}
            if data:
                outputs.append(nbformat.v4.new_output("display_data", data=data))
        cell.outputs = outputs
    notebook.metadata.pop("widgets", None)
    if "language_info" in notebook.metadata:
        notebook.metadata["language_info"] = {"name": "python"}


def main(arguments: list[str] | None = None) -> int:
    """Execute and write the notebook. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path, nargs="?", default=ROOT / "analysis_paper.ipynb")
    parser.add_argument("--output", type=Path, help="write here (default: in place)")
    parser.add_argument("--images", type=Path, help="folder of the pictures (default: images)")
    parser.add_argument("--short", action="store_true", help="the embedded model and few lengths: a test")
    parser.add_argument("--timeout", type=int, default=1800, help="seconds that a cell may take")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # The kernel inherits these.
    if options.short:
        os.environ["GALI_NOTEBOOK_SHORT"] = "1"
    if options.images:
        os.environ["GALI_IMAGES"] = str(options.images.resolve())
    notebook = nbformat.read(options.notebook, as_version=4)
    began = time.perf_counter()
    try:
        execute(notebook, options.timeout)
    except CellExecutionError as error:
        logger.error("%s", error)
        return 1
    trim(notebook)
    nbformat.write(notebook, options.output or options.notebook)
    logger.info("%s: %.0f s", (options.output or options.notebook).name, time.perf_counter() - began)
    return 0


if __name__ == "__main__":
    sys.exit(main())
