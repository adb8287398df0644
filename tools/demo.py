"""The demo: the paper's methods on the embedded model, needle and perplexity, through the scripts as a user runs them.

python -m tools.demo [FOLDER]     results go to FOLDER (default results/demo); run again, it only shows them
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from models.DPI.methods import METHODS
from pipeline import store
from pipeline.report import read_experiment
from tasks import get_task
from tasks.pictures.style import style_of
from tasks.results import RESULT_FILE, Experiment

CONFIG = "expcfg/quickstart/all_methods.toml"
TASKS = ("needle", "pg19")
NEEDLE_LENGTHS = ("500", "1000", "2000", "4000")
PERPLEXITY_LENGTHS = ("512", "1024", "2048", "4096")

NOTICE = (
    "The paper's methods on the embedded model, needle in a haystack and perplexity up to 8 windows: about two minutes "
    "on two cores the first time. The perplexities are of Python's documentation, which every Python carries and "
    "which is unlike the books that the model learned from: they are in the hundreds, where the README's, of books, "
    "are near 50."
)


def environment() -> dict[str, str]:
    """What the commands run in: one thread of torch per core that this process may use, unless OMP_NUM_THREADS is set.

    Tokenizers run in the main thread, so that the two do not fight for the same cores.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have none
        cores = os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(cores), "TOKENIZERS_PARALLELISM": "false", **os.environ}


def commands(folder: Path) -> list[list[str]]:
    """What a user would type."""
    results = ["--results", str(folder)]
    scored = [["eval.py", "--task", task, "--exp", "all", *results] for task in TASKS]
    collected = [["collect_results.py", "--task", task, "--exp", "all", *results] for task in TASKS]
    return [["-m", "tools.demo_text", "results/demo/text"], ["pred.py", "--cfg", CONFIG, *results], *scored, *collected]


def summary(folder: Path) -> Table:
    """One row per experiment that both benchmarks have: pass keys found by prompt length, and perplexity by length.

    Methods are in their usual order. Raises `UserError` if there are no experiments.
    """
    needle, perplexity = (_experiments(folder, task) for task in TASKS)
    found = [experiment for name, experiment in needle.items() if name in perplexity]
    windows = ", ".join(f"{window:,}" for window in sorted({e.window for e in found if e.window is not None}))
    table = Table(title=f"Pass keys found, and perplexity, by tokens read; window {windows}")
    table.add_column("\nmethod", no_wrap=True)
    for kind, lengths in (("key", NEEDLE_LENGTHS), ("ppl", PERPLEXITY_LENGTHS)):
        for length in lengths:
            table.add_column(f"{kind}\n{length}", justify="right")
    order = list(METHODS)
    for experiment in sorted(found, key=lambda e: order.index(e.method) if e.method in order else len(order)):
        keys = [_cell(experiment, length, 2) for length in NEEDLE_LENGTHS]
        perplexities = [_cell(perplexity[experiment.name], length, 0) for length in PERPLEXITY_LENGTHS]
        table.add_row(style_of(experiment.method).label, *keys, *perplexities)
    return table


def _experiments(folder: Path, task_name: str) -> Mapping[str, Experiment]:
    """Scored experiments by name."""
    task = get_task(task_name)
    read = (read_experiment(path, task) for path in store.list_experiments(folder, task))
    return {experiment.name: experiment for experiment in read if experiment.result is not None}


def _cell(experiment: Experiment, column: str, digits: int) -> str:
    score = experiment.scores[RESULT_FILE].get(column)
    return "" if score is None or score.score is None else f"{score.score:.{digits}f}"


def main() -> None:
    """Run the commands, then show the table and say where the pictures are."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "results/demo")
    console = Console()
    console.print(NOTICE)
    began = time.perf_counter()
    for command in commands(folder):
        console.print(f"$ python {shlex.join(command)}", style="bold", highlight=False, soft_wrap=True)
        done = subprocess.run([sys.executable, *command], check=False, env=environment())
        if done.returncode:
            sys.exit(done.returncode)
    console.print(summary(folder))
    pictures = [folder / task.folder / f"{task.prefix}.png" for task in map(get_task, TASKS)]
    console.print("Pictures:", *(str(path) for path in pictures), highlight=False, soft_wrap=True)
    console.print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
