"""Attention logits against relative distance."""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from analysis.logits import Overshoot, Pairs, logit_curves, overshoot
from analysis.pictures.style import colour_of, mark_window, tidy

FRACTIONAL = "#0072B2"
INTEGER = "#222222"
ZOOM = 14
"""Distances of the closest view."""


def draw(pairs: Pairs, inv_freq: Tensor, window: int, longest: int) -> Figure:
    """Three panels: one pair closely, how often rotation overshoots, and all pairs over all distances.

    longest: the largest distance shown, in tokens.
    """
    figure, axes = plt.subplots(1, 3, figsize=(13.2, 3.7), layout="constrained")
    found = overshoot(pairs, torch.arange(ZOOM), 0.5, inv_freq)
    everywhere = overshoot(pairs, torch.arange(0, window, 7), 0.5, inv_freq)
    _one_pair(axes[0], pairs, int(found.beyond.max(1).values.argmax()), inv_freq)
    _shares(axes[1], everywhere)
    _all_distances(axes[2], pairs, inv_freq, window, longest)
    for axis in axes:
        tidy(axis)
    return figure


def _one_pair(axis: Axes, pairs: Pairs, pair: int, inv_freq: Tensor) -> None:
    """The pair with the largest overshoot: integers, the rotation between them, and the interpolation."""
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
    axis.plot(whole, at_integers, color=colour_of("dpi"), linewidth=1.3, label="interpolation")
    axis.plot(whole, at_integers, "o", markersize=4, color=INTEGER, label="integer positions")
    axis.set_xlabel("relative distance, tokens")
    axis.set_ylabel("attention logit")
    axis.set_title(f"one query and key of layer {int(pairs.layer[pair])}", fontsize=10)
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
    axis.axhline(0.0, color=colour_of("dpi"), linewidth=2.5, label="interpolation: none, at any x")
    axis.set_xlim(0, float(beyond[int(0.9999 * len(beyond))]))
    axis.set_xlabel("x, units of the logit")
    axis.set_ylabel("share of logits, %")
    axis.set_title("more than x outside of both neighbours (w = ½)", fontsize=10)
    axis.legend(fontsize=8, frameon=False, loc="upper right")


def _all_distances(axis: Axes, pairs: Pairs, inv_freq: Tensor, window: int, longest: int) -> None:
    """Median and middle 90 % of all pairs' logits over integer distances."""
    distances = torch.linspace(0, longest, 500).round().unique()
    curves = logit_curves(pairs, distances, inv_freq)
    low, middle, high = (curves.quantile(q, dim=0) for q in (0.05, 0.5, 0.95))
    axis.fill_between(distances, low, high, color="#BBBBBB", linewidth=0, label="middle 90 % of pairs")
    axis.plot(distances, middle, color=INTEGER, linewidth=1.2, label="median")
    mark_window(axis, window, top=False)
    axis.set_xlabel("relative distance, tokens")
    axis.set_ylabel("attention logit")
    axis.set_title("all pairs, integer positions", fontsize=10)
    axis.legend(fontsize=8, frameon=False, loc="upper right")
