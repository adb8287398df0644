"""Attention logits as a function of relative distance: queries and keys of a model stay, their distance varies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from transformers import PreTrainedModel

from analysis.blend import pair_products
from models.DPI.attention.bands import Plan
from models.DPI.help_funcs import attention_score_approximate
from models.DPI.methods.dpi import DPI
from models.DPI.patches.Llama import observe
from tasks.pictures.style import mark_window, new_figure, tidy


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
    key = -(distances.double() + weight)  # with the query at 0
    return Overshoot(fractional, attention_score_approximate(upper, lower, key), beyond)


FRACTIONAL = "#0072B2"
INTEGER = "#222222"
ZOOM = 14
"""Distances of the closest view."""


@dataclass(frozen=True)
class Sample:
    """Pairs of one model, its frequencies (D/2,) in radians a position, and its window in tokens."""

    model: str
    pairs: Pairs
    inv_freq: Tensor
    window: int


def draw(samples: Sequence[Sample]) -> Figure:
    """A row per model: one pair closely, how often rotation overshoots, and all pairs over four windows."""
    figure = new_figure(13.2, 3.7 * len(samples))
    axes = figure.subplots(len(samples), 3, squeeze=False)
    for row, sample in zip(axes, samples, strict=True):
        near = overshoot(sample.pairs, torch.arange(ZOOM), 0.5, sample.inv_freq)
        everywhere = overshoot(sample.pairs, torch.arange(0, sample.window, 7), 0.5, sample.inv_freq)
        _one_pair(row[0], sample, int(near.beyond.max(1).values.argmax()))
        _shares(row[1], everywhere)
        _all_distances(row[2], sample)
        for axis in row:
            tidy(axis)
    return figure


def _one_pair(axis: Axes, sample: Sample, pair: int) -> None:
    """The pair with the largest overshoot: integers, the rotation between them, and the interpolation."""
    pairs, inv_freq = sample.pairs, sample.inv_freq
    only = Pairs(pairs.query[pair : pair + 1], pairs.key[pair : pair + 1], pairs.layer[pair : pair + 1], pairs.scaling)
    whole, fine = torch.arange(ZOOM + 1), torch.linspace(0, ZOOM, 40 * ZOOM + 1)
    at_integers, between = (logit_curves(only, d, inv_freq)[0] for d in (whole, fine))
    step = fine.floor().clamp(max=ZOOM - 1).long()
    lowest = torch.minimum(at_integers[step], at_integers[step + 1])
    highest = torch.maximum(at_integers[step], at_integers[step + 1])
    axis.plot(fine, between, color=FRACTIONAL, linewidth=1.3, label="rotation by a fraction")
    axis.fill_between(fine, between, lowest, where=between < lowest, color=FRACTIONAL, alpha=0.35, linewidth=0)
    axis.fill_between(fine, between, highest, where=between > highest, color=FRACTIONAL, alpha=0.35, linewidth=0,
                      label="outliers: outside both neighbours")  # fmt: skip
    axis.plot(whole, at_integers, color=DPI.colour, linewidth=1.3, label="interpolation")
    axis.plot(whole, at_integers, "o", markersize=4, color=INTEGER, label="integer positions")
    axis.set_xlabel("relative distance, tokens")
    axis.set_ylabel("attention logit")
    axis.set_title(f"{sample.model}: one query and key of layer {int(pairs.layer[pair])}", fontsize=10)
    low, high = float(between.min()), float(between.max())
    axis.set_ylim(low - 0.05 * (high - low), high + 0.42 * (high - low))
    axis.legend(fontsize=7.5, frameon=False, loc="upper center", ncols=2)


def _shares(axis: Axes, found: Overshoot) -> None:
    """Share of logits at half positions that lie more than x outside of their neighbours."""
    beyond = found.beyond.flatten().sort().values
    share = 100 * (1 - torch.arange(len(beyond)) / len(beyond))
    kept = beyond > 0
    thinned = slice(None, None, max(1, int(kept.sum()) // 400))
    axis.plot(beyond[kept][thinned], share[kept][thinned], color=FRACTIONAL, linewidth=1.8,
              label="rotation by a fraction")  # fmt: skip
    axis.axhline(0.0, color=DPI.colour, linewidth=2.5, label="interpolation: none, at any x")
    axis.set_xlim(0, float(beyond[int(0.9999 * len(beyond))]))
    axis.set_xlabel("x, units of the logit")
    axis.set_ylabel("share of logits, %")
    axis.set_title("more than x outside of both neighbours (w = ½)", fontsize=10)
    axis.legend(fontsize=8, frameon=False, loc="upper right")


def _all_distances(axis: Axes, sample: Sample) -> None:
    """Median and middle 90 % of all pairs' logits over integer distances."""
    distances = torch.linspace(0, 4 * sample.window, 300).round().unique()
    curves = logit_curves(sample.pairs, distances, sample.inv_freq)
    low, middle, high = (curves.quantile(q, dim=0) for q in (0.05, 0.5, 0.95))
    axis.fill_between(distances, low, high, color="#BBBBBB", linewidth=0, label="middle 90 % of pairs")
    axis.plot(distances, middle, color=INTEGER, linewidth=1.2, label="median")
    mark_window(axis, sample.window, top=False)
    axis.set_xlabel("relative distance, tokens")
    axis.set_ylabel("attention logit")
    low_end, high_end = axis.get_ylim()
    axis.set_ylim(low_end, high_end + 0.2 * (high_end - low_end))
    axis.set_title("all pairs, integer positions", fontsize=10)
    axis.legend(fontsize=8, frameon=False, loc="upper right")
