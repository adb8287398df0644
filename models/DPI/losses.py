"""Token losses of long inputs: hidden states in one pass, logits for some tokens at a time."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from models.DPI.patches.families import logits_of

# 1,024 tokens x 49,152 fp32 logits are 192 MiB.
SLICE_TOKENS = 1024


@torch.no_grad()
def token_losses(
    model: PreTrainedModel, input_ids: Tensor, slice_tokens: int = SLICE_TOKENS, first_token: int = 1
) -> Tensor:
    """Negative log-likelihood of tokens first_token ... T - 1, each given all before it, in nats.

    input_ids: (B, T), without padding. slice_tokens: tokens whose logits exist at a time; it changes no number.
    Returns (B, T - first_token) fp32 on the CPU.
    """
    hidden = model.get_decoder()(input_ids, use_cache=False).last_hidden_state[:, first_token - 1 : -1]
    losses = torch.empty(hidden.shape[:2])
    for first in range(0, hidden.shape[1], slice_tokens):
        piece = hidden[:, first : first + slice_tokens]
        logits = logits_of(model, piece)  # (B, slice, vocabulary)
        start = first_token + first
        targets = input_ids[:, start : start + piece.shape[1]].to(logits.device)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        losses[:, first : first + piece.shape[1]] = loss.view(targets.shape).cpu()
    return losses


def mean_loss_beyond(model: PreTrainedModel, input_ids: Tensor, window: int) -> float:
    """Mean loss of tokens window ... T - 1, in nats. input_ids: (B, T)."""
    return float(token_losses(model, input_ids, first_token=window).double().mean())
