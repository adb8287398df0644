"""MrRoPE (2601.22181): other ramps between fast and slow frequencies than YaRN's.

Dimensions l and h are YaRN's, N = h - l, q = i - l between 0 and N. The frequency theta_i is multiplied by s ** -e(q):
Pro: e = q (q + 1) / (N (N + 1)). Uni: q / N.
Cosines and sines are multiplied by 0.1 ln s + 1. Nothing in their authors' code is known to differ.
"""

from typing import Any, ClassVar, Literal

from torch import Tensor

from models.DPI.methods.base import FrequencyMethod, Rope, Temperature
from models.DPI.methods.ramps import ROPE_TYPES, ROPE_TYPES_REASON, slowed


class MrRoPE(FrequencyMethod):
    """factor: s, how many windows to reach, W * factor >= target. variant: "pro" or "uni"."""

    name: ClassVar[str] = "mrrope"
    label: ClassVar[str] = "MrRoPE"
    colour: ClassVar[str] = "#D400D4"
    marker: ClassVar[str] = "H"
    rope_types: ClassVar[tuple[str, ...] | None] = ROPE_TYPES
    rope_types_reason: ClassVar[str] = ROPE_TYPES_REASON
    causal: ClassVar[bool] = True

    variant: Literal["pro", "uni"] = "pro"
    temperature: Temperature = "yarn"

    @classmethod
    def tuning_grid(cls, window: int, target: int) -> list[dict[str, Any]]:
        """Both variants, and Pro without temperature."""
        default = cls.params_for(window, target)
        return [default, {**default, "variant": "uni"}, {**default, "temperature": "none"}]

    def inv_freq(self, rope: Rope) -> Tensor:
        """Slower ones along the variant's ramp."""
        return slowed(rope, self.factor, _pro if self.variant == "pro" else _uni)


def _pro(q: Tensor, n: int) -> Tensor:
    return q * (q + 1) / (n * (n + 1))


def _uni(q: Tensor, n: int) -> Tensor:
    return q / n
