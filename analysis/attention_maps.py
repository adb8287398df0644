"""Attention probabilities averaged over heads and layers, in the memory of the average.

`output_attentions=True` holds [layer, batch, head, q, k] at once: 30 layers of 9 heads at 8,192 tokens are 72 GB. Here
the probabilities of a block of queries are formed, layer by layer while the model runs in O(n) memory, and added up.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from models.DPI.attention.bands import Plan
from models.DPI.attention.reference import probabilities_of
from models.DPI.patches.Llama import observe

BLOCK = 256
"""Queries whose probabilities exist at a time, for all heads of one layer."""


def mean_attention(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    block: int = BLOCK,
    progress: bool = False,
) -> Tensor:
    """The average over layers and heads of what each query pays to each key.

    model: with a method installed; it decides how queries and keys are turned. input_ids: (B, T). attention_mask:
    (B, T), 0 for padding.
    Returns (B, T, T) fp32 on the model's device: rows sum to 1 and are 0 above the diagonal; rows of padding are 0.
    Raises ValueError if the model has no method.
    """
    layers = model.config.num_hidden_layers
    with tqdm(total=layers, unit="layer", leave=False, disable=not progress) as bar:
        average = _Sum(block, bar)
        with observe(model, average), torch.no_grad():
            model.base_model(input_ids, attention_mask=attention_mask, use_cache=False)
    assert average.total is not None
    return average.total.div_(layers * model.config.num_attention_heads)


class _Sum:
    """The observer: adds the probabilities of a layer's heads to one map."""

    def __init__(self, block: int, bar: tqdm) -> None:
        self.block = block
        self.bar = bar
        self.total: Tensor | None = None

    def __call__(self, layer: int, query: Tensor, key: Tensor, plan: Plan, scaling: float) -> None:
        if self.total is None:
            self.total = torch.zeros(query.shape[0], query.shape[2], key.shape[2], device=query.device)
        for row in plan.rows:
            members = list(row.rows)
            q, k = query[members], key[members, :, row.left : row.left + row.length]
            # Query i of a row lies at i - past on the axis of queries.
            past = row.segments[0].first - row.first_query
            for segment in row.segments:
                for first in range(segment.first, segment.last, self.block):
                    last = min(first + self.block, segment.last)
                    at = slice(first - past, last - past)
                    part = probabilities_of(
                        q[:, :, at],
                        k,
                        segment,
                        scaling=scaling,
                        noise=plan.noise,
                        layer=layer,
                        rows=slice(first - segment.first, last - segment.first),
                    )  # (B, H, block, n)
                    seen = slice(row.left, row.left + part.shape[-1])
                    self.total[members, at, seen] += part.sum(1, dtype=torch.float32)
        self.bar.update()


def row_entropy(attention: Tensor) -> Tensor:
    """Entropy of each query's row in nats: (..., T, N) -> (..., T). A uniform row over n keys has ln n."""
    return torch.special.entr(attention).sum(-1)


def thumbnail(attention: Tensor, cells: int) -> Tensor:
    """A map for a picture: (T, N) -> at most cells × cells, each the mean of a square of entries."""
    side = -(-attention.shape[-1] // cells)
    return torch.nn.functional.avg_pool2d(attention[None], side, ceil_mode=True)[0]
