"""Answers scored teacher-forced: one forward pass over prompt and answer instead of a pass for every token.

The answer's tokens are the continuation that the model would have to produce. Where every one of them has the largest
logit given the prompt and the answer's tokens before it, greedy decoding gives this answer, and else it does not: the
verdict is that of greedy decoding for causal methods. Methods that depend on the whole length (`Method.is_causal`) see
prompt and answer at once, where decoding would see the prompt and then token by token; reports mark them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from models.DPI.patches.families import logits_of
from models.tokens import common_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Encode = Callable[[str], list[int]]
"""From a text to token ids, without special tokens."""


@dataclass(frozen=True)
class Continuation:
    """What a model has to produce behind a prompt.

    ids: of the reference. spans: (start, stop) of each answer among them. dropped: tokens that go from the end of the
    prompt, where the tokenizer joins them with the beginning of the answer.
    """

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    dropped: int = 0


@dataclass(frozen=True)
class Scored:
    """right: whether each token of the reference had the largest logit. nll: of all of them, in nats."""

    right: tuple[bool, ...]
    nll: float


def continuation(before: str, parts: Sequence[tuple[str, bool]], encode: Encode) -> Continuation:
    """The tokens of a reference behind a prompt that ends with `before`.

    parts: the reference in pieces, each with whether it is an answer; what is not (numbers of a list) belongs to the
    reference but not to the verdict.
    """
    prompt = encode(before)
    whole = before + "".join(text for text, _ in parts)
    ids = encode(whole)
    first = common_prefix(prompt, ids)
    spans, text, start = [], before, first
    for part, is_answer in parts:
        text += part
        stop = max(start, len(ids) if text == whole else common_prefix(encode(text), ids))
        if is_answer:
            spans.append((start - first, stop - first))
        start = stop
    return Continuation(tuple(ids[first:]), tuple(spans), len(prompt) - first)


@torch.inference_mode()
def score_answers(model: PreTrainedModel, rows: Sequence[Sequence[int]], counts: Sequence[int]) -> list[Scored]:
    """Score the last `counts` tokens of each row, in one pass. Logits exist for these tokens alone.

    rows: prompts with their answers, all of one length. Raises `FloatingPointError` where a loss is not finite.
    """
    ids = torch.tensor([list(row) for row in rows], device=model.device)  # (B, T)
    most = max(counts)
    hidden = model.get_decoder()(ids, use_cache=False).last_hidden_state[:, -most - 1 : -1]
    logits = logits_of(model, hidden)  # (B, most, vocabulary) fp32
    targets = ids[:, -most:].to(logits.device)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    losses = losses.view(targets.shape).double().cpu()
    right = (logits.argmax(-1) == targets).cpu()
    found = []
    for row, count in enumerate(counts):
        nll = float(losses[row, most - count :].sum())
        if not abs(nll) < float("inf"):
            raise FloatingPointError(f"the loss of an answer is {nll} at {ids.shape[1]} tokens")
        found.append(Scored(tuple(right[row, most - count :].tolist()), nll))
    return found


def share_right(right: Sequence[bool], spans: Sequence[tuple[int, int]]) -> float:
    """The share of answers all of whose tokens had the largest logit; for one answer the verdict, 0 or 1."""
    return sum(all(right[start:stop]) for start, stop in spans) / len(spans)
