"""Ramps between frequencies that stay and those that are divided by the factor, for YaRN and its heirs."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from models.DPI.methods.base import Rope

BETA_FAST = 32.0
BETA_SLOW = 1.0
ROPE_TYPES = ("default", "linear", "dynamic")
ROPE_TYPES_REASON = "it finds the turns of a dimension by the base alone, and these do not follow it"


def ramp(rope: Rope) -> tuple[int, int]:
    """Dimensions between which frequencies go from their own to slower ones: YaRN's equations 18 to 20.

    Those that turn beta_fast times within W, rounded down, and beta_slow times, rounded up. On a linear scheme, whose
    frequencies are f_0 * theta ** (-2i / d) with f_0 = 1 / s, a dimension makes f_0 times as many turns.
    """
    d, theta = rope.rotary_dim, rope.theta
    assert theta is not None
    fastest = float(rope.inv_freq[0])

    def dimension_of(turns: float) -> float:
        return d * math.log(fastest * rope.window / (turns * 2 * math.pi)) / (2 * math.log(theta))

    return max(math.floor(dimension_of(BETA_FAST)), 0), min(math.ceil(dimension_of(BETA_SLOW)), d - 1)


def slowed(rope: Rope, factor: float, exponent: Callable[[Tensor, int], Tensor]) -> Tensor:
    """theta_i * s ** -e(q), (rotary_dim/2,). exponent: of q (fp64) and N; 0 at q = 0, 1 at q = N."""
    low, high = ramp(rope)
    i = torch.arange(rope.rotary_dim // 2)
    if high <= low:
        e = (i > low).double()
    else:
        e = exponent((i - low).clamp(0, high - low).double(), high - low)
    return rope.inv_freq * (factor**-e).float()
