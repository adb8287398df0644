"""The demo: seven methods on the embedded model, needle and perplexity, through the three scripts as a user runs them.

python -m tools.demo [FOLDER]     results go to FOLDER (default results/demo); run again, it only shows them
"""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.figures import STYLES

CONFIG = "expcfg/quickstart/all_methods.toml"
WINDOW = 512
NEEDLE_LENGTHS = ("500", "1000", "2000", "4000")
PERPLEXITY_LENGTHS = ("512", "1024", "2048", "4096")


def commands(folder: Path) -> list[list[str]]:
    """What a user would type."""
    results = ["--results", str(folder)]
    scored = [["eval.py", "--task", task, "--exp", "all", *results] for task in ("needle", "pg19")]
    collected = [["collect_results.py", "--task", task, "--exp", "all", *results] for task in ("needle", "pg19")]
    return [["-m", "tools.demo_text", "results/demo/text"], ["pred.py", "--cfg", CONFIG, *results], *scored, *collected]


def summary(folder: Path) -> Table:
    """One row a method: share of pass keys found by prompt length, and perplexity by length."""
    table = Table(title=f"Pass keys found, and perplexity, by tokens read; window {WINDOW}")
    table.add_column("\nmethod", no_wrap=True)
    for kind, lengths in (("key", NEEDLE_LENGTHS), ("ppl", PERPLEXITY_LENGTHS)):
        for length in lengths:
            table.add_column(f"{kind}\n{length}", justify="right")
    for method, (label, _, _) in STYLES.items():
        name = f"{method.removeprefix('repro_')}-tiny-512-to-4k"
        cells = json.loads((folder / "needle/pred" / name / "result.json").read_text(encoding="utf-8"))
        perplexity = json.loads((folder / "pg19/pred" / name / "result.json").read_text(encoding="utf-8"))
        row = []
        for length in NEEDLE_LENGTHS:
            scores = [cell["score"] for cell in cells if cell["context_length"] == int(length)]
            row.append(f"{sum(scores) / len(scores):.2f}")
        row += [f"{perplexity[length]:.0f}" for length in PERPLEXITY_LENGTHS]
        table.add_row(label, *row)
    return table


def main() -> None:
    """Run the commands, then show the table and say where the pictures are."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "results/demo")
    console = Console()
    began = time.perf_counter()
    for command in commands(folder):
        console.print(f"$ python {shlex.join(command)}", style="bold", highlight=False, soft_wrap=True)
        done = subprocess.run([sys.executable, *command], check=False)
        if done.returncode:
            sys.exit(done.returncode)
    console.print(summary(folder))
    pictures = [folder / "needle/pred/needle.png", folder / "pg19/pred/pg19.png"]
    console.print("Pictures:", *(str(path) for path in pictures), highlight=False, soft_wrap=True)
    console.print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
