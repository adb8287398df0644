"""Measure a model's effective window, print the curve and what to put into a configuration.

    python -m tools.calibrate --model tiny

What is measured and the rule that reads it are in `models/DPI/calibration.py`.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from models.DPI.calibration import MOST_TRIALS, Calibration, calibrate
from models.DPI.dpi import get_model_and_tokenizer
from models.DPI.loading import DTYPES, window_of
from models.DPI.methods.original import Original
from models.DPI.patches.Llama import uninstall


def lines_of(calibration: Calibration) -> Iterator[str]:
    """The curve as comments, and a configuration's lines."""
    measured = calibration.evidence
    if measured is not None:
        yield f"# {len(measured.answers)} prompts and {len(measured.losses)} pieces of text; nats, ± standard errors"
        yield f"# {'tokens':>9} {'answer':>8} {'worse than in short ones':>26} {'loss':>8}"
        for step, length in enumerate(measured.lengths):
            answers = [row[step] for row in measured.answers]
            worse = [row[step] - statistics.fmean(row[: measured.short]) for row in measured.answers]
            loss = f"{statistics.fmean(row[step] for row in measured.losses):8.4f}" if measured.losses else "       -"
            compared = f"{statistics.fmean(worse):+.3f} ± {statistics.stdev(worse) / math.sqrt(len(worse)):.3f}"
            yield f"# {length:9,} {statistics.fmean(answers):8.3f} {compared:>26} {loss}"
    yield f"# {calibration.reason}"
    yield 'method = "dpi"'
    yield f"ori_max_position_embeddings = {calibration.window}"
    yield "[params]"
    yield f"local_window = {calibration.local_window}"
    yield f"chunk_coe = {calibration.chunk_coe}"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default="tiny", help="short name, folder or Hugging Face id (default: tiny)")
    parser.add_argument("--window", type=int, help="W in tokens (default: the model's)")
    parser.add_argument("--trials", type=int, help="prompts of each length (default: 64, 8 on a CPU)")
    parser.add_argument("--texts", type=Path, nargs="+", help="text files (default: Python's help)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--device", help="cpu, cuda, cuda:0, ... (default: a GPU if there is one)")
    parser.add_argument("--anew", action="store_true", help="neither read nor write the user's cache folder")
    args = parser.parse_args(argv)
    if args.window is not None and args.window < 1:
        parser.error(f"--window {args.window} must be at least 1")
    if args.trials is not None and not 2 <= args.trials <= MOST_TRIALS:
        parser.error(f"--trials {args.trials} must be between 2 and {MOST_TRIALS}")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    texts = None if args.texts is None else [path.read_text(encoding="utf-8") for path in args.texts]
    model, tokenizer = get_model_and_tokenizer(
        args.model, None, Original.name, {}, args.window, dtype=args.dtype, device=args.device
    )
    window = window_of(model.config) if args.window is None else args.window
    uninstall(model)
    began = time.perf_counter()
    calibration = calibrate(model, tokenizer, window, texts=texts, trials=args.trials, cached=not args.anew)
    sys.stdout.write(f"# {args.model}, W = {window}, {time.perf_counter() - began:.1f} s\n")
    for line in lines_of(calibration):
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
