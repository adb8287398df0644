"""YaRN: fast frequencies stay, slow ones are interpolated, and logits are scaled (2309.00071).

As transformers computes it: turns within the window between beta_fast = 32 and beta_slow = 1 are blended linearly
over whole dimensions; cos and sin are multiplied by 0.1 ln(factor) + 1.
"""

import functools
import math
from typing import ClassVar

import torch
from pydantic import Field

from models.DPI.attention.bands import Segment
from models.DPI.attention.tables import Frequencies
from models.DPI.methods.base import Method, Rope, frequencies_of, one_band, reach_of_factor

BETA_FAST = 32.0
BETA_SLOW = 1.0


class YaRN(Method):
    """factor: how many windows to reach, W * factor >= target."""

    name: ClassVar[str] = "repro_yarn"
    needs_theta: ClassVar[bool] = True

    factor: float = Field(ge=1.0)

    def reach(self, window: int) -> float:
        """W * factor."""
        return reach_of_factor(window, self.factor)

    def segments(self, rope: Rope, past: int, length: int) -> list[Segment]:
        """One band at true positions, blended frequencies, scaled logits."""
        scaling = 0.1 * math.log(self.factor) + 1.0
        return one_band(rope, _frequencies(rope, self.factor), past, length, scaling=scaling)


@functools.lru_cache(maxsize=4)
def _frequencies(rope: Rope, factor: float) -> Frequencies:
    """Equations 18-23 of the YaRN paper."""
    d, theta = rope.rotary_dim, rope.theta
    assert theta is not None
    own = frequencies_of(theta, d)

    def dimension_of(turns: float) -> float:
        return d * math.log(rope.window / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension_of(BETA_FAST)), 0)
    high = min(math.ceil(dimension_of(BETA_SLOW)), d - 1)
    span = high - low if high != low else 0.001
    interpolated = ((torch.arange(d // 2).float() - low) / span).clamp(0, 1)  # 0: stays, 1: divided by the factor
    return Frequencies(own / factor * interpolated + own * (1 - interpolated))
