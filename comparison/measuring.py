"""One setting on a loaded model: from items to lines of scores."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from comparison.probes import Item, batches
from comparison.scoring import score_answers, share_right
from models.DPI.losses import token_losses
from models.DPI.patches.Llama import install
from pipeline import signals
from tasks.base import Line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from comparison.settings import Setting

logger = logging.getLogger(__name__)

BATCH_TOKENS = {"cuda": 32_768, "cpu": 8_192}
"""Of a batch by device; elsewhere rows run alone. Two CPU cores take 5 to 20 % more tokens a second of two rows."""
GIBIBYTE = 1 << 30


def measure(
    model: PreTrainedModel, setting: Setting, items: Sequence[Item], *, window: int, attn_impl: str, seed: int
) -> Iterator[tuple[Item, Line]]:
    """Install a setting and score the items; each with its line as it comes.

    window: the comparison's W, beyond which losses count, whatever the setting's own. A line has `error` in place of
    scores where an item fails.
    """
    install(model, setting.build(), setting.window, attn_impl=attn_impl, seed=seed)
    for batch in batches(items, BATCH_TOKENS.get(model.device.type, 1)):
        for item, scores in _score(model, batch, window):
            yield item, {"setting": setting.id, "item": item.id, **scores}


def _score(model: PreTrainedModel, batch: Sequence[Item], window: int) -> Iterator[tuple[Item, dict[str, Any]]]:
    """A batch that fails is tried row by row; a row that fails alone has an error."""
    try:
        found = _scores(model, batch, window)
    except (RuntimeError, FloatingPointError, ValueError, NotImplementedError) as error:
        signals.check()
        if len(batch) == 1:
            said = " ".join(str(error).split())[:500]
            logger.warning("%s: %s", batch[0].id, said)
            found = [{"error": f"{type(error).__name__}: {said}"}]
    else:
        yield from zip(batch, found, strict=True)
        return
    if model.device.type == "cuda":  # outside of `except`, whose error holds the memory of the failed pass
        torch.cuda.empty_cache()
    if len(batch) == 1:
        yield batch[0], found[0]
        return
    for item in batch:
        yield from _score(model, [item], window)


def _scores(model: PreTrainedModel, batch: Sequence[Item], window: int) -> list[dict[str, Any]]:
    [probe] = {"speed" if item.probe == "speed" else "loss" if item.probe == "loss" else "answer" for item in batch}
    if probe == "speed":
        return [timed(model, item.ids) for item in batch]
    if probe == "loss":
        return [{"loss": mean_loss(model, item.ids, window)} for item in batch]
    found = score_answers(model, [item.ids for item in batch], [item.answer for item in batch])
    return [
        {"score": share_right(one.right, item.spans), "nll": one.nll} for item, one in zip(batch, found, strict=True)
    ]


def mean_loss(model: PreTrainedModel, ids: Sequence[int], window: int) -> float:
    """Mean loss of tokens `window` ... T - 1, in nats. Raises `FloatingPointError` if it is not finite."""
    losses = token_losses(model, torch.tensor([list(ids)], device=model.device), first_token=window)
    loss = float(losses.double().mean())
    if not abs(loss) < float("inf"):
        raise FloatingPointError(f"the mean loss beyond {window} tokens is {loss}")
    return loss


@torch.inference_mode()
def timed(model: PreTrainedModel, ids: Sequence[int]) -> dict[str, Any]:
    """The fastest of three passes over these tokens on a GPU, one elsewhere, in seconds for 1,000 tokens.

    peak_gib: the largest memory that PyTorch held meanwhile, weights included; None without a GPU.
    """
    rows = torch.tensor([list(ids)], device=model.device)
    gpu = model.device.type == "cuda"

    def run() -> float:
        began = time.perf_counter()
        model.get_decoder()(rows, use_cache=False)
        if gpu:
            torch.cuda.synchronize(model.device)
        return time.perf_counter() - began

    if gpu:
        torch.cuda.synchronize(model.device)
        torch.cuda.reset_peak_memory_stats(model.device)
    seconds = min(run() for _ in range(3 if gpu else 1))
    peak = torch.cuda.max_memory_allocated(model.device) / GIBIBYTE if gpu else None
    return {"seconds_per_1k": 1000 * seconds / len(ids), "peak_gib": peak}
