"""The blend identity, k̃ = (1 − w) R(⌈p⌉) k + w R(⌊p⌋) k, and the damping that it implies.

Two logits at integer positions, interpolated with weights 1 − w and w, are one logit with a blended key. Beside the
rotation by the fractional position ⌈p⌉ − w, the blend multiplies each frequency θ by (1 − w) e^(iwθ) + w e^(−i(1−w)θ):
a damping, strongest at w = ½ where it is cos(θ/2), and a small turn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.DPI.attention.tables import Frequencies, rotate


def interpolated_logits(q: Tensor, k: Tensor, query: Tensor, key: Tensor, frequencies: Frequencies) -> Tensor:
    """The paper's form (equations 4 to 6): two logits at ⌈p_j⌉ and ⌊p_j⌋, mixed. q, k: (N, D); returns (N,).

    query: (N,) integer positions; key: (N,) fractional ones. In fp64, as the products of complex numbers.
    """
    weight = key.ceil() - key
    upper = _logit(q, k, query - key.ceil(), frequencies)
    lower = _logit(q, k, query - key.floor(), frequencies)
    return (1 - weight) * upper + weight * lower


def blended_logits(q: Tensor, k: Tensor, query: Tensor, key: Tensor, frequencies: Frequencies) -> Tensor:
    """This project's form: one logit with the key rotated by a blended table, as `attention/tables.py` makes it."""
    turned_q = rotate(q, *frequencies.tables(query, q.device))
    turned_k = rotate(k, *frequencies.tables(key, q.device, blend=True))
    return (turned_q * turned_k).sum(-1)


def damping(weight: Tensor, theta: Tensor) -> Tensor:
    """The blend relative to the rotation by the fractional position: complex, (weights, frequencies).

    Its size is what is left of a frequency, its angle how far it is turned.
    """
    w, t = weight[:, None].double(), theta[None].double()
    return (1 - w) * torch.polar(torch.ones_like(w * t), w * t) + w * torch.polar(torch.ones_like(w * t), (w - 1) * t)


def _logit(q: Tensor, k: Tensor, distance: Tensor, frequencies: Frequencies) -> Tensor:
    angle = distance[:, None].double() * frequencies.inv_freq.double()
    return (pair_products(q, k) * torch.polar(torch.ones_like(angle), -angle)).real.sum(-1)


def pair_products(q: Tensor, k: Tensor) -> Tensor:
    """Each pair of components that rotates together as a complex number, q's conjugate times k: (..., D/2).

    The logit at distance Δ is the real part of the sum of these, each turned by −Δθ.
    """
    half = q.shape[-1] // 2
    complex_q, complex_k = (torch.complex(x[..., :half].double(), x[..., half:].double()) for x in (q, k))
    return complex_q.conj() * complex_k
