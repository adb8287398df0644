"""Processor time of several questions on one document, each prompt read whole and what they begin with read once.

python -m benchmarks.prefixes [--tokens 4000] [--questions 8]    the embedded model, GALI chunk-free
"""

from __future__ import annotations

import argparse
import sys
import time
from pydoc_data.topics import topics
from typing import Any

from benchmarks.machine import machine
from models.DPI.dpi import get_model_and_tokenizer
from pipeline.engine import ModelEngine
from tasks.base import Request

PARAMS = {"chunk_coe": 1, "local_window": 128}
NEW_TOKENS = 8


def prompts_of(tokenizer: Any, tokens: int, questions: int) -> list[list[int]]:
    """Python's documentation of so many tokens, with a question behind it."""
    document = tokenizer("\n".join(topics.values()))["input_ids"][:tokens]
    asked = [f"\nQuestion {number}: what does it say of {name}?\nAnswer:" for number, name in enumerate(topics)]
    return [document + tokenizer(text, add_special_tokens=False)["input_ids"] for text in asked[:questions]]


def main(argv: list[str]) -> None:
    """Print seconds of the processor, in all threads, and whether the texts are equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--questions", type=int, default=8)
    arguments = parser.parse_args(argv)
    model, tokenizer = get_model_and_tokenizer("tiny", None, "dpi", PARAMS)
    engine = ModelEngine(model, tokenizer)
    prompts = prompts_of(tokenizer, arguments.tokens, arguments.questions)
    engine.generate([Request(prompts[0][:600], 4)])
    found, seconds = [], []
    for shares in (False, True):
        engine.share_prefixes(shares)
        start = time.process_time()
        found.append([engine.generate([Request(prompt, NEW_TOKENS)])[0] for prompt in prompts])
        seconds.append(time.process_time() - start)
    said = f"{len(prompts)} questions on {arguments.tokens} tokens, {NEW_TOKENS} new tokens each"
    equal = "equal" if found[0] == found[1] else "NOT EQUAL"
    sys.stdout.write(f"{machine()}\n{said}: whole {seconds[0]:.1f} s, shared {seconds[1]:.1f} s, ")
    sys.stdout.write(f"{seconds[0] / seconds[1]:.2f} times as fast; texts {equal}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
