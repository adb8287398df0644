"""Measure the embedded model beyond its window: the table of its model card.

    python -m tools.measure_tiny --data books/test --out models/tiny/measured.json

For the original model and GALI, at 1, 2, 4, 8 and 16 times the window W:

passkey     the share of prompts whose greedy continuation holds the key, half of them over the passkey garbage and
            half over the texts of `--data`, begun at random places. A prompt and its answer together have at most the
            length named; the depths are the needle task's sixteen, in turn.
perplexity  over blocks of 16 W tokens from the beginning of every text, cut into pieces of the length named, each with
            `<s>` before it. Every length scores the same tokens, but for the last of each piece.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.DPI.dpi import get_model_and_tokenizer
from models.DPI.losses import token_losses
from models.DPI.methods import Method
from models.DPI.methods.dpi import DPI
from models.DPI.methods.original import Original
from tasks.needle_prompts import depths, draw_passkey, fit_prompt, passkey_needle
from tools.tiny_data import CHARACTERS_PER_TOKEN, read_texts

MEASURED: tuple[type[Method], ...] = (Original, DPI)
MULTIPLES = (1, 2, 4, 8, 16)
NEW_TOKENS = 9
"""A space, six digits, a full stop and the end."""


def passkey_prompts(
    text: str, tokenizer: PreTrainedTokenizerBase, length: int, count: int
) -> list[tuple[list[int], str]]:
    """`count` prompts of `length` tokens (a haystack of text may miss it by a few) with their keys."""

    def tokenise(prompt: str) -> list[int]:
        return list(tokenizer(prompt)["input_ids"])

    prompts = []
    for number in range(count):
        rng = random.Random(f"{length}/{number}")
        key = draw_passkey(f"{length}/{number}")
        haystack = None
        if number % 2:
            need = CHARACTERS_PER_TOKEN * length
            start = rng.randint(0, max(0, len(text) - need))
            haystack = text[start : start + need].partition("\n\n")[2] or text[start : start + need]
        places = depths()
        depth = places[(number // 2) % len(places)]
        prompts.append((fit_prompt(length, depth, passkey_needle(key), haystack, tokenise), key))
    return prompts


@torch.inference_mode()
def passkey_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, length: int, count: int
) -> dict[str, float | int]:
    """The shares of `count` prompts of `length` tokens, answer included, whose continuation holds the key."""
    generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]
    right = [0, 0]
    prompts = passkey_prompts(text, tokenizer, length - NEW_TOKENS, count)
    for number, (prompt, key) in enumerate(tqdm(prompts, desc=f"passkey {length}", unit="prompt", leave=False)):
        ids = torch.tensor([prompt], device=model.device)
        output = generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)
        right[number % 2] += key in tokenizer.decode(output[0, len(prompt) :])
    return {
        "prompts": count,
        "accuracy": sum(right) / count,
        "accuracy_garbage": right[0] / math.ceil(count / 2),
        "accuracy_texts": right[1] / max(1, count // 2),
    }


@torch.inference_mode()
def perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, blocks: torch.Tensor, length: int
) -> dict[str, float | int]:
    """Perplexity over blocks (N, 16 W) cut into pieces of `length` tokens, `<s>` included."""
    pieces = blocks.reshape(-1, length)
    start = torch.tensor([[tokenizer.bos_token_id]])
    total = 0.0
    for piece in tqdm(pieces, desc=f"perplexity {length}", unit="piece", leave=False):
        ids = torch.cat([start, piece[None, :-1]], dim=1).to(model.device)  # (1, length)
        total += float(token_losses(model, ids).double().sum())
    scored = len(pieces) * (length - 1)
    return {"perplexity": math.exp(total / scored), "scored_tokens": scored}


def text_blocks(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, per_text: int) -> torch.Tensor:
    """The first `per_text` blocks of every text, (N, length)."""
    blocks = []
    for text in texts:
        ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
        whole = min(per_text, len(ids) // length)
        blocks.append(ids[: whole * length].view(whole, length))
    return torch.cat(blocks)


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per method and length."""
    texts = read_texts(args.data)
    for method in MEASURED:
        params = method.params_for(args.window, max(args.multiples) * args.window)
        model, tokenizer = get_model_and_tokenizer(
            args.model, None, method.name, params, args.window, device=args.device
        )
        model.eval()
        blocks = text_blocks(texts, tokenizer, MULTIPLES[-1] * args.window, args.blocks)
        for multiple in args.multiples:
            length = multiple * args.window
            yield {
                "method": method.name,
                "params": params,
                "length": length,
                **passkey_accuracy(model, tokenizer, "\n\n".join(texts), length, args.prompts),
                **perplexity(model, tokenizer, blocks, length),
            }


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table."""
    lines = [
        "| method | length | passkey | over garbage | over texts | perplexity |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        shares = " | ".join(f"{row[name]:.3f}" for name in ("accuracy", "accuracy_garbage", "accuracy_texts"))
        lines.append(f"| {row['method']} | {row['length']} | {shares} | {row['perplexity']:.1f} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write the rows as they come."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of *.txt files that the model never saw")
    parser.add_argument("--model", default="tiny", help="short name or folder (default: tiny)")
    parser.add_argument("--window", type=int, default=512, help="its window in tokens (default: 512)")
    parser.add_argument("--multiples", type=int, nargs="+", default=MULTIPLES, choices=MULTIPLES, metavar="N")
    parser.add_argument("--prompts", type=int, default=48, help="passkey prompts of each length (default: 48)")
    parser.add_argument("--blocks", type=int, default=2, help="blocks of every text for perplexity (default: 2)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; a Markdown table is written beside it")
    args = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for row in measure(args):
        rows.append(row)
        args.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        args.out.with_suffix(".md").write_text(as_markdown(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
