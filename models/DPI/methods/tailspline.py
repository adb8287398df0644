"""TailSpline (unpublished, 2026): MrRoPE with a ramp that is steepest at its fast end.

The exponent of s is q (3 N^2 + 3 N + 1 - q^2) / (N (N + 1) (2 N + 1)), with N and q as in `mrrope`; cosines and sines
are multiplied by 0.1 ln s + 1. No code of its authors is known.
"""

from typing import ClassVar

from torch import Tensor

from models.DPI.methods.base import FrequencyMethod, Rope, Temperature
from models.DPI.methods.ramps import ROPE_TYPES, ROPE_TYPES_REASON, slowed


class TailSpline(FrequencyMethod):
    """factor: s, how many windows to reach, W * factor >= target."""

    name: ClassVar[str] = "tailspline"
    label: ClassVar[str] = "TailSpline"
    colour: ClassVar[str] = "#4A3B00"
    marker: ClassVar[str] = "$T$"
    rope_types: ClassVar[tuple[str, ...] | None] = ROPE_TYPES
    rope_types_reason: ClassVar[str] = ROPE_TYPES_REASON
    causal: ClassVar[bool] = True

    temperature: Temperature = "yarn"

    def inv_freq(self, rope: Rope) -> Tensor:
        """Slower ones along the ramp."""
        return slowed(rope, self.factor, _exponent)


def _exponent(q: Tensor, n: int) -> Tensor:
    return q * (3 * n**2 + 3 * n + 1 - q**2) / (n * (n + 1) * (2 * n + 1))
