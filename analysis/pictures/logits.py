"""Attention logits against relative distance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Sample:
    """Pairs of one model, its frequencies (D/2,) in radians a position, and its window in tokens."""

    model: str
    pairs: Pairs
    inv_freq: Tensor
    window: int


def draw(samples: Sequence[Sample]) -> Figure:
    """A row a model: one pair closely, how often rotation overshoots, and all pairs over four windows."""
    figure, axes = plt.subplots(
        len(samples), 3, figsize=(13.2, 3.7 * len(samples)), squeeze=False, layout="constrained"
    )
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
    axis.plot(whole, at_integers, color=colour_of("dpi"), linewidth=1.3, label="interpolation")
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
    axis.axhline(0.0, color=colour_of("dpi"), linewidth=2.5, label="interpolation: none, at any x")
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
