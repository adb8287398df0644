"""The blend: its identity with the two-logit form, and what it damps."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from analysis.blend import damping
from analysis.pictures.style import colour_of, tidy

COLOURS = ("#0072B2", "#009E73", "#E69F00", "#CC79A7", "#4D4D4D")


def draw(two_logits: Tensor, blended: Tensor, inv_freq: Tensor, name: str) -> Figure:
    """Three panels: the two forms' logits, what is left of a frequency by weight, and at worst by frequency.

    two_logits, blended: (N,). inv_freq: (D/2,), radians a position, of the model called `name`.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12.4, 3.5), layout="constrained")
    error = float((two_logits - blended).abs().max())
    left.plot(two_logits, blended, ".", markersize=3, color=colour_of("dpi"), rasterized=True)
    left.plot(
        [two_logits.min(), two_logits.max()], [two_logits.min(), two_logits.max()], color="#4D4D4D", linewidth=0.8
    )
    left.set_xlabel("two logits at integer positions, interpolated")
    left.set_ylabel("one logit with the blended key")
    left.set_title(f"the same: largest difference {error:.0e}", fontsize=10)
    weight = torch.linspace(0, 1, 101)
    chosen = torch.linspace(0, 0.4 * (len(inv_freq) - 1), len(COLOURS)).round().long()
    size = damping(weight, inv_freq[chosen]).abs()
    for nth, (index, colour) in enumerate(zip(chosen.tolist(), COLOURS, strict=True)):
        middle.plot(weight, size[:, nth], color=colour, linewidth=1.8, label=f"θ = {inv_freq[index]:.2g}")
    middle.set_xlabel("weight w of the lower position")
    middle.set_ylabel("what is left of the frequency's size")
    middle.set_title("damping by weight", fontsize=10)
    middle.set_ylim(float(size.min()) - 0.06, 1.005)
    middle.legend(fontsize=8, frameon=False, title="radians a position", title_fontsize=8, loc="lower center", ncols=3)
    _by_frequency(right, inv_freq, name)
    for axis in (left, middle, right):
        tidy(axis)
    return figure


def _by_frequency(axis: plt.Axes, inv_freq: Tensor, name: str) -> None:
    """The size left at w = 1/2 for every frequency of a model, against cos(θ/2)."""
    index = torch.arange(len(inv_freq))
    worst = damping(torch.tensor([0.5]), inv_freq)[0].abs()
    axis.plot(index, (inv_freq / 2).cos(), color="#4D4D4D", linewidth=1, label="cos(θ/2)")
    axis.plot(index, worst, "o", markersize=4, color=colour_of("dpi"), label="blend at w = ½")
    axis.set_xlabel(f"frequency of {name}, fast to slow")
    axis.set_ylabel("what is left of the frequency's size")
    axis.set_ylim(math.cos(0.5) - 0.01, 1.01)
    axis.set_title("only the fastest are damped", fontsize=10)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
