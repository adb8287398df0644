"""YaRN: fast frequencies stay, slow ones are interpolated, and logits are scaled (2309.00071).

As transformers computes it: turns within the window between beta_fast = 32 and beta_slow = 1 are blended linearly
over whole dimensions; cos and sin are multiplied by 0.1 ln(factor) + 1. On a linear scheme, whose frequencies are
f_0 * theta ** (-2i / d) with f_0 = 1 / s, a dimension makes f_0 times as many turns.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from models.DPI.attention.bands import Segment
from models.DPI.methods.base import Factor, Method, Rope, factor_for, frequencies_of, one_band, reach_of_factor

BETA_FAST = 32.0
BETA_SLOW = 1.0


class YaRN(Method):
    """factor: how many windows to reach, W * factor >= target."""

    name: ClassVar[str] = "repro_yarn"
    label: ClassVar[str] = "YaRN"
    colour: ClassVar[str] = "#CC79A7"
    marker: ClassVar[str] = "P"
    rope_types: ClassVar[tuple[str, ...] | None] = ("default", "linear", "dynamic")
    rope_types_reason: ClassVar[str] = "it finds the turns of a dimension by the base alone, and these do not follow it"

    factor: Factor

    @classmethod
    def params_for(cls, window: int, target: int) -> dict[str, Any]:
        """The smallest factor that reaches."""
        return factor_for(window, target)

    def reach(self, window: int) -> float:
        """W * factor."""
        return reach_of_factor(window, self.factor)

    def is_causal(self) -> bool:
        """One set of frequencies at every length."""
        return True

    def segments(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """One band at true positions, blended frequencies, scaled logits."""
        scaling = 0.1 * math.log(self.factor) + 1.0
        frequencies = rope.derived(("yarn", self.factor), lambda: _inv_freq(rope, self.factor))
        return one_band(rope, frequencies, past, length, scaling=scaling)


def _inv_freq(rope: Rope, factor: float) -> Tensor:
    """Equations 18-23 of the YaRN paper."""
    d, theta = rope.rotary_dim, rope.theta
    assert theta is not None
    fastest = float(rope.inv_freq[0])
    own = fastest * frequencies_of(theta, d)

    def dimension_of(turns: float) -> float:
        return d * math.log(fastest * rope.window / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension_of(BETA_FAST)), 0)
    high = min(math.ceil(dimension_of(BETA_SLOW)), d - 1)
    span = high - low if high != low else 0.001
    interpolated = ((torch.arange(d // 2).float() - low) / span).clamp(0, 1)  # 0: stays, 1: divided by the factor
    return own / factor * interpolated + own * (1 - interpolated)
