"""Find DPE's scales for a model by retrieval trials, one group of frequencies at a time.

    python -m tools.fit_dpe --model tiny --window 512 --target 2048

All groups begin at the smallest scale that reaches the target. For each group in turn, with the others as they were at
the beginning, every candidate is tried on the same passkey prompts, half over garbage and half over a text; the group
gets the one that finds most keys, and among those the one whose answers are likeliest. That is the procedure of DPE's
authors (2504.18857), who then use all groups' choices together; so does this, and it tries them too. A key
counts as found where each token of its answer is the likeliest, given those before it: one pass per prompt.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.DPI.dpi import get_model_and_tokenizer
from models.DPI.loading import window_of
from models.DPI.methods import build_method
from models.DPI.methods.dpe import DPE
from models.DPI.methods.original import Original
from models.DPI.patches.Llama import installed
from tools.measure_tiny import passkey_prompts

CANDIDATES = (1, 2, 4, 8, 16, 32)
Trials = list[tuple[Tensor, int]]


@dataclass(frozen=True, order=True)
class Score:
    """Better ones are greater. found: the share of keys; log_likelihood: of the answers, mean over trials, in nats."""

    found: float
    log_likelihood: float

    def __str__(self) -> str:
        """As the program prints it."""
        return f"{self.found:.3f} found, {self.log_likelihood:.3f} nats"


def make_trials(tokenizer: PreTrainedTokenizerBase, text: str, target: int, count: int) -> Trials:
    """Prompts with their answers, (1, at most `target`) tokens each, and how many of the last are the answer."""
    asked, room = "The pass key is", 16
    skipped = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
    trials = []
    for prompt, key in passkey_prompts(text, tokenizer, target - room, count):
        answer = tokenizer(f"{asked} {key}", add_special_tokens=False)["input_ids"][skipped:]
        trials.append((torch.tensor([[*prompt, *answer]]), len(answer)))
    return trials


@torch.inference_mode()
def score(model: PreTrainedModel, trials: Trials) -> Score:
    """Of the method that the model has."""
    found, total = 0, 0.0
    for ids, answer in trials:
        ids = ids.to(model.device)
        logits = model(ids, use_cache=False, logits_to_keep=answer + 1).logits[0, :-1].float()
        expected = ids[0, -answer:]
        found += bool((logits.argmax(-1) == expected).all())
        total += float(logits.log_softmax(-1).gather(-1, expected[:, None]).sum())
    return Score(found / len(trials), total / len(trials))


def fit(
    measure: Callable[[list[int]], Score], groups: int, base: int, candidates: Sequence[int]
) -> tuple[list[int], dict[tuple[int, int], Score]]:
    """The scales, and the score of each (group, candidate). measure: the score of scales."""
    start = [base] * groups
    scores = {}
    bar = tqdm(total=groups * len(candidates), desc="scales", unit="setting")
    chosen = []
    for group in range(groups):
        for candidate in candidates:
            scores[group, candidate] = measure([*start[:group], candidate, *start[group + 1 :]])
            bar.update()
        chosen.append(max(candidates, key=lambda candidate: scores[group, candidate]))
    bar.close()
    return chosen, scores


def base_scale(window: int, target: int, near: int) -> int:
    """The smallest whole scale with (W - w) * s + w >= target."""
    return max(1, -(-(target - near) // (window - near)))


def main(argv: Sequence[str] | None = None) -> None:
    """Fit, and print what to put into a configuration."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default="tiny", help="short name, folder or Hugging Face id (default: tiny)")
    parser.add_argument("--window", type=int, help="W in tokens (default: the model's)")
    parser.add_argument("--target", type=int, required=True, help="tokens to reach, more than W")
    parser.add_argument("--window-size", type=int, help="w, distances that stay exact (default: W/8, at most 1024)")
    parser.add_argument("--groups", type=int, default=8, help="groups of frequencies (default: 8)")
    parser.add_argument("--candidates", type=int, nargs="+", default=CANDIDATES, metavar="S")
    parser.add_argument("--trials", type=int, default=16, help="passkey prompts (default: 16)")
    parser.add_argument("--text", type=Path, help="a text file for half of the haystacks (default: Python's help)")
    args = parser.parse_args(argv)
    if args.groups < 1 or args.trials < 1 or min(args.candidates) < 1:
        parser.error("--groups, --trials and --candidates must be at least 1")
    text = "\n\n".join(topics.values()) if args.text is None else args.text.read_text(encoding="utf-8")
    model, tokenizer = get_model_and_tokenizer(args.model, None, Original.name, {}, args.window)
    window = window_of(model.config) if args.window is None else args.window
    near = DPE.params_for(window, args.target)["window_size"] if args.window_size is None else args.window_size
    if args.target <= window or not 1 <= near < window:
        parser.error(f"--target {args.target} must be above W = {window}, and --window-size {near} between 1 and W")
    trials = make_trials(tokenizer, text, args.target, args.trials)

    def measure(scales: list[int]) -> Score:
        method = build_method(DPE.name, {"scales": scales, "window_size": near}, window)
        with installed(model, method, window):
            return score(model, trials)

    base = base_scale(window, args.target, near)
    chosen, scores = fit(measure, args.groups, base, args.candidates)

    def say(line: str) -> None:
        sys.stdout.write(f"{line}\n")

    for (group, candidate), value in scores.items():
        say(f"# group {group}, scale {candidate}: {value}")
    say(f"# all groups at {base}: {measure([base] * args.groups)}")
    together = measure(chosen)
    say(f"# the choices together, on the prompts that chose them: {together}")
    say('method = "dpe"\n[params]')
    say(f"scales = {chosen}\nwindow_size = {near}")
    if build_method(DPE.name, {"scales": chosen, "window_size": near}, window).reach(window) < args.target:
        say("# no group reaches the target with these: give larger candidates")


if __name__ == "__main__":
    main()
