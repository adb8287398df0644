"""The blend identity, k̃ = (1 − w) R(⌈p⌉) k + w R(⌊p⌋) k, and the damping that it implies.

Two logits at integer positions, interpolated with weights 1 − w and w, are one logit with a blended key. Beside the
rotation by the fractional position ⌈p⌉ − w, the blend multiplies each frequency θ by (1 − w) e^(iwθ) + w e^(−i(1−w)θ):
a damping, strongest at w = ½ where it is cos(θ/2), and a small rotation.
"""

from __future__ import annotations

import math

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from models.DPI.attention.tables import Frequencies, rotate
from models.DPI.help_funcs import attention_score_approximate
from models.DPI.methods.dpi import DPI
from tasks.pictures.style import new_figure, tidy


def interpolated_logits(q: Tensor, k: Tensor, query: Tensor, key: Tensor, frequencies: Frequencies) -> Tensor:
    """The paper's form (equations 4 to 6): two logits at ⌈p_j⌉ and ⌊p_j⌋, mixed. q, k: (N, D); returns (N,).

    query: (N,) integer positions; key: (N,) fractional ones. In fp64, as the products of complex numbers.
    """
    upper = _logit(q, k, query - key.ceil(), frequencies)
    lower = _logit(q, k, query - key.floor(), frequencies)
    return attention_score_approximate(upper, lower, key)


def blended_logits(q: Tensor, k: Tensor, query: Tensor, key: Tensor, frequencies: Frequencies) -> Tensor:
    """This project's form: one logit with the key rotated by a blended table, as `attention/tables.py` makes it."""
    rotated_q = rotate(q, *frequencies.tables(query, q.device))
    rotated_k = rotate(k, *frequencies.tables(key, q.device, blend=True))
    return (rotated_q * rotated_k).sum(-1)


def damping(weight: Tensor, theta: Tensor) -> Tensor:
    """The blend relative to the rotation by the fractional position: complex, (weights, frequencies).

    Its size is what is left of a frequency, its angle how far it is rotated besides.
    """
    w, t = weight[:, None].double(), theta[None].double()
    return (1 - w) * torch.polar(torch.ones_like(w * t), w * t) + w * torch.polar(torch.ones_like(w * t), (w - 1) * t)


def _logit(q: Tensor, k: Tensor, distance: Tensor, frequencies: Frequencies) -> Tensor:
    angle = distance[:, None].double() * frequencies.inv_freq.double()
    return (pair_products(q, k) * torch.polar(torch.ones_like(angle), -angle)).real.sum(-1)


def pair_products(q: Tensor, k: Tensor) -> Tensor:
    """Each pair of components that rotates together as a complex number, q's conjugate times k: (..., D/2).

    The logit at distance Δ is the real part of the sum of these, each rotated by −Δθ.
    """
    half = q.shape[-1] // 2
    complex_q, complex_k = (torch.complex(x[..., :half].double(), x[..., half:].double()) for x in (q, k))
    return complex_q.conj() * complex_k


COLOURS = ("#0072B2", "#009E73", "#E69F00", "#CC79A7", "#4D4D4D")


def draw(two_logits: Tensor, blended: Tensor, inv_freq: Tensor, name: str) -> Figure:
    """Three panels: the two forms' logits, what is left of a frequency by weight, and at worst by frequency.

    two_logits, blended: (N,). inv_freq: (D/2,), radians a position, of the model called `name`.
    """
    figure = new_figure(12.4, 3.5)
    left, middle, right = figure.subplots(1, 3)
    error = float((two_logits - blended).abs().max())
    left.plot(two_logits, blended, ".", markersize=3, color=DPI.colour, rasterized=True)
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


def _by_frequency(axis: Axes, inv_freq: Tensor, name: str) -> None:
    """The size left at w = 1/2 for every frequency of a model, against cos(θ/2)."""
    index = torch.arange(len(inv_freq))
    worst = damping(torch.tensor([0.5]), inv_freq)[0].abs()
    axis.plot(index, (inv_freq / 2).cos(), color="#4D4D4D", linewidth=1, label="cos(θ/2)")
    axis.plot(index, worst, "o", markersize=4, color=DPI.colour, label="blend at w = ½")
    axis.set_xlabel(f"frequency of {name}, fast to slow")
    axis.set_ylabel("what is left of the frequency's size")
    axis.set_ylim(math.cos(0.5) - 0.01, 1.01)
    axis.set_title("only the fastest are damped", fontsize=10)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
