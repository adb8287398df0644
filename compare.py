"""Compares methods on one model: loss beyond the window, passkeys, RULER's offline tasks, time and memory."""

from __future__ import annotations

from pipeline import signals

if __name__ == "__main__":
    signals.end_at_once()  # while the rest is imported

import argparse
import logging
from pathlib import Path

from pipeline.cli import EXIT_DONE, EXIT_FAILED_RECORDS, make_parser, run_script
from pipeline.help import methods_help

logger = logging.getLogger("compare")

EXAMPLE = """example:
  python compare.py --model tiny --target 4096
  python compare.py --model smollm2-135m --target 16384 --texts FOLDER --tune
"""


def details() -> str:
    """The end of the help."""
    return f"{EXAMPLE}\n{methods_help()}"


def names(text: str) -> list[str]:
    """A comma-separated list."""
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(text: str) -> list[int]:
    """A comma-separated list of whole numbers."""
    return [int(name) for name in names(text)]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this script, beside those that every script has."""
    parser.add_argument("--model", required=True, help="short name, folder or Hugging Face id")
    parser.add_argument("--target", type=int, required=True, metavar="T", help="the length to reach, in tokens")
    parser.add_argument("--window", type=int, metavar="W", help="the model's window (default: its configuration's)")
    parser.add_argument("--texts", type=Path, metavar="DIR",
                        help="folder of *.txt of at least T tokens (default: Python's documentation)")  # fmt: skip
    parser.add_argument("--methods", type=names, metavar="A,B", help="methods (default: all that reach T)")
    parser.add_argument("--baseline", metavar="NAME", help="what others are compared with (default: dpi)")
    parser.add_argument("--tune", action="store_true",
                        help="a small grid for each method; half of the items choose, the others report")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder (default: compare/MODEL-W-to-T in results)")
    parser.add_argument("--lengths", type=numbers, metavar="N,M", help="tokens of passkey and RULER prompts")
    parser.add_argument("--depths", type=int, metavar="N", help="places of the passkey at each length")
    parser.add_argument("--samples", type=int, metavar="N", help="of each RULER task, dealt over the lengths")
    parser.add_argument("--texts-limit", type=int, metavar="N", help="texts whose loss is measured")
    parser.add_argument("--dtype", help="bfloat16, float16, float32 (default: bf16 on a GPU, fp32 on a CPU)")
    parser.add_argument("--device", help="cpu, cuda, cuda:0, ... (default: a GPU if there is one)")
    parser.add_argument("--attn-impl", default="auto", help="auto, triton, flash, sdpa, reference")
    parser.add_argument("--seed", type=int, default=42, help="of keys, samples and noise")
    parser.add_argument("--trust-remote-code", action="store_true", help="run a model's own Python files")


def main(argv: list[str]) -> int:
    """Compare what the command line asks for; returns the exit code."""
    parser = make_parser(__doc__ or "", details)
    add_options(parser)
    arguments = vars(parser.parse_args(argv))
    arguments.pop("verbose")

    from comparison.report import write_report
    from comparison.run import Session, Wishes
    from pipeline.distributed import Workers

    with Workers() as workers:
        session = Session(Wishes(**arguments), workers)
        with session.lock():
            found = session.run()
            if workers.is_main:
                write_report(found)
    failed = sum(len(one.errors) for one in found.settings.values())
    if failed:
        logger.error("%d measurements failed; the same command tries only those", failed)
        return EXIT_FAILED_RECORDS
    return EXIT_DONE


if __name__ == "__main__":
    run_script(main)
