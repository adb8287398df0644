"""YaRN: fast frequencies stay, slow ones are interpolated, and logits are scaled (2309.00071).

As transformers computes it: turns within the window between beta_fast = 32 and beta_slow = 1 are blended linearly
over whole dimensions; cos and sin are multiplied by 0.1 ln(factor) + 1.
"""

from typing import ClassVar

import torch
from torch import Tensor

from models.DPI.methods.base import FrequencyMethod, Rope, Temperature, frequencies_of
from models.DPI.methods.ramps import ROPE_TYPES, ROPE_TYPES_REASON, ramp


class YaRN(FrequencyMethod):
    """factor: how many windows to reach, W * factor >= target. temperature: the paper's by default."""

    name: ClassVar[str] = "repro_yarn"
    label: ClassVar[str] = "YaRN"
    colour: ClassVar[str] = "#CC79A7"
    marker: ClassVar[str] = "P"
    rope_types: ClassVar[tuple[str, ...] | None] = ROPE_TYPES
    rope_types_reason: ClassVar[str] = ROPE_TYPES_REASON
    in_paper: ClassVar[bool] = True
    causal: ClassVar[bool] = True

    temperature: Temperature = "yarn"

    def inv_freq(self, rope: Rope) -> Tensor:
        """Equations 21 to 23 of the YaRN paper."""
        d, theta = rope.rotary_dim, rope.theta
        assert theta is not None
        own = float(rope.inv_freq[0]) * frequencies_of(theta, d)
        low, high = ramp(rope)
        span = high - low if high != low else 0.001
        interpolated = ((torch.arange(d // 2).float() - low) / span).clamp(0, 1)  # 0: stays, 1: divided by the factor
        return own / self.factor * interpolated + own * (1 - interpolated)
