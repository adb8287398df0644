"""Mean loss beyond the window on one long text, for settings of methods: python -m benchmarks.losses --text FOLDER.

The text is the folder's .txt files, sorted by name and joined by a blank line, tokenised whole; tokens
`--offset` ... `--offset` + `--length` - 1 are read in one forward pass. The loss is the mean over the tokens whose
index is W or more. On a two-core CPU a method takes some minutes at 16,384 tokens.
"""

import argparse
import logging
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks.machine import machine
from models.DPI.dpi import get_model_and_tokenizer
from models.DPI.losses import mean_loss_beyond
from models.DPI.methods import METHODS, build_method
from models.DPI.methods.original import Original
from models.DPI.patches.Llama import install

# Method, what is said of its parameters behind its label, parameters.
SETTINGS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("dpi", ", chunk 3000, ω 128", {"chunk_coe": 3000, "local_window": 128}),
    ("dpi", ", chunk 512, ω 2048", {"chunk_coe": 512, "local_window": 2048}),
    ("dpi", ", chunk-free, ω 1024", {"chunk_coe": 1, "local_window": 1024}),
    ("repro_se", " (3, 4096)", {"group_size": 3, "window_size": 4096}),
    ("repro_chunkllama", " (1024, 0.05)", {"local_window": 1024, "mscale": 0.05}),
    ("repro_yarn", " 2", {"factor": 2.0}),
    ("repro_ntk", " 2", {"factor": 2.0}),
    ("repro_original", "", {}),
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder of .txt files")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--length", type=int, default=16384, help="tokens")
    parser.add_argument("--offset", type=int, default=0, help="first token")
    parser.add_argument("--only", help="only methods whose line contains this")
    parser.add_argument("--dtype", help="bfloat16, float16 or float32")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)

    model, tokenizer = get_model_and_tokenizer(arguments.model, None, Original.name, {}, dtype=arguments.dtype)
    window = model.config.max_position_embeddings
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(arguments.text.glob("*.txt")))
    ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids
    ids = ids[:, arguments.offset : arguments.offset + arguments.length].to(model.device)
    if ids.shape[1] <= window:
        parser.error(f"--text gives {ids.shape[1]} tokens from --offset on; more than the window, {window}, are needed")

    table = Table(title=f"{arguments.model}, tokens {window} to {ids.shape[1] - 1}, {model.dtype}, {model.device}")
    for column in ("method", "mean loss", "seconds"):
        table.add_column(column, justify="left" if column == "method" else "right")
    rows = [(METHODS[name].label + said, name, params) for name, said, params in SETTINGS]
    chosen = [row for row in rows if not arguments.only or arguments.only in row[0]]
    for label, name, params in tqdm(chosen, unit="method"):
        install(model, build_method(name, params, window, ids.shape[1]), window)
        began = time.perf_counter()
        loss = mean_loss_beyond(model, ids, window)
        table.add_row(label, f"{loss:.4f}", f"{time.perf_counter() - began:.1f}")
    Console().print(table)
    Console().print(machine())


if __name__ == "__main__":
    main()
