"""Attention logits as a function of relative distance: queries and keys of a model stay, their distance varies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from analysis.blend import pair_products
from models.DPI.attention.bands import Plan
from models.DPI.patches.Llama import observe


@dataclass(frozen=True)
class Pairs:
    """Un-rotated queries and keys of one head, (P, D) each, their layers (P,), and the factor on their logits."""

    query: Tensor
    key: Tensor
    layer: Tensor
    scaling: float


def sample_pairs(model: PreTrainedModel, input_ids: Tensor, per_layer: int, seed: int = 0) -> Pairs:
    """Random (head, query i, key j < i) of every layer, drawn evenly. input_ids: (1, T)."""
    draw = torch.Generator().manual_seed(seed)
    found: list[tuple[Tensor, Tensor, int, float]] = []

    def keep(layer: int, query: Tensor, key: Tensor, plan: Plan, scaling: float) -> None:
        heads, tokens = query.shape[1], query.shape[2]
        head = torch.randint(heads, (per_layer,), generator=draw)
        i = torch.randint(1, tokens, (per_layer,), generator=draw)
        j = (torch.rand(per_layer, generator=draw) * i).long()
        shared = heads // key.shape[1]
        found.append((query[0, head, i].double().cpu(), key[0, head // shared, j].double().cpu(), layer, scaling))

    with observe(model, keep), torch.no_grad():
        model.base_model(input_ids, use_cache=False)
    return Pairs(
        query=torch.cat([query for query, *_ in found]),
        key=torch.cat([key for _, key, *_ in found]),
        layer=torch.tensor([layer for *_, layer, _ in found]).repeat_interleave(per_layer),
        scaling=found[0][3],
    )


def logit_curves(pairs: Pairs, distances: Tensor, inv_freq: Tensor) -> Tensor:
    """Logits of every pair at every distance, integer or fractional: (P, M) fp64."""
    angle = distances[:, None].double() * inv_freq.double()  # (M, D/2)
    products = pair_products(pairs.query, pairs.key)  # (P, D/2)
    return pairs.scaling * (products.real @ angle.cos().T + products.imag @ angle.sin().T)


@dataclass(frozen=True)
class Overshoot:
    """Logits at fractional distances against those at the integers beside them, (P, M) each.

    fractional: by the rotation itself. interpolated: the paper's. beyond: how far the fractional logit lies outside
    of what the integers beside it span, 0 inside; interpolation is always inside.
    """

    fractional: Tensor
    interpolated: Tensor
    beyond: Tensor


def overshoot(pairs: Pairs, distances: Tensor, weight: float, inv_freq: Tensor) -> Overshoot:
    """Compare at distances Δ + w: Δ from ⌈p_j⌉, Δ + 1 from ⌊p_j⌋. distances: (M,) integers Δ; 0 < weight < 1."""
    upper, lower = (logit_curves(pairs, distances + step, inv_freq) for step in (0, 1))
    fractional = logit_curves(pairs, distances + weight, inv_freq)
    highest, lowest = torch.maximum(upper, lower), torch.minimum(upper, lower)
    beyond = (fractional - highest).clamp(min=0) + (lowest - fractional).clamp(min=0)
    return Overshoot(fractional, (1 - weight) * upper + weight * lower, beyond)
