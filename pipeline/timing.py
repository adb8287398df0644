"""How long prompts will take, from a short pass that is measured where the run will be."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from models.DPI.patches.families import head_dim_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_TOKENS = 1024
"""Of the prompt that is measured."""
NEW_TOKENS = 8


@dataclass(frozen=True)
class Speed:
    """What was measured. tokens: of the prompt. prefill: its seconds. new_token: seconds of one that is generated."""

    tokens: int
    prefill: float
    new_token: float

    @property
    def seconds(self) -> float:
        """Of all that was measured."""
        return self.prefill + NEW_TOKENS * self.new_token


@dataclass(frozen=True)
class Work:
    """Multiplications of a forward pass: `per_token` for each token, `per_pair` for each pair of tokens."""

    per_token: int
    per_pair: int

    def of(self, tokens: int) -> float:
        """A prompt's."""
        return self.per_token * tokens + self.per_pair * tokens * tokens / 2


def work_of(model: PreTrainedModel) -> Work:
    """The work of a model: its weights but for the table of embeddings, and causal attention in every layer."""
    config: Any = model.config
    table: Any = model.get_input_embeddings()
    embeddings = table.weight.numel()
    pairs = 2 * config.num_hidden_layers * config.num_attention_heads * head_dim_of(config)
    return Work(sum(p.numel() for p in model.parameters()) - embeddings, pairs)


@torch.inference_mode()
def measure(model: PreTrainedModel, prompt: Sequence[int]) -> Speed:
    """The speed of a model on the beginning of a prompt."""
    generate: Any = model.generate
    ids = torch.tensor([list(prompt[:MOST_TOKENS])], device=model.device)  # (1, T)

    def seconds(tokens: int, length: int) -> float:
        begin = time.perf_counter()
        generate(
            ids[:, :length], attention_mask=torch.ones_like(ids[:, :length]), do_sample=False, num_beams=1,
            min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0, temperature=None, top_p=None, top_k=None,
        )  # fmt: skip
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        return time.perf_counter() - begin

    seconds(2, min(ids.shape[1], 16))  # the first call makes what later ones find
    prefill = seconds(1, ids.shape[1])
    both = seconds(1 + NEW_TOKENS, ids.shape[1])
    return Speed(ids.shape[1], prefill, max(both - prefill, 0.0) / NEW_TOKENS)


def estimate(
    speed: Speed, work: Work, lengths: Mapping[str, tuple[int, Sequence[int]]], new_tokens: Mapping[str, int]
) -> tuple[float, float]:
    """Seconds for prompts and for new tokens.

    lengths: by data set its number of records, and the tokens of some of its prompts. new_tokens: generated for each
    record at most.
    """
    rate = work.of(speed.tokens) / speed.prefill
    prompts = sum(
        records * sum(work.of(length) for length in some) / len(some) / rate for records, some in lengths.values()
    )
    return prompts, sum(records * new_tokens[name] * speed.new_token for name, (records, _) in lengths.items())


def duration(seconds: float) -> str:
    """As people say it: "under 10 s", "about 40 s", "about 12 min", "about 3.5 h", "about 4 days"."""
    if seconds < 10:
        return "under 10 s"
    if seconds < 100:
        return f"about {round(seconds, -1):.0f} s"
    if seconds < 100 * 60:
        return f"about {seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"about {seconds / 3600:.1f} h"
    return f"about {seconds / 86400:.0f} days"
